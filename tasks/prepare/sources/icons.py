"""``icons``: emoji drawn in nine styles, from npm; the default stream is made of them.

Short form ``icons:CATEGORY[/WORD…]``, e.g. ``icons:food``, ``icons:food/new``, ``icons:smileys+people/test``.
Mapping form ``{source: icons, category: food, concepts: new, styles: train}``.

category
    activities, flags, food, nature, objects, people, smileys, symbols, travel, or a list (in the short form with +).
concepts
    ``all``, or ``base``: a fixed third of each category, or ``new``: the other two thirds. So a base that was trained
    on ``base`` knows a little of everything, and ``new`` is what it has yet to see.
only
    Some of these concepts, by name.
styles
    ``train``: the five styles that training is drawn in; ``test``: the two styles that are only ever tested on; or a
    list of styles by name. A style's name is a word of the short form too: ``icons:food/fluent-emoji-flat``.

Only concepts that some training style draws are ever selected, so a test asks for nothing that could not be learned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from tasks.errors import UserError
from tasks.prepare import files
from tasks.prepare.icons import npm, render, sets
from tasks.prepare.icons.concepts import CATEGORIES, Concept, concepts
from tasks.prepare.source import Context, Example, Outside, Reading, Source

CAPTION = "an icon of {}"
BASE_SHARE = 1 / 3
"""Part of each category's concepts that ``concepts: base`` selects."""


class Icons(Source):
    """Emoji in nine drawing styles, from npm: ``icons:food``, ``icons:food+travel/new/test``; the demo's data."""

    name: ClassVar[str] = "icons"

    category: tuple[str, ...]
    concepts: Literal["all", "base", "new"] = "all"
    styles: tuple[str, ...] | Literal["train", "test"] = "train"

    @field_validator("category", mode="before")
    @classmethod
    def _known_categories(cls, value: Any) -> Any:
        return _known(value, "category", CATEGORIES)

    @field_validator("styles", mode="before")
    @classmethod
    def _known_styles(cls, value: Any) -> Any:
        return value if value in ("train", "test") else _known(value, "style", tuple(sets.styles()))

    @classmethod
    def from_text(cls, what: str) -> dict[str, Any]:
        categories, *words = what.split("/")
        settings: dict[str, Any] = {"category": categories.split("+")}
        for word in words:
            if word in ("base", "new", "all"):
                settings["concepts"] = word
            elif word in ("train", "test"):
                settings["styles"] = word
            elif word in sets.styles():
                settings["styles"] = [*settings.get("styles", ()), word]
            else:
                known = ("base", "new", "train", "test", *sets.styles())
                raise ValueError(f"unknown word {word!r} after /; known: {', '.join(known)}")
        return settings

    def fetch(self, into: Path, outside: Outside) -> None:
        # All sets, whatever is selected: names are told apart by looking at all of them, and as the files are the
        # same for every arrival, the store keeps them once.
        fetched = npm.fetch(
            [style.pin for style in sets.styles().values()], outside.cache / self.name, outside.progress
        )
        for pin, path in fetched.items():
            files.copy(path, into / pin.filename)

    def read(self, raw: Path, context: Context) -> Reading:
        if self.name not in context.memo:
            read = [sets.read(style, raw) for style in sets.styles().values()]
            context.memo[self.name] = {one.style.name: one for one in read}, concepts(read)
        by_style: dict[str, sets.IconSet]
        known: list[Concept]
        by_style, known = context.memo[self.name]
        wanted = select(known, self)
        names = self.selected((concept.name for concept in wanted), f"icons: {'+'.join(self.category)}")
        drawings = [
            (concept, style, name)
            for concept in wanted
            if concept.name in names
            for style, name in concept.drawings
            if style in self.style_names
        ]
        if not drawings:
            raise UserError(f"icons: no {'/'.join(self.style_names)} drawing of {'+'.join(self.category)} there")

        def examples() -> Iterator[Example]:
            for concept, style, name in drawings:
                image = render.render(by_style[style].svg(name, context.image_size), f"{style}:{name}")
                yield Example(f"{style}:{name}", image, CAPTION.format(concept.name), concept.name)

        return Reading(
            count=len(drawings),
            classes=tuple(dict.fromkeys(concept.name for concept, _, _ in drawings)),
            prompt=CAPTION,
            origins=tuple(by_style[s].origin for s in dict.fromkeys(style for _, style, _ in drawings)),
            examples=examples(),
            texts=tuple((CAPTION.format(concept.name), concept.name) for concept, _, _ in drawings),
        )

    @property
    def style_names(self) -> tuple[str, ...]:
        """The styles selected, by name."""
        if isinstance(self.styles, tuple):
            return self.styles
        return _of_role(self.styles)


def select(known: Sequence[Concept], icons: Icons) -> list[Concept]:
    """The concepts that some settings ask for, whatever the styles, in the order given."""
    trained = frozenset(_of_role("train"))
    return [
        concept
        for concept in known
        if concept.category in icons.category
        and concept.styles & trained
        and (icons.concepts == "all" or (icons.concepts == "base") == is_base(concept.key))
    ]


def is_base(key: str) -> bool:
    """Whether a concept is among the third that a base may know: by its hash, alike in every timeline."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) < BASE_SHARE * 2**64


def _of_role(role: str) -> tuple[str, ...]:
    return tuple(name for name, style in sets.styles().items() if style.role == role)


def _known(value: Any, what: str, accepted: Sequence[str]) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not values:
        raise ValueError(f"expected a {what} or a list of them")
    for one in values:
        if one not in accepted:
            raise ValueError(f"unknown {what} {one!r}; known: {', '.join(accepted)}")
    if len(set(values)) < len(values):
        raise ValueError(f"a {what} is named twice")
    return tuple(values)
