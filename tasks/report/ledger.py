"""What nodes took and wrote: every run and every content counted where it first comes, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tasks.report.records import RAW, Record
from tasks.storage.cache import Entry

INPUTS = "inputs"
"""What stands for the fetching of raw files among the nodes."""


class Ledger:
    """Goes through records in order, and remembers what it has seen."""

    def __init__(self) -> None:
        self._runs: set[tuple[Any, ...]] = set()
        self._contents: set[str] = set()

    def rows(self, record: Record) -> Iterator[tuple[str, str, str, float]]:
        """Metric, data set, role and value of what the nodes of one state took and wrote."""
        contents = record.manifest.contents
        yield f"bytes:{INPUTS}", "", "", sum(self._new(contents[path]) for path in RAW)
        for node, seconds in record.manifest.seconds.items():
            made = [contents[path] for path in record.outputs[node]]
            # Runs have no name of their own; two of one node with equal outputs do not take equal milliseconds.
            run = (node, *(each.md5 for each in made), seconds)
            yield f"seconds:{node}", "", "", seconds
            yield f"reused:{node}", "", "", float(run in self._runs)
            yield f"bytes:{node}", "", "", sum(self._new(each) for each in made)
            self._runs.add(run)

    def _new(self, content: Entry) -> int:
        """The bytes of a file or folder, unless they were counted before."""
        known = content.md5 in self._contents
        self._contents.add(content.md5)
        return 0 if known else content.size
