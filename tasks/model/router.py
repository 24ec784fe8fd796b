"""The router of a routed deployment: which expert an image goes to, by the nearest prototype in the base's features.

A prototype is the mean of the normalized features of one class of one arrival. Twin-Merging (Lu et al. 2024, arXiv
2406.15479) trains its router; class sums (SimpleCIL, Zhou et al. 2023, arXiv 2303.07338) need no training, are exact as
arrivals come one by one, and take in a new arrival without a look at the others.

The file is a safetensors file:

| tensor | dtype, shape | |
|---|---|---|
| ``prototypes`` | float32, (P, D) | of unit length |
| ``route`` | int64, (P,) | index into ``routes`` |
| ``sums``, ``counts`` | float64, (P, D); int64, (P,) | what the prototypes were computed from |

Its metadata has one key, ``router``: JSON with ``version``, ``base`` (sha256 of the weights that give the features),
``routes`` (each with ``name``, ``file``, ``arrivals`` and ``images``), and ``classes``, one name a prototype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, ValidationError

from tasks.errors import UserError, first_problem
from tasks.model import checkpoints
from tasks.params import Settings

FILE = "router.safetensors"
"""The router's in the folder of a routed deployment; deltas lie beside it, ``NAME.weights`` each."""
BASE = "base"
"""The route of the pretraining pool: the base as it is. No arrival can be called so."""
UNLABELLED = ""
"""The class of samples that have none."""
_KEY = "router"


class Route(Settings):
    """Where an image may go."""

    name: str
    """Of the arrival, or `BASE`."""
    file: str | None
    """Of the delta, beside the router; None for the base itself."""
    arrivals: tuple[str, ...]
    """Whose images belong to it: several where experts were folded into one, none for the base."""
    images: int = Field(ge=0)
    """How many images of arrivals were routed to it when they arrived."""


