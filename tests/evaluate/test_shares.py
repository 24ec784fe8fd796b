"""Evaluation on a share of each test set, in lower precision, and the predictions that a state keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.errors import UserError
from tasks.evaluate import parts, shares
from tasks.evaluate.node import DEPLOYED, EXPERT, METRICS, MODEL, PREDICTIONS, SETS, evaluate
from tasks.model.checkpoints import save
from tasks.model.datasets import Dataset
from tasks.params import Arrival, Params
from tasks.train.node import random_weights
from tests.evaluate.test_retrieval import PAIRS, drawings
from tests.train.project import dataset, params


def settings(*, gate: dict[str, Any] | None = None, **more: Any) -> Params:
    sets: dict[str, Any] = {
        "adaptation": [{"name": "seen", "test": ["x"]}, {"name": "large", "test": ["x"]}],
        "retention": [{"name": "kept", "test": ["x"]}],
    }
    return params(0, evaluate={**sets, **more}, **({"gate": gate} if gate else {}))


@pytest.fixture
def large(folder: Path) -> Dataset:
    """A set of 22 samples: of 4 classes 6, 6, 5 and 5."""
    dataset(folder / SETS / "large", 22, noise=5)
    return Dataset(folder / SETS / "large")


def test_a_share_is_drawn_of_every_class_and_rounded_up(large: Dataset) -> None:
    rows = shares.drawn("large", large, 0.4)
    assert np.bincount(large.labels[rows]).tolist() == [3, 3, 2, 2]
    assert rows.tolist() == sorted(rows.tolist())
    assert shares.drawn("large", large, 0.4).tolist() == rows.tolist()
    assert shares.drawn("other", large, 0.4).tolist() != rows.tolist()
    assert set(shares.drawn("large", large, 0.2)) < set(rows)
    assert shares.drawn("large", large, None).tolist() == list(range(22))


def test_scores_of_a_share_are_those_of_its_samples(folder: Path, large: Dataset) -> None:
    evaluate(folder, settings())
    everything = np.load(folder / PREDICTIONS / "large.npy")
    assert (everything >= 0).all()
    evaluate(folder, settings(share=0.4, in_full=["seen", "kept"]))
    found, predicted = json.loads((folder / METRICS).read_text()), np.load(folder / PREDICTIONS / "large.npy")
    rows = shares.drawn("large", large, 0.4)
    assert found["size"] == {"seen": 8, "large": 10, "kept": 6}
    assert found["share"] == {"large": 0.4}
    assert found["top1"]["large"] == round(10.0 * (everything[rows] == large.labels[rows]).sum(), 4)
    assert predicted[rows].tolist() == everything[rows].tolist()
    assert (np.delete(predicted, rows) == -1).all()
    index = json.loads((folder / PREDICTIONS / "predictions.json").read_text())
    assert index == {"version": 1, "sets": {"seen": 8, "large": 10, "kept": 6}}


def test_top1_follows_from_the_predictions(folder: Path) -> None:
    evaluate(folder, params(0))
    found = json.loads((folder / METRICS).read_text())
    for name in ("seen", "kept"):
        predicted = np.load(folder / PREDICTIONS / f"{name}.npy")
        labels = Dataset(folder / SETS / name).labels
        assert found["top1"][name] == round(100 * float((predicted == labels).mean()), 4)
    assert "top5" not in found  # four classes
    assert "share" not in found


@pytest.mark.usefixtures("large")
def test_sets_without_classes_are_evaluated_in_full(folder: Path) -> None:
    drawings(folder / SETS / "kept", PAIRS)
    evaluate(folder, settings(share=0.1))
    found = json.loads((folder / METRICS).read_text())
    assert found["size"]["kept"] == len(PAIRS)
    assert found["share"].keys() == {"seen", "large"}
    assert not (folder / PREDICTIONS / "kept.npy").exists()


@pytest.mark.usefixtures("large")
def test_parts_join_to_the_predictions_of_the_whole(folder: Path) -> None:
    given = settings(share=0.3, in_full=["kept"])
    evaluate(folder, given)
    wanted = {path.name: path.read_bytes() for path in [folder / METRICS, *(folder / PREDICTIONS).iterdir()]}
    results = []
    for part in parts.divide(folder, given, 3):
        parts.run(part.names, folder, given)
        results.append((folder / parts.RESULT).read_bytes())
    parts.join(folder, given, results)
    assert wanted == {path.name: path.read_bytes() for path in [folder / METRICS, *(folder / PREDICTIONS).iterdir()]}


@pytest.mark.parametrize(
    ("conditions", "full"),
    [
        ([], ()),
        (["score.large >= 10%"], ("large",)),
        (["retention_drop <= 2%"], ("kept",)),
        (["A_KA >= 10%", "A_ZS >= 0"], ("seen", "large", "kept")),
        (["geometric_mean_gain >= 0"], ("seen", "large", "kept")),
    ],
)
def test_the_base_the_end_and_what_a_gate_asks_are_evaluated_in_full(
    conditions: list[str], full: tuple[str, ...]
) -> None:
    given = settings(share=0.1, gate={"require": conditions})
    everything = ("seen", "large", "kept")
    assert [given.evaluated_in_full(step) for step in range(3)] == [everything, full, everything]


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_lower_precision_changes_scores_little_and_float32_not_at_all(folder: Path, precision: str) -> None:
    evaluate(folder, settings())
    exact = (folder / METRICS).read_bytes(), np.load(folder / PREDICTIONS / "large.npy")
    evaluate(folder, settings(precision="float32"))
    assert (folder / METRICS).read_bytes() == exact[0]
    evaluate(folder, settings(precision=precision))
    assert (np.load(folder / PREDICTIONS / "large.npy") == exact[1]).mean() > 0.8


def test_features_that_overflow_in_float16_are_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.model.models.text_features", lambda *_: torch.full((4, 16), torch.inf))
    with pytest.raises(UserError, match=r"evaluate\.precision: .*overflow in float16; take bfloat16"):
        evaluate(folder, params(0, evaluate={**params(0).evaluate.model_dump(), "precision": "float16"}))


def own(folder: Path, **more: Any) -> dict[str, Any]:
    """What step 1 writes of its own expert, which arrived as ``large``."""
    given = settings(**more).model_copy(update={"step": 1, "arrival": Arrival(name="large", update=["x"])})
    evaluate(folder, given)
    return dict(json.loads((folder / METRICS).read_text()))


def expert_file(folder: Path) -> Path:
    return folder / f"{EXPERT}.safetensors"


def expert_of_another_seed(folder: Path) -> None:
    save(expert_file(folder), random_weights(folder / MODEL, 4))


@pytest.mark.usefixtures("large")
def test_the_own_expert_is_scored_on_the_arrivals_set_by_its_own_weights(folder: Path) -> None:
    expert_of_another_seed(folder)
    found = own(folder)
    (expert_file(folder)).replace(folder / DEPLOYED)
    evaluate(folder, settings())
    as_deployed = json.loads((folder / METRICS).read_text())
    assert found["expert"] == {"set": "large", "score": as_deployed["top1"]["large"]}
    assert found["expert"]["score"] != found["top1"]["large"]
    assert "expert" not in as_deployed


def test_with_a_share_the_own_expert_has_both_scores(folder: Path, large: Dataset) -> None:
    expert_of_another_seed(folder)
    found = own(folder, share=0.4)
    assert found["size"]["large"] == 10
    assert found["expert"]["score"] == own(folder)["expert"]["score"]
    (expert_file(folder)).replace(folder / DEPLOYED)
    evaluate(folder, settings())
    predicted = np.load(folder / PREDICTIONS / "large.npy")
    rows = shares.drawn("large", large, 0.4)
    assert found["expert"]["score_of_share"] == 10.0 * (predicted[rows] == large.labels[rows]).sum()


@pytest.mark.usefixtures("large")
def test_parts_join_to_the_own_experts_score_and_one_alone_reads_it(folder: Path) -> None:
    expert_of_another_seed(folder)
    wanted = own(folder)
    given = settings().model_copy(update={"step": 1, "arrival": Arrival(name="large", update=["x"])})
    divided = parts.divide(folder, given, 3)
    assert ["data/step/expert.safetensors" in part.spared for part in divided] == [
        "large" not in part.names for part in divided
    ]
    results = []
    for part in divided:
        parts.run(part.names, folder, given)
        results.append((folder / parts.RESULT).read_bytes())
    parts.join(folder, given, results)
    assert json.loads((folder / METRICS).read_text()) == wanted


def test_the_own_experts_recall_counts_where_its_set_has_no_classes(folder: Path) -> None:
    expert_of_another_seed(folder)
    drawings(folder / SETS / "large", PAIRS)
    found = own(folder)
    (expert_file(folder)).replace(folder / DEPLOYED)
    evaluate(folder, settings())
    ways = json.loads((folder / METRICS).read_text())["recall"]["large"]
    assert found["expert"]["score"] == pytest.approx(np.mean([way["5"] for way in ways.values()]), abs=1e-4)
