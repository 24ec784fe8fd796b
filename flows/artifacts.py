"""What a run found, as artifacts that Prefect shows beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from tasks.grid.cells import Cell
from tasks.report import markdown, records, tidy


def publish(project: Path, cells: Sequence[Cell]) -> None:
    """Publish the summary of some cells, and a table of them, for the flow run that this is called in.

    Raises:
        UserError: a timeline has no states.
    """
    table = tidy.table(records.read(project, cells), {})
    create_markdown_artifact(markdown.summary(table), key="summary", description="What was reached, and what it cost")
    create_table_artifact(markdown.cells(table), key="cells", description="Every cell at its last step, in percent")