class _Note(Settings):
    version: Literal[1] = 1
    base: str
    routes: tuple[Route, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Router:
    """Class sums of arrivals in the base's features, and the expert of each."""

    base: str
    """sha256 of the base's weights."""
    routes: tuple[Route, ...]
    classes: tuple[str, ...]
    """Of each prototype."""
    route: torch.Tensor
    """Index into ``routes``: int64, shape (P,)."""
    sums: torch.Tensor
    """Σ f over the samples of a class: float64, shape (P, D)."""
    counts: torch.Tensor
    """int64, shape (P,)."""

    @property
    def prototypes(self) -> torch.Tensor:
        """Means of unit length: float32, shape (P, D)."""
        return torch.nn.functional.normalize(self.sums / self.counts[:, None], dim=1).float()

    @property
    def experts(self) -> list[int]:
        """The routes that have a delta."""
        return [number for number, one in enumerate(self.routes) if one.file is not None]

    def routed(self, features: torch.Tensor) -> torch.Tensor:
        """The route of each image, int64 (N,), from the base's features of unit length, float (N, D).

        Of prototypes that are equally near the first one wins.

        Raises:
            UserError: features of another width, or that are not finite.
        """
        if features.dim() != 2 or features.shape[1] != self.sums.shape[1]:
            raise UserError(
                f"router: features of shape {list(features.shape)}, and its prototypes have {self.sums.shape[1]}"
                " dimensions; give it features of its base"
            )
        if not features.isfinite().all():
            raise UserError("router: features are not finite (NaN or infinity)")
        return self.route[(features.double() @ self.prototypes.double().T).argmax(dim=1)]

    def own(self, name: str) -> int | None:
        """The route of the images of an arrival; None where it has none."""
        return next((number for number, one in enumerate(self.routes) if name in one.arrivals), None)


def empty(base: str) -> Router:
    """A router that knows nothing yet: the first route decides how wide features are."""
    nothing = torch.zeros(0, dtype=torch.int64)
    return Router(base, (), (), nothing, torch.zeros(0, 0, dtype=torch.float64), nothing)


def joined(
    router: Router, route: Route, classes: Sequence[str], features: torch.Tensor, labels: torch.Tensor
) -> Router:
    """The router with one more route, whose images have these features; the other prototypes stay as they are.

    Args:
        route: its ``images`` is not read: it is counted with the new router, and so is that of the others.
        classes: names.
        features: of its images, of unit length: float, shape (N, D).
        labels: index into ``classes``, or -1 for none: int64, shape (N,).

    Raises:
        UserError: no image, features that are not finite or of another width, or an arrival that has a route already.
    """
    if not len(features):
        raise UserError(f"router: arrival {route.name!r} has no image to route by")
    if router.routes and features.shape[1] != router.sums.shape[1]:
        raise UserError(
            f"router: features of arrival {route.name!r} have {features.shape[1]} dimensions, and those of"
            f" {router.routes[0].name!r} {router.sums.shape[1]}"
        )
    if taken := [name for name in route.arrivals if router.own(name) is not None]:
        raise UserError(f"router: arrival {taken[0]!r} has a route already")
    present, place = torch.unique(labels, return_inverse=True)
    sums = torch.zeros(len(present), features.shape[1], dtype=torch.float64)
    sums.index_add_(0, place, features.double())
    names = tuple(classes[label] if label >= 0 else UNLABELLED for label in present.tolist())
    number = len(router.routes)
    grown = replace(
        router,
        routes=(*router.routes, route),
        classes=(*router.classes, *names),
        route=torch.cat([router.route, torch.full((len(present),), number)]),
        sums=torch.cat([router.sums, sums]) if router.routes else sums,
        counts=torch.cat([router.counts, torch.bincount(place, minlength=len(present))]),
    )
    used = torch.bincount(grown.routed(features), minlength=number + 1).tolist()
    before = [*(one.images for one in router.routes), 0]
    routes = tuple(
        one.model_copy(update={"images": old + new}) for one, old, new in zip(grown.routes, before, used, strict=True)
    )
    return replace(grown, routes=routes)


def to_fold(router: Router) -> tuple[int, int]:
    """The expert to which the fewest images were routed, and the one whose mean feature is nearest to its own.

    The base is neither. Of equally rare or near ones the oldest is taken (M-SMoE groups experts by usage and by the
    similarity of router logits: Li et al. 2023, arXiv 2310.01334).

    Raises:
        UserError: fewer than two experts.
    """
    experts = router.experts
    if len(experts) < 2:
        raise UserError("router: fewer than two experts; there is nothing to fold")
    least = min(experts, key=lambda number: router.routes[number].images)
    means = {number: router.sums[router.route == number].sum(dim=0) for number in experts}
    others = [number for number in experts if number != least]
    nearest = max(
        others, key=lambda number: float(torch.cosine_similarity(means[number], means[least], dim=0))
    )  # fmt: skip
    return least, nearest


def folded(router: Router, least: int, into: int, file: str) -> Router:
    """The router in which one expert's prototypes lead to another, whose delta is then ``file``."""
    a, b = router.routes[into], router.routes[least]
    both = Route(name=a.name, file=file, arrivals=(*a.arrivals, *b.arrivals), images=a.images + b.images)
    routes = [both if number == into else one for number, one in enumerate(router.routes)]
    del routes[least]
    route = router.route.clone()
    route[route == least] = into
    route[route > least] -= 1
    return replace(router, routes=tuple(routes), route=route)


def save(path: Path, router: Router) -> None:
    """Write a router; equal ones give equal bytes."""
    tensors = {
        "prototypes": router.prototypes, "route": router.route, "sums": router.sums, "counts": router.counts
    }  # fmt: skip
    note = _Note(base=router.base, routes=router.routes, classes=router.classes)
    checkpoints.save(path, tensors, {_KEY: note.model_dump_json()})


def load(path: Path) -> Router:
    """Read a router.

    Raises:
        UserError: it is missing, damaged, or something else.
    """
    tensors = checkpoints.load(path)
    try:
        note = _Note.model_validate_json(checkpoints.metadata(path)[_KEY])
        route, sums, counts = (tensors[name] for name in ("route", "sums", "counts"))
    except KeyError:
        raise UserError(f"{path}: not the router of a routed deployment; `chronomerge doctor` says more") from None
    except ValidationError as error:
        problem = first_problem(error, "its note")
        raise UserError(f"{path}: damaged ({problem}); `chronomerge doctor` says more") from None
    rows = len(note.classes)
    whole = (
        route.shape == counts.shape == (rows,)
        and sums.dim() == 2
        and len(sums) == rows
        and (route.dtype, sums.dtype, counts.dtype) == (torch.int64, torch.float64, torch.int64)
        and bool(((route >= 0) & (route < len(note.routes)) & (counts > 0)).all())
        and all(one.file is None or Path(one.file).name == one.file for one in note.routes)
    )
    if not whole:
        raise UserError(f"{path}: damaged (its tensors do not fit its note); `chronomerge doctor` says more")
    return Router(note.base, note.routes, note.classes, route, sums, counts)
