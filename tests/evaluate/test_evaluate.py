"""Zero-shot evaluation and its metrics."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from tasks.errors import UserError
from tasks.evaluate import metrics, zeroshot
from tasks.evaluate.node import DEPLOYED, METRICS, evaluate
from tasks.model import checkpoints, models
from tasks.model.datasets import Card, Dataset, Sample, write
from tests.train.project import dataset, params

REPOSITORY = Path(__file__).parents[2]


def test_summary_is_means_over_sets_and_their_geometric_mean() -> None:
    found = metrics.summary(
        {"a": accuracy(10.0, 5), "b": accuracy(30.0, 500), "c": accuracy(100 / 3, 3)}, {}, {}, ["a", "b"], ["c"]
    )
    assert (found["A_KA"], found["A_ZS"], found["geometric_mean"]) == (20.0, 33.3333, 25.8199)
    assert found["top1"] == {"a": 10.0, "b": 30.0, "c": 33.3333}
    assert found["size"] == {"a": 5, "b": 500, "c": 3}
    assert found["mean_per_class_recall"] == {"a": 5.0, "b": 15.0, "c": 16.6667}
    assert list(found) == ["A_KA", "A_ZS", "geometric_mean", "top1", "size", "mean_per_class_recall", "classes"]


def accuracy(top1: float, evaluated: int) -> metrics.Accuracy:
    return metrics.Accuracy(top1, None, top1 / 2, 4, evaluated)


def test_accuracy_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 3, 3])  # no sample of class 2
    nearest = np.array([[0, 0, 1], [1, 1, 0], [0, 0, 2], [1, 1, 0], [2, 2, 0], [0, 0, 1]], dtype=np.int32)
    found = metrics.Accuracy.of(nearest, labels, 4)
    assert found == metrics.Accuracy(50.0, None, 100 * (2 / 3 + 1 + 0) / 3, 4, 6)
    top5 = np.concatenate([nearest[:, :1], np.array([[0, 1, 2, 4, 5]] * 6)], axis=1)
    assert metrics.Accuracy.of(top5, labels, 6).top5 == 100 * 4 / 6


def test_mean_per_class_recall_is_the_balanced_accuracy_of_a_confusion_matrix() -> None:
    """As CLIP_benchmark has it from scikit-learn: the mean of diagonal over row sums, of rows that have samples."""
    random = np.random.default_rng(0)
    labels, nearest = random.integers(0, 7, 50), random.integers(0, 9, (50, 1)).astype(np.int32)
    confusion = np.zeros((9, 9))
    np.add.at(confusion, (labels, nearest[:, 0]), 1)
    with np.errstate(invalid="ignore"):
        expected = 100 * np.nanmean(np.diag(confusion) / confusion.sum(axis=1))
    assert metrics.Accuracy.of(nearest, labels, 9).mean_per_class_recall == pytest.approx(expected, abs=1e-10)


def test_top1_is_what_open_clip_says_one_image_at_a_time(folder: Path) -> None:
    evaluate(folder, params(0))
    model = models.build(folder / "data/history/model").eval()
    model.load_state_dict(checkpoints.load(folder / DEPLOYED))
    data = Dataset(folder / "data/step/evaluation/kept")
    tokenize, how = models.tokenizer(folder / "data/history/model"), models.preprocess(folder / "data/history/model")
    with torch.no_grad():
        texts = model.encode_text(tokenize([f"one {c} square" for c in data.card.classes]), normalize=True)
        hits = 0
        for image, label in zip(data.images, data.labels, strict=True):
            pixel = models.normalize(np.array(image)[None], how, torch.device("cpu"))
            hits += int((model.encode_image(pixel, normalize=True) @ texts.T).argmax() == label)
    found = json.loads((folder / METRICS).read_text())
    assert found["top1"]["kept"] == round(100 * hits / 6, 4)
    assert found["size"] == {"seen": 8, "kept": 6}


def test_batch_size_does_not_change_the_result(folder: Path) -> None:
    results = []
    for size in (1, 5, 256):
        settings = params(0).evaluate.model_copy(update={"batch_size": size})
        evaluate(folder, params(0).model_copy(update={"evaluate": settings}))
        results.append((folder / METRICS).read_bytes())
    assert results[0] == results[1] == results[2]


def test_sets_that_share_a_class_list_share_its_features(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    original = zeroshot.classifier
    monkeypatch.setattr(zeroshot, "classifier", lambda *a: asked.append(len(a[1])) or original(*a))
    dataset(folder / "data/step/evaluation/again", 4, noise=3)
    sets = {
        "adaptation": [{"name": "seen", "test": ["x"]}, {"name": "again", "test": ["x"]}],
        "retention": [{"name": "kept", "test": ["x"]}],
    }
    evaluate(folder, params(0, evaluate=sets))
    assert asked == [4, 2]


def test_the_command_writes_the_same_bytes_as_the_function(folder: Path) -> None:
    evaluate(folder, params(0))
    expected = (folder / METRICS).read_bytes()
    (folder / METRICS).unlink()
    with (folder / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(params(0).model_dump(mode="json", exclude_none=True), file)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-m", "tasks", "evaluate"], cwd=folder, env=environment, check=True)
    assert (folder / METRICS).read_bytes() == expected


def test_progress_counts_images_over_all_sets(folder: Path) -> None:
    heard: list[tuple[object, ...]] = []
    evaluate(folder, params(0), lambda *news: heard.append(news))
    assert heard == [("evaluate", 8, 14, "seen"), ("evaluate", 14, 14, "kept")]


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        (("one",), "has 1 classes"),
        (("red", " "), "class without a name"),
        (("Red", "blue", "red"), "have the same tokens; rename one of"),
    ],
)
def test_class_lists_that_cannot_be_told_apart_are_refused(classes: tuple[str, ...], says: str, folder: Path) -> None:
    sample = Sample("only", np.zeros((16, 16, 3), dtype=np.uint8), "", 0)
    write(folder / "data/step/evaluation/seen", Card("seen", 16, classes, "a {}"), [sample], 1)
    with pytest.raises(UserError, match=says):
        evaluate(folder, params(0))
    assert not (folder / METRICS).exists()


def test_a_sample_without_a_class_is_named(folder: Path) -> None:
    card = folder / "data/step/evaluation/seen/dataset.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "classes": ["red", "green", "blue"]}))
    with pytest.raises(UserError, match="'seen': sample 'yellow-3' has no class of the set, and others have"):
        evaluate(folder, params(0))


def test_damaged_weights_are_named(folder: Path) -> None:
    (folder / DEPLOYED).write_bytes((folder / DEPLOYED).read_bytes()[:-100])
    with pytest.raises(UserError, match=r"deployed.safetensors: not a readable safetensors file"):
        evaluate(folder, params(0))
