"""By how often a concept was met in pretraining."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import ClassVar

from tasks.errors import UserError
from tasks.stream.material import Material
from tasks.stream.ordering import Ordering

WORD = re.compile(r"\w+")


class Frequency(Ordering):
    """Rarest concepts first, by their counts in the pretraining data; equally rare ones as they are given."""

    name: ClassVar[str] = "frequency"
    source: ClassVar[str] = "FoMo-in-Flux (arXiv 2408.14471), concept frequency"

    counts: str | None = None
    """A JSON file {class: count}; by default the captions of base.pretraining that name the class are counted."""

    def order(self, material: Material) -> list[int]:
        names = [pair.name for pair in material.pairs]
        counts = self._given(material) if self.counts else count(names, material.pretraining())
        missing = [name for name in names if name not in counts]
        if missing:
            raise UserError(f"--order frequency: {self.counts} has no count for {missing[0]!r}")
        return sorted(range(len(names)), key=lambda i: counts[names[i]])

    def _given(self, material: Material) -> Mapping[str, float]:
        assert self.counts is not None
        path = material.project / self.counts
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            return {str(name): float(number) for name, number in raw.items()}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"--order frequency: {path}: not a JSON file of counts ({error})") from None


def count(names: Iterable[str], captions: Iterable[str]) -> Mapping[str, float]:
    """How many captions hold each name as whole words, whatever the case."""
    phrases = {name: tuple(_words(name)) for name in names}
    wanted = set(phrases.values())
    lengths = sorted({len(phrase) for phrase in wanted} - {0})
    met: Counter[tuple[str, ...]] = Counter()
    for caption in captions:
        words = _words(caption)
        met.update({p for n in lengths for i in range(len(words) - n + 1) if (p := tuple(words[i : i + n])) in wanted})
    return {name: met[phrase] for name, phrase in phrases.items()}


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())
