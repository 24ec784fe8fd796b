"""One tower as it is, the other trained together with the temperature (LiT, arXiv 2111.07991)."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from tasks.train.method import Draw, Method, freeze

SHARED = ("logit_scale", "logit_bias")
"""Parameters of neither tower."""


def _is_image(name: str) -> bool:
    """open_clip has the image tower under ``visual``, the text tower under ``text`` or at the top."""
    return name.startswith("visual.")


class LockedText(Method):
    """Trains the image tower and the temperature; the text tower keeps its weights."""

    name: ClassVar[str] = "locked-text"
    source: ClassVar[str] = "Zhai et al. 2022 (arXiv 2111.07991)"

    def start(self, model: nn.Module, draw: Draw) -> None:  # noqa: ARG002
        freeze(model, lambda name: name in SHARED or _is_image(name))


class LockedImage(Method):
    """Trains the text tower and the temperature; the image tower keeps its weights."""

    name: ClassVar[str] = "locked-image"
    source: ClassVar[str] = "Zhai et al. 2022 (arXiv 2111.07991)"

    def start(self, model: nn.Module, draw: Draw) -> None:  # noqa: ARG002
        freeze(model, lambda name: name in SHARED or not _is_image(name))
