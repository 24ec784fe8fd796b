"""Text from outside is shown, never obeyed; no secret of a URL is shown; text files are UTF-8 in every locale."""

import ast
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from tasks.errors import UserError
from tasks.text import QUOTED, abridged, csv_cell, markdown, one_line, printable, redacted, shortened


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b]0;title\x07b", "a\\x1b]0;title\\x07b"),
        ("a\x9b31mb\x7f\x00", "a\\x9b31mb\\x7f\\x00"),
        ("invoice\u202egpj.exe", "invoice\\u202egpj.exe"),
        ("line\u2028break\ufeff", "line\\u2028break\\ufeff"),
        ("caf\udce9.png", "caf\\xe9.png"),
        ("\ud800 \U000e0041", "\\ud800 \\U000e0041"),
        ("one\r\ntwo\tthree", "one\\x0d\ntwo\tthree"),
        ("Größe 象 نمی\u200cخواهم 👩\u200d🎨 [red]", "Größe 象 نمی\u200cخواهم 👩\u200d🎨 [red]"),
    ],
)
def test_control_characters_are_visible_and_words_stay(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown
    shown.encode()


def test_a_name_cannot_pose_as_another_line() -> None:
    assert one_line("food\n error: all is lost\t!") == "food error: all is lost !"


@pytest.mark.parametrize("length", [0, QUOTED - 1, QUOTED, QUOTED + 1, 10_000])
def test_a_shortened_text_keeps_its_limit_and_counts(length: int) -> None:
    text = shortened("x" * length)
    assert len(text) <= QUOTED
    assert (f"({length} characters in all)" in text) == (length > QUOTED)


@pytest.mark.parametrize(
    "text",
    [
        "https://me:hunter2@host/path",
        "https://hunter2@host/path",
        "clone https://me:p@hunter2@host/path failed",
        "postgresql://me:a/hunter2@host:5432/base",
        "https://host/b?X-Amz-Credential=hunter2%2Fus&X-Amz-Signature=hunter2&x=1",
        "s3://b/k?versionId=1&access_token=hunter2",
        "https://host/#access_token=hunter2",
        "https://host/?api_key=hunter2;b=1",
        "Authorization: Bearer hunter2",
        "{'Authorization': 'Basic hunter2'}".replace("': '", ": "),
    ],
)
def test_no_secret_of_a_url_is_shown(text: str) -> None:
    assert "hunter2" not in redacted(text)
    assert redacted(redacted(text)) == redacted(text)
    assert "hunter2" not in str(UserError(text))


@pytest.mark.parametrize(
    "text",
    [
        "https://host:8080/package@1.2", "s3://bucket/a@b", "git@host:group/project.git", "http://127.0.0.1:4200/api",
        "https://host/?page=2&tokens", "author = me",
    ],
)  # fmt: skip
def test_a_url_without_secrets_stays_as_it_is(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=cmd()", "'=cmd()"), ("+1+1", "'+1+1"), ("-a", "'-a"), ("@SUM(A1)", "'@SUM(A1)"), ("\t=1", "'\t=1"),
        ("-1.5", "-1.5"), ("+2e-3", "+2e-3"), ("food", "food"), ("", ""), ("'=1", "'=1"), ("＝1", "'＝1"),
    ],
)  # fmt: skip
def test_no_cell_is_a_formula(text: str, cell: str) -> None:
    assert csv_cell(text) == cell


def test_markdown_shows_itself() -> None:
    rendered = markdown("[x](javascript:a) | `b` <script>\n# c & ![d](e)")
    assert "<" not in rendered
    assert "\n" not in rendered
    unescaped = rendered.replace("\\", "").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert unescaped == "[x](javascript:a) | `b` <script> # c & ![d](e)"
    for mark in "[]|`":
        assert rendered.count(mark) == rendered.count(f"\\{mark}")


def test_no_markup_of_a_message_reaches_a_terminal() -> None:
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, markup=False, highlight=False, emoji=False, width=80)
    console.print(str(UserError("[red]bad[/red] \x1b[31m :smile: [/x]")))
    assert terminal.getvalue() == "[red]bad[/red] \\x1b[31m :smile: [/x]\n"


def test_a_message_has_no_line_without_end_and_keeps_its_start_and_its_way_out() -> None:
    message = str(UserError(f"config.json: unknown key {'k' * 5000}; remove it\nline two"))
    first, second = message.split("\n")
    assert first.startswith("config.json: unknown key kkk")
    assert first.endswith("kkk; remove it")
    assert "(5036 characters in all)" in first
    assert len(first) == 2 * QUOTED
    assert second == "line two"
    assert abridged(message) == message


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("://a:b", "://a:b"), ("://", "://"), ("#token", "#token"), ("?token.", "?token."), ("@://a:b", "://***@://a:b"),
        ("authorization ", "authorization "),
    ],
)  # fmt: skip
def test_a_long_text_is_redacted_in_time_whatever_it_holds(word: str, shown: str) -> None:
    """Where time grew with the square of the length, 100 kB took a quarter of a minute, and this some hours."""
    text = word * 100_000
    assert redacted(text).endswith(shown)
    assert len(redacted(text)) <= len(text)


ROOT = Path(__file__).parents[1]
BINARY = ("os", "tarfile", "Image", "Pillow")
"""Their `open` opens no text."""


def without_encoding(code: str) -> Iterator[int]:
    """Lines of calls that read or write text in the encoding of the locale.

    ruff's PLW1514 is in preview, and sees only a call on what it knows to be a `Path`: a fifth of them.
    """
    for call in ast.walk(ast.parse(code)):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute | ast.Name):
            continue
        named = {one.arg: one.value for one in call.keywords}
        method = isinstance(call.func, ast.Attribute)
        owner = ast.unparse(call.func).rpartition(".")[0]
        function = call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id
        texts = [one.value for one in (*call.args, *named.values()) if isinstance(one, ast.Constant)]
        modes = [one for one in texts if isinstance(one, str) and one and set(one) <= set("rwaxbt+")]
        path = method and not call.args  # path.open()
        text = {
            "read_text": not call.args,
            "write_text": len(call.args) < 2,
            "fdopen": True,
            "open": path or not method or modes != [],
        }.get(function, getattr(named.get("text"), "value", None) is True)
        if (
            text
            and "encoding" not in named
            and not any("b" in mode for mode in modes)
            and (owner not in BINARY or function == "fdopen")
        ):
            yield call.lineno


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("path.read_text()", True),
        ("path.read_text(errors='replace')", True),
        ("path.write_text(text)", True),
        ("path.open()", True),
        ("path.open('a')", True),
        ("open(path)", True),
        ("os.fdopen(1, 'w')", True),
        ("run(call, text=True)", True),
        ("path.read_text(encoding='utf-8')", False),
        ("path.open('rb')", False),
        ("os.open(path, flags)", False),
        ("run(call)", False),
    ],
)
def test_a_call_in_the_encoding_of_the_locale_is_seen(code: str, found: bool) -> None:
    assert bool(list(without_encoding(code))) is found


def test_text_files_are_utf_8_in_every_locale() -> None:
    """Before Python 3.15, a machine with LANG=de_DE.ISO-8859-1 reads and writes other bytes than one with UTF-8."""
    found = [
        f"{file.relative_to(ROOT)}:{line}"
        for folder in ("chronomerge", "flows", "tasks", "benchmarks", "docs")
        for file in sorted((ROOT / folder).rglob("*.py"))
        for line in without_encoding(file.read_text(encoding="utf-8"))
    ]
    assert found == []
