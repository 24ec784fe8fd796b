"""A few of the model's own parameters, in both towers: layer norms, or biases."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from tasks.errors import UserError
from tasks.train.method import Draw, Method, freeze


class LNFit(Method):
    """Trains the gains and biases of the layer norms."""

    name: ClassVar[str] = "lnfit"
    source: ClassVar[str] = "De Min et al. 2023 (arXiv 2308.09610)"

    def start(self, model: nn.Module, draw: Draw) -> None:  # noqa: ARG002
        norms = {name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
        if not freeze(model, lambda name: name.rpartition(".")[0] in norms):
            raise UserError("train.method: lnfit trains layer norms, and this model has none; choose another method")


class BitFit(Method):
    """Trains the biases, those of norms and attention included."""

    name: ClassVar[str] = "bitfit"
    source: ClassVar[str] = "Ben Zaken et al. 2022 (arXiv 2106.10199)"

    def start(self, model: nn.Module, draw: Draw) -> None:  # noqa: ARG002
        if not freeze(model, lambda name: name.endswith("bias") and name != "logit_bias"):
            raise UserError("train.method: bitfit trains biases, and this model has none; choose another method")
