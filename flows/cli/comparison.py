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


def row(found: Difference) -> dict[str, Any]:
    def content(entry: Entry | None) -> dict[str, Any] | None:
        return entry.as_dict() if entry else None

    return {
        "old": found.old.tag,
        "new": found.new.tag,
        "params": {key: {"old": was, "new": now} for key, (was, now) in found.params.items()},
        "data": {path: {"old": content(was), "new": content(now)} for path, (was, now) in found.data.items()},
        "code": {
            "old": found.old.manifest.code.as_dict(),
            "new": found.new.manifest.code.as_dict(),
            "files": [{"path": file.path, "added": file.added, "removed": file.removed} for file in found.files],
        },
        "machine": {name: {"old": was, "new": now} for name, (was, now) in found.machine.items()},
        "metrics": {
            name: {"old": was, "new": now, "difference": _gain(was, now)} for name, (was, now) in found.metrics.items()
        },
    }


def table(found: Difference) -> RenderableType:
    """A section for each kind of change; a kind without changes is one line."""
    return Group(f"from {found.old.tag} to {found.new.tag}", *_sections(found))


def _sections(found: Difference) -> Iterator[RenderableType]:
    states = (found.old, found.new)
    alike = found.old.timeline == found.new.timeline
    old, new = (state.name if alike else state.tag for state in states)
    yield _section("metrics", [
        (name, _number(was), _number(now), "" if (gain := _gain(was, now)) is None else f"{gain:+.2f}")
        for name, (was, now) in found.metrics.items()
    ], old, new, "difference")  # fmt: skip
    yield _section("params", [(key, _value(was), _value(now)) for key, (was, now) in found.params.items()], old, new)
    yield _section("data", [(path, _content(was), _content(now)) for path, (was, now) in found.data.items()], old, new)
    commits = [state.manifest.code.label for state in states]
    changed = [(file.path, _lines(file.removed), _lines(file.added)) for file in found.files]
    yield _section(f"code ({' → '.join(dict.fromkeys(commits))})", changed, "removed", "added")
    yield _section(
        "machine", [(name, _value(was), _value(now)) for name, (was, now) in found.machine.items()], old, new
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
