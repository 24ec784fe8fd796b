"""Merging models piece by piece: `merge` over all experts, `advance` over one more expert and a running state."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import UserError
from tasks.merge import registry
from tasks.merge.blas import one_thread
from tasks.merge.device import Device, find_device
from tasks.merge.layout import Layout, Tensor, layout
from tasks.merge.sequential import Accumulator, Past, accumulate
from tasks.merge.sinks import DictSink, FileSink, Sink
from tasks.merge.sources import WIDTH, DictSource, Entry, FileSource, Source, as_given, content_hash, encode, fits
from tasks.merge.stream import Piece, Window
from tasks.merge.technique import Technique
from tasks.merge.types import Array
from tasks.progress import Progress, silent
from tasks.storage import atomic

Model = Path | str | Mapping[str, Any]
"""A checkpoint's path (a safetensors file, an index JSON, a folder with one), or a dictionary of tensors."""

_WINDOW = 1 << 24
_COPIED_AT_ONCE = 1 << 22
_STATE_FORMAT = 1
_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True)
class Report:
    """What a merge did, or would do."""

    technique: str
    settings: dict[str, Any]
    form: str
    """``batch``: all experts were read; ``sequential``: one expert and the running state."""
    device: str
    """What computed: ``cpu``, or the GPU by name."""
    experts: int
    """How many experts the merge holds."""
    merged: int
    """How many tensors were merged."""
    parameters: int
    """Entries in them."""
    kept: dict[str, str]
    """Tensors copied from the base (or else the first expert) unmerged → why."""
    dropped: dict[str, str]
    """Tensors that only experts have, left out → whose."""
    read_bytes: int
    """Bytes of checkpoints that one pass reads."""
    hashes: list[str]
    """Content hashes of the experts read, where random numbers depend on them."""

    def as_json(self) -> dict[str, Any]:
        """For a manifest."""
        return asdict(self)


@dataclass(frozen=True)
class Merged:
    """The outcome: a report, and the tensors where they went to memory."""

    report: Report
    tensors: dict[str, Any] | None = None


