"""Hooks are told what happened, run without a shell, and stop nothing."""

import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows import hooks
from tasks import progress
from tasks.errors import UserError
from tasks.params import Hooks, load
from tests.project import PARAMS

TELL = f"{sys.executable} -c 'import os; print(sorted(k for k in os.environ if k.startswith(\"CHRONOMERGE\")))'"


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is reported."""
    lines: list[str] = []
    monkeypatch.setattr(progress, "_listener", lambda what, _done, _total, note="": lines.append(f"{what} {note}"))
    return lines


def params(folder: Path, **changes: object) -> None:
    YAML(typ="safe").dump({**PARAMS, **changes}, folder / "params.yaml")


def test_a_hook_is_told_timeline_step_and_tag(tmp_path: Path, heard: list[str]) -> None:
    hooks.recorded(tmp_path, Hooks.model_validate({"recorded": TELL}), "tiny", 3, "state/tiny/0003")
    said = (tmp_path / ".chronomerge" / "logs" / "hooks.log").read_text()
    for name in ("OUTCOME", "PROJECT", "STEP", "TAG", "TIMELINE"):
        assert f"CHRONOMERGE_{name}" in said
    assert heard == []


def test_no_shell_reads_a_hook(tmp_path: Path) -> None:
    command = f"{sys.executable} -c 'import sys; print(sys.argv[1:])' '$HOME' && touch made"
    hooks.recorded(tmp_path, Hooks.model_validate({"recorded": command}), "tiny", 0, "state/tiny/0000")
    said = (tmp_path / ".chronomerge" / "logs" / "hooks.log").read_text()
    assert said == "['$HOME', '&&', 'touch', 'made']\n"
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (["/no/such/program"], "No such file"),
        ([sys.executable, "-c", "raise SystemExit(3)"], "ended with status 3"),
        ([sys.executable, "-c", "import time; time.sleep(60)"], "took more than"),
    ],
)
def test_a_hook_that_fails_is_reported_and_stops_nothing(
    tmp_path: Path, heard: list[str], monkeypatch: pytest.MonkeyPatch, command: list[str], why: str
) -> None:
    monkeypatch.setattr(hooks, "SECONDS", 1)
    params(tmp_path, hooks={"failed": command})
    hooks.failed(tmp_path, UserError("no such file"))
    assert len(heard) == 1
    assert heard[0].startswith(f"hook failed: {command[0]}: {why}")


def test_a_hook_that_names_no_program_is_refused(tmp_path: Path) -> None:
    params(tmp_path, hooks={"recorded": ""})
    with pytest.raises(UserError, match=r"hooks\.recorded"):
        load(tmp_path / "params.yaml")
