"""How each kind of hostile input is read: by the functions that verbs call. Each yields what is wrong.

An input is accepted, or refused by a `UserError` whose message people can read; what is refused leaves nothing behind.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tasks import inbox, prepare
from tasks.convert import convert
from tasks.errors import UserError
from tasks.evaluate import headfile
from tasks.merge import engine, mergekit
from tasks.model import coded, shared, tokenizers
from tasks.prepare.source import Context, Outside
from tasks.progress import silent
from tasks.stream import manifest, ready
from tasks.stream.ready import Wanted
from tasks.text import printable
from tests import hub

LONGEST = 1000
"""Characters of a message: 500 of input, and what is said of it."""
_DECODED = 50
"""Images of a data set that are decoded."""


def faults(messages: list[str]) -> Iterator[str]:
    """What is wrong with messages that people read."""
    for message in messages:
        if len(message) > LONGEST:
            yield f"a message of {len(message)} characters: {message[:200]!r}"
        if printable(message) != message:
            yield f"a message with control characters: {message[:300]!r}"


def look(root: Path, folder: Path) -> Iterator[str]:
    """Let a drop and a good one beside it arrive."""
    found = inbox.scan(root / "project", str(folder.parent), dry_run=True)
    lists = (found.taken, found.refused, found.waiting, found.changed, found.known)
    drops = {one.name: one for kind in lists for one in kind}
    if "good" not in {one.name for one in found.taken}:
        yield f"the next drop is not taken: {drops.get('good')}"
    if "bad" not in drops:
        yield "the drop is in no list"
        return
    bad = drops["bad"]
    verdict = bad.verdict
    messages = [bad.why, *(verdict.problems + verdict.notes if verdict else ())]
    yield from faults(messages)
    yield from (message for message in messages if "cannot be taken: " in message)


def refused(read: Callable[[], object], *outputs: Path) -> Iterator[str]:
    """Call a reader, and look at its message and its outputs where it refuses."""
    try:
        read()
    except UserError as error:
        yield from faults([str(error)])
        yield from (f"{out.name}: something is left of what was refused" for out in outputs if out.exists())


def converted(root: Path, folder: Path) -> Iterator[str]:
    """Convert a folder."""
    base = root / "valid/model" if (folder / "adapter_config.json").exists() else None
    for to in ("open_clip", "transformers"):
        out = folder.parent / to
        yield from refused(functools.partial(convert, folder, to, out, base=base), out)


def tokenizer(root: Path, folder: Path) -> Iterator[str]:
    """Convert a model with a tokenizer of its own, hold it against another model's, and take it along."""
    out, kept = folder.parent / "open_clip", folder.parent / "model"
    yield from refused(lambda: convert(folder, "open_clip", out), out)
    yield from refused(lambda: tokenizers.require_same(folder, root / "valid/own-words"))
    kept.mkdir()
    text = {"hf_tokenizer_name": tokenizers.BESIDE, "context_length": 8, "vocab_size": 99}
    yield from refused(lambda: tokenizers.fetch(kept, text, root, folder), kept / tokenizers.FOLDER)


def decoded(root: Path, folder: Path) -> Iterator[str]:
    """Decode a coded expert."""
    out = folder.parent / "expert.safetensors"
    yield from refused(lambda: coded.decode(folder / "expert.weights", root / "valid/coded/base.safetensors", out), out)


def unpacked(root: Path, folder: Path) -> Iterator[str]:
    """Unpack an expert that shares its arrays with others."""
    out, base = folder.parent / "expert.safetensors", root / "valid/coded/base.safetensors"
    yield from refused(lambda: shared.unpack(folder / "experts.packed", 0, base, out), out)


