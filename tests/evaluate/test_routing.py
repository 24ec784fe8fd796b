"""Evaluation by route, against evaluations of each expert alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.errors import UserError
from tasks.evaluate import parts, retrieval
from tasks.evaluate.node import BASE, DEPLOYED, METRICS, PREDICTIONS, ROUTED, SETS, evaluate
from tasks.evaluate.towers import image_features, text_features
from tasks.model import checkpoints, models, router
from tasks.model.datasets import Dataset
from tasks.model.router import Route
from tasks.params import Params
from tests.evaluate.test_retrieval import PAIRS, drawings
from tests.train.project import dataset, params

MODEL = Path("data/history/model")
NAMES = {"adaptation": ("seen", "pairs", "more"), "retention": ("kept",)}
EVALUATE = {role: [{"name": one, "test": [f"folder:{one}"]} for one in sets] for role, sets in NAMES.items()}
EXPERTS = ("seen", "pairs")
"""Arrivals that have an expert; `more` is still to come."""


def at(step: int, deploy: str = "routed") -> Params:
    arrival = {"name": "elsewhere", "update": ["folder:x"]}
    return params(step, evaluate=EVALUATE, time={"init": "zs", "deploy": deploy}, arrival=arrival)


@pytest.fixture
def routed(folder: Path) -> Path:
    """A base that is the fixture's model, two experts near it, and a router that sends images to all three."""
    dataset(folder / SETS / "more", 7, noise=3)
    drawings(folder / SETS / "pairs", PAIRS)
    (folder / BASE.parent).mkdir(exist_ok=True)
    shutil.move(folder / DEPLOYED, folder / BASE)
    base = checkpoints.load(folder / BASE)
    for seed, name in enumerate(EXPERTS, start=1):
        torch.manual_seed(seed)
        expert = {key: t + 0.5 * t.std(correction=0) * torch.randn_like(t) for key, t in base.items()}
        checkpoints.save(folder / ROUTED / f"{name}.weights", expert)
    known = router.empty("0" * 64)
    features = torch.cat([base_features(folder, name) for name in ("seen", "more", "pairs")])
    for number, name in enumerate((router.BASE, *EXPERTS)):
        file, arrivals = (None, ()) if name == router.BASE else (f"{name}.weights", (name,))
        route = Route(name=name, file=file, arrivals=arrivals, images=0)
        own = features[number::3]
        known = router.joined(known, route, ("x", "y"), own, torch.arange(len(own)) % 2)
    router.save(folder / ROUTED / router.FILE, known)
    return folder


def opened(folder: Path, path: Path) -> models.Clip:
    model = models.build(folder / MODEL)
    models.load_weights(model, checkpoints.load(folder / path), path)
    return model.eval()


def base_features(folder: Path, name: str) -> torch.Tensor:
    data = Dataset(folder / SETS / name)
    return image_features(opened(folder, BASE), np.array(data.images), models.preprocess(folder / MODEL))


def alone(folder: Path, weights: Path) -> dict[str, np.ndarray]:
    """What one model predicts for each set with classes."""
    shutil.copyfile(folder / weights, folder / DEPLOYED)
    evaluate(folder, at(1, "ema"))
    (folder / DEPLOYED).unlink()
    return {name: np.load(folder / PREDICTIONS / f"{name}.npy") for name in ("seen", "more", "kept")}


def test_each_image_is_classified_by_its_own_expert(routed: Path) -> None:
    evaluate(routed, at(1))
    found = json.loads((routed / METRICS).read_text())
    by_route = {name: np.load(routed / PREDICTIONS / f"{name}.npy") for name in ("seen", "more", "kept")}
    each = [alone(routed, path) for path in (BASE, *(ROUTED / f"{name}.weights" for name in EXPERTS))]
    known = router.load(routed / ROUTED / router.FILE)
    used = set()
    for name, predicted in by_route.items():
        routes = known.routed(base_features(routed, name)).numpy()
        used |= {*routes.tolist()}
        expected = np.array([each[route][name][row] for row, route in enumerate(routes)])
        assert predicted.tolist() == expected.tolist()
        counts = {one.name: int((routes == number).sum()) for number, one in enumerate(known.routes)}
        assert found["routing"]["images"][name] == {key: value for key, value in counts.items() if value}
    assert used == {0, 1, 2}
    labels = Dataset(routed / SETS / "seen").labels
    assert found["routing"]["oracle"]["seen"] == round(100 * float((each[1]["seen"] == labels).mean()), 4)
    went = found["routing"]["images"]["seen"].get("seen", 0)
    assert found["routing"]["accuracy"]["seen"] == round(100 * went / len(labels), 4)
    assert found["routing"]["expert"] == {"seen": "seen", "pairs": "pairs"}
    assert found["routing"]["mean_accuracy"] == pytest.approx(np.mean([*found["routing"]["accuracy"].values()]))
    rest = found["top1"]["more"]  # has no expert yet, so counts as it was routed
    oracles = found["routing"]["oracle"]
    assert found["routing"]["oracle_A_KA"] == pytest.approx((oracles["seen"] + oracles["pairs"] + rest) / 3, abs=1e-3)