def merge(
    technique: str | Technique,
    experts: Sequence[Model],
    base: Model | None = None,
    out: Path | str | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    weights: Sequence[float] | None = None,
    dtype: str | None = None,
    seed: int = 0,
    threads: int | None = None,
    device: str | Device = "cpu",
    slice_entries: int | None = None,
    shard_bytes: int = 5_000_000_000,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Merged:
    """Merge models of one architecture.

    Args:
        technique: a name (`chronomerge techniques` lists them; ``file.py:Class`` for your own), or a technique.
        experts: paths of checkpoints, or dictionaries of NumPy arrays or torch tensors.
        base: θ_0, for techniques that work on task vectors; its layout and dtypes are the output's.
        out: where the model goes: a safetensors file, or ``NAME.safetensors.index.json`` for shards of
            ``shard_bytes``. None: to `Merged.tensors`, of the kind (NumPy or torch) given; as NumPy, bfloat16 is its
            16 bits.
        settings: the technique's settings, where it is given by name.
        weights: one an expert; by default the technique's own.
        dtype: of the merged tensors in the output: float32, bfloat16 or float16; by default the base's. Arithmetic
            is in float32.
        seed: of techniques that drop at random.
        threads: by default as many as this process may use. Neither threads nor slices change a bit of the result.
        device: ``cpu``, ``cuda`` or ``cuda:1`` (needs CuPy, `tasks.merge.device`). What is dropped at random is the
            same on all; a GPU's sums and products differ in their last bits.
        slice_entries: entries of a tensor merged at a time; by default the device's.
        dry_run: check everything that the headers tell, and only report.

    Raises:
        UserError: anything wrong with the inputs, before any work where headers and settings show it.
    """
    chosen = registry.create(technique, settings or {}) if isinstance(technique, str) else technique
    _check_count(chosen, len(experts), base is not None)
    used = _weights(chosen, len(experts), weights)
    where = find_device(device)
    with ExitStack() as stack:
        sources = [_open(model, f"expert {i + 1}", stack) for i, model in enumerate(experts)]
        base_source = _open(base, "base", stack) if base is not None else None
        reference = base_source or sources[0]
        others = {f"expert {i + 1}": s for i, s in enumerate(sources) if s is not reference}
        plan = layout(reference, others, chosen.grouping, _dtype(dtype))
        hashes = _hashes(chosen, sources, threads) if not dry_run else []
        inputs = [*sources, *([base_source] if base_source is not None and chosen.needs_base else [])]
        report = _report(chosen, plan, inputs, "batch", where, len(sources), hashes)
        if dry_run:
            return Merged(report)
        scratch = _scratch(Path(out).parent if out is not None else None, stack) if _needs_scratch(chosen) else Path()
        sink: FileSink | DictSink
        sink = DictSink(plan.entries) if out is None else FileSink(Path(out), plan.entries, shard_bytes)
        with _whole_or_nothing([sink], out), _Pool(threads or where.threads) as pool:
            tick = _ticker(progress, report.parameters)
            for tensors in _cut(plan, whole=_alpha_is_norm(chosen)):
                with ExitStack() as cleanup:
                    window = Window(
                        base=base_source if chosen.needs_base else None,
                        experts=sources,
                        tensors=tensors,
                        relative=chosen.relative,
                        stacked=chosen.stacked,
                        weights=used,
                        keys=_keys(chosen, hashes, seed),
                        pool=pool.executor,
                        threads=pool.threads,
                        device=where,
                        scratch=scratch,
                        cleanup=cleanup,
                    )
                    _write(window, chosen, chosen.plan(window), sink, slice_entries, tick)
            _copy_kept(plan, reference, sink)
        if isinstance(sink, DictSink):
            like = next((v for m in (base, *experts) if isinstance(m, Mapping) for v in m.values()), np.zeros(0))
            return Merged(report, {n: as_given(a, plan.entries[n].dtype, like) for n, a in sink.arrays.items()})
        return Merged(report)


def advance(
    technique: Accumulator,
    expert: Path,
    base: Path,
    previous: Path | None,
    state: Path,
    out: Path,
    *,
    seed: int = 0,
    threads: int | None = None,
    device: str | Device = "cpu",
    slice_entries: int | None = None,
    progress: Progress = silent,
) -> Report:
    """Take one more expert into a running state: reads that expert and the state, whatever the number before it.

    Gives the same bits as `merge` over all experts in order; Model Stock says by how much it differs.

    Args:
        technique: one with an exact sequential form.
        base: θ_0; where the technique needs none, still what the output is laid out like.
        previous: the folder of the state so far; None where this is the first expert.
        state: the folder for the new state: ``state.json``, and one checkpoint (float32) an array.
        out: where the merge of all experts so far goes.

    Raises:
        UserError: the technique has no sequential form; the state is of another technique, other settings or another
            model; or a file is unreadable.
    """
    if not technique.sequential:
        raise UserError(f"{technique.name} has no sequential form with these settings; merge all experts at once")
    where = find_device(device)
    with ExitStack() as stack:
        source, reference = stack.enter_context(FileSource(expert)), stack.enter_context(FileSource(base))
        plan = layout(reference, {"the expert": source}, technique.grouping, None)
        past = _load_past(technique, previous, plan, stack)
        hashes = _hashes(technique, [source], threads)
        inputs = [source, *past.arrays.values(), *([reference] if technique.needs_base else [])]
        report = _report(technique, plan, inputs, "sequential", where, past.count + 1, hashes)
        entries = {t.name: Entry("F32", t.shape) for t in plan.merged}
        weight = technique.weights(past.count + 1)[past.count]
        with _whole_or_nothing([], out) as opened, _Pool(threads or where.threads) as pool:
            arrays: dict[str, FileSink] = {}
            for name in technique.state:
                arrays[name] = FileSink(state / f"{name}.safetensors", entries)
                opened.append(arrays[name])
            sink = FileSink(out, plan.entries)
            opened.append(sink)
            tick = _ticker(progress, report.parameters)
            for tensors in _cut(plan, whole=False):
                window = Window(
                    base=reference if technique.needs_base else None,
                    experts=[source],
                    tensors=tensors,
                    relative=technique.relative,
                    stacked=technique.stacked,
                    weights=[weight],
                    keys=_keys(technique, hashes, seed),
                    pool=pool.executor,
                    threads=pool.threads,
                    device=where,
                    scratch=Path(),
                    cleanup=stack,
                )
                _write(window, technique, accumulate(technique, window, past, arrays), sink, slice_entries, tick)
            _copy_kept(plan, reference, sink)
        scalars = {
            "format": _STATE_FORMAT,
            "technique": technique.name,
            "settings": technique.model_dump(mode="json"),
            "count": past.count + 1,
            "total": past.total + weight,
            "norms": past.norms,
            "moved": past.moved,
        }
        atomic.write(state / "state.json", json.dumps(scalars, indent=2, sort_keys=True) + "\n")
        return report


def _check_count(technique: Technique, count: int, has_base: bool) -> None:
    fewest, most = technique.models
    if count < fewest or (most is not None and count > most):
        wanted = f"exactly {fewest}" if fewest == most else f"at least {fewest}" if most is None else f"at most {most}"
        raise UserError(f"{technique.name} merges {wanted} model{'s' * (wanted != 'exactly 1')}, here are {count}")
    if technique.needs_base and not has_base:
        why = "LiNeS scales task vectors" if technique.lines else f"{technique.name} merges task vectors"
        raise UserError(f"{why}, and so needs the base; give it (--base)")


def _weights(technique: Technique, count: int, given: Sequence[float] | None) -> list[float]:
    if given is None:
        return technique.weights(count)
    if not technique.weighted:
        raise UserError(f"{technique.name} does not weigh its models; leave the weights out")
    if "weight" in technique.model_fields_set:
        raise UserError(f"{technique.name}: weights are given both by the setting weight and with the models; keep one")
    if len(given) != count:
        raise UserError(f"{len(given)} weights for {count} models; give one each, or none")
    if not all(math.isfinite(w) for w in given):
        raise UserError(f"the weights should be finite numbers, got {', '.join(f'{w:g}' for w in given)}")
    return [float(w) for w in given]


def _dtype(name: str | None) -> str | None:
    if name is not None and name not in _DTYPES:
        raise UserError(f"unknown dtype {name!r}; there are {', '.join(_DTYPES)}")
    return None if name is None else _DTYPES[name]


def _open(model: Model, label: str, stack: ExitStack) -> Source:
    if isinstance(model, Mapping):
        return DictSource(model, label)
    return stack.enter_context(FileSource(Path(model)))


def _report(
    technique: Technique,
    plan: Layout,
    inputs: Sequence[Source],
    form: str,
    where: Device,
    experts: int,
    hashes: list[str],
) -> Report:
    read = sum(s.entries[t.name].size * WIDTH[s.entries[t.name].dtype] for s in inputs for t in plan.merged)
    return Report(
        technique=technique.name,
        settings=technique.model_dump(mode="json"),
        form=form,
        device=where.name,
        experts=experts,
        merged=len(plan.merged),
        parameters=sum(t.size for t in plan.merged),
        kept=dict(plan.kept),
        dropped=dict(plan.dropped),
        read_bytes=read,
        hashes=hashes,
    )


def _write(
    window: Window,
    technique: Technique,
    compute: Callable[[Piece], Array],
    sink: Sink,
    slice_entries: int | None,
    tick: Callable[[int], None],
) -> None:
    lines = technique.lines
    alpha = 1.0
    if lines is not None:
        alpha = _norm_ratio(window, technique, compute) if lines.alpha == "norm" else lines.alpha

    def one(piece: Piece) -> None:
        tensor = piece.tensor
        merged = compute(piece).astype(np.float32, copy=False).reshape(-1)
        for part in piece.parts():
            x = merged[part.start - piece.start : part.stop - piece.start]
            if technique.needs_base:
                base = part.base.reshape(-1)
                if not technique.relative:
                    x = x - base
                if lines is not None:
                    x = x * np.float32(alpha + lines.beta * tensor.depth)
                x = np.add(x, base, out=x)
            encoded = encode(x, tensor.dtype)
            if not fits(encoded, tensor.dtype):
                raise UserError(
                    f"the merged tensor {tensor.name!r} overflows {tensor.dtype}; choose a smaller scale or float32"
                )
            sink.write(tensor.name, part.start * WIDTH[tensor.dtype], window.device.get(encoded))
        tick(piece.size)

    window.each(one, window.pieces(technique.unit, slice_entries or window.device.slice_entries))


def _alpha_is_norm(technique: Technique) -> bool:
    return technique.lines is not None and technique.lines.alpha == "norm"


def _norm_ratio(window: Window, technique: Technique, compute: Callable[[Piece], Array]) -> float:
    """‖Σ τ_k‖ / (N ‖τ‖) over the window, in L1 norms: LiNeS's alpha."""

    def lengths(piece: Piece) -> NDArray[np.float64]:
        merged, found = compute(piece).reshape(-1), np.zeros(2)
        for part in piece.parts():
            tau = merged[part.start - piece.start : part.stop - piece.start]
            total = part.vector(0)
            for i in range(1, piece.count):
                total += part.vector(i)
            if not technique.relative:
                tau = tau - part.base.reshape(-1)
                total -= piece.count * part.base
            found += [float(np.abs(x).sum(dtype=np.float64)) for x in (total, tau)]
        return found

    total, merged = sum(window.reduce(lengths, unit=technique.unit).values())
    return float(total / merged / len(window.experts)) if merged else 0.0


def _copy_kept(plan: Layout, reference: Source, sink: Sink) -> None:
    for name in plan.kept:
        entry = plan.entries[name]
        total = entry.size * WIDTH[entry.dtype]
        for start in range(0, total, _COPIED_AT_ONCE):
            buffer = np.empty(min(_COPIED_AT_ONCE, total - start), np.uint8)
            reference.read_into(name, start, buffer)
            sink.write(name, start, buffer)


def _cut(plan: Layout, whole: bool) -> Iterator[list[Tensor]]:
    """Windows: tensors whose statistics are taken together, some million entries for locality on a cold disk."""
    window: list[Tensor] = []
    size = 0
    whole = whole or any(t.group != t.name for t in plan.merged)
    for tensor in plan.merged:
        window.append(tensor)
        size += tensor.size
        if size >= _WINDOW and not whole:
            yield window
            window, size = [], 0
    if window:
        yield window


def _hashes(technique: Technique, sources: Sequence[Source], threads: int | None) -> list[str]:
    """Content hash of each model: of its tensors' names and hashes, so that sharding and header order do not matter."""
    if not technique.random:
        return []
    with _Pool(threads) as pool:
        found = []
        for source in sources:
            names = sorted(source.entries)
            run = map if pool.executor is None else pool.executor.map
            digest = hashlib.sha256()
            for name, one in zip(names, run(partial(content_hash, source), names), strict=True):
                digest.update(repr(name).encode() + one)
            found.append(digest.hexdigest())
    return found


def _keys(technique: Technique, hashes: Sequence[str], seed: int) -> Callable[[int, str], int]:
    def key(index: int, name: str) -> int:
        if not hashes:
            return 0
        purpose = repr((seed, technique.name, name, hashes[index])).encode()
        return int.from_bytes(hashlib.sha256(purpose).digest()[:16], "little")

    return key


class _Pool:
    """Worker threads: NumPy lets go of the interpreter lock while it computes, and the system while it reads."""

    def __init__(self, threads: int | None) -> None:
        self.threads = threads or len(os.sched_getaffinity(0))
        self.executor = ThreadPoolExecutor(self.threads) if self.threads > 1 else None

    def __enter__(self) -> _Pool:
        self._blas = one_thread()
        self._blas.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._blas.__exit__(None, None, None)
        if self.executor is not None:
            self.executor.shutdown()


@contextmanager
def _whole_or_nothing(sinks: list[FileSink | DictSink], out: Path | str | None) -> Iterator[list[FileSink | DictSink]]:
    """Finish all sinks (more may be added) at the end, or abandon all of them."""
    try:
        yield sinks
        for sink in sinks:
            sink.finish()
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from None
    finally:
        for sink in sinks:
            sink.abandon()


def _needs_scratch(technique: Technique) -> bool:
    return isinstance(technique, Accumulator) and bool(technique.state_norms)


def _scratch(near: Path | None, stack: ExitStack) -> Path:
    try:
        if near is not None:
            near.mkdir(parents=True, exist_ok=True)
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".merge-", dir=near)))
    except OSError as error:
        raise UserError(f"{near}: cannot be written ({error.strerror})") from None


