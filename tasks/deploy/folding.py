"""Where a rotation of the joint space goes into a model: the last matrix of each tower.

Features are x·P, normalized. With P·R in place of P in both towers, each similarity inside the model stays what it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tasks.errors import UserError
from tasks.model import models

if TYPE_CHECKING:
    from tasks.model.models import Clip

_MATRICES = {
    "image": {"visual.proj": False, "visual.head.proj.weight": True},
    "text": {"text_projection": False, "text.text_projection": False, "text.proj.weight": True},
}
"""Tower → names of its projection in open_clip's models → whether it is stored as (D, width), as layers are."""
_ENDS = {"image": ("visual.attnpool.c_proj.", "visual.head."), "text": ("text.text_projection.", "text.proj.")}
"""Tower → what the names of its last layers begin with, where they are no plain matrix."""


@dataclass(frozen=True)
class Projection:
    """The last matrix of a tower."""

    name: str
    transposed: bool
    """Shape (D, width); else (width, D)."""

    def turned(self, weight: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
        """The matrix whose features are the old ones times ``turn``, float64 (D, D); float32 at least."""
        exact = weight.double()
        made = turn.T @ exact if self.transposed else exact @ turn
        return made.to(torch.promote_types(weight.dtype, torch.float32))


def projections(model: Clip) -> tuple[Projection, Projection]:
    """The projections of the image and the text tower.

    Raises:
        UserError: a tower has none, or has a bias or more than one layer there.
    """
    named = dict(model.named_parameters())
    return _projection("image", named), _projection("text", named)


def _projection(tower: str, named: Mapping[str, torch.Tensor]) -> Projection:
    ends = [name for name in named if name.startswith(_ENDS[tower])]
    for name, transposed in _MATRICES[tower].items():
        if name in named and named[name].dim() == 2 and set(ends) <= {name}:
            return Projection(name, transposed)
    bias = next((name for name in ends if name.endswith("bias")), None)
    if sum(name.endswith("weight") for name in ends) > 1:
        end = f"several layers after one another ({', '.join(ends)})"
    else:
        end = f"a projection with a bias ({bias})" if bias else "no projection"
    raise UserError(
        f"deploy.compatible_with: the {tower} tower ends in {end:.200}, and a rotation can be folded into one matrix"
        " without a bias alone; leave deploy.compatible_with out"
    )


def of_folder(folder: Path) -> tuple[Projection, Projection]:
    """As `projections`, of a model folder; nothing is allocated."""
    return projections(models.build(folder, "meta"))


def folded(
    weights: Mapping[str, torch.Tensor], towers: tuple[Projection, Projection], turn: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Weights with ``turn``, float64 (D, D), in both projections."""
    return {**weights, **{one.name: one.turned(weights[one.name], turn) for one in towers}}
