"""Merging models piece by piece: `merge` over all experts, `advance` over one more expert and a running state."""

from __future__ import annotations

import hashlib
import math
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tasks.errors import UserError
from tasks.merge import running
from tasks.merge.destination import Destination
from tasks.merge.device import Device, find_device
from tasks.merge.fitness import check_statistics, require_count
from tasks.merge.infinities import with_equal_infinities
from tasks.merge.layout import MergeLayout, Rules, Tensor, layout
from tasks.merge.measured import Statistics, open_statistics
from tasks.merge.output import copy_kept, needs_all_at_once, write_merged
from tasks.merge.parts import resolve
from tasks.merge.report import Report, report_of
from tasks.merge.sequential import Accumulator, accumulate, state_entries
from tasks.merge.statistics import RunningStatistics, shares
from tasks.merge.stream import Window
from tasks.merge.technique import Technique, create
from tasks.merge.threads import Workers
from tasks.model import coded, dtypes, vocabularies
from tasks.model.adapters import is_adapter
from tasks.model.dtypes import as_given
from tasks.model.fitting import OnMismatch
from tasks.model.inputs import open_model
from tasks.model.origins import ModelFiles, located
from tasks.model.sinks import SHARD_BYTES, DictSink, FileSink
from tasks.model.sources import FileSource, TensorSource, content_hash
from tasks.model.translated import learned
from tasks.progress import Progress, silent
from tasks.storage import atomic

Model = Path | str | ModelFiles | Mapping[str, Any]
"""A checkpoint's path (a safetensors file, an index JSON, a folder with one), or a dictionary of tensors."""

