"""What each icon shows, named alike across sets, so that one concept drawn in nine styles is one class.

Some sets tell the emoji characters that their icons stand for; those characters are the concepts. Icons of the other
sets are found by name: a set's own, its aliases, and Unicode's name of the character (old sets use it), compared
without hyphens. Reference for a concept's name and category: the first of `REFERENCES` that draws it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.prepare.icons.sets import IconSet, is_private

REFERENCES = ("twemoji", "noto", "openmoji", "fluent-emoji-flat")
"""Sets that tell characters, the one whose names are taken first in front."""

CATEGORIES = ("activities", "flags", "food", "nature", "objects", "people", "smileys", "symbols", "travel")
_CATEGORY_OF = {
    "Activities": "activities",
    "Flags": "flags",
    "Food & Drink": "food",
    "Animals & Nature": "nature",
    "Objects": "objects",
    "People & Body": "people",
    "Smileys & Emotion": "smileys",
    "Symbols": "symbols",
    "Travel & Places": "travel",
}

_TONE = re.compile(r"1f3f[b-f]")
_TONE_NAME = re.compile(r"skin-tone|tone-?\d|-(dark|light|medium)$")
_JOINER = "200d"
_VARIATION = "fe0f"


@dataclass(frozen=True)
class Concept:
    """One thing that icons show."""

    key: str
    """Its code points, e.g. ``1f34e``."""
    name: str
    """As captions have it, e.g. ``red apple``."""
    category: str
    drawings: tuple[tuple[str, str], ...]
    """(style, icon name), in the order of styles, then of names."""

    @property
    def styles(self) -> frozenset[str]:
        return frozenset(style for style, _ in self.drawings)


def concepts(sets: Sequence[IconSet]) -> list[Concept]:
    """All concepts of some icon sets (the references among them), sorted by key.

    Left out: variants by skin tone, and people made of several characters (families, a profession by gender), which
    are near copies of one another at 32 pixels.
    """
    by_style = {s.style.name: s for s in sets}
    references = [by_style[name] for name in REFERENCES]
    described = _describe(references)
    keys = _keys_by_name(references)
    first: dict[str, str] = {}  # name → key: two characters of one name are one class
    for key, (name, _) in described.items():
        first.setdefault(name, key)
    drawings: dict[str, list[tuple[str, str]]] = {}
    for one in sets:
        for name in sorted(one.icons):
            match = _key(one.characters[name]) if name in one.characters else _find(one, name, keys)
            if match in described:
                drawings.setdefault(first[described[match][0]], []).append((one.style.name, name))
    return [Concept(key, *described[key], tuple(drawings[key])) for key in sorted(drawings)]


def _key(code: str) -> str:
    return "-".join(part for part in code.lower().split("-") if part != _VARIATION)


def _describe(references: Sequence[IconSet]) -> dict[str, tuple[str, str]]:
    """Concept key → (name, category)."""
    described: dict[str, tuple[str, str]] = {}
    for one in references:
        for name in one.icons:
            key, category = _key(one.characters.get(name, "")), _CATEGORY_OF.get(one.categories.get(name, ""))
            if not key or category is None or is_private(key):
                continue
            if _TONE.search(key) or (category == "people" and _JOINER in key):
                continue
            described.setdefault(key, (_caption_name(name), category))
    return described


def _caption_name(name: str) -> str:
    words = name.replace("-", " ")
    return f"flag of {words.removeprefix('flag ')}" if words.startswith("flag ") and " in " not in words else words


def _keys_by_name(references: Sequence[IconSet]) -> Mapping[str, str]:
    """Squeezed name → concept key; the references' own names win over aliases, those over Unicode's names."""
    own: dict[str, str] = {}
    aliases: dict[str, str] = {}
    unicode_names: dict[str, str] = {}
    for one in references:
        for name, code in one.characters.items():
            key = _key(code)
            own.setdefault(_squeeze(name), key)
            for alias in one.other_names.get(name, ()):
                aliases.setdefault(_squeeze(alias), key)
            if "-" not in key:
                unicode_names.setdefault(_squeeze(unicodedata.name(chr(int(key, 16)), key)), key)
    return {**unicode_names, **aliases, **own}


def _find(one: IconSet, name: str, keys: Mapping[str, str]) -> str | None:
    names = [name, *one.other_names.get(name, ())]
    if any(_TONE_NAME.search(n) for n in names[:1]):
        return None
    for candidate in names:
        candidate = re.sub(r"^flag-for-(flag-)?", "flag-", candidate)
        for form in (candidate, re.sub(r"-[1-9]$", "", candidate)):  # streamline numbers its variants
            if (squeezed := _squeeze(form)) in keys:
                return keys[squeezed]
    return None


def _squeeze(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
