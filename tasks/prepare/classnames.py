"""Class-name tables: what the classes of a test set are called in prompts (``classnames`` in params.yaml)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError

from tasks.errors import UserError
from tasks.model.light_imports import prepare as prepare_imports
from tasks.params import EvaluationSet
from tasks.prepare import encodings

IMAGENET = "imagenet"
"""open_clip's names. They call two classes "missile" and two "sunglasses"; the first of each pair is always predicted,
as in open_clip's own scores."""
FOLDER = "classnames"
"""Beside the raw files of the sources: one table for each test set that has one."""


class ClassNames(BaseModel):
    """A table as it is kept among raw files; how a class is looked up is `renamed`."""

    origin: str
    """What messages call the table."""
    by_number: tuple[str, ...] = ()
    by_class: dict[str, str] = {}


def check(one: EvaluationSet, project: Path) -> None:
    """Read the table of a test set, before any work.

    Raises:
        UserError: there is no such file, or it is none.
    """
    if one.classnames is not None and one.classnames != IMAGENET:
        _of_file(one, project)


def fetch(one: EvaluationSet, into: Path, project: Path) -> None:
    """Write the table of a test set, if it has one, among the raw files in the folder ``into``.

    Raises:
        UserError: as `check`.
    """
    if one.classnames is None:
        return
    table = _imagenet() if one.classnames == IMAGENET else _of_file(one, project)
    (into / FOLDER).mkdir(exist_ok=True)
    (into / FOLDER / f"{one.name}.json").write_text(table.model_dump_json(indent=1) + "\n", encoding="utf-8")


def named(one: EvaluationSet, raw: Path, classes: Sequence[str]) -> tuple[str, ...]:
    """The names of the classes of a test set, in their order: from its table in the folder ``raw``, or as they are.

    Raises:
        UserError: the table is missing among the raw files, or does not fit the classes.
    """
    if one.classnames is None or not classes:
        return tuple(classes)
    path = raw / FOLDER / f"{one.name}.json"
    try:
        table = ClassNames.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a table of class names ({error}); fetch the test sets again") from None
    return renamed(table, classes, f"evaluation set {one.name!r}")


def lines(text: str, what: str) -> tuple[str, ...]:
    """A class name a line, the first that of class 0.

    Raises:
        UserError: there are none, or a line between two names is empty: every later class would have another name.
    """
    names = [" ".join(line.split()) for line in re.split(r"\r\n|\r|\n", text.rstrip())]
    if not any(names):
        raise UserError(f"{what}: holds no names")
    if "" in names:
        raise UserError(f"{what}: line {names.index('') + 1} is empty, so numbers of classes would shift; remove it")
    return tuple(names)


def renamed(table: ClassNames, classes: Sequence[str], what: str) -> tuple[str, ...]:
    """What a table calls each of some classes, which are all those of a test set ``what`` in sorted order.

    A class is looked up as it is called; where all classes are numbers, they are numbers into the table's list; else
    the list is that of all classes in order, if it has as many.

    Raises:
        UserError: a class has no name, or the name of another class.
    """
    where = f"{what}: classnames {table.origin}"
    if table.by_class.keys() >= set(classes):
        names = tuple(table.by_class[name] for name in classes)
    elif table.by_number and all(name.isdecimal() for name in classes):
        if (largest := max(map(int, classes))) >= len(table.by_number):
            raise UserError(f"{where} has {len(table.by_number)} names, and there is a class {largest}")
        names = tuple(table.by_number[int(name)] for name in classes)
    elif table.by_class:
        unnamed = [name for name in classes if name not in table.by_class]
        raise UserError(f"{where} has no name for {len(unnamed)} of {len(classes)} classes, such as {unnamed[0]!r}")
    elif len(table.by_number) != len(classes):
        raise UserError(
            f"{where} has {len(table.by_number)} names, and there are {len(classes)} classes, such as {classes[0]!r}"
        )
    else:
        names = table.by_number
        if moved := [name for name, other in zip(classes, names, strict=True) if name != other and name in names]:
            raise UserError(
                f"{where} has {moved[0]!r} on another line than its place among the sorted classes; a JSON object"
                " from class to name says which is which"
            )
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated and table.origin != IMAGENET:
        raise UserError(f"{where} calls several classes {repeated[0]!r}; rename one")
    return names


def _imagenet() -> ClassNames:
    """open_clip's names of ImageNet's 1000 classes, by number and by WordNet id (timm's list, in the same order)."""
    prepare_imports()
    import open_clip
    from timm.data import ImageNetInfo

    names = tuple(open_clip.IMAGENET_CLASSNAMES)
    ids = ImageNetInfo("imagenet-1k").label_names()  # type: ignore[no-untyped-call]
    by_id = dict(zip(ids, names, strict=True))
    return ClassNames(origin=IMAGENET, by_number=names, by_class=by_id)


def _of_file(one: EvaluationSet, project: Path) -> ClassNames:
    assert one.classnames is not None
    where = f"evaluation set {one.name!r}: classnames {one.classnames}"
    try:
        text = encodings.text((project / one.classnames).read_bytes(), where)
    except OSError as error:
        raise UserError(f"{where}: {error.strerror or error}; name a file of class names, or {IMAGENET}") from None
    if not one.classnames.endswith(".json"):
        return ClassNames(origin=one.classnames, by_number=lines(text, where))
    try:
        content = json.loads(text)
        if isinstance(content, list):
            return ClassNames(origin=one.classnames, by_number=tuple(content))
        return ClassNames(origin=one.classnames, by_class=content)
    except (ValidationError, ValueError, RecursionError):
        raise UserError(f"{where}: is neither a JSON object from class to name nor a list of names") from None
