"""The nodes initialize and train on a project folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from tasks.errors import UserError
from tasks.model import checkpoints, coded
from tasks.model.codecs.signs import Signs
from tasks.params import Params
from tasks.storage.cache import md5_of
from tasks.train.node import EXPERT, INIT, TRAINING, initialize, train
from tests.train.project import dataset, params, project

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after steps 0 and 1, placed for step 2: base, two experts, a running model and three pools."""
    folder = project(tmp_path_factory.mktemp("recorded"))
    initialize(folder, params(0))
    train(folder, params(0))
    weights, pools = folder / "data/history/weights", folder / "data/history/pools"
    shutil.copy(folder / EXPERT, weights / "base.safetensors")
    shutil.move(folder / "data/step/arrival", pools / "pretraining")
    dataset(folder / "data/step/arrival", 20, noise=5)
    shutil.copy(folder / EXPERT, weights / "expert.safetensors")
    initialize(folder, params(1))
    train(folder, params(1))
    shutil.copy(folder / EXPERT, weights / "expert.safetensors")
    base, expert = checkpoints.load(weights / "base.safetensors"), checkpoints.load(folder / EXPERT)
    checkpoints.save(weights / "running/ema.safetensors", {n: (base[n] + expert[n]) / 2 for n in base})
    shutil.move(folder / "data/step/arrival", pools / "first")
    (pools / "pools.json").write_text('["pretraining", "first"]\n')
    dataset(folder / "data/step/arrival", 10, noise=6)
    shutil.rmtree(folder / TRAINING)
    (folder / EXPERT).unlink()
    return folder


@pytest.fixture
def folder(recorded: Path, tmp_path: Path) -> Path:
    """A copy of `recorded` to work in."""
    return Path(shutil.copytree(recorded, tmp_path / "project"))


@pytest.fixture
def runnable(folder: Path) -> Path:
    """As `folder`, with code and declarations, so that ``python -m tasks train`` runs there as DVC runs it."""
    for name in ("tasks", "dvc.yaml"):
        (folder / name).symlink_to(REPOSITORY / name)
    return folder


def with_init(init: str) -> Params:
    return params(2, time={"init": init})


@pytest.mark.parametrize(
    ("init", "source"), [("zs", "base"), ("ft", "expert"), ("ema", "running/ema"), ("ema", "base")]
)
def test_initialize_chooses_by_protocol(init: str, source: str, folder: Path) -> None:
    weights = folder / "data/history/weights"
    if (init, source) == ("ema", "base"):  # the recursion starts at the first expert: no running model yet
        shutil.rmtree(weights / "running")
    initialize(folder, with_init(init))
    assert (folder / INIT).read_bytes() == (weights / f"{source}.safetensors").read_bytes()


def test_random_weights_are_a_function_of_the_seed_alone(tmp_path: Path) -> None:
    folder = project(tmp_path)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(found))
        before = torch.get_rng_state()
        initialize(folder, params(0, seed=seed))
        assert torch.equal(torch.get_rng_state(), before)
        found.append((folder / INIT).read_bytes())
    assert found[0] == found[1] != found[2]


def test_training_mixes_the_three_pools_and_writes_its_curve(folder: Path) -> None:
    heard = []
    initialize(folder, params(2))
    train(folder, params(2), lambda *news: heard.append(news))
    summary = json.loads((folder / TRAINING / "training.json").read_text())
    assert summary["drawn"] == {"pretraining": 16, "update": 20, "buffer": 12}
    assert (summary["trained"], summary["steps"], summary["samples"]) == (True, 4, 48)
    lines = (folder / TRAINING / "curve.csv").read_text().splitlines()
    assert lines[0] == "step,loss,lr,gradient_norm,logit_scale"
    assert len(lines) == 5
    assert [news[1:3] for news in heard] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    init, expert = checkpoints.load(folder / INIT), checkpoints.load(folder / EXPERT)
    assert checkpoints.shapes(folder / EXPERT) == checkpoints.shapes(folder / INIT)
    assert not torch.equal(init["visual.proj"], expert["visual.proj"])


def test_no_buffer_and_no_pretraining_is_honest(folder: Path) -> None:
    alone = params(2, train={"steps": 1, "batch_size": 8, "mixture": {"pretraining": 0, "update": 1, "buffer": 0}})
    initialize(folder, alone)
    train(folder, alone)
    assert json.loads((folder / TRAINING / "training.json").read_text())["drawn"]["update"] == 8


def test_two_fresh_processes_write_the_same_bytes(runnable: Path) -> None:
    folder = runnable
    settings = params(2, threads=2).model_dump(mode="json", exclude_none=True)
    with (folder / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(settings, file)
    hashes = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONHASHSEED": hash_seed}
        for node in ("initialize", "train"):
            call = [sys.executable, "-m", "tasks", node]
            subprocess.run(call, cwd=folder, env=environment, check=True, capture_output=True)
        outputs = [folder / INIT, folder / EXPERT, *sorted((folder / TRAINING).iterdir())]
        hashes.add(tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in outputs))
        (folder / EXPERT).unlink()
    assert len(hashes) == 1


def test_an_expert_that_arrives_is_not_trained(folder: Path) -> None:
    shutil.rmtree(folder / "data/step/arrival")
    (folder / "data/step/arrival").mkdir()
    shutil.copy(folder / "data/history/weights/expert.safetensors", folder / "data/step/arrival/expert.safetensors")
    initialize(folder, params(2))
    train(folder, params(2))
    assert (folder / EXPERT).read_bytes() == (folder / "data/history/weights/expert.safetensors").read_bytes()
    assert json.loads((folder / TRAINING / "training.json").read_text())["trained"] is False


