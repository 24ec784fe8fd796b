"""The file of a head: what it was computed from, which can be added to another's, and what classifies.

A safetensors file. Its metadata has one key, ``head``, a JSON object: `Note`. Tensors, by kind of head:

| tensor | dtype, shape | in |
|---|---|---|
| ``weight``, ``bias`` | float32, (C, D) and (C,) | prototype, gda, linear: logits = f·weightᵀ + bias |
| ``text`` | float32, (C, D) | all: the classes' prompts in the text tower, of unit length |
| ``counts``, ``sums``, ``gram`` | int64 (C,), float64 (C, D) and (D, D) | ``shots: all`` |
| ``features``, ``labels``, ``ranks`` | float32 (M, D), int64 (M,) and (M,) | a number of shots |

Row c belongs to ``classes[c]``; f is the feature of an image, of unit length.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from tasks.errors import UserError, first_problem
from tasks.evaluate import support as supports
from tasks.evaluate.head import ALL, Fitted, Space, SupportHead, Text, chosen, fit
from tasks.evaluate.support import Moments, Support
from tasks.model import checkpoints
from tasks.params import Named, Settings

KEY = "head"
MOMENTS, SUPPORT = ("counts", "sums", "gram"), ("features", "labels", "ranks")


class Note(Settings):
    """What the file of a head says of itself."""

    version: Literal[1] = 1
    name: str
    """Which head; ``settings`` are its own."""
    settings: dict[str, Any]
    fitted: dict[str, Any]
    """The settings that it classifies with: those that were searched have their values."""
    shots: int | Literal["all"]
    space: Space
    """Whose features."""
    weights: tuple[str, ...]
    """sha256 of the weights that give the features: of the base and the first expert for ``base+first``."""
    seed: int
    """Of the draw of the support."""
    scale: float = Field(gt=0, le=1e6)
    """The factor on cosines in the zero-shot part."""
    classes: tuple[str, ...]
    estimated: tuple[str, ...] = ()
    """Classes that were taken out of sums without their samples, so that the covariance is an estimate."""

    @model_serializer(mode="wrap")
    def _without_what_is_unused(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = dump(self)
        return {key: value for key, value in content.items() if key != "estimated" or value}


def save(path: Path, note: Note, data: Support | Moments, text: Text, fitted: Fitted) -> None:
    """Write the file of a fitted head; equal heads give equal bytes."""
    tensors = {"text": text.features, **held(data), **fitted.classifier.tensors()}
    checkpoints.save(path, tensors, {KEY: note.model_dump_json()})


def held(data: Support | Moments) -> dict[str, torch.Tensor]:
    """The tensors of support or moments, by name."""
    return {name: getattr(data, name) for name in (SUPPORT if isinstance(data, Support) else MOMENTS)}


def note_of(named: SupportHead, fitted: Fitted, data: Support | Moments, text: Text, **facts: Any) -> Note:
    """The note of a fitted head; ``facts`` are shots, space, weights, seed, and what was estimated."""
    return Note(
        name=named.name, settings=named.model_dump(mode="json"), fitted=fitted.head.model_dump(mode="json"),
        scale=text.scale, classes=data.classes, **facts,
    )  # fmt: skip


def read(path: Path) -> tuple[Note, Support | Moments, Text]:
    """What a head was computed from.

    Raises:
        UserError: the file is missing, damaged, or no file of a head.
    """
    tensors = checkpoints.load(path)
    try:
        note = Note.model_validate_json(checkpoints.metadata(path)[KEY])
    except KeyError:
        raise UserError(f"{path}: not the file of a head: its metadata has no {KEY!r}") from None
    except ValidationError as error:
        raise UserError(f"{path}: not a file of a head that can be read ({first_problem(error)})") from None
    data = _data(path, note, tensors)
    text = _tensor(path, tensors, "text", torch.float32, (len(note.classes), data_width(data)))
    return note, data, Text(text, note.scale)


def data_width(data: Support | Moments) -> int:
    """D, the width of the features."""
    return (data.features if isinstance(data, Support) else data.sums).shape[1]


def _data(path: Path, note: Note, tensors: Mapping[str, torch.Tensor]) -> Support | Moments:
    count = len(note.classes)
    if note.classes != tuple(sorted(set(note.classes))):
        raise UserError(f"{path}: its classes are not sorted, each once")
    if note.shots == ALL:
        counts = _tensor(path, tensors, "counts", torch.int64, (count,))
        sums = _tensor(path, tensors, "sums", torch.float64, (count, None))
        gram = _tensor(path, tensors, "gram", torch.float64, (sums.shape[1], sums.shape[1]))
        if (counts < 1).any():
            raise UserError(f"{path}: 'counts' has a class without a sample")
        return Moments(note.classes, counts, sums, gram)
    features = _tensor(path, tensors, "features", torch.float32, (None, None))
    labels = _tensor(path, tensors, "labels", torch.int64, (len(features),))
    ranks = _tensor(path, tensors, "ranks", torch.int64, (len(features),))
    if not torch.equal(labels.unique(), torch.arange(count)) or (labels.diff() < 0).any():
        raise UserError(f"{path}: 'labels' are not sorted, or lack one of the {count} classes")
    return Support(note.classes, features, labels, ranks)


def _tensor(
    path: Path, tensors: Mapping[str, torch.Tensor], name: str, dtype: torch.dtype, shape: tuple[int | None, ...]
) -> torch.Tensor:
    tensor = tensors.get(name)
    if tensor is None:
        raise UserError(f"{path}: lacks the tensor {name!r}")
    fits = tensor.dim() == len(shape) and all(
        want in (None, got) for want, got in zip(shape, tensor.shape, strict=False)
    )
    if tensor.dtype != dtype or not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise UserError(
            f"{path}: {name!r} is {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}; it should be"
            f" {str(dtype).removeprefix('torch.')} [{wanted}]"
        )
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise UserError(f"{path}: {name!r} holds values that are not finite (NaN or infinity)")
    return tensor


def merge(a: Path, b: Path, out: Path) -> Note:
    """Write the head of the samples of both files: counts and sums are added, supports united; then it is fitted.

    The result does not depend on the order of the files, up to rounding. Features of both must be those of one model.

    Raises:
        UserError: a file cannot be read, or the heads are of another kind, shots, seed or model.
    """
    (note, data, text), (other, its_data, its_text) = read(a), read(b)
    for what in ("name", "settings", "shots", "space", "weights", "seed", "scale"):
        mine, theirs = getattr(note, what), getattr(other, what)
        if mine != theirs:
            way_out = "only features of one model can be added" if what in ("weights", "scale", "space") else (
                "give both timelines the same head and seed"
            )  # fmt: skip
            raise UserError(f"{a} and {b}: {what} differs ({mine!r:.80} and {theirs!r:.80}); {way_out}")
    joined: Support | Moments
    if isinstance(data, Support):
        assert isinstance(its_data, Support)
        assert isinstance(note.shots, int)
        joined = supports.join(data, its_data, note.shots)
    else:
        assert isinstance(its_data, Moments)
        joined = supports.plus(data, its_data)
    both = _texts(a, b, (note.classes, text), (other.classes, its_text), joined.classes)
    head = _head(a, note)
    estimated = tuple(sorted({*note.estimated, *other.estimated}))
    return _write(out, note, head, joined, both, estimated)


def remove(path: Path, classes: Sequence[str], out: Path) -> Note:
    """Write the head of a file's samples without those of some classes, and return its note.

    Of a support, the samples of the classes go, and the head is what it would be had they never come. Of sums
    (``shots: all``), counts and sums are exact and the covariance is an estimate (`supports.reduced`): then the classes
    stand in ``estimated`` of the note. A class that is added again later comes back.

    Raises:
        UserError: the file cannot be read, it has no such class, or fewer than two classes would be left.
    """
    note, data, text = read(path)
    if absent := [name for name in classes if name not in note.classes]:
        near = difflib.get_close_matches(absent[0], note.classes, n=3)
        hint = f"; near: {', '.join(map(repr, near))}" if near else ""
        raise UserError(f"{path}: has no class {absent[0]!r} among its {len(note.classes)} classes{hint}")
    kept = [i for i, name in enumerate(note.classes) if name not in classes]
    if len(kept) < 2:
        raise UserError(f"{path}: {len(kept)} of its {len(note.classes)} classes would be left; a head needs two")
    left: Support | Moments
    if isinstance(data, Support):
        left, estimated = supports.without(data, classes), note.estimated
    else:
        left, estimated = supports.reduced(data, classes), tuple(sorted({*note.estimated, *classes}))
    head = _head(path, note)
    return _write(out, note, head, left, Text(text.features[kept], text.scale), estimated)


def _head(path: Path, note: Note) -> SupportHead:
    """The head that a file says it is of."""
    try:
        head = chosen(Named.model_validate({**note.settings, "name": note.name}))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(head, SupportHead):
        raise UserError(f"{path}: is no file of a head: {note.name} has none")
    return head


def _write(
    out: Path, note: Note, head: SupportHead, data: Support | Moments, text: Text, estimated: tuple[str, ...]
) -> Note:
    """Fit a head anew and write its file; what ``note`` says of seed, shots and features stays."""
    fitted = fit(head, data, text)
    facts = {key: getattr(note, key) for key in ("shots", "space", "weights", "seed")}
    made = note_of(head, fitted, data, text, **facts, estimated=estimated)
    save(out, made, data, text, fitted)
    return made


def _texts(
    a: Path, b: Path, mine: tuple[tuple[str, ...], Text], theirs: tuple[tuple[str, ...], Text], classes: tuple[str, ...]
) -> Text:
    rows = dict(zip(theirs[0], theirs[1].features, strict=True))
    for name, row in zip(mine[0], mine[1].features, strict=True):
        if name in rows and not torch.allclose(rows[name], row, atol=1e-4):
            raise UserError(f"{a} and {b}: class {name!r} has other prompts in each; evaluate both with the same")
        rows[name] = row
    return Text(torch.stack([rows[name] for name in classes]), mine[1].scale)
