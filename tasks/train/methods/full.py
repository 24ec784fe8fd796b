"""Full fine-tuning."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from tasks.train.method import Draw, Method


class Full(Method):
    """Every parameter of both towers, and the temperature."""

    name: ClassVar[str] = "full"
    source: ClassVar[str] = "Radford et al. 2021 (arXiv 2103.00020)"

    def start(self, model: nn.Module, draw: Draw) -> None:
        """All parameters have gradients already."""