def test_an_expert_of_an_earlier_state_stays_what_it_is_under_a_codec(folder: Path) -> None:
    """With loss, too: what is stored coded is stored so again, and what is stored in full loses nothing."""
    arrival, past = folder / "data/step/arrival", folder / "data/history/weights"
    taken = {"name": "second", "update": ["folder:second"], "from_state": "state/tiny/0002"}
    chosen = params(2, arrival=taken, store={"experts": "ternary"})
    base, expert = past / "base.safetensors", past / "expert.safetensors"
    made = folder / "data/step/expert.weights"
    initialize(folder, chosen)
    shutil.copy(expert, arrival / "expert.safetensors")
    train(folder, chosen)
    assert coded.coding(made).error == 0
    assert coded.coding(made).decoded.md5 == md5_of(expert)
    (arrival / "expert.safetensors").unlink()
    coded.encode(Signs(), expert, base, arrival / "expert.weights")
    train(folder, chosen)
    assert made.read_bytes() == (arrival / "expert.weights").read_bytes()
    assert not (folder / EXPERT).exists()


def weights() -> checkpoints.Weights:
    generator = torch.Generator().manual_seed(0)
    made = {"a.weight": torch.randn(4, 3, generator=generator), "a.bias": torch.randn(4, generator=generator)}
    return {**made, "scale": torch.tensor(2.5), "n": torch.tensor([7])}


@pytest.fixture
def adopt(folder: Path) -> Callable[[checkpoints.Weights], checkpoints.Weights]:
    """Let an expert arrive where a step starts from `weights`; gives what the node left."""
    checkpoints.save(folder / INIT, weights())

    def run(expert: checkpoints.Weights) -> checkpoints.Weights:
        checkpoints.save(folder / "data/step/arrival/expert.safetensors", expert)
        train(folder, params(2))
        return checkpoints.load(folder / EXPERT)

    return run


def test_an_expert_that_arrives_takes_the_form_of_the_models_weights(
    adopt: Callable[[checkpoints.Weights], checkpoints.Weights],
) -> None:
    given = weights()
    given |= {"scale": torch.tensor([1.5], dtype=torch.float64), "n": torch.tensor(9)}
    given["a.bias"] = given["a.bias"].bfloat16()
    found = adopt(given)
    expected = {**weights(), "a.bias": given["a.bias"].float(), "scale": torch.tensor(1.5), "n": torch.tensor([9])}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("a.bias"), "lacks the tensor 'a.bias' that the base has; is it of another architecture?"),
        (lambda w: w.update(extra=torch.zeros(2)), "has a tensor 'extra' that the base lacks"),
        (
            lambda w: w.update({"a.weight": torch.zeros(3, 4)}),
            "tensor 'a.weight' has shape [3, 4], the base has [4, 3]",
        ),
        (  # finite until it is float32
            lambda w: w.update({"a.bias": torch.full((4,), 1e300, dtype=torch.float64)}),
            "'a.bias' holds values that are not finite",
        ),
    ],
)
def test_an_expert_that_does_not_fit_is_refused(
    adopt: Callable[[checkpoints.Weights], checkpoints.Weights],
    folder: Path,
    change: Callable[[checkpoints.Weights], object],
    words: str,
) -> None:
    other = weights()
    change(other)
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    with pytest.raises(UserError) as caught:
        adopt(other)
    assert str(caught.value).startswith(f"{folder}/data/step/arrival/expert.safetensors: ")
    assert words in str(caught.value)
    arrived = Path("data/step/arrival/expert.safetensors")
    assert sorted({path.relative_to(folder) for path in folder.rglob("*")} - {arrived}) == before


def test_a_base_with_weights_is_not_trained(tmp_path: Path, recorded: Path) -> None:
    folder = project(tmp_path)
    given = params(0, base={"model": "model.json", "pretrained": "w.safetensors"})
    base = folder / "data/history/weights/base.safetensors"
    shutil.copy(recorded / "data/history/weights/base.safetensors", base)
    initialize(folder, given)
    train(folder, given)
    assert (folder / EXPERT).read_bytes() == base.read_bytes()


def test_a_loss_that_is_not_finite_stops_and_leaves_nothing(folder: Path) -> None:
    initialize(folder, params(2))
    wild = params(2, train={"steps": 30, "batch_size": 8, "lr": 1e30})
    with pytest.raises(UserError, match=r"training step \d+: loss .* on samples pretraining/.*lower the learning rate"):
        train(folder, wild)
    assert not (folder / EXPERT).exists()
    assert not (folder / TRAINING).exists()


def test_the_command_says_one_line_and_fails(runnable: Path) -> None:
    folder = runnable
    with (folder / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(params(2).model_dump(mode="json", exclude_none=True), file)
    (folder / INIT).write_bytes(b"short")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    call = [sys.executable, "-m", "tasks", "train"]
    done = subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: data/step/init.safetensors: a text file, not a safetensors file")
    assert done.stderr.count("\n") == 1


def test_damaged_inputs_are_named(folder: Path) -> None:
    initialize(folder, params(2))
    weights = checkpoints.load(folder / INIT)
    checkpoints.save(folder / INIT, {**weights, "visual.proj": torch.full_like(weights["visual.proj"], torch.nan)})
    with pytest.raises(UserError, match=r"init.safetensors: 'visual.proj' holds values that are not finite"):
        train(folder, params(2))
    (folder / "data/history/weights/running/ema.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"ema.safetensors: not a readable safetensors file"):
        initialize(folder, params(2))
