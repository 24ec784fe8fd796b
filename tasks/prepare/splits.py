"""Train and test parts of a source: those that its files come with, and shares that are drawn.

A drawn share goes by a hash of each sample's name and the seed, so what is added later moves nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks.errors import UserError
from tasks.randomness import derive

Split = Literal["train", "test"]
PART_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "test": ("test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation"),
}
"""What parts are called; of several that mean ``test``, the first that is there."""

_SHARE = re.compile(r"\[?(?:(\d+(?:\.\d+)?)%)?:(?:(\d+(?:\.\d+)?)%)?\]?")


@dataclass(frozen=True)
class Share:
    """Samples between two percentages, e.g. ``:80%``; ``:80%`` and ``80%:`` have no sample in common."""

    low: float = 0.0
    high: float = 100.0

    @classmethod
    def parse(cls, text: str) -> Share:
        """Read ``[:80%]``, with or without brackets.

        Raises:
            ValueError: it is not of that form, or empty.
        """
        parsed = _SHARE.fullmatch(text.replace(" ", ""))
        if not parsed:
            raise ValueError(f"a share is written [:80%], [80%:] or [20%:80%], got {text!r}")
        low, high = float(parsed[1] or 0), float(parsed[2] or 100)
        if not 0 <= low < high <= 100:
            raise ValueError(f"a share goes from a lower to a higher percentage, both within 0% and 100%, got {text!r}")
        return cls(low, high)

    def holds(self, name: str, seed: int) -> bool:
        """Whether the sample of this name is in the share."""
        position = derive(seed, "split", name)  # 64 bits
        above = self.low == 0 or position < _place(self.low)
        return above and (self.high == 100 or position >= _place(self.high))

    def __str__(self) -> str:
        low, high = ("" if edge in (0, 100) else f"{edge:g}%" for edge in (self.low, self.high))
        return f"[{low}:{high}]"


def _place(percent: float) -> float:
    """The hash at which a percentage ends; hashes run from high to low, so that `drawn` agrees with shares."""
    return (100 - percent) / 100 * 2**64


def drawn(name: str, seed: int, fraction: float) -> Split:
    """The side on which an image falls, by a hash of its name and the seed alone; ``fraction`` of them are tests."""
    return "test" if derive(seed, "split", name) < fraction * 2**64 else "train"


@dataclass(frozen=True)
class Parts:
    """The parts that a source comes with: what the train part and the test part are called, as far as there are."""

    names: dict[Split, str]
    others: tuple[str, ...] = ()
    """More names of parts, which neither ``#train`` nor ``#test`` reads."""

    @property
    def complete(self) -> bool:
        return len(self.names) == len(PART_NAMES)

    def pick(self, split: Split | None, what: str) -> str | None:
        """The name of the part that was asked for; None where the source has no parts.

        Raises:
            UserError: there are two parts and none was picked, so that a test part might be trained on; or the part
                that was picked is not there.
        """
        if not self.names:
            return None
        named = " and ".join(self.names.values())
        if split is None and self.complete:
            raise UserError(f"{what}: has the parts {named}; pick one with #train or #test")
        if split is None:
            return next(iter(self.names.values()))
        if split not in self.names:
            (only,) = self.names
            raise UserError(
                f"{what}: has the part {named} and no {split} part; #{only} reads all of it, and #{only}[:80%] and "
                f"#{only}[80%:] draw two parts from it"
            )
        return self.names[split]


def parts_among(names: Iterable[str]) -> Parts:
    """Which of some names (of folders, of files' beginnings, in a column) are those of parts."""
    by_name: dict[str, str] = {}
    for name in names:
        by_name.setdefault(name.lower(), name)
    matches: dict[Split, list[str]] = {
        split: [by_name[name] for name in usual if name in by_name] for split, usual in PART_NAMES.items()
    }
    chosen = {split: there[0] for split, there in matches.items() if there}
    return Parts(chosen, tuple(name for there in matches.values() for name in there[1:]))


def likely_part(name: str) -> Split | None:
    """The part of which a word is in a name, as in ``train2017`` or ``my_train``; None for none and for both."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    meant: list[Split] = [split for split, usual in PART_NAMES.items() if words.intersection(usual)]
    return meant[0] if len(meant) == 1 else None


def refuse_likely_parts(names: Iterable[str], what: str) -> None:
    """Look for names (of files or folders that are read as one set) that are probably those of parts.

    Raises:
        UserError: one name has a word for a train part in it, as ``train2017``, and another one a word for a test part.
    """
    likely: dict[Split, str] = {}
    for name in names:
        if split := likely_part(name):
            likely.setdefault(split, name)
    if len(likely) == len(PART_NAMES):
        raise UserError(
            f"{what}: {likely['train']} and {likely['test']} are probably a train part and a test part, and would be "
            "read as one set; name the path of one of them"
        )


def parts_of_files(files: Sequence[Path], what: str) -> tuple[Parts, dict[Path, str | None]]:
    """The parts that files' names begin with, as in ``train-0001.tar``; and which part each file is of.

    A train or a test part alone counts only where every file is of it.

    Raises:
        UserError: they are of no such parts, and probably of others.
    """
    words = [word for usual in PART_NAMES.values() for word in usual]
    of_file = {file: next((word for word in words if _begins(file, word)), None) for file in files}
    parts = parts_among(word for word in words if word in of_file.values())
    if not parts.complete and any(word is None for word in of_file.values()):
        refuse_likely_parts((file.name for file in files), what)
        return Parts({}), of_file
    return parts, of_file


def _begins(file: Path, word: str) -> bool:
    name = file.name.lower()
    return name.startswith(word) and not name[len(word) : len(word) + 1].isalpha()