Found = ModelFiles | Mapping[str, Any]
_WINDOW = 1 << 24


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
    statistics: Sequence[Path | str | Statistics] | None = None,
    part_weights: Mapping[str, Sequence[float]] | None = None,
    dtype: str | None = None,
    seed: int = 0,
    threads: int | None = None,
    device: str | Device = "cpu",
    slice_entries: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    on_missing: Literal["error", "keep"] = "error",
    on_mismatch: OnMismatch = "error",
    dry_run: bool = False,
    metadata: Mapping[str, str] | None = None,
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
        statistics: one file an expert, in their order, for a technique that looks at the experts' data
            (`tasks.model.statistics` says what is in it).
        part_weights: the same in parts of the model, by pattern (`tasks.merge.parts`).
        dtype: of the merged tensors in the output: float32, bfloat16, float16 or float64; by default the base's.
            Arithmetic is in float64 where an input is float64, else in float32.
        seed: of techniques that drop at random.
        threads: by default as many as this process may use. Neither threads nor slices change a bit of the result.
        device: ``cpu``, ``cuda`` or ``cuda:1`` (needs CuPy, `tasks.merge.device`). What is dropped at random is the
            same on all; a GPU's sums and products differ in their last bits.
        slice_entries: entries of a tensor merged at a time; by default the device's.
        overwrite: whether files of an earlier model in the output's folder, which a loader might mix up with this one,
            are removed.
        on_missing: whether it is an error that less than half of the base's parameters are in all experts, or the
            base's are kept.
        on_mismatch: whether it is an error that a tensor has another shape in an expert, or the base's is taken.
        dry_run: check everything that the headers tell, and only report.
        metadata: for the header of each safetensors file of the output, beside ``format``.

    Raises:
        UserError: anything wrong with the inputs, before any work where headers and settings show it.
    """
    chosen = create(technique, settings or {}) if isinstance(technique, str) else technique
    _check_count(chosen, len(experts), base is not None)
    require_count(chosen, len(experts), len(statistics or []))
    used = _weights(chosen, len(experts), weights)
    in_parts = _part_weights(chosen, len(experts), weights, part_weights or {})
    where = find_device(device)
    base_model, models = _found(base) if base is not None else None, [_found(expert) for expert in experts]
    _require_one_tokenizer(base_model, models)
    with ExitStack() as stack:
        base_source = open_model(base_model, "base", stack, None) if base_model is not None else None
        sources: list[TensorSource] = []
        for i, model in enumerate(models):
            named_like = base_source or (sources[0] if sources else None)
            sources.append(open_model(model, f"expert {i + 1}", stack, named_like))
        base_source, sources = base_source and learned(base_source), [learned(source) for source in sources]
        reference = base_source or sources[0]
        others = {f"expert {i + 1}": s for i, s in enumerate(sources) if s is not reference}
        measured = open_statistics(statistics or [], stack)
        inputs = [*sources, *([base_source] if base_source is not None and chosen.needs_base else [])]
        hashes = _hashes(chosen, sources, threads) if not dry_run else []
        where_to = Destination(Path(out), shard_bytes, overwrite) if out is not None else None

        def attempt(copied: Mapping[str, str]) -> Merged:
            rules = Rules(
                chosen.grouping,
                dtype=dtypes.named(dtype),
                keep_missing=on_missing == "keep",
                keep_mismatched=on_mismatch == "base",
                reference="the base" if base_source else "expert 1",
                copied=copied,
            )
            sorted_out = layout(reference, others, inputs, rules)
            plan, parts = resolve(chosen, sorted_out, len(experts), in_parts)
            plan = check_statistics(chosen, measured, plan, sources, reference)
            report = report_of(chosen, plan, inputs, "batch", where.name, len(sources), hashes, measured, base_source)
            if where_to is not None:
                where_to.check(plan.entries)
            if dry_run:
                return Merged(report)
            data_weights = [chosen.data_weight(one, plan.merged) for one in measured]
            scratch = _scratch(where_to, stack) if _needs_scratch(chosen) else Path()
            sink = DictSink(plan.entries) if where_to is None else where_to.open(plan.entries, metadata or {})
            with _all_or_none([sink], out), Workers(threads or where.threads) as pool:
                tick = _ticker(progress, report.parameters)
                for tensors in _cut(plan, together=needs_all_at_once(chosen)):
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
                            measured=measured,
                            data_weights=data_weights,
                            parts=parts.techniques,
                            part_weights=parts.weights,
                        )
                        write_merged(window, chosen, chosen.plan(window), sink, slice_entries, tick)
                moments = RunningStatistics()
                for source, share in zip(sources, shares(used), strict=True):
                    moments.add(plan.statistics, source, share)
                moments.write(plan.entries, sink)
                copy_kept(plan, reference, sink)
            if isinstance(sink, DictSink):
                like = next((v for m in (base, *experts) if isinstance(m, Mapping) for v in m.values()), np.zeros(0))
                return Merged(report, {n: as_given(a, plan.entries[n].dtype, like) for n, a in sink.arrays.items()})
            return Merged(report)

        return with_equal_infinities(attempt, reference, others)


def advance(
    technique: Accumulator,
    expert: Path,
    base: Path,
    previous: Path | None,
    state: Path,
    out: Path,
    *,
    statistics: Path | Statistics | None = None,
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
        statistics: the expert's statistics file, for a technique that needs one.

    Raises:
        UserError: the technique has no sequential form; the state is of another technique, other settings or another
            model; or a file is unreadable.
    """
    if not technique.sequential:
        raise UserError(f"{technique.name} has no sequential form with these settings; merge all experts at once")
    require_count(technique, 1, int(statistics is not None))
    where = find_device(device)
    with ExitStack() as stack:
        measured = open_statistics([statistics] if statistics is not None else [], stack)
        reference = stack.enter_context(FileSource(base))
        source = coded.opened(expert, reference, stack)
        inputs = [source, *([reference] if technique.needs_base else [])]
        hashes = _hashes(technique, [source], threads)

        def attempt(copied: Mapping[str, str]) -> Report:
            sorted_out = layout(reference, {"the expert": source}, inputs, Rules(technique.grouping, copied=copied))
            plan, parts = resolve(technique, sorted_out, 1, {})
            plan = check_statistics(technique, measured, plan, [source], reference)
            earlier = running.load(technique, previous, plan, stack)
            moments = running.load_statistics(previous, plan)
            read = [*inputs, *earlier.arrays.values()]
            report = report_of(technique, plan, read, "sequential", where.name, earlier.count + 1, hashes, measured)
            weight = technique.weights(earlier.count + 1)[earlier.count]
            data_weights = [technique.data_weight(one, plan.merged) for one in measured]
            with _all_or_none([], out) as opened, Workers(threads or where.threads) as pool:
                arrays: dict[str, FileSink] = {}
                for name, entries in state_entries(technique, plan.merged).items():
                    arrays[name] = FileSink(state / f"{name}.safetensors", entries)
                    opened.append(arrays[name])
                sink = FileSink(out, plan.entries)
                opened.append(sink)
                tick = _ticker(progress, report.parameters)
                for tensors in _cut(plan, together=False):
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
                        measured=measured,
                        data_weights=data_weights,
                        parts=parts.techniques,
                    )
                    compute = accumulate(technique, window, earlier, arrays)
                    write_merged(window, technique, compute, sink, slice_entries, tick)
                if plan.statistics:
                    moments.add(plan.statistics, source, shares([weight])[0])
                    moments.write(plan.entries, sink)
                    statistics = running.statistics_sink(state, plan)
                    opened.append(statistics)
                    running.save_statistics(moments, statistics)
                copy_kept(plan, reference, sink)
            earlier.count, earlier.total = earlier.count + 1, earlier.total + weight
            running.save(technique, earlier, state)
            return report

        return with_equal_infinities(attempt, reference, {"the expert": source})


