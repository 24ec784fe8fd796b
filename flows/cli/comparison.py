"""The difference of two states: as sections for people, as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from tasks.record import Difference
from tasks.storage.cache import Entry
from tasks.units import size


def row(difference: Difference) -> dict[str, Any]:
    def content(entry: Entry | None) -> dict[str, Any] | None:
        return entry.as_dict() if entry else None

    return {
        "old": difference.old.tag,
        "new": difference.new.tag,
        "params": {key: {"old": was, "new": now} for key, (was, now) in difference.params.items()},
        "data": {path: {"old": content(was), "new": content(now)} for path, (was, now) in difference.data.items()},
        "code": {
            "old": difference.old.manifest.code.as_dict(),
            "new": difference.new.manifest.code.as_dict(),
            "files": [{"path": file.path, "added": file.added, "removed": file.removed} for file in difference.files],
        },
        "machine": {name: {"old": was, "new": now} for name, (was, now) in difference.machine.items()},
        "metrics": {
            name: {"old": was, "new": now, "difference": _gain(was, now)}
            for name, (was, now) in difference.metrics.items()
        },
    }


def table(difference: Difference) -> RenderableType:
    """A section for each kind of change; a kind without changes is one line."""
    return Group(f"from {difference.old.tag} to {difference.new.tag}", *_sections(difference))


def _sections(difference: Difference) -> Iterator[RenderableType]:
    states = (difference.old, difference.new)
    alike = difference.old.timeline == difference.new.timeline
    old, new = (state.name if alike else state.tag for state in states)
    yield _section("metrics", [
        (name, _number(was), _number(now), "" if (gain := _gain(was, now)) is None else f"{gain:+.2f}")
        for name, (was, now) in difference.metrics.items()
    ], old, new, "difference")  # fmt: skip
    yield _section(
        "params", [(key, _value(was), _value(now)) for key, (was, now) in difference.params.items()], old, new
    )
    yield _section(
        "data", [(path, _content(was), _content(now)) for path, (was, now) in difference.data.items()], old, new
    )
    commits = [state.manifest.code.label for state in states]
    changed = [(file.path, _lines(file.removed), _lines(file.added)) for file in difference.files]
    yield _section(f"code ({' → '.join(dict.fromkeys(commits))})", changed, "removed", "added")
    yield _section(
        "machine", [(name, _value(was), _value(now)) for name, (was, now) in difference.machine.items()], old, new
    )


def _section(title: str, rows: Sequence[tuple[str, ...]], *columns: str) -> RenderableType:
    if not rows:
        return f"{title}: the same"
    made = Table(title=title, title_justify="left", box=box.HORIZONTALS, padding=(0, 1, 0, 0))
    made.add_column("")
    for column in columns:
        made.add_column(column, justify="right" if title == "metrics" else "left", overflow="fold")
    for one in rows:
        made.add_row(*one)
    return made


def _gain(was: float | None, now: float | None) -> float | None:
    return None if was is None or now is None else round(now - was, 4)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _value(value: object) -> str:
    return "–" if value is None else str(value)


def _content(entry: Entry | None) -> str:
    return f"{entry.md5[:7]} {size(entry.size)}" if entry else "–"


def _lines(count: int | None) -> str:
    return "binary" if count is None else f"{count} lines"
