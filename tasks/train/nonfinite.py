"""The error of a loss or gradient that is not finite: its samples, and the last good checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from tasks.errors import UserError

if TYPE_CHECKING:
    from tasks.train.loop import Batch, Point, Training
    from tasks.train.saved import Saved

REPORT = "nonfinite.json"


def stopped(training: Training, point: Point, batch: Batch, saved: Saved) -> UserError:
    """Save the last good checkpoint and a report with all samples of the step; return the error that ends training."""
    report = saved.folder / REPORT
    ids = batch.ids()
    if training.world.rank == 0:
        if all(t.isfinite().all() for t in training.model.state_dict().values()):
            saved.save(training)
        report.parent.mkdir(parents=True, exist_ok=True)
        facts = {name: str(value) for name, value in asdict(point).items()}  # JSON has no NaN
        report.write_text(json.dumps(facts | {"samples": ids}, indent=1) + "\n", encoding="utf-8")
    training.world.wait()  # the others are ended as soon as one has failed
    numbers = f"loss {point.loss:g} and gradient norm {point.gradient_norm:g}"
    skipped = f", after {training.skipped} skipped steps," if training.skipped else ""
    good = f"the last good checkpoint is {saved.path.resolve()}; " if saved.path.exists() else ""
    return UserError(
        f"training step {point.step}: {numbers} are not both finite{skipped} on samples {', '.join(ids[:4])}, … "
        f"(all {len(ids)} in {report.resolve()}); {good}lower the learning rate ({training.recipe.lr:g}), "
        "check these samples, or skip such steps (train.on_nonfinite: skip)"
    )
