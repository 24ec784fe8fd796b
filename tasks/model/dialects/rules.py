"""What a dialect is: rules that say which of its tensors hold the numbers of which of open_clip's.

A rule joins tensors along their first dimension: open_clip packs the projections of attention, q above k above v, into
one tensor where transformers has three. So translating is copying ranges of bytes, except for the matrices that one
side stores transposed: linear maps are (out, in) in ``nn.Linear`` and (in, out) in open_clip's projections.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

Shape = tuple[int, ...]


class Change(Enum):
    """How the numbers of a rule lie on the two sides."""

    SAME = "same"
    TRANSPOSED = "transposed"
    """A matrix, rows and columns exchanged."""
    SCALAR = "scalar"
    """One number: 0-d in open_clip, one element in the dialect."""
    BATCHED = "batched"
    """open_clip's has a first dimension of 1 more."""


@dataclass(frozen=True)
class Rule:
    """The same numbers on the two sides; ``{}`` in a name stands for the number of a layer."""

    open_clip: tuple[str, ...]
    dialect: tuple[str, ...]
    change: Change = Change.SAME
    open_clip_parts: tuple[int, ...] = (1,)
    """How the rows of the joined tensor are divided among open_clip's."""
    dialect_parts: tuple[int, ...] = (1,)

    def of(self, layer: str) -> Rule:
        """The rule for one layer."""
        ours, theirs = (tuple(n.replace("{}", layer) for n in names) for names in (self.open_clip, self.dialect))
        return Rule(ours, theirs, self.change, self.open_clip_parts, self.dialect_parts)


def same(open_clip: str, dialect: str, *endings: str) -> Iterator[Rule]:
    """Rules for tensors that differ in name only; ``endings``, such as ``weight`` and ``bias``, follow either name."""
    for ending in endings or ("",):
        tail = f".{ending}" if ending else ""
        yield Rule((open_clip + tail,), (dialect + tail,))


def packed(open_clip: str, dialect: str) -> Iterator[Rule]:
    """Rules for attention: open_clip's (or torch's) ``in_proj_weight`` is q above k above v."""
    for ending in ("weight", "bias"):
        names = tuple(f"{dialect}.{which}_proj.{ending}" for which in "qkv")
        yield Rule((f"{open_clip}{ending}",), names, dialect_parts=(1, 1, 1))


@dataclass(frozen=True)
class Dialect:
    """The tensor names of one family of models, and what they are in open_clip."""

    name: str
    """As messages call it."""
    rules: tuple[Rule, ...]
    ignored: re.Pattern[str] = field(default=re.compile(r"(?:.*\.)?position_ids"))
    """Names of buffers that older versions save and that hold nothing learned."""
    ignored_in_open_clip: re.Pattern[str] = field(
        default=re.compile(r"(?:text\.)?attn_mask|input_resolution|context_length|vocab_size")
    )
    """The same in open_clip's names: the mask that older versions save, and the sizes of OpenAI's archives."""

    def knows(self, names: Iterable[str]) -> bool:
        """Whether all of these names are the dialect's, and there is one at least."""
        known = self._patterns()
        rest = [name for name in names if not self.ignored.fullmatch(name)]
        return bool(rest) and all(any(p.fullmatch(name) for p, _ in known) for name in rest)

    def speaks_open_clip(self, names: Iterable[str]) -> bool:
        """Whether all of these are names of open_clip's that the dialect has words for."""
        patterns = [_pattern(name) for rule in self.rules for name in rule.open_clip]
        rest = [name for name in names if not self.ignored_in_open_clip.fullmatch(name)]
        return bool(rest) and all(any(p.fullmatch(name) for p in patterns) for name in rest)

    def rules_for(self, names: Iterable[str], *, of_open_clip: bool) -> list[Rule]:
        """The rules, one for each layer, for the tensors of a checkpoint that are named on one of the two sides.

        A rule of which only some tensors are there is returned too: what lacks is for the caller to name.
        """
        chosen: dict[tuple[str, ...], Rule] = {}
        patterns = [
            (_pattern(name), rule) for rule in self.rules for name in (rule.open_clip if of_open_clip else rule.dialect)
        ]
        for name in names:
            for pattern, rule in patterns:
                if match := pattern.fullmatch(name):
                    one = rule.of(match[1]) if pattern.groups else rule
                    chosen.setdefault(one.open_clip, one)
        return list(chosen.values())

    def _patterns(self) -> list[tuple[re.Pattern[str], Rule]]:
        return [(_pattern(name), rule) for rule in self.rules for name in rule.dialect]


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{\}", r"(\d+)"))


PREFIXES = ("module.", "_orig_mod.", "model.", "state_dict.")
"""What DataParallel, torch.compile and trainers put before every name."""


def unwrapped(names: Iterable[str]) -> Mapping[str, str]:
    """Plain name → name in the checkpoint: without the prefixes that every name has."""
    return wrappings(names)[0]


def wrappings(names: Iterable[str]) -> list[Mapping[str, str]]:
    """The same with ever fewer prefixes taken off, the last with none.

    That every name has a prefix does not make it a wrapper's: a decoder with tied embeddings has no ``lm_head`` beside
    its ``model.``.
    """
    levels: list[Mapping[str, str]] = [{name: name for name in names}]
    while prefix := next((p for p in PREFIXES if levels[0] and all(name.startswith(p) for name in levels[0])), None):
        levels.insert(0, {name.removeprefix(prefix): original for name, original in levels[0].items()})
    return levels