def measured(root: Path, folder: Path) -> Iterator[str]:
    """Merge with a statistics file."""
    valid = root / "valid/statistics"
    for technique in ("fisher", "regmean"):
        out = folder.parent / f"{technique}.safetensors"
        merge = functools.partial(
            engine.merge, technique, [valid / "a.safetensors", valid / "b.safetensors"], valid / "base.safetensors",
            out, statistics=[folder / "a.stats.safetensors", valid / f"{technique}.stats.safetensors"],
            threads=1,
        )  # fmt: skip
        yield from refused(merge, out)


def heads(root: Path, folder: Path) -> Iterator[str]:
    """Add a head to another, and take a class out of it."""
    file = folder / "head.safetensors"
    for number, other in enumerate(sorted((root / "valid/heads").iterdir())):
        out = folder.parent / f"both-{number}.safetensors"
        yield from refused(functools.partial(headfile.merge, other, file, out), out)
    out = folder.parent / "less.safetensors"
    yield from refused(lambda: headfile.remove(file, ["ant"], out), out)


def recipe(root: Path, folder: Path) -> Iterator[str]:  # noqa: ARG001 - its models are copied beside it
    """Merge as a mergekit configuration says."""
    out = folder.parent / "merged.safetensors"

    def merge() -> None:
        read = mergekit.load(folder / "merge.yaml")
        engine.merge(
            read.technique, read.experts, read.base, out, settings=read.settings, weights=read.weights,
            part_weights=read.part_weights, dtype=read.dtype, threads=1,
        )  # fmt: skip

    yield from refused(merge, out)


def stream(root: Path, folder: Path) -> Iterator[str]:
    """Make params of a ready stream's manifest."""

    def import_() -> None:
        found = manifest.read(str(folder / "stream.yaml"), root / "project")
        ready.text(found, Wanted(data=Path("sets")), root / "project")
        ready.text(found, Wanted(orders=2), root / "project")

    yield from refused(import_)


def data_set(root: Path, folder: Path) -> Iterator[str]:
    """Read a data set from a hub, or in CLIP_benchmark's layout from a folder."""
    if (folder / "train/nshards.txt").exists():
        yield from _sets_read(root, folder, [f"clip-benchmark:{folder}#train"])
    else:
        yield from _sets_read(root, folder, ["hf:org/bad#train", "hf:org/bad#train[:2]"])


def fomo(root: Path, folder: Path) -> Iterator[str]:
    """Read a set of FoMo-in-Flux from a folder; its archive from a hub too."""
    if (folder / "SHAPES.tar").exists():
        yield from _sets_read(root, folder, [f"fomo-tar:{folder}/SHAPES#train", "fomo-tar:hf:org/bad/SHAPES#train"])
    else:
        yield from _sets_read(root, folder, [f"fomo:{folder}/SHAPES#train"])


def _sets_read(root: Path, folder: Path, specs: Sequence[str]) -> Iterator[str]:
    """Read data sets; what is in the folder is the repository ``org/bad`` of a hub too."""
    with hub.serving() as server, server.used(folder.parent / "home"), tempfile.TemporaryDirectory() as scratch:
        if any("hf:" in spec for spec in specs):
            server.commit("org/bad", folder, kind="datasets")
        for spec in specs:
            yield from refused(functools.partial(_read_set, spec, root / "project", Path(scratch)))


def _read_set(spec: str, project: Path, scratch: Path) -> None:
    outside = Outside(project, scratch / "downloads", 0, silent)
    context = Context(0, 16, "bicubic", squash=False, scratch=scratch)
    with prepare.looked_into([spec], "fuzz", outside, context) as readings:
        for _, reading in readings:
            for _ in zip(range(_DECODED), reading.examples, strict=False):
                pass


READERS: dict[str, Callable[[Path, Path], Iterator[str]]] = {
    "configuration": converted,
    "open_clip": converted,
    "adapter": converted,
    "tokenizer": tokenizer,
    "coded": decoded,
    "packed": unpacked,
    "statistics": measured,
    "heads": heads,
    "recipe": recipe,
    "stream": stream,
    "data_set": data_set,
    "fomo": fomo,
}
"""All other kinds are drops, which `look` reads."""