def _found(model: Model) -> Found:
    return located(model) if isinstance(model, str | Path) else model


def _require_one_tokenizer(base: Found | None, experts: Sequence[Found]) -> None:
    """Hold the tokenizers beside models against one another: a row of an embedding must mean one token in all of them.

    Tokens that only one of two has do not matter; they are often added at the end. Of a model that is given as a file,
    nothing beside it is looked at.

    Raises:
        UserError: a token has different numbers in two models.
    """
    first: tuple[str, Mapping[str, int]] | None = None
    named = [(f"expert {i}", expert) for i, expert in enumerate(experts, start=1)]
    for name, model in [*([("the base", base)] if base is not None else []), *named]:
        if isinstance(model, Mapping) or is_adapter(model.path):
            continue
        of_folder = len(model.pin.files) > 1 if model.pin else model.path.is_dir()
        words = vocabularies.of(model.root if model.pin else model.path) if of_folder else None
        if words is None:
            continue
        if first is None:
            first = (name, words)
        elif differing := [word for word, number in words.items() if first[1].get(word, number) != number]:
            word = min(differing, key=words.__getitem__)
            raise UserError(
                f"{model.path}: its tokenizer is another than that of {first[0]}: the token {word!r:.60} is "
                f"number {words[word]}, there {first[1][word]} ({len(differing)} such tokens); merging needs models "
                "with one tokenizer, or name the file of the weights itself"
            )


def _check_count(technique: Technique, count: int, has_base: bool) -> None:
    fewest, most = technique.models
    if count < fewest or (most is not None and count > most):
        wanted = f"exactly {fewest}" if fewest == most else f"at least {fewest}" if most is None else f"at most {most}"
        raise UserError(f"{technique.name} merges {wanted} model{'s' * (wanted != 'exactly 1')}, got {count}")
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
    if technique.normalizes and not 0 < sum(given) < math.inf:
        raise UserError(
            f"{technique.name}: the weights sum to {sum(given):g}, and it divides by that; choose weights whose sum is "
            "more than 0"
        )
    return [float(w) for w in given]


def _part_weights(
    technique: Technique, count: int, shared: Sequence[float] | None, given: Mapping[str, Sequence[float]]
) -> Mapping[str, Sequence[float]]:
    own = {key for settings in (technique.parts or {}).values() for key in settings} & technique.weighing
    if own and (given or shared is not None):
        raise UserError(
            f"{technique.name}: weights are given both by {min(own)} of a part and with the models; keep one"
        )
    return {pattern: _weights(technique, count, weights) for pattern, weights in given.items()}


def _cut(plan: MergeLayout, together: bool) -> Iterator[list[Tensor]]:
    """Windows: tensors whose statistics are taken together, some million entries for locality on a cold disk."""
    window: list[Tensor] = []
    size = 0
    together = together or any(t.group != t.name for t in plan.merged)
    for tensor in plan.merged:
        window.append(tensor)
        size += tensor.size
        if size >= _WINDOW and not together:
            yield window
            window, size = [], 0
    if window:
        yield window


def _hashes(technique: Technique, sources: Sequence[TensorSource], threads: int | None) -> list[str]:
    """Content hash of each model: of its tensors' names and hashes, so that sharding and header order do not matter."""
    if not technique.random:
        return []
    with Workers(threads) as pool:
        digests = []
        for source in sources:
            names = sorted(source.entries)
            run = map if pool.executor is None else pool.executor.map
            digest = hashlib.sha256()
            for name, one in zip(names, run(partial(content_hash, source), names), strict=True):
                digest.update(repr(name).encode() + one)
            digests.append(digest.hexdigest())
    return digests


def _keys(technique: Technique, hashes: Sequence[str], seed: int) -> Callable[[int, str], int]:
    def key(index: int, name: str) -> int:
        if not hashes:
            return 0
        purpose = repr((seed, technique.name, name, hashes[index])).encode()
        return int.from_bytes(hashlib.sha256(purpose).digest()[:16], "little")

    return key


@contextmanager
def _all_or_none(sinks: list[FileSink | DictSink], out: Path | str | None) -> Iterator[list[FileSink | DictSink]]:
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


def _scratch(destination: Destination | None, stack: ExitStack) -> Path:
    """A folder for temporary arrays, on the file system of the output."""
    if destination is None:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="merge-")))
    try:
        shared = destination.path.with_name(f".{destination.path.name}.scratch.part")
        return stack.enter_context(atomic.private_folder(shared))
    except OSError as error:
        raise UserError(f"{destination.path}: cannot be written ({error.strerror})") from None


def _ticker(progress: Progress, total: int) -> Callable[[int], None]:
    lock = threading.Lock()
    done = 0

    def tick(entries: int) -> None:
        nonlocal done
        with lock:
            done += entries
            progress("merge", done, total)

    return tick
