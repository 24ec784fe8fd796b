"""Budgets: TIME's table of costs, what a budget buys, and what is written about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from tasks.errors import UserError
from tasks.model import models
from tasks.params import Base, Budget, Named, Params, Train
from tasks.train import budget
from tasks.train import regularizer as regularizers
from tasks.train.budget import Price
from tasks.train.measure import peak
from tasks.train.method import Method, chosen
from tasks.train.node import TRAINING, initialize, train
from tasks.train.recipe import Recipe
from tests.train.project import params, project

TIMES_TABLE = {  # GFLOPs per step of ViT-B/16 at batch 512 (TIME, arXiv 2412.06712)
    "full": 63394.76,
    "locked-text": 57254.62,
    "locked-image": 27176.67,
    "lnfit": 43165.60,
    "bitfit": 43165.60,
    "lora 4": 54479.0,
    "lora 64": 54505.0,
}


def method(name: str) -> Method:
    first, _, rank = name.partition(" ")
    return chosen(Named.model_validate({"name": first, **({"rank": int(rank)} if rank else {})}))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/chronomerge/prices"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return project(tmp_path_factory.mktemp("budget"))


@pytest.mark.slow
def test_flops_per_step_are_times(tmp_path: Path) -> None:
    base = Base.model_validate({"model": "ViT-B-16", "pretrained": "x.safetensors"})
    models.resolve(base, tmp_path, tmp_path / "model")
    costs = {name: budget.estimated(tmp_path / "model", method(name), 512) for name in TIMES_TABLE}
    for name, gigaflops in TIMES_TABLE.items():
        assert costs[name].flops / 1e9 == pytest.approx(gigaflops, rel=2e-4), name
    memory = [costs[name].bytes for name in ("full", "locked-text", "lora 64", "lora 4", "lnfit", "locked-image")]
    assert memory == sorted(memory, reverse=True)  # as in the table


def test_attention_is_put_back_and_real_tensors_keep_theirs() -> None:
    usual = functional.scaled_dot_product_attention
    q = torch.randn(1, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    wanted = usual(q, q, q, is_causal=True)
    with budget._fused_attention():
        assert torch.equal(functional.scaled_dot_product_attention(q, q, q, is_causal=True), wanted)
        assert functional.scaled_dot_product_attention(q.to("meta"), q.to("meta"), q.to("meta")).shape == q.shape
    assert functional.scaled_dot_product_attention is usual


def test_memory_is_weights_gradients_moments_and_activations(tiny: Path) -> None:
    folder = tiny / "data/history/model"
    size = sum(p.nbytes for p in models.build(folder, "meta").parameters())
    one, two = (budget.estimated(folder, method("full"), n).bytes for n in (8, 16))
    activations = two - one  # of eight samples, but for the logits
    assert one - activations == pytest.approx(4 * size, rel=0.01)
    locked = budget.estimated(folder, method("lnfit"), 8)
    assert locked.bytes < one - 2.9 * size  # hardly a gradient, hardly a moment


def test_a_regularizer_takes_memory(tiny: Path) -> None:
    folder = tiny / "data/history/model"
    size = sum(p.nbytes for p in models.build(folder, "meta").parameters())
    si = regularizers.chosen(Named(name="si"))
    with_si, without = (budget.estimated(folder, method("full"), 8, r).bytes for r in (si, None))
    assert with_si - without == 6 * size


def never() -> Price:
    raise AssertionError("asked for the price")


def test_what_budgets_buy() -> None:
    price = Price(flops=1000, memory=0.5, measured=False)
    assert budget.steps(Budget(steps=7), 16, never) == 7
    assert budget.steps(Budget(samples=100), 16, never) == 6
    assert budget.steps(Budget(mafs=5999), 16, lambda: price) == 11
    assert budget.steps(Budget(mafs=5999), 16, lambda: price, extra=4) == 7
    for given, words in (
        (Budget(samples=15), "less than one batch of 16"),
        (Budget(mafs=499), "499 MAFs do not buy one step: each costs 500"),
    ):
        with pytest.raises(UserError, match=words):
            budget.steps(given, 16, lambda: price)
    with pytest.raises(UserError, match="the regularizer's 4 batches"):
        budget.steps(Budget(mafs=2000), 16, lambda: price, extra=4)


def test_times_steps_follow_from_its_costs() -> None:
    given = Budget(mafs=1420 * 63394.76)
    for mafs, steps in ((63394.76, 1420), (46170.1, 1949), (28308.0, 3180), (6358925, 14)):
        assert budget.steps(given, 512, lambda mafs=mafs: Price(mafs, 1.0, measured=True)) == steps  # type: ignore[misc]


def test_a_price_is_found_out_once(tiny: Path, cache: Path) -> None:
    folder, measured = tiny / "data/history/model", []

    def measure(one: Method, regularizer: Any) -> int:
        measured.append((one.name, regularizer))
        return 30 if one.name == "lnfit" else 40

    for _ in range(2):
        found = budget.price(folder, method("lnfit"), None, 8, measure, {"device": "a GPU"})
        assert (found.memory, found.measured) == (0.75, True)
    assert measured == [("lnfit", None), ("full", None)]
    estimated = budget.price(folder, method("lnfit"), None, 8)
    assert estimated.flops == found.flops
    assert not estimated.measured
    assert len(list(cache.iterdir())) == 2
    for file in cache.iterdir():
        file.write_text("cut off")
    assert budget.price(folder, method("lnfit"), None, 8) == estimated


def test_what_does_not_fit_on_the_gpu_is_estimated(tiny: Path) -> None:
    def measure(one: Method, _: Any) -> int:
        if one.name == "full":
            raise torch.OutOfMemoryError
        return 1

    folder = tiny / "data/history/model"
    assert not budget.price(folder, method("lnfit"), None, 8, measure, {"device": "a GPU"}).measured


@pytest.mark.skipif(not torch.cuda.is_available(), reason="measures on a GPU")
def test_peak_memory_is_measured_in_training(tiny: Path) -> None:
    recipe = Recipe(1, 64, 1e-3, 0.2, 0.0, 1.0)
    found = {name: peak(tiny / "data/history/model", recipe, method(name), None) for name in ("full", "lnfit")}
    assert 0 < found["lnfit"] < found["full"]


def test_given_and_spent_are_reported(tiny: Path) -> None:
    initialize(tiny, params(0))
    weights = tiny / "data/history/weights/base.safetensors"
    weights.write_bytes((tiny / "data/step/init.safetensors").read_bytes())
    each = budget.price(tiny / "data/history/model", method("lnfit"), None, 8).mafs
    chosen_train = {"batch_size": 8, "method": "lnfit", "budget": {"mafs": 3.5 * each}}
    train(tiny, params(1, train=chosen_train))
    said = json.loads((tiny / TRAINING / "training.json").read_text())
    assert said["given"] == {"mafs": 3.5 * each}
    assert (said["spent"]["steps"], said["spent"]["samples"]) == (3, 24)
    assert said["spent"]["mafs"] == pytest.approx(3 * each)
    assert said["spent"]["measured"] is torch.cuda.is_available()
    assert len((tiny / TRAINING / "curve.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    "given",
    [{}, {"steps": 3, "budget": {"steps": 3}}, {"budget": {}}, {"budget": {"steps": 3, "samples": 9}},
     {"budget": {"steps": None}}, {"budget": {"mafs": -1}}],
)  # fmt: skip
def test_a_budget_is_given_once(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"exactly one of|greater than 0"):
        Train.model_validate(given)
    assert Train.model_validate({"budget": {"samples": 9}}).given == Budget(samples=9)


def test_choices_and_budgets_survive_the_way_to_other_processes() -> None:
    given = params(1, train={"budget": {"samples": 90}, "method": {"name": "lora", "rank": 2}, "regularizer": "si"})
    assert Params.model_validate_json(given.model_dump_json()) == given
