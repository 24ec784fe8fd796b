"""LoRA, DoRA and VeRA: a weight is frozen, and a low-rank change of it is trained.

Adapters are parametrizations (`torch.nn.utils.parametrize`) of any 2-d weight, because ``peft`` (0.21) does not serve
the packed attention of open_clip's towers: its LoRA adds its update to ``in_proj_weight`` before each forward and
subtracts it after, by which the frozen weight drifts (a third of its entries changed after 100 forwards); its DoRA and
VeRA refuse ``nn.MultiheadAttention``; and what it sets on ``out_proj`` is never called. On plain linear layers, which
``peft`` does serve, the tests hold these three to what it computes.
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import nn
from torch.nn.utils import parametrize

from tasks.errors import UserError
from tasks.model.factors import Factors
from tasks.train.method import Draw, Method, freeze

Target = Literal["qkv", "out", "fc", "proj"]
TARGETS: dict[Target, re.Pattern[str]] = {
    "qkv": re.compile(r"(\.in_proj_weight|\.(qkv|[qkv]_proj|query|key|value)\.weight)$"),
    "out": re.compile(r"\b(attn\.proj|out_proj|attention\.output\.dense)\.weight$"),
    "fc": re.compile(r"\b(c_fc|fc1|intermediate\.dense)\.weight$"),
    "proj": re.compile(r"\bmlp\.(c_proj|fc2)\.weight$|\blayer\.\d+\.output\.dense\.weight$"),
}
"""The weights of a transformer block, as open_clip, timm and Hugging Face's towers call them: queries, keys and values;
the output of attention; the two layers of the MLP."""


class LowRank(nn.Module):
    """LoRA's parametrization of a weight of shape (out, in)."""

    def __init__(self, weight: torch.Tensor, rank: int, scale: float, random: np.random.Generator):
        super().__init__()
        self.scale = scale
        self.down = nn.Parameter(_uniform((rank, weight.shape[1]), random))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        with _full_precision(weight):  # a small change must not be rounded away
            return weight + self.scale * (self.up @ self.down)

    def factors(self, _weight: torch.Tensor) -> Factors:
        """Those of the change of a weight."""
        return Factors(left=_array(self.up), right=_array(self.down), scale=self.scale)


class Directed(LowRank):
    """DoRA's: magnitude and direction of each output's row."""

    def __init__(self, weight: torch.Tensor, rank: int, scale: float, random: np.random.Generator):
        super().__init__(weight, rank, scale, random)
        self.magnitude = nn.Parameter(_row_norms(weight.detach()))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        changed = super().forward(weight)
        with _full_precision(weight):
            return changed * (self.magnitude / _row_norms(changed.detach())).unsqueeze(1)

    def factors(self, weight: torch.Tensor) -> Factors:
        changed = super().forward(weight)
        gain = self.magnitude / _row_norms(changed)
        return replace(super().factors(weight), gain=_array(gain))


class Scaled(nn.Module):
    """VeRA's: two trained vectors around the shared matrices, of which each weight takes what its shape has."""

    def __init__(self, weight: torch.Tensor, down: torch.Tensor, up: torch.Tensor, d_initial: float):
        super().__init__()
        self.down = nn.Buffer(down[:, : weight.shape[1]], persistent=False)
        self.up = nn.Buffer(up[: weight.shape[0]], persistent=False)
        self.d = nn.Parameter(torch.full((len(down),), d_initial))
        self.b = nn.Parameter(torch.zeros(weight.shape[0]))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        with _full_precision(weight):
            return weight + (self.b.unsqueeze(1) * self.up) @ (self.d.unsqueeze(1) * self.down)

    def factors(self, _weight: torch.Tensor) -> Factors:
        return Factors(left=_array(self.up), right=_array(self.down), rows=_array(self.b), middle=_array(self.d))


