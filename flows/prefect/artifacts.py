"""What a run found, as artifacts that Prefect shows beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.prefect import step_summary
from tasks import progress
from tasks.grid.cells import Cell
from tasks.record import State


def publish(project: Path, cells: Sequence[Cell]) -> None:
    """Publish the summary of some cells, and a table of them, for the flow run that this is called in.

    Raises:
        UserError: a timeline has no states.
    """
    from tasks.report import markdown, records, tidy  # and pandas: a timeline has no use for it

    table = tidy.table(records.read(project, cells), {})
    create_markdown_artifact(markdown.summary(table), key="summary", description="What was reached, and what it cost")
    create_table_artifact(markdown.cells(table), key="cells", description="Every cell at its last step, in percent")


def publish_step(state: State, previous: State | None) -> None:
    """Publish the summary of a step that was recorded just now; a view, so that nothing of it can stop a run."""
    try:
        create_markdown_artifact(
            step_summary.text(state, previous), key=step_summary.key(state.timeline), description=state.tag
        )
    except Exception as error:  # whatever a server that has gone makes the client raise
        progress.report("Prefect has no summary:", 1, 1, f"{state.tag}: {type(error).__name__}: {error}")
