"""A month in which nothing goes wrong, in one process; in a project:
``python -m tests.flows.calm_month DAYS SEED OUTSIDE``.

Its code is the project's; of each drop of the month it makes one in the folder OUTSIDE.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from flows.run import run
from tasks import inbox, layout
from tasks.params import load
from tasks.record import rollbacks, timelines
from tasks.storage import dvc_config
from tasks.storage.cache import Cache
from tests.arrive.conftest import drop as draw
from tests.flows.month import Kind, MonthDrop, arrivals, drawn


def main() -> None:
    project, (days, seed), outside = Path.cwd(), map(int, sys.argv[1:3]), Path(sys.argv[3])
    timeline, place = load(project / "params.yaml").timeline, outside.with_name("calm-inbox")
    month = drawn(days, seed)
    run(project)
    outside.mkdir()
    for day in month:
        for drop in day.drops:
            fill(outside, drop, project, timeline)
    before, after = arrivals(month)
    for drops in (before, after):
        for drop in drops:
            shutil.copytree(outside / drop.name, place / drop.name)
        inbox.scan(project, str(place))
        run(project)
        if drops is before:
            rollbacks.rollback(project, timeline, str(len(before) - 1), wait=False)


def fill(outside: Path, drop: MonthDrop, quiet: Path, timeline: str) -> None:
    """Make a finished drop; ``quiet`` is a project with a base for experts to come from, and with test sets."""
    folder, seed = outside / drop.name, int(drop.name[4:6])
    if drop.kind in (Kind.IMAGES, Kind.TORN, Kind.COPIED):
        draw(folder, {"checked": 6, "striped": 6}, seed + 100 * (drop.name[-1] != "a"))
        if drop.kind is Kind.TORN:
            (folder / "striped" / "0.png").write_bytes(b"torn")
        if drop.kind is Kind.COPIED:
            shutil.copy(quiet / "drawings/base/test/red circle/0.png", folder / "striped")
    else:
        folder.mkdir()
        base = timelines.find(quiet, timeline, 0).entries[layout.EXPERT]
        noise = torch.Generator().manual_seed(seed)
        scale = 5.0 if drop.kind is Kind.HARMFUL else 0.01
        weights = {
            name: tensor + scale * torch.randn(tensor.shape, generator=noise)
            for name, tensor in sorted(load_file(Cache(dvc_config.cache_dir(quiet)).path(base.md5)).items())
        }
        if drop.kind is Kind.NAN:
            weights["logit_scale"] = torch.tensor(torch.nan)
        save_file(weights, folder / "expert.safetensors")
    (folder / "READY").touch()


if __name__ == "__main__":
    main()