class AdapterMethod(Method):
    """The common part of the three: which weights they adapt, and that they end as plain merged weights."""

    adapts: ClassVar[bool] = True

    targets: tuple[Target, ...] = ("qkv", "fc")
    """The adapted weights. TIME's material does not name them; with these, its FLOPs per step agree to 0.02 percent."""
    rank: int = Field(default=4, gt=0)

    @field_validator("targets", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("targets")
    @classmethod
    def _some(cls, value: tuple[Target, ...]) -> tuple[Target, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError("name each of the targets once, and at least one")
        return value

    def start(self, model: nn.Module, draw: Draw) -> None:
        weights = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.ndim == 2 and any(TARGETS[target].search(name) for target in self.targets)
        }
        if not weights:
            raise UserError(
                f"train.method: {self.name} finds no weights of {', '.join(self.targets)} in this model; it knows "
                "transformer blocks"
            )
        freeze(model, lambda _name: False)
        for name, change in self.changes(weights, draw).items():
            home, _, own = name.rpartition(".")
            parametrize.register_parametrization(model.get_submodule(home), own, change.to(weights[name].device))

    def factors(self, model: nn.Module) -> Mapping[str, Factors]:
        changed = {}
        with torch.no_grad():
            for home, module in model.named_modules():
                if parametrize.is_parametrized(module):
                    for own, (change,) in module.parametrizations.items():
                        weight = module.parametrizations[own].original
                        changed[f"{home}.{own}" if home else own] = change.factors(weight)
        return changed

    def finish(self, model: nn.Module) -> None:
        with torch.no_grad():
            for module in [m for m in model.modules() if parametrize.is_parametrized(m)]:
                for own in list(module.parametrizations):  # type: ignore[arg-type]
                    parametrize.remove_parametrizations(module, own, leave_parametrized=True)

    @abstractmethod
    def changes(self, weights: dict[str, nn.Parameter], draw: Draw) -> dict[str, nn.Module]:
        """For each weight, the module that computes the trained weight from it."""


class Lora(AdapterMethod):
    """W = W_0 + (alpha / rank)·B·A, with B = 0 at first."""

    name: ClassVar[str] = "lora"
    source: ClassVar[str] = "Hu et al. 2022 (arXiv 2106.09685)"
    change: ClassVar[type[LowRank]] = LowRank

    alpha: float | None = Field(default=None, gt=0)
    """By default the rank, which makes the factor 1."""

    def changes(self, weights: dict[str, nn.Parameter], draw: Draw) -> dict[str, nn.Module]:
        scale = (self.alpha or self.rank) / self.rank
        return {name: self.change(weight, self.rank, scale, draw(name)) for name, weight in weights.items()}


class Dora(Lora):
    """W = m·V/‖V‖ with V = W_0 + (alpha / rank)·B·A, the norm of each row taken as a constant (section 4.3)."""

    name: ClassVar[str] = "dora"
    source: ClassVar[str] = "Liu et al. 2024 (arXiv 2402.09353)"
    change: ClassVar[type[LowRank]] = Directed


class Vera(AdapterMethod):
    """W = W_0 + diag(b)·B·diag(d)·A, with B and A random, frozen and shared by all weights; b = 0 at first."""

    name: ClassVar[str] = "vera"
    source: ClassVar[str] = "Kopiczko et al. 2024 (arXiv 2310.11454)"

    rank: int = Field(default=256, gt=0)
    d_initial: float = 0.1

    def changes(self, weights: dict[str, nn.Parameter], draw: Draw) -> dict[str, nn.Module]:
        widest = [max(weight.shape[side] for weight in weights.values()) for side in (0, 1)]
        device = next(iter(weights.values())).device
        down = _uniform((self.rank, widest[1]), draw("down")).to(device)
        up = _uniform((widest[0], self.rank), draw("up")).to(device)
        return {name: Scaled(weight, down, up, self.d_initial) for name, weight in weights.items()}


def _uniform(shape: tuple[int, int], random: np.random.Generator) -> torch.Tensor:
    """As a linear layer's weight is drawn: uniform within 1/√in."""
    bound = 1 / math.sqrt(shape[1])
    return torch.from_numpy(random.uniform(-bound, bound, shape).astype(np.float32))


def _array(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    return tensor.detach().float().cpu().numpy()


def _row_norms(weight: torch.Tensor) -> torch.Tensor:
    """Shape (out,); never zero, so that a row of zeros stays one."""
    return torch.linalg.vector_norm(weight, dim=1).clamp_min(torch.finfo(weight.dtype).tiny)


def _full_precision(weight: torch.Tensor) -> torch.autocast:
    return torch.autocast("cuda" if weight.is_cuda else "cpu", enabled=False)
