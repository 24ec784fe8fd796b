"""Hooks are told what happened, run without a shell, and stop nothing."""

import contextlib
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows import hooks
from tasks import environment, progress
from tasks.errors import UserError
from tasks.params import Hooks, load
from tests.project import PARAMS, git

TELL = f"{sys.executable} -c 'import os; print(sorted(k for k in os.environ if k.startswith(\"CHRONOMERGE\")))'"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A git repository without a commit: enough for hooks."""
    git(tmp_path, "init", "--quiet")
    return tmp_path


def trusted(clone: Path, **commands: object) -> Hooks:
    asked = Hooks.model_validate(commands)
    hooks.trust(clone, asked)
    return asked


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is reported."""
    lines: list[str] = []
    monkeypatch.setattr(progress, "_listener", lambda what, _done, _total, note="": lines.append(f"{what} {note}"))
    return lines


def params(folder: Path, **changes: object) -> None:
    YAML(typ="safe").dump({**PARAMS, **changes}, folder / "params.yaml")


def test_a_hook_is_told_timeline_step_and_tag(clone: Path, heard: list[str]) -> None:
    hooks.recorded(clone, trusted(clone, recorded=TELL), "tiny", 3, "state/tiny/0003")
    said = (clone / ".chronomerge" / "logs" / "hooks.log").read_text()
    for name in ("OUTCOME", "PROJECT", "STEP", "TAG", "TIMELINE"):
        assert f"CHRONOMERGE_{name}" in said
    assert heard == []


def test_no_shell_reads_a_hook(clone: Path) -> None:
    command = f"{sys.executable} -c 'import sys; print(sys.argv[1:])' '$HOME' && touch made"
    hooks.recorded(clone, trusted(clone, recorded=command), "tiny", 0, "state/tiny/0000")
    said = (clone / ".chronomerge" / "logs" / "hooks.log").read_text()
    assert said == "['$HOME', '&&', 'touch', 'made']\n"
    assert not (clone / "made").exists()


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (["/no/such/program"], "No such file"),
        ([sys.executable, "-c", "raise SystemExit(3)"], "ended with status 3"),
        ([sys.executable, "-c", "import time; time.sleep(60)"], "took more than"),
    ],
)
def test_a_hook_that_fails_is_reported_and_stops_nothing(
    clone: Path, heard: list[str], monkeypatch: pytest.MonkeyPatch, command: list[str], why: str
) -> None:
    monkeypatch.setattr(hooks, "SECONDS", 1)
    trusted(clone, failed=command)
    params(clone, hooks={"failed": command})
    hooks.failed(clone, UserError("no such file"))
    assert len(heard) == 1
    assert heard[0].startswith(f"hook failed: {command[0]}: {why}")


def test_a_hook_that_names_no_program_is_refused(tmp_path: Path) -> None:
    params(tmp_path, hooks={"recorded": ""})
    with pytest.raises(UserError, match=r"hooks\.recorded"):
        load(tmp_path / "params.yaml")


def test_a_hook_that_nobody_trusted_here_does_not_run(clone: Path, heard: list[str]) -> None:
    """Nor does one that a repository brings with a note that it is trusted, or one that has changed."""
    brought = Hooks.model_validate({"recorded": "touch made"})
    with pytest.raises(UserError, match=r"recorded: touch made.*--trust"):
        hooks.require_trusted(clone, brought)
    (clone / ".chronomerge").mkdir()
    (clone / ".chronomerge" / "trusted-hooks").write_text(hooks._digest(brought))
    trusted(clone, recorded="touch other")
    hooks.recorded(clone, brought, "tiny", 0, "state/tiny/0000")
    assert not (clone / "made").exists()
    assert heard == ["hook recorded: not run, because it is not trusted in this clone (chronomerge run --trust)"]
    trusted(clone, recorded="touch made")
    hooks.require_trusted(clone, brought)
    hooks.recorded(clone, brought, "tiny", 0, "state/tiny/0000")
    assert (clone / "made").exists()


def ask(clone: Path, answer: str) -> bytes:
    """What `settle_trust` shows on a real terminal, where somebody answers."""
    inner, outer = pty.openpty()
    call = "import pathlib; from flows.cli import options; options.settle_trust(pathlib.Path('.'), False)"
    process = subprocess.Popen(
        [sys.executable, "-c", call], cwd=clone, env=environment.for_child(), stdin=outer, stdout=outer, stderr=outer
    )
    os.close(outer)
    os.write(inner, answer.encode())
    shown = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while part := os.read(inner, 4096):
            shown += part
    process.wait()
    os.close(inner)
    return shown


def test_a_terminal_is_asked_once(clone: Path) -> None:
    params(clone, hooks={"recorded": ["echo", "a\x1b[31m"]})
    asked = ask(clone, "n\n")
    assert b"echo 'a\\x1b[31m'" in asked
    assert b"--trust" in asked
    assert b"Run them from now on?" in ask(clone, "y\n")
    assert ask(clone, "") == b""
