"""Prompt ensembles: the classifier is open_clip's own, and scores follow from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from tasks.errors import UserError
from tasks.evaluate import prompts, zeroshot
from tasks.evaluate.node import DEPLOYED, METRICS, evaluate
from tasks.model import checkpoints, models
from tasks.model.datasets import Card, Dataset, Sample, write
from tasks.params import EvaluationSet
from tests.train.project import params

CLASSES = ["red", "green", "light blue", "yellow", "grey"]


@pytest.fixture
def model(folder: Path) -> Any:
    model = models.build(folder / "data/history/model").eval()
    model.load_state_dict(checkpoints.load(folder / DEPLOYED))
    return model


@pytest.mark.parametrize(
    ("prompt", "batch_size"),
    [
        *(("one {}.", size) for size in (1, 7, 256, 1000)),
        *((("a {}.", "the {} one", "many {}s"), size) for size in (1, 7, 256, 1000)),
        ("simple", 7),
        ("openai", 256),
    ],
)
def test_the_classifier_is_that_of_open_clip(
    folder: Path, model: Any, prompt: str | tuple[str, ...], batch_size: int
) -> None:
    tokenize = models.tokenizer(folder / "data/history/model")
    templates = prompts.templates(prompt)
    theirs: Any = [template.replace("{}", "{0}") for template in templates]
    if prompt in ("simple", "openai"):
        theirs = getattr(open_clip, f"{prompt.upper()}_IMAGENET_TEMPLATES")
        assert len(templates) == {"simple": 7, "openai": 80}[str(prompt)]
    ids = zeroshot.tokens("set", zeroshot.prompts("set", CLASSES, templates), tokenize)
    ours = zeroshot.classifier(model, ids, batch_size)
    expected = open_clip.build_zero_shot_classifier(model, tokenize, CLASSES, theirs).T
    assert ours.shape == expected.shape
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_one_prompt_is_the_text_feature_itself_to_the_bit(folder: Path, model: Any) -> None:
    tokenize = models.tokenizer(folder / "data/history/model")
    ids = zeroshot.tokens("set", zeroshot.prompts("set", CLASSES, ["a {}"]), tokenize)
    with torch.inference_mode():
        features = models.text_features(model, tokenize([f"a {name}" for name in CLASSES]))
    assert torch.equal(zeroshot.classifier(model, ids, 256), features)


def test_top1_of_an_ensemble_is_that_of_open_clips_classifier(folder: Path, model: Any) -> None:
    evaluate(folder, params(0, evaluate=sets(prompt=["a {} square", "something {}"])))
    data = Dataset(folder / "data/step/evaluation/kept")
    home = folder / "data/history/model"
    with torch.no_grad():
        columns = open_clip.build_zero_shot_classifier(
            model, models.tokenizer(home), data.card.classes, ["a {} square", "something {}"]
        )
        pixels = models.normalize(np.array(data.images), models.preprocess(home), torch.device("cpu"))
        hits = int(((model.encode_image(pixels, normalize=True) @ columns).argmax(1).numpy() == data.labels).sum())
    assert json.loads((folder / METRICS).read_text())["top1"]["kept"] == round(100 * hits / len(data), 4)


def test_a_subset_of_classes_is_scored_among_these_alone(folder: Path, model: Any) -> None:
    """As ImageNet-R and -A are: the same images score at least as well as among all classes, and by these columns."""
    subset, random = ("red", "light blue"), np.random.default_rng(0)
    images = [random.integers(0, 255, (16, 16, 3), dtype=np.uint8) for _ in range(40)]
    found: dict[str, dict[str, Any]] = {}
    for name, classes in (("all", tuple(CLASSES)), ("some", subset)):
        samples = [Sample(f"{i}", image, "", classes.index(subset[i % 2])) for i, image in enumerate(images)]
        write(folder / "data/step/evaluation/kept", Card("kept", 16, classes, "a {}"), samples, len(samples))
        evaluate(folder, params(0, evaluate=sets(prompt="a {} square")))
        found[name] = {key: part["kept"] for key, part in json.loads((folder / METRICS).read_text()).items()
                       if key in ("top1", "classes", "size", "mean_per_class_recall")}  # fmt: skip
    home = folder / "data/history/model"
    with torch.no_grad():
        columns = open_clip.build_zero_shot_classifier(model, models.tokenizer(home), CLASSES, ["a {} square"])
        pixels = models.normalize(np.stack(images), models.preprocess(home), torch.device("cpu"))
        similar = model.encode_image(pixels, normalize=True) @ columns
    among = similar[:, [CLASSES.index(name) for name in subset]].argmax(1).numpy()
    hits = among == np.arange(len(images)) % 2
    assert found["some"]["top1"] == round(100 * hits.mean(), 4)
    assert found["some"]["mean_per_class_recall"] == round(50 * (hits[::2].mean() + hits[1::2].mean()), 4)
    assert (found["some"]["classes"], found["all"]["classes"], found["some"]["size"]) == (2, 5, 40)
    assert found["all"]["top1"] < found["some"]["top1"]


def test_prompts_of_the_data_are_used_unless_the_params_have_their_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[list[str]]] = []
    original = zeroshot.tokens
    monkeypatch.setattr(zeroshot, "tokens", lambda name, texts, t: asked.append(texts) or original(name, texts, t))
    samples = [Sample(f"{i}", np.full((16, 16, 3), i, np.uint8), "", i) for i in range(2)]
    card = Card("kept", 16, ("red", "blue"), "one {}", templates=("a {}", "the {}"))
    write(folder / "data/step/evaluation/kept", card, samples, 2)
    assert Dataset(folder / "data/step/evaluation/kept").card.templates == ("a {}", "the {}")
    for prompt in (None, "my {}"):
        evaluate(folder, params(0, evaluate=sets(prompt=prompt)))
    assert asked[1] == [["a red", "the red"], ["a blue", "the blue"]]
    assert asked[3] == [["my red"], ["my blue"]]


def test_a_card_without_an_ensemble_is_as_it_was(folder: Path) -> None:
    content = json.loads((folder / "data/step/evaluation/kept/dataset.json").read_text())
    assert list(content) == ["name", "image_size", "classes", "prompt", "origins", "size"]


@pytest.mark.parametrize("prompt", ["", "no place", "{} and {}", "opneai", [], ["a {}", "b"], ["openai"], 3, [3]])
def test_what_is_no_prompt_is_refused(prompt: Any) -> None:
    with pytest.raises(
        ValueError, match=r"holds \{\} once, .* or is a set of them \(openai, simple\)|needs one at least"
    ):
        EvaluationSet.model_validate({"name": "x", "test": ["x"], "prompt": prompt})


def test_classes_that_share_every_prompt_are_refused_and_some_may_be_shared(folder: Path) -> None:
    tokenize = models.tokenizer(folder / "data/history/model")
    texts = [["a red", "the red"], ["a red", "the blue"]]
    assert zeroshot.tokens("set", texts, tokenize).shape == (2, 2, 12)
    with pytest.raises(UserError, match="have the same tokens; rename one"):
        zeroshot.tokens("set", [["a red", "the red"], ["A red", "the RED"]], tokenize)


def sets(**settings: Any) -> dict[str, Any]:
    return {
        "adaptation": [{"name": "seen", "test": ["x"]}],
        "retention": [{"name": "kept", "test": ["x"], **settings}],
    }
