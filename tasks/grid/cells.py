"""The cells of a grid: each a timeline of its own, under one protocol, one technique, one seed and one variant."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One timeline of a grid, and where it stands in it."""

    timeline: str
    init: str
    deploy: str
    technique: str
    """The label of the merging technique; empty where none takes part (ft + ft keeps no history)."""
    seed: int
    variant: str = ""
    """The name of a variant of the params (an ordering, a budget, a model size); empty for the params as they are."""
    reference: str = ""
    """``multitask`` or ``no-replay`` for the timelines that cells are compared with; else empty."""

    @property
    def protocol(self) -> str:
        return f"{self.init}+{self.deploy}"
