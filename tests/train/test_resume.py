"""A training that is killed anywhere, alone or among processes, ends with the bytes of one that was not."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import random
import shutil
import time
from pathlib import Path

import psutil
import pytest
import torch

from tasks import nodes
from tasks.errors import UserError
from tasks.model import checkpoints
from tasks.params import Params
from tasks.train.node import EXPERT, INIT, TRAINING, initialize, train
from tests.train.processes import launched, start
from tests.train.project import params, project

STEPS = 80


def settings(processes: int = 1) -> Params:
    train = {"steps": 1, "batch_size": 12, "processes": processes}
    base = {**params().base.model_dump(), "train": {"steps": STEPS, "batch_size": 16, "lr": 1e-3}}
    return params(0, base=base, train=train, save_every=0, threads=processes)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = project(tmp_path_factory.mktemp("ready"))
    initialize(folder, settings())
    return folder


def finish(folder: Path, given: Params) -> dict[str, bytes]:
    """Train to the end; the outputs."""
    ranks, _ = start(folder, given, given.train.processes or 1)
    for rank in ranks:
        rank.join(120)
        assert rank.exitcode == 0
    return {path.name: path.read_bytes() for path in (folder / EXPERT, *(folder / TRAINING).iterdir())}


def kill(folder: Path, given: Params, chance: random.Random) -> int:
    """Start, wait for a few steps and a moment more, and SIGKILL every process; the last step that was heard of."""
    ranks, heard = start(folder, given, given.train.processes or 1)
    done = 0
    with contextlib.suppress(EOFError):
        for _ in range(chance.randint(1, 3)):
            done = heard.recv()
    time.sleep(chance.uniform(0, 0.02))
    for rank in ranks:
        rank.kill()
        rank.join()
    return done


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "kills"),
    [(1, 3), pytest.param(1, 20, marks=pytest.mark.long), pytest.param(2, 3, marks=pytest.mark.long)],
)
def test_killed_anywhere_it_ends_with_the_same_bytes(ready: Path, tmp_path: Path, processes: int, kills: int) -> None:
    whole, cut = (Path(shutil.copytree(ready, tmp_path / name)) for name in ("whole", "cut"))
    given, chance = settings(processes), random.Random(5)
    reached = [kill(cut, given, chance) for _ in range(kills)]
    assert reached[-1] < STEPS, "killed too late to tell"
    assert reached[-1] > reached[0], "no run went on where the one before stopped"
    assert (nodes.unfinished(cut, "train") / "training.safetensors").exists()
    assert not (cut / EXPERT).exists()
    assert finish(cut, given) == finish(whole, given)


@pytest.mark.slow
def test_processes_listen_on_loopback_alone_and_end_with_their_parent(ready: Path, tmp_path: Path) -> None:
    one, two, run = (Path(shutil.copytree(ready, tmp_path / name)) for name in ("one", "two", "run"))
    finish(one, settings(1))
    made = finish(two, settings(2))
    expected = checkpoints.load(one / EXPERT)
    for name, tensor in checkpoints.load(two / EXPERT).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=2e-4, msg=name)

    parent, heard = launched(run, settings(2))
    assert heard.recv() == 1
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) == 2
    listening = [
        one.laddr.ip for child in children for one in child.net_connections("inet") if one.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 2, "gloo listens for its pairs while they train"
    assert all(ipaddress.ip_address(address).is_loopback for address in listening)
    parent.kill()
    assert not psutil.wait_procs(children, timeout=20)[1]
    steps: list[int] = []
    train(run, settings(2), lambda _what, done, _total, _note="": steps.append(done))
    assert steps[0] > 1
    assert {path.name: path.read_bytes() for path in (run / EXPERT, *(run / TRAINING).iterdir())} == made


@pytest.mark.long
def test_what_goes_wrong_in_a_process_is_said_in_one_line(ready: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ready, tmp_path / "project"))
    (folder / INIT).write_bytes(b"short")
    with pytest.raises(UserError, match=r"^data/step/init.safetensors: a text file, not a safetensors file"):
        train(folder, settings(2))


def test_processes_fail_together_and_leave_the_last_good_state(ready: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ready, tmp_path / "project"))
    wild = settings(2)
    base = wild.base.model_copy(update={"train": wild.base.train.model_copy(update={"lr": 1e30})})  # type: ignore[union-attr]
    ranks, _ = start(folder, wild.model_copy(update={"base": base, "save_every": 300.0}), 2)
    for rank in ranks:
        rank.join(120)
        assert rank.exitcode == 1
    kept = nodes.unfinished(folder, "train")
    assert json.loads((kept / "nonfinite.json").read_text())["samples"][0].startswith("update/")
    assert not (folder / EXPERT).exists()