def _ticker(progress: Progress, total: int) -> Callable[[int], None]:
    lock = threading.Lock()
    done = 0

    def tick(entries: int) -> None:
        nonlocal done
        with lock:
            done += entries
            progress("merge", done, total)

    return tick


def _load_past(technique: Accumulator, folder: Path | None, plan: Layout, stack: ExitStack) -> Past:
    if folder is None:
        return Past()
    path = folder / "state.json"
    try:
        scalars = json.loads(path.read_text())
        past = Past(int(scalars["count"]), float(scalars["total"]), dict(scalars["norms"]), dict(scalars["moved"]))
        made_by = (scalars["format"], scalars["technique"], scalars["settings"])
    except FileNotFoundError:
        raise UserError(f"{path}: no running state there") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not a running state") from None
    if made_by != (_STATE_FORMAT, technique.name, technique.model_dump(mode="json")):
        raise UserError(
            f"{path}: the running state was made by {made_by[1]} with {made_by[2]}; it cannot be continued "
            f"by {technique.name} with other settings; start a new timeline, or keep its technique"
        )
    past.arrays = {array: stack.enter_context(FileSource(folder / f"{array}.safetensors")) for array in technique.state}
    wanted = {t.name: Entry("F32", t.shape) for t in plan.merged}
    for source in past.arrays.values():
        if source.entries != wanted:
            raise UserError(f"{source.label}: the running state is of another architecture")
    return past
