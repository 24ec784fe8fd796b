"""Names from other people's files reach the page, the figures and the tables as text, and as nothing else."""

from pathlib import Path

import pandas as pd

from tasks.report import markdown, report
from tasks.report.provenance import Command, Provenance
from tasks.report.vectors import Vectors
from tests.report import synthetic

MADE = Provenance((Command("chronomerge run \x1b[2J", "a\x07b"),), ("0123456789ab",), {"torch": "\x1b"}, ("cpu",))
HOSTILE = "=cmd() \x1b]0;owned\x07 [red]x[/red] </script><b> a\u202eb ![x](http://e) | `y`\n# z"


def test_a_hostile_name_is_text_everywhere(tmp_path: Path) -> None:
    name = HOSTILE
    table = synthetic.table((name,), 1, 2, ("ema+ema",), with_references=False)
    table = table[table["step"] == 0].copy()
    table["name"] = name if "name" in table else None
    table["cell"] = name
    written = report.write(table, Vectors(), MADE, tmp_path)
    page = written.page.read_text()
    for mark in ("\x1b", "\x07", "\u202e", "<b>"):
        assert mark not in page
    rows = pd.read_csv(tmp_path / "metrics.csv", dtype=str)
    assert not any(str(cell).startswith(("=", "\x1b")) for cell in rows["cell"])
    summary, cells = markdown.summary(table), str(markdown.cells(table))
    for mark in ("\x1b", "\x07", "\u202e"):
        assert mark not in summary + cells
    for mark in ("<b>", "![x](", "\n# z"):
        assert mark not in summary