def test_an_image_of_a_pair_is_compared_with_captions_as_its_expert_embeds_them(routed: Path) -> None:
    evaluate(routed, at(1))
    found = json.loads((routed / METRICS).read_text())
    data = Dataset(routed / SETS / "pairs")
    pairs = retrieval.pairs("pairs", data, models.tokenizer(routed / MODEL))
    known = router.load(routed / ROUTED / router.FILE)
    routes = known.routed(base_features(routed, "pairs")[torch.from_numpy(pairs.images)])
    similar = np.zeros((len(pairs.images), len(pairs.tokens)))
    for number, path in enumerate((BASE, *(ROUTED / f"{name}.weights" for name in EXPERTS))):
        model = opened(routed, path)
        pixels = np.array(data.images)[pairs.images]
        images = image_features(model, pixels, models.preprocess(routed / MODEL)).double().numpy()
        texts = text_features(model, pairs.tokens, 64).double().numpy()
        rows = (routes == number).numpy()
        similar[rows] = (images @ texts.T)[rows]
        if number == 2:
            oracle = retrieval.of_features(torch.from_numpy(images), torch.from_numpy(texts), pairs.right)
    right = {tuple(one) for one in pairs.right.tolist()}
    best = [max(range(similar.shape[1]), key=lambda c: row[c]) for row in similar]
    expected = 100 * np.mean([(i, c) in right for i, c in enumerate(best)])
    assert found["recall"]["pairs"]["image_to_text"]["1"] == pytest.approx(expected, abs=1e-3)
    assert found["routing"]["oracle"]["pairs"] == pytest.approx(
        np.mean([oracle[way]["5"] for way in ("image_to_text", "text_to_image")]), abs=1e-3
    )


def test_parts_join_to_the_bytes_of_the_whole(routed: Path) -> None:
    evaluate(routed, at(1))
    wanted = (routed / METRICS).read_bytes()
    (routed / METRICS).unlink()
    results = []
    for part in parts.divide(routed, at(1), 3):
        parts.run(part.names, routed, at(1))
        results.append((routed / parts.RESULT).read_bytes())
    parts.join(routed, at(1), results)
    assert (routed / METRICS).read_bytes() == wanted


def test_batch_size_decides_no_result(routed: Path) -> None:
    results = []
    for size in (2, 256):
        given = at(1).model_dump(mode="json", exclude_none=True)
        given["evaluate"]["batch_size"] = size
        evaluate(routed, Params.model_validate(given))
        results.append((routed / METRICS).read_bytes())
    assert results[0] == results[1]


def test_a_damaged_delta_is_named_and_leaves_no_metrics(routed: Path) -> None:
    path = routed / ROUTED / "pairs.weights"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"pairs\.weights: not a readable safetensors file"):
        evaluate(routed, at(1))
    assert not (routed / METRICS).exists()


def test_a_set_is_scored_once_a_route(routed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts that no image of the sets goes to are not even read."""
    (routed / ROUTED / "unused.weights").write_bytes(b"")
    known = router.load(routed / ROUTED / router.FILE)
    one = Route(name="unused", file="unused.weights", arrivals=("unused",), images=0)
    grown = router.joined(known, one, ("x", "y"), -known.prototypes[:2], torch.tensor([0, 1]))
    router.save(routed / ROUTED / router.FILE, grown)
    loaded: list[str] = []
    before = models.load_weights
    monkeypatch.setattr(models, "load_weights", lambda m, w, path: (loaded.append(path.name), before(m, w, path)))
    evaluate(routed, at(1))
    assert loaded == ["base.safetensors", "base.safetensors", "seen.weights", "pairs.weights"]
