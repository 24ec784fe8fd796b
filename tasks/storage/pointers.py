"""The project stores what arrives: ``data/arrivals/NAME``, which DVC's pointer ``NAME.dvc`` beside it restores.

A pointer is written once cache and store hold every byte, and its files are placed in the working tree from there; so a
run needs no access to the origin of the files and, in a clone, only the pointer and the store.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tasks import layout, yaml
from tasks.errors import UserError
from tasks.storage import atomic, dvc_config, fetching, locks
from tasks.storage.cache import Cache, Entry, hash_of
from tasks.storage.dvc import Dvc, open_dvc
from tasks.storage.dvc_config import Remote


def path(project: Path, name: str) -> Path:
    """Where the pointer of an arrival is."""
    return project / layout.ARRIVALS / f"{name}.dvc"


def one_at_a_time(project: Path) -> AbstractContextManager[None]:
    """Only one process at a time changes a project's arrivals; others wait."""
    return locks.exclusive(layout.private(project) / "arrivals.lock")


def read(pointer: Path) -> tuple[Entry, dict[str, Any]]:
    """What a pointer points to, and what it says about it.

    Raises:
        UserError: it is not a pointer to one folder.
    """
    try:
        content: Any = yaml.load(pointer.read_text(encoding="utf-8"))
        (out,) = content["outs"]
        if f"{out['path']}.dvc" != pointer.name:
            raise ValueError(f"it points to {out['path']!r}")
        return Entry(out["md5"], out["size"], out["nfiles"]), dict(content.get("meta") or {})
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{pointer}: not the pointer of an arrival ({' '.join(str(error).split())}); `git checkout` brings it back"
        ) from None


def keep(project: Path, folder: Path, remote: Remote) -> Entry:
    """Make cache and store hold a folder, which becomes links to the cache.

    Raises:
        RemoteError: the store does not take it.
    """
    cache = Cache(dvc_config.cache_dir(project))
    entry = cache.put(folder)
    with open_dvc(project) as dvc:
        dvc("keep", project, remote=remote.name, objects=sorted(cache.md5s([entry])))
    return entry


def write(pointer: Path, entry: Entry, about: Mapping[str, Any]) -> None:
    """Write a pointer atomically; DVC ignores what it says ``about`` the files."""
    content = {"outs": [{**entry.as_dict(), "hash": "md5", "path": pointer.stem}], "meta": dict(about)}
    writer: Any = YAML(typ="safe")
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False
    text = io.StringIO()
    writer.dump(content, text)
    pointer.parent.mkdir(parents=True, exist_ok=True)
    replace(pointer, text.getvalue())


def replace(file: Path, text: str) -> None:
    """Replace the content of a file atomically, and have it on the disk."""
    with atomic.made(file) as part:
        part.write_text(text, encoding="utf-8")
        atomic.sync(part)


def place(project: Path, pointer: Path, cache: Cache) -> None:
    """Put what a pointer points to beside it, unless it is there; by one who holds `one_at_a_time`.

    Raises:
        UserError: other files are there; they stay.
    """
    entry, _ = read(pointer)
    target = pointer.with_suffix("")
    if target.exists():
        if hash_of(target).md5 != entry.md5:
            shown = target.relative_to(project)
            raise UserError(
                f"{shown} is not what arrived: it differs from {shown}.dvc; `dvc checkout --force {shown}.dvc` puts "
                "that back, and what you changed may arrive under another name"
            )
        return
    with atomic.made(target) as part:
        cache.link(entry, part)


def bring(project: Path, pointer: Path, workspace: Path, cache: Cache, dvc: Dvc) -> None:
    """`place`, with what the cache lacks fetched from the default store of ``workspace``, and hashed before it is used.

    Raises:
        UserError: the store lacks an object, or gives wrong bytes for it every time.
        RemoteError: the store cannot be reached.
    """
    entry, _ = read(pointer)
    cache.drop_damaged(entry)
    fetching.bring({pointer.stem: entry}, cache, dvc, workspace, pointer.relative_to(project).as_posix())
    with one_at_a_time(project):
        place(project, pointer, cache)
