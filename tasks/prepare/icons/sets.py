"""The pinned icon sets, read from their packages. sets.toml holds the pins and what each style is for."""

from __future__ import annotations

import json
import tarfile
import tomllib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from tasks.errors import UserError
from tasks.model.datasets import Origin
from tasks.prepare.icons.npm import PackagePin

Role = Literal["train", "test", "later"]


@dataclass(frozen=True)
class Style:
    """A drawing style: one pinned set and its role in the default stream."""

    name: str
    role: Role
    pin: PackagePin


@cache
def styles() -> dict[str, Style]:
    """All styles by name, in the order of sets.toml."""
    raw = tomllib.loads(Path(__file__).with_name("sets.toml").read_text(encoding="utf-8"))
    return {
        name: Style(name, entry["role"], PackagePin(f"@iconify-json/{name}", entry["version"], entry["integrity"]))
        for name, entry in raw.items()
    }


@dataclass(frozen=True)
class IconSet:
    """One set's content, as Iconify's JSON has it, without hidden (withdrawn) icons."""

    style: Style
    icons: Mapping[str, Mapping[str, Any]] = field(repr=False)
    """Icon name → ``body`` and, where it differs from the set's, ``left``, ``top``, ``width``, ``height``."""
    box: Mapping[str, float]
    """The set's own left, top, width and height, in SVG user units."""
    other_names: Mapping[str, tuple[str, ...]] = field(repr=False)
    """Icon name → further names of the same drawing."""
    characters: Mapping[str, str] = field(repr=False)
    """Icon name → emoji code points, e.g. ``1f1eb-1f1f7``; empty for sets that don't tell."""
    categories: Mapping[str, str] = field(repr=False)
    """Icon name → the set's own category, e.g. ``Food & Drink``."""
    origin: Origin

    def svg(self, name: str, size: int) -> str:
        """The icon as an SVG document of size × size pixels, centred where it is not square."""
        box = {**self.box, **{k: v for k, v in self.icons[name].items() if k in self.box}}
        view = f"{box['left']} {box['top']} {box['width']} {box['height']}"
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{size}" height="{size}" viewBox="{view}">{self.icons[name]["body"]}</svg>'
        )


def read(style: Style, folder: Path) -> IconSet:
    """Read a set from its package in a folder.

    Raises:
        UserError: the package is not there, or is not the one that was pinned.
    """
    path = folder / style.pin.filename
    if not style.pin.matches(path):
        what = "is not what sets.toml pins: it was changed or is damaged" if path.exists() else "is missing"
        raise UserError(f"{path} {what}; fetch the arrival again")
    with tarfile.open(path) as archive:
        icons, info, metadata, chars = (_json(archive, n) for n in ("icons", "info", "metadata", "chars"))
    names: dict[str, list[str]] = {}
    for alias, target in icons.get("aliases", {}).items():
        if set(target) == {"parent"}:  # others are flipped or turned: another drawing
            names.setdefault(target["parent"], []).append(alias)
    return IconSet(
        style=style,
        icons={name: icon for name, icon in icons["icons"].items() if not icon.get("hidden")},
        box={"left": 0, "top": 0, "width": 16, "height": 16} | {k: icons[k] for k in ("width", "height") if k in icons},
        other_names={name: tuple(aliases) for name, aliases in names.items()},
        characters=_characters(chars),
        categories={name: c for c, members in metadata.get("categories", {}).items() for name in members},
        origin=_origin(style, info),
    )


def _characters(names: Mapping[str, str]) -> dict[str, str]:
    """Icon name → its code points, given the reverse; a name of several has the one that is not for private use."""
    return {names[code]: code for code in sorted(names, key=lambda code: (not is_private(code), code))}


def is_private(code: str) -> bool:
    """Whether code points are for private use: a set's own icon, not an emoji."""
    return any(unicodedata.category(chr(int(part, 16))) == "Co" for part in code.split("-"))


def _json(archive: tarfile.TarFile, name: str) -> dict[str, Any]:
    member = archive.extractfile(f"package/{name}.json")
    assert member is not None, name  # the hash was right, so it is there
    content: dict[str, Any] = json.load(member)
    return content


def _origin(style: Style, info: Mapping[str, Any]) -> Origin:
    licence, author = info["license"], info["author"]
    return Origin(
        source=f"{style.pin.package} {style.pin.version}",
        licence=licence.get("spdx") or licence["title"],
        attribution=f"{info['name']} by {author['name']}, {author['url']}; licence: {licence['url']}",
    )
