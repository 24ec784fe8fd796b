"""What was found out about an arrival, for people and for programs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tasks import layout
from tasks.storage import atomic
from tasks.text import one_line, printable, redacted, shortened
from tasks.units import size

Outcome = Literal["arrived", "already there", "would arrive", "refused"]
SHOWN = 20
"""Problems and classes that people are shown; reports have `WRITTEN` problems."""
WRITTEN = 1000
NAMED = 3
"""Of many things, how many a sentence names."""


@dataclass
class Findings:
    """What a check has to say, put down as it goes; a problem is one reason to refuse, said once."""

    problems: dict[str, None] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def complain(self, problem: str) -> None:
        self.problems[quotable(problem)] = None

    def note(self, sentence: str) -> None:
        self.notes[quotable(sentence)] = None


@dataclass(frozen=True)
class Verdict:
    """What became of an arrival, and why."""

    name: str
    outcome: Outcome
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    facts: Mapping[str, Any]
    """``samples``, ``classes`` (name → samples), ``tensors``, ``bytes`` and the like, as far as they are known."""
    arrival: Mapping[str, Any] | None = None
    """As params.yaml has it."""
    step: int | None = None
    """The time step at which it arrives."""
    kept: str | None = None
    """The pointer to its files, where it has any: a path in the project."""
    report: str | None = None
    """Where a refusal was written down: a path in the project."""

    @property
    def refused(self) -> bool:
        return self.outcome == "refused"

    def as_dict(self) -> dict[str, Any]:
        """All of it; of very many problems the first `WRITTEN`."""
        return {
            "name": self.name, "outcome": self.outcome, "problems": list(self.problems[:WRITTEN]),
            "problems_in_all": len(self.problems), "notes": list(self.notes), "facts": dict(self.facts),
            "arrival": dict(self.arrival) if self.arrival else None, "step": self.step, "kept": self.kept,
            "report": self.report,
        }  # fmt: skip

    def lines(self) -> Iterator[str]:
        """All of it, for people."""
        if self.facts:
            yield f"{self.name}: {', '.join(_facts(self.facts))}"
            yield from map(printable, _classes(self.facts.get("classes", {})))
        for note in self.notes:
            yield f"  note: {note}"
        for problem in self.problems[:SHOWN]:
            yield f"  problem: {problem}"
        if len(self.problems) > SHOWN:
            yield f"  … and {len(self.problems) - SHOWN} more" + (f", in {self.report}" if self.report else "")
        match self.outcome:
            case "arrived":
                yield f"{self.name} arrives at step {self.step}; `chronomerge run` takes it from here"
                files = " ".join(filter(None, ["params.yaml", self.kept]))
                yield f"`git add {files}` makes it part of your next commit, and so of other clones"
            case "already there":
                yield f"{self.name} is there already, with this very content: it arrives at step {self.step}"
            case "would arrive":
                yield f"{self.name} would arrive at step {self.step}; nothing was changed"
            case "refused":
                count = len(self.problems)
                left_report = f"; the report is {self.report}" if self.report else ""
                yield f"{self.name} is refused for {count} problem{'s'[: count > 1]}, nothing was changed{left_report}"


def quotable(sentence: str) -> str:
    """A sentence that quotes what came from outside: not too long, with nothing in it that a terminal obeys."""
    return shortened(one_line(redacted(sentence)))


def few(names: Sequence[str]) -> str:
    """The first of many things, for a sentence."""
    return ", ".join(names[:NAMED]) + ", …" * (len(names) > NAMED)


def write_report(project: Path, verdict: Verdict, now: datetime | None = None) -> str:
    """Write a refusal down in the project; returns where."""
    when = now or datetime.now(UTC)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", verdict.name)
    path = layout.private(project) / "refused" / f"{name}-{when:%Y%m%dT%H%M%S%fZ}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"refused_at": when.isoformat(timespec="seconds"), **verdict.as_dict()}
    atomic.write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path.relative_to(project).as_posix()


def _facts(facts: Mapping[str, Any]) -> Iterator[str]:
    for key, value in facts.items():
        if key == "classes":
            yield f"{len(value)} class{'es'[: 2 * (len(value) != 1)]}"
        elif key == "bytes":
            yield size(value)
        elif isinstance(value, float):
            yield f"{key} {value:.3g}"
        else:
            yield f"{value} {key}"


def _classes(classes: Mapping[str, int]) -> Iterator[str]:
    """Samples of each class, rarest first: what is amiss is mostly there."""
    ordered = sorted(classes.items(), key=lambda one: (one[1], one[0]))
    for name, count in ordered[:SHOWN]:
        yield f"  {count:>7} {name}"
    if len(ordered) > SHOWN:
        low, high = ordered[SHOWN][1], ordered[-1][1]
        yield f"  … and {len(ordered) - SHOWN} more classes of {low} to {high} samples"
