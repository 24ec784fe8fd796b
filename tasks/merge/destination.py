"""Where a merged model goes on disk, and which files of an earlier model there a loader might mix up with it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import UserError
from tasks.model.sinks import INDEX, FileSink
from tasks.model.sources import TensorEntry
from tasks.storage import places

_SHARD = re.compile(r"(.+)-\d{5,}-of-\d{5,}\.safetensors")


@dataclass(frozen=True)
class Destination:
    """A safetensors file, or an index with its shards."""

    path: Path
    shard_bytes: int
    overwrite: bool
    """Whether files of an earlier model may be removed."""

    def check(self, entries: Mapping[str, TensorEntry]) -> None:
        """Refuse before any work what `open` would refuse at the end.

        Raises:
            UserError: nothing can be written there; or the folder holds files of an earlier model, and ``overwrite``
                is false.
        """
        places.output(self.path)
        self._outdated(FileSink.names(self.path, entries, self.shard_bytes))

    def open(self, entries: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> FileSink:
        """The sink to write to; when it is finished, outdated files are gone."""
        return FileSink(self.path, entries, self.shard_bytes, self._outdated, metadata)

    def _outdated(self, written: Collection[str]) -> list[Path]:
        """Files that go when those ``written`` come."""
        folder = self.path.parent
        if not folder.is_dir():
            return []
        names = {path.name for path in folder.iterdir()}
        stem = self.path.name.removesuffix(INDEX).removesuffix(".safetensors")
        indexes = {name for name in names if name.endswith(INDEX)}
        named = {name: _named_by(folder / name) & names for name in indexes}
        sharded = self.path.name.endswith(INDEX)
        outdated = {name for name in names if (match := _SHARD.fullmatch(name)) and match[1] == stem}
        for index in indexes if sharded else indexes & {f"{stem}.safetensors{INDEX}"}:
            outdated |= {index, *named[index]}
        if sharded:
            outdated |= {f"{stem}.safetensors"} & names
            strangers = {name for name in names if _SHARD.fullmatch(name)} - outdated - set(written)
            if strangers:
                raise UserError(
                    f"{folder} holds shards of another model that no index there names ({min(strangers)}); a loader "
                    "could mix them up with the merged model: choose another folder, or remove them"
                )
        outdated -= set(written)
        if outdated and not self.overwrite:
            shown = ", ".join(sorted(outdated)[:3]) + (f" and {len(outdated) - 3} more" if len(outdated) > 3 else "")
            raise UserError(
                f"{folder} holds files of an earlier model ({shown}) that a loader could mix up with the merged one; "
                "choose another folder, or remove them with --overwrite"
            )
        return [folder / name for name in sorted(outdated)]


def _named_by(index: Path) -> set[str]:
    """File names in an index; none where it cannot be read."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(name) for name in weight_map.values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()
