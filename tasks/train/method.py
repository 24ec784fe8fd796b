"""What a training method is: which parameters an expert's training changes, or what it trains in their place."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

import numpy as np
from torch import nn

from tasks.choice import Choice, create
from tasks.params import Named

Draw = Callable[[str], np.random.Generator]
"""The random generator for one purpose, the same whenever it is asked for."""


class Method(Choice):
    """A training method; its fields are its settings. One file in `tasks.train.methods` defines one, or a family.

    It is applied to a model once its weights are loaded, on whatever device they are, ``meta`` included.
    """

    key: ClassVar[str] = "train.method"
    package: ClassVar[str] = "tasks.train.methods"
    adapts: ClassVar[bool] = False
    """Whether other parameters than the model's own are trained."""

    @abstractmethod
    def start(self, model: nn.Module, draw: Draw) -> None:
        """Leave ``requires_grad`` on exactly what trains, having put in what has to be.

        Raises:
            UserError: the model has nothing that this method trains.
        """

    def finish(self, model: nn.Module) -> None:
        """Give the model its own tensors back, trained: the names and shapes that it had before `start`."""


def chosen(named: Named) -> Method:
    """The method of ``train.method``.

    Raises:
        UserError: there is none of that name, or a setting is wrong.
    """
    return create(Method, named)  # type: ignore[type-abstract]


def freeze(model: nn.Module, trains: Callable[[str], bool]) -> int:
    """Turn off the gradient of every parameter but those whose name ``trains``; returns how many are left.

    A batch norm that is frozen whole keeps its statistics too.
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
