"""``import chronomerge``: quick to import, and a whole timeline from Python."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import chronomerge as cm
import tasks.record
from tasks.storage.cache import hash_of
from tests import project as projects


def test_importing_is_quick_and_brings_nothing_heavy() -> None:
    code = "import sys, time; t = time.process_time(); import chronomerge; print(time.process_time() - t, *sys.modules)"
    seconds, *modules = min(
        (subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
         for _ in range(3)), key=lambda each: float(each[0]),
    )  # fmt: skip
    assert float(seconds) < 0.1
    assert not {"torch", "prefect", "numpy", "pydantic", "dvc"} & set(modules)


@pytest.mark.parametrize("package", [cm, tasks.record])
def test_lazy_names_are_those_that_type_checkers_see(package: object) -> None:
    """A package lists its names twice: once for type checkers, once for its first use."""
    source = Path(str(package.__file__)).read_text()  # type: ignore[attr-defined]
    (block,) = (node for node in ast.parse(source).body if isinstance(node, ast.If))
    seen = {alias.asname or alias.name: (node.module, alias.name) for node in block.body
            if isinstance(node, ast.ImportFrom) for alias in node.names}  # fmt: skip
    assert sorted(seen) == package.__all__  # type: ignore[attr-defined]
    for name, (module, attribute) in seen.items():
        home = __import__(str(module), fromlist=[attribute])
        assert getattr(package, name) is getattr(home, attribute)


def test_merging_needs_no_project(tmp_path: Path) -> None:
    for name, value in (("base", 0.0), ("a", 1.0), ("b", 3.0)):
        save_file({"w": np.full(4, value, np.float32)}, tmp_path / f"{name}.safetensors")
    experts = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    cm.merge("linear", experts, None, tmp_path / "out.safetensors")
    assert load_file(tmp_path / "out.safetensors")["w"].tolist() == [2.0] * 4
    assert "ties" in cm.techniques()


def test_what_is_no_project_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(cm.UserError, match="not in a git repository"):
        cm.states(tmp_path)


STORY = """
import json
import chronomerge as cm

zero = cm.advance()
made = cm.run()
again, nothing = cm.run(), cm.advance() is None
one = cm.states()[1]
restored = one.restore("../one")
verified = one.verify()
back = cm.rollback(0)
written = cm.report()
print(json.dumps({
    "zero": zero.tag, "made": [state.tag for state in made], "again": again, "nothing": nothing,
    "arrival": one.manifest.arrival, "folder": str(restored.folder), "verified": verified.same,
    "back": back.tag, "all": [state.tag for state in cm.states(all_lines=True)], "page": str(written.page),
    "deployed": one.entries["data/step/deployed.safetensors"].md5,
}))
"""


@pytest.mark.slow
def test_a_timeline_from_python(tmp_path: Path, prefect_api: dict[str, str]) -> None:
    """In a process of its own, with the project's code, as a script of a user would run."""
    project = projects.make(tmp_path / "project", stream=projects.PARAMS["stream"][:1])
    done = projects.script(project, STORY, **prefect_api)
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["zero"], told["made"]) == ("state/tiny/0000", ["state/tiny/0001"])
    assert told["again"] == []
    assert told["arrival"] == "first"
    assert told["verified"]
    assert told["back"] == "state/tiny/0000.2"
    assert told["all"] == ["state/tiny/0000", "state/tiny/0001", "state/tiny/0000.2"]
    assert told["nothing"]
    assert hash_of(tmp_path / "one" / "data/step/deployed.safetensors").md5 == told["deployed"]
    assert Path(told["page"]).exists()
