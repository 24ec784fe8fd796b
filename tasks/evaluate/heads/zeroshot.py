"""The head ``zeroshot``."""

from __future__ import annotations

from typing import ClassVar

from tasks.evaluate.head import Head, Space


class ZeroShot(Head):
    """The class whose prompt is nearest, without any sample: what the others are compared with."""

    name: ClassVar[str] = "zeroshot"
    source: ClassVar[str] = "Radford et al. 2021, arXiv 2103.00020"
    learns: ClassVar[bool] = False

    features: Space = "deployed"
    """Whose features it works on."""
