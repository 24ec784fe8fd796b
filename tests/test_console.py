"""Progress on a terminal and without one: text as it is, no markup, no secrets."""

import os
import pty
import subprocess
import sys

import pytest

from tasks import console, environment

HOSTILE = "[/red] \x1b]0;owned\x07 s3://me:hunter2@host/b \u202e\nerror: all is lost"
SHOWN = "[/red] \\x1b]0;owned\\x07 s3://***@host/b \\u202e error: all is lost"


def test_without_a_terminal_a_line_has_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    with console.shown() as progress:
        progress(HOSTILE, 1, 1, HOSTILE)
    assert capsys.readouterr().err == f"{SHOWN} {SHOWN}\n"


def test_on_a_terminal_neither_bars_nor_lines_obey_text() -> None:
    call = f"from tasks import console\nwith console.shown() as p:\n  p({HOSTILE!r}, 0, 2, {HOSTILE!r})\n"
    call += f"  p({HOSTILE!r}, 2, 2, {HOSTILE!r})"
    inner, outer = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", call], stdout=outer, stderr=outer, env=environment.for_child(COLUMNS="300", TERM="xterm")
    )
    os.close(outer)
    received = b""
    try:
        while part := os.read(inner, 65536):
            received += part
    except OSError:  # the other end is closed
        pass
    os.close(inner)
    assert process.wait() == 0
    assert f"{SHOWN} {SHOWN}".encode() in received.replace(b" 2/2", b"")
    for mark in (b"\x1b]", b"\x07", "\u202e".encode(), b"hunter2", b"Traceback"):
        assert mark not in received
