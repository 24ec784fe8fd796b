from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.model.torchvision_shim import LINE, MODULE

PACKAGE = Path(__file__).parents[2] / "tasks/model/torchvision_shim.py"


def python(
    code: str, *options: str, folder: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, without our code on its path unless the environment has it."""
    command = [sys.executable, *options, "-c", code]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_plain_open_clip_imports_in_the_environment_of_make_install(tmp_path: Path) -> None:
    code = "import sys, open_clip; sys.exit(any(name.split('.')[0] in ('tasks', 'flows') for name in sys.modules))"
    done = python(code, folder=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_start_of_python_imports_nothing_for_it(tmp_path: Path) -> None:
    code = f"import sys; sys.exit(bool({{'torch', 'torchvision', 'tasks', {MODULE!r}}} & set(sys.modules)))"
    assert python(code, folder=tmp_path).returncode == 0


@pytest.fixture
def torchvision(tmp_path: Path) -> Path:
    """A folder with a torchvision of our own, the module as `make install` copies it, and a stand-in for torch."""
    (tmp_path / f"{MODULE}.py").write_text(PACKAGE.read_text())
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").touch()
    (tmp_path / "torch/library.py").write_text(
        "class Library:\n"
        "    def __init__(self, *names): self.schemas = []\n"
        "    def define(self, schema): defined.append(schema.partition('(')[0])\n"
        "defined = []\n"
    )
    (tmp_path / "torchvision").mkdir()
    return tmp_path


def test_each_missing_operator_is_defined_and_the_import_tried_again(torchvision: Path) -> None:
    (torchvision / "torchvision/__init__.py").write_text("from torchvision import ops\n")
    (torchvision / "torchvision/ops.py").write_text(
        "from torch.library import defined\n"
        "for name in ('nms', 'qnms'):\n"
        "    if name not in defined: raise RuntimeError(f'operator torchvision::{name} does not exist')\n"
    )
    code = LINE + "import torchvision\nfrom torch.library import defined\nprint(defined, torchvision.ops.__name__)"
    done = python(code, "-S", folder=torchvision)
    assert (done.stdout, done.stderr) == ("['nms', 'qnms'] torchvision.ops\n", "")


@pytest.mark.parametrize(
    "message",
    ["torchvision is broken", "operator torchvision::new does not exist", "operator torchvision::nms does not exist"],
)
def test_any_other_failure_of_torchvision_is_shown_unchanged(torchvision: Path, message: str) -> None:
    (torchvision / "torchvision/__init__.py").write_text(f"raise RuntimeError({message!r})\n")
    done = python(LINE + "import torchvision", "-S", folder=torchvision)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith(f"RuntimeError: {message}")
