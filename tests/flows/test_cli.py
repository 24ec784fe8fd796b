"""The command line itself: help, version, closed pipes, what it prints of names from files."""

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from flows.cli import options, terminal
from flows.cli.app import app
from tests.project import git

COMMAND = [sys.executable, "-m", "flows"]


def verbs() -> list[tuple[str, ...]]:
    """Every verb, and every verb within a verb."""
    names: list[tuple[str, ...]] = []
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", {})
        names += [(name, one) for one in inner] if inner else [(name,)]
    return names


@pytest.mark.parametrize("width", ["40", "80"])
@pytest.mark.parametrize("verb", verbs(), ids=" ".join)
def test_help_shows_whole_option_names_at_any_width(verb: tuple[str, ...], width: str) -> None:
    shown = CliRunner().invoke(app, [*verb, "--help"], env={"COLUMNS": width})
    assert shown.exit_code == 0
    command = get_command(app)
    for name in verb:
        command = command.commands[name]  # type: ignore[attr-defined]
    for parameter in command.params:
        assert all(option in shown.stdout for option in parameter.opts if option.startswith("-"))
    assert not re.search(r"\w [.,;:](\s|$)", shown.stdout)


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    shown = CliRunner().invoke(app, ["--version"])
    assert (shown.exit_code, shown.stdout) == (0, f"chronomerge {version('chronomerge')}\n")


def test_a_shell_gets_completion() -> None:
    asked = {"_CHRONOMERGE_COMPLETE": "complete_bash", "COMP_WORDS": "chronomerge rest", "COMP_CWORD": "1"}
    command = Path(sys.executable).with_name("chronomerge")
    shown = subprocess.run([command], capture_output=True, text=True, check=True, env={**os.environ, **asked})
    assert shown.stdout.split() == ["restore"]


@pytest.mark.parametrize("verb", ["techniques", "techniques --json", "--help", "merge --help"])
def test_a_closed_pipe_is_no_error(verb: str) -> None:
    process = subprocess.Popen(
        [*COMMAND, *verb.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, text=False
    )
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


def test_errors_survive_a_closed_stderr(tmp_path: Path) -> None:
    process = subprocess.Popen([*COMMAND, "status"], cwd=tmp_path, stderr=subprocess.PIPE, bufsize=0)
    assert process.stderr
    process.stderr.close()
    assert process.wait() == 2


HOSTILE = "a\x1b]0;owned\x07[red]b[/red] \u202e:smile: \x9b31m\udcff"
SHOWN = "a\\x1b]0;owned\\x07[red]b[/red] \\u202e:smile: \\x9b31m\\xff"


def everything(terminal: int) -> bytes:
    """All that was written to a terminal that nobody has open any more; one read may give a part of it."""
    received = b""
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # Linux says so where others say that the end is reached
            return received
        if not piece:
            return received
        received += piece


def test_a_terminal_obeys_no_text() -> None:
    """Through a real terminal: sentences, and cells and titles of tables."""
    from rich.table import Table

    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    inner, outer = pty.openpty()
    with os.fdopen(outer, "w", encoding="utf-8") as file:
        console = terminal.Terminal()
        console.file = file
        console.width = 100
        console.print(HOSTILE, style="red")
        console.print(table)
    received = everything(inner).decode()
    os.close(inner)
    assert received.count(SHOWN) == 4
    for mark in ("\x1b]", "\x07", "\x9b", "\u202e"):
        assert mark not in received


def test_json_for_programs_is_plain_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(terminal.out, "_file", written)
    terminal.print_json({"name": HOSTILE, "word": "Größe"})
    assert written.getvalue().isascii()
    assert json.loads(written.getvalue()) == {"name": HOSTILE, "word": "Größe"}
    written.truncate(0)
    terminal.print_json([float("nan"), {"a": -float("inf")}, "NaN"])
    assert json.loads(written.getvalue().strip("\0")) == [None, {"a": None}, "NaN"]


def test_the_first_command_in_a_project_makes_its_private_folder_for_its_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "a project")
    monkeypatch.chdir(tmp_path)
    options.project()
    assert (tmp_path / ".chronomerge").stat().st_mode & 0o777 == 0o700
    (tmp_path / ".chronomerge").chmod(0o755)
    options.project()
    assert (tmp_path / ".chronomerge").stat().st_mode & 0o777 == 0o700
