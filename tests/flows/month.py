"""Days in the life of a timeline, drawn from a seed: what arrives, what breaks, what people do."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum


class Kind(Enum):
    """What a drop holds."""

    IMAGES = "images"
    EXPERT = "an expert"
    HARMFUL = "a harmful expert"
    """Nothing is wrong with the file; what it does to the model fails the gate."""
    TORN = "a torn image"
    COPIED = "a test image"
    NAN = "an expert with NaN"

    @property
    def reason(self) -> str | None:
        """Why it is refused, in the report's words; None where it is not."""
        return {Kind.TORN: "not an image", Kind.COPIED: "is a test image", Kind.NAN: "not finite"}.get(self)


class Trouble(Enum):
    """What goes wrong on a day, or in the night after it."""

    INBOX = "inbox killed"
    """SIGKILL to the command that looks into it; the next day looks again."""
    RUN = "run killed"
    """SIGKILL to the process that does the work; Prefect's tries again."""
    FLOW = "flow run killed"
    """SIGKILL to Prefect's process; the next night goes on."""
    SERVE = "serve killed"
    """SIGKILL to what starts all of them; somebody starts it again, a day or two later."""
    BLINK = "store away"
    """It is back when the run has noticed, which tries again."""
    OUTAGE = "store away till noon"
    """The night fails, and the next day's look into the inbox too."""


MOMENTS = ("at its start", "in its step", "once trained", "once merged", "once evaluated")
"""When a night's work is disturbed."""
LOOKS = ("while copying", "once copied", "once kept")
"""When a look into the inbox is disturbed."""


@dataclass(frozen=True)
class Extent:
    """How long it lasts, and how much happens: a rollback; drops with an expert, a harmful one, three bad."""

    days: int
    busy: int
    """Days on which something good arrives."""
    good: int
    """How many good drops arrive."""
    troubles: tuple[Trouble, ...]
    """A busy day each."""
    calm: int
    """Days without any trouble up to the rollback, so that all that arrived is recorded."""

    end: int
    """Days at the end on which nothing arrives."""


EXTENTS = {
    extent.days: extent
    for extent in (
        Extent(days=30, busy=7, good=9, troubles=tuple(Trouble), calm=3, end=3),
        Extent(days=8, busy=4, good=5, troubles=(Trouble.SERVE, Trouble.FLOW, Trouble.OUTAGE), calm=2, end=1),
    )
}


@dataclass(frozen=True)
class MonthDrop:
    """What somebody puts into the inbox; names sort in the order they come."""

    name: str
    kind: Kind


@dataclass
class Day:
    """A day, and the night after it."""

    number: int
    drops: list[MonthDrop] = field(default_factory=list)
    trouble: Trouble | None = None
    moment: str = ""
    served: bool = True
    """Whether anybody serves the timeline when the night begins."""
    rollback: bool = False
    """Whether somebody goes back by one state."""

    @property
    def good(self) -> list[MonthDrop]:
        return [drop for drop in self.drops if drop.kind.reason is None]


def drawn(days: int, seed: int) -> list[Day]:
    """All that happens in so many days, which `EXTENTS` knows."""
    chance, extent = random.Random(seed), EXTENTS[days]
    while not _makes_sense(month := _draw(chance, extent), extent):
        pass
    return month


def _draw(chance: random.Random, extent: Extent) -> list[Day]:
    days = [Day(number) for number in range(1, extent.days + 1)]
    busy = sorted(chance.sample(range(1, extent.days - extent.end), extent.busy), key=lambda _: chance.random())
    kinds = [Kind.EXPERT, Kind.HARMFUL, *[Kind.IMAGES] * (extent.good - 2)]
    chance.shuffle(kinds)
    bad = [(chance.choice(days[1:-3]).number - 1, kind) for kind in (Kind.TORN, Kind.COPIED, Kind.NAN)]
    twice = chance.sample(busy, extent.good - extent.busy)
    for at, kind in sorted([*zip([*busy, *twice], kinds, strict=True), *bad], key=lambda one: one[0]):
        drops = days[at].drops
        drops.append(MonthDrop(f"day-{days[at].number:02d}-{'abcdef'[len(drops)]}", kind))
    for at, trouble in zip(busy, extent.troubles, strict=False):
        days[at].trouble, days[at].moment = trouble, chance.choice(LOOKS if trouble is Trouble.INBOX else MOMENTS)
        if trouble is Trouble.SERVE:
            for later in days[at + 1 : at + 1 + chance.randint(1, 2)]:
                later.served = False
    chance.choice(days).rollback = True
    return days


def _makes_sense(days: Sequence[Day], extent: Extent) -> bool:
    """Whether what is to be disturbed happens at all, and the rollback comes when all that arrived is recorded."""
    pairs = list(itertools.pairwise(days))
    noon = all(
        after.good and after.trouble is not Trouble.INBOX for day, after in pairs if day.trouble is Trouble.OUTAGE
    )
    awake = days[-1].served and all(day.served for day in days if day.trouble not in (None, Trouble.INBOX))
    at = next(day.number for day in days if day.rollback) - 1
    before_it = days[max(0, at - extent.calm + 1) : at + 1]
    calm = not days[at].drops and all(day.served and not day.trouble for day in before_it)
    before = [drop.kind for day in days[:at] for drop in day.good]
    return noon and awake and calm and 3 <= len(before) < extent.good and Kind.HARMFUL not in before[-2:]


def arrivals(days: Sequence[Day]) -> Iterator[list[MonthDrop]]:
    """The good drops before the rollback, and those after it."""
    at = next(day.number for day in days if day.rollback) - 1
    for part in (days[:at], days[at:]):
        yield [drop for day in part for drop in day.good]
