"""Training methods: which parameters of the model are trained, or which adapters in their place."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
from torch import nn

from tasks.choice import Choice, create
from tasks.model.factors import Factors
from tasks.params import Named

Draw = Callable[[str], np.random.Generator]
"""Purpose → its random generator, the same in every call."""


class Method(Choice):
    """A training method; its fields are its settings. One file in `tasks.train.methods` defines one, or a family.

    It is applied to a model after its weights are loaded, on any device, ``meta`` included.
    """

    key: ClassVar[str] = "train.method"
    package: ClassVar[str] = "tasks.train.methods"
    adapts: ClassVar[bool] = False
    """Whether other parameters than the model's own are trained."""

    @abstractmethod
    def start(self, model: nn.Module, draw: Draw) -> None:
        """Insert adapters, if any, and set ``requires_grad`` on exactly the parameters that are trained.

        Raises:
            UserError: the model has nothing that this method trains.
        """

    def factors(self, model: nn.Module) -> Mapping[str, Factors]:  # noqa: ARG002 - full weights have none
        """Before `finish`, what the adapters are made of: name of a weight → the factors of its change."""
        return {}

    def finish(self, model: nn.Module) -> None:
        """Give the model trained tensors with the names and shapes that it had before `start`."""


def chosen(named: Named) -> Method:
    """The method of ``train.method``.

    Raises:
        UserError: an unknown name, or a wrong setting.
    """
    return create(Method, named)  # type: ignore[type-abstract]


def freeze(model: nn.Module, trains: Callable[[str], bool]) -> int:
    """Turn off the gradient of every parameter except those whose name ``trains`` accepts; returns how many remain.

    A batch norm whose parameters are all frozen also keeps its statistics.
    """
    left = 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains(name))
        left += parameter.requires_grad
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not any(
            p.requires_grad for p in module.parameters()
        ):
            module.register_forward_pre_hook(_evaluating)
    return left


def _evaluating(module: nn.Module, _inputs: object) -> None:
    module.eval()
