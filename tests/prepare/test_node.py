"""The nodes as commands, and what they leave where there's nothing to prepare or something is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.errors import UserError
from tasks.prepare import node
from tests.prepare.conftest import arrival, params

ROOT = Path(__file__).parents[2]


def test_nothing_arrives_at_step_0(project: Path) -> None:
    node.prepare_arrival(project, params(step=0))
    assert [p.name for p in (project / "data/step/arrival").iterdir()] == ["nothing.json"]


def test_a_mistake_is_one_line_and_status_2(project: Path) -> None:
    content = json.loads(params(arrival=arrival("icons:food"), step=1).model_dump_json(exclude_none=True))
    (project / "params.yaml").write_text(json.dumps(content))
    before = project / "data/step/arrival/kept"
    before.parent.mkdir(parents=True)
    before.touch()
    command = [sys.executable, "-m", "tasks", "prepare"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "noto-1.2.9.tgz is missing" in done.stderr
    assert before.exists()  # what was there is replaced only by something whole
    assert [p.name for p in (project / "data/step").iterdir()] == ["arrival"]


def test_raw_files_of_a_folder_are_missing(project: Path) -> None:
    with pytest.raises(UserError, match="missing or damaged; fetch the arrival again"):
        node.prepare_arrival(project, params(arrival=arrival("images:photos"), step=1))


@pytest.mark.parametrize("content", ["", "{}", '{"image_size": 0}', '{"image_size": 32, "interpolation": "nearest"}'])
def test_a_broken_preprocess_file(project: Path, content: str) -> None:
    (project / "data/history/model/preprocess.json").write_text(content)
    with pytest.raises(UserError, match=r"preprocess\.json: "):
        node.prepare_arrival(project, params(arrival=arrival("icons:food"), step=1))


def test_importing_and_checking_is_light() -> None:
    heavy = "torch", "datasets", "PIL", "resvg_py", "open_clip", "pandas", "prefect"
    script = (
        "import sys; from pathlib import Path; from tasks import prepare, params; "
        f"prepare.check(params.load(Path({str(ROOT / 'params.yaml')!r}))); "
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
