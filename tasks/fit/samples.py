"""The pools of a step, each split into what is trained on and what is held out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks import randomness
from tasks.errors import UserError
from tasks.model.datasets import Dataset
from tasks.model.holdout import held_out
from tasks.params import Params

POOLS = Path("data/history/pools")
ARRIVAL = Path("data/step/arrival")
PRETRAINING = "pretraining"


@dataclass(frozen=True)
class FitPool:
    """One pool; ``rows`` are trained on, and ``held`` are not: int64, ascending."""

    name: str
    data: Dataset
    rows: np.ndarray
    held: np.ndarray

    @property
    def labelled(self) -> bool:
        """Whether every sample has a class, and there are two at least."""
        return len(self.data.card.classes) > 1 and bool((self.data.labels >= 0).all())

    def drawn(self, rows: np.ndarray, count: int, seed: int, purpose: str) -> np.ndarray:
        """At most ``count`` of some rows, ascending, as the seed says."""
        order = randomness.generator(seed, "fit", purpose, self.name).permutation(len(rows))
        return np.sort(rows[order[:count]])


@dataclass(frozen=True)
class FitSamples:
    """The pools of arrivals, the newest last, and the pretraining pool."""

    arrivals: Sequence[FitPool]
    pretraining: FitPool | None

    def require_held(self) -> list[str]:
        """The names of pools without a sample that is held out.

        Raises:
            UserError: none of the arrivals' pools has one.
        """
        pools = [*self.arrivals, *([self.pretraining] if self.pretraining else [])]
        empty = [pool.name for pool in pools if not len(pool.held)]
        if not any(len(pool.held) for pool in self.arrivals):
            said = f"of {', '.join(p.name for p in self.arrivals)} none is held out; raise train.holdout"
            raise UserError(f"fit: {said if self.arrivals else 'no arrival so far has data to choose on'}")
        return empty


def of_step(project: Path, params: Params) -> FitSamples:
    """The pools of a step: those in the history, and what has arrived; an expert that arrives brings none.

    Raises:
        UserError: a pool is damaged.
    """
    folder = project / POOLS
    try:
        names: list[str] = json.loads((folder / "pools.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'pools.json'}: no readable list of pools ({error})") from None
    data_sets = {name: Dataset(folder / name) for name in names}
    if (project / ARRIVAL / "dataset.json").exists():
        data_sets[params.arrival.name if params.arrival else "arrival"] = Dataset(project / ARRIVAL)
    pools = {name: _pool(name, data, params) for name, data in data_sets.items()}
    return FitSamples([pool for name, pool in pools.items() if name != PRETRAINING], pools.get(PRETRAINING))


def _pool(name: str, data: Dataset, params: Params) -> FitPool:
    held = held_out(data.images, params.train.holdout, params.seed)
    return FitPool(name, data, np.flatnonzero(~held), np.flatnonzero(held))
