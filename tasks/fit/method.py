"""What a method of the node ``fit`` is, and what it is given."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tasks.choice import Choice, create
from tasks.errors import UserError
from tasks.merge import FitResult, Technique
from tasks.model import coded
from tasks.params import Named, Params
from tasks.progress import Progress

if TYPE_CHECKING:
    from tasks.fit.samples import FitSamples
    from tasks.model.models import Clip


@dataclass(frozen=True)
class Problem:
    """One time step's merge, and the data that its coefficients are found on."""

    project: Path
    params: Params
    technique: Technique
    """As the protocol uses it."""
    model: Clip
    """Of the timeline's architecture, on its device; a method may give it any weights."""
    samples: FitSamples
    base: Path
    models: Sequence[tuple[str, Path]]
    """What is merged, by name: expert and running model for an EMA; else all experts, the oldest first."""
    reference: Path
    """The deployed model that the step starts from."""
    merged: Callable[[Technique], Path]
    """A technique → the file of what the protocol would deploy with it, until the next call."""
    scratch: Path
    """A folder that goes when the node ends."""
    out: Path
    """The node's own folder, from the project's: what `FitResult.models` may name beside the models."""
    seed: int
    progress: Progress

    def files(self) -> list[Path]:
        """The models as safetensors files: coded experts are decoded into `scratch`."""
        written = []
        for number, (_, path) in enumerate(self.models):
            file = self.project / path
            if coded.is_coded(file):
                plain = self.scratch / f"plain-{number}.safetensors"
                coded.as_safetensors(file, self.base, plain)
                file = plain
            written.append(file)
        return written


class FitMethod(Choice):
    """A method; its fields are its settings."""

    key: ClassVar[str] = "fit"
    package: ClassVar[str] = "tasks.fit.methods"
    learns: ClassVar[bool] = True
    """Whether it gives each model a weight: then ``deploy: all`` reads every expert at every step."""

    def check(self, params: Params, technique: Technique) -> list[str]:  # noqa: ARG002
        """Refuse settings that do not fit the params; return what is worth a warning.

        Raises:
            UserError: they do not.
        """
        return []

    @abstractmethod
    def fit(self, problem: Problem) -> tuple[FitResult, dict[str, Any]]:
        """The coefficients, and a report on how they were found.

        Raises:
            UserError: the data cannot decide.
        """


def chosen(named: Named) -> FitMethod:
    """The method of ``fit``.

    Raises:
        UserError: an unknown name, or a wrong setting.
    """
    return create(FitMethod, named)  # type: ignore[type-abstract]


def check(params: Params) -> list[str]:
    """As `tasks.fit.check`, where there is a method."""
    from tasks.merge import create as create_technique

    assert params.fit is not None
    method = chosen(params.fit)
    if params.time.deploy == "ft":
        raise UserError("fit: deploy: ft deploys the expert as it is, so there is nothing to fit; take ema or all")
    if not params.train.holdout:
        raise UserError(
            f"fit: {method.name} needs samples that nothing is trained on; set train.holdout, such as 0.1 (their share)"
        )
    return method.check(params, create_technique(params.time.technique.name, params.time.technique.settings))
