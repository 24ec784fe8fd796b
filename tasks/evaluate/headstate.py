"""The running state of heads: what they were computed from, handed from step to step.

In a frozen feature space the samples of an arrival are added to the state of the step before, and earlier arrivals are
never encoded again. So they are where deployed models share one space, each sample with the features of the model that
was deployed when it came. In the deployed model's own space, the state is made anew at each step from all arrivals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, ValidationError

from tasks.errors import UserError, first_problem
from tasks.evaluate import headfile
from tasks.evaluate import support as supports
from tasks.evaluate.prompts import PLACE, templates
from tasks.evaluate.spaces import FeatureSpace
from tasks.evaluate.support import Moments, Support
from tasks.model import checkpoints
from tasks.model.datasets import Dataset
from tasks.params import Settings

KEY = "state"
_MOMENTS, _SUPPORT = headfile.MOMENTS, headfile.SUPPORT
OnDone = Callable[[int], None]


class Spec(Settings):
    """What a state holds, and of which samples: only a state of equal settings can be continued."""

    version: Literal[1] = 1
    weights: tuple[str, ...]
    """sha256 of the weights that give the features."""
    seed: int
    shots: int
    """Samples of each class in the support; 0 where no head needs any."""
    moments: bool
    """Whether it has counts and sums of all samples."""
    pools: tuple[str, ...]
    """Names of the arrivals whose samples it has."""


class _Note(Settings):
    spec: Spec
    support: tuple[str, ...] = ()
    moments: tuple[str, ...] = ()
    prompts: Mapping[str, tuple[str, ...]] = Field(default={})


@dataclass(frozen=True)
class HeadState:
    """Support, moments, or both, and the primer prompt of each class."""

    support: Support | None
    moments: Moments | None
    prompts: Mapping[str, tuple[str, ...]]
    """Class → its prompts, as the newest arrival with that class has them."""


def collect(datasets: Sequence[Dataset], spec: Spec, space: FeatureSpace, on_done: OnDone) -> HeadState | None:
    """The state of some data sets; None where none of their samples has a class."""
    all_samples = supports.every(datasets)
    if not all_samples.classes:
        return None
    support = moments = None
    encoded = 0
    if spec.moments:
        features = space.chosen(datasets, all_samples, on_done)
        moments = supports.moments(all_samples.classes, features, torch.from_numpy(all_samples.labels))
        encoded = len(all_samples)
    if spec.shots:
        drawn = supports.draw(datasets, spec.shots, spec.seed)
        features = space.chosen(datasets, drawn, lambda done: on_done(encoded + done))
        labels, ranks = torch.from_numpy(drawn.labels.copy()), torch.from_numpy(drawn.ranks.copy())
        support = Support(drawn.classes, features, labels, ranks)
    prompts = {
        name: tuple(template.replace(PLACE, name) for template in templates(data.card.templates or data.card.prompt))
        for data in datasets
        for name in (data.card.classes[label] for label in sorted({*data.labels.tolist()} - {-1}))
    }
    return HeadState(support, moments, prompts)


def added(before: HeadState | None, new: HeadState | None, spec: Spec) -> HeadState | None:
    """The state of the samples of both."""
    if before is None or new is None:
        return before or new
    support = moments = None
    if before.support and new.support:
        support = supports.join(before.support, new.support, spec.shots)
    if before.moments and new.moments:
        moments = supports.plus(before.moments, new.moments)
    return HeadState(support, moments, {**before.prompts, **new.prompts})


def save(path: Path, state: HeadState | None, spec: Spec) -> None:
    """Write a state; equal states give equal bytes."""
    tensors: dict[str, torch.Tensor] = {"none": torch.zeros(0)}
    note = _Note(spec=spec)
    if state:
        parts = [(state.support, _SUPPORT), (state.moments, _MOMENTS)]
        tensors = {name: getattr(part, name) for part, names in parts if part for name in names}
        note = _Note(
            spec=spec,
            support=state.support.classes if state.support else (),
            moments=state.moments.classes if state.moments else (),
            prompts=dict(sorted(state.prompts.items())),
        )
    checkpoints.save(path, tensors, {KEY: note.model_dump_json()})


def load(path: Path, spec: Spec) -> tuple[bool, HeadState | None]:
    """Whether a file has the state of equal settings, and that state.

    Raises:
        UserError: the file is damaged.
    """
    if not path.exists():
        return False, None
    tensors = checkpoints.load(path)
    try:
        note = _Note.model_validate_json(checkpoints.metadata(path)[KEY])
    except KeyError:
        raise UserError(f"{path}: not the state of heads; `chronomerge doctor` says more") from None
    except ValidationError as error:
        if error.errors()[0]["loc"][:2] == ("spec", "version"):
            return False, None
        raise UserError(f"{path}: damaged ({first_problem(error)}); `chronomerge doctor` says more") from None
    if note.spec != spec:
        return False, None
    if not note.support and not note.moments:
        return True, None
    support = Support(note.support, *(tensors[name] for name in _SUPPORT)) if note.support else None
    moments = Moments(note.moments, *(tensors[name] for name in _MOMENTS)) if note.moments else None
    return True, HeadState(support, moments, note.prompts)
