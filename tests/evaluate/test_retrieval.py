"""Retrieval: recall@k both ways, against cases worked out by hand and a reference over all similarities at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tasks.errors import UserError
from tasks.evaluate import metrics, retrieval
from tasks.evaluate.node import DEPLOYED, METRICS, evaluate
from tasks.evaluate.retrieval import Pairs, before_right
from tasks.model import checkpoints, models
from tasks.model.datasets import Card, Dataset, Sample, write
from tests.train.project import COLOURS, params

Found = tuple[list[int], list[int]]


def before(images: Sequence[Sequence[float]], captions: Sequence[Sequence[float]], right: object, block: int) -> Found:
    found = before_right(torch.tensor(images), torch.tensor(captions), np.array(right), block)
    return found[0].tolist(), found[1].tolist()


def reference(images: np.ndarray, captions: np.ndarray, right: Sequence[tuple[int, int]]) -> Found:
    """Every similarity in float64, sorted by hand."""
    similar = images.astype(np.float64) @ captions.astype(np.float64).T
    partners = {(0, q): {c for i, c in right if i == q} for q in range(len(images))}
    partners |= {(1, q): {i for i, c in right if c == q} for q in range(len(captions))}

    def one(side: int, query: int, row: np.ndarray) -> int:
        ranked = sorted(range(len(row)), key=lambda c: (-row[c], c in partners[side, query]))
        return next(place for place, c in enumerate(ranked) if c in partners[side, query])

    return [one(0, q, row) for q, row in enumerate(similar)], [one(1, q, row) for q, row in enumerate(similar.T)]


@pytest.mark.parametrize("block", [1, 2, 1024])
def test_by_hand(block: int) -> None:
    images = [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]
    # Similarities, a row for each image:   1.0 0.8 0.0 | 0.0 0.6 1.0 | 0.6 0.96 0.8
    captions = [[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]
    assert before(images, captions, [(0, 0), (1, 1), (2, 2)], block) == ([0, 1, 1], [0, 2, 1])
    # The first image has all three captions, and its second is the second image's too.
    assert before(images, captions, [(0, 0), (0, 1), (0, 2), (1, 1), (2, 0)], block) == ([0, 1, 2], [0, 1, 2])


@pytest.mark.parametrize("block", [1, 3, 1024])
def test_a_wrong_one_that_is_as_similar_comes_first(block: int) -> None:
    same = [[0.6, 0.8]] * 4
    assert before(same, same, [(i, i) for i in range(4)], block) == ([3, 3, 3, 3], [3, 3, 3, 3])
    several = sorted([(0, 2), (0, 3), *((i, c) for i in range(4) for c in (0, 1))])
    assert before(same, same, several, block) == ([0, 2, 2, 2], [0, 0, 3, 3])


@pytest.mark.parametrize("wild", [float("nan"), float("inf")])
def test_features_that_are_no_numbers_find_nothing(wild: float) -> None:
    good = [[1.0, 0.0], [0.0, 1.0]]
    assert before([[wild, wild]] * 2, good, [(0, 0), (1, 1)], 2) == ([2, 2], [2, 2])
    assert before([good[0], [wild, 0.0]], good, [(0, 0), (1, 1)], 2) == ([0, 2], [1, 2])


@st.composite
def bipartite(draw: st.DrawFn) -> tuple[int, int, list[tuple[int, int]]]:
    """Images, captions, and pairs that leave none of them out."""
    count = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    sides = [draw(st.lists(st.integers(0, other - 1), min_size=n, max_size=n)) for n, other in (count, count[::-1])]
    more = draw(st.lists(st.tuples(st.integers(0, count[0] - 1), st.integers(0, count[1] - 1)), max_size=6))
    return (*count, sorted({*enumerate(sides[0]), *((i, c) for c, i in enumerate(sides[1])), *more}))


@settings(deadline=None)
@given(bipartite(), st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_it_is_what_sorting_everything_says(
    given: tuple[int, int, list[tuple[int, int]]], seed: int, block: int
) -> None:
    """Of features that are sums of few powers of two, so that many similarities are equal, and to the bit so."""
    images, captions, right = given
    random = np.random.default_rng(seed)
    features = [(random.integers(-2, 3, (count, 3)) / 4).astype(np.float32) for count in (images, captions)]
    found = before_right(torch.from_numpy(features[0]), torch.from_numpy(features[1]), np.array(right), block)
    assert (found[0].tolist(), found[1].tolist()) == reference(*features, right)


@settings(deadline=None, max_examples=30)
@given(bipartite(), st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_of_any_features_neither_block_nor_order_matters(
    given: tuple[int, int, list[tuple[int, int]]], seed: int, block: int
) -> None:
    images, captions, right = given
    random = np.random.default_rng(seed)
    sides = [torch.from_numpy(random.normal(size=(n, 33)).astype(np.float32)) for n in (images, captions)]
    a, b = (torch.nn.functional.normalize(side, dim=1) for side in sides)
    near = np.sort((a.double() @ b.double().T).numpy().ravel())
    assume(len(near) < 2 or np.diff(near).min() > 1e-6)  # what is nearer than that, rounding may swap
    found = before_right(a, b, np.array(right), block)
    assert (found[0].tolist(), found[1].tolist()) == reference(a.numpy(), b.numpy(), right)
    order = [random.permutation(n) for n in (images, captions)]
    places = [np.argsort(o) for o in order]
    moved = np.array(sorted((places[0][i], places[1][c]) for i, c in right))
    again = before_right(a[order[0]], b[order[1]], moved, block + 1)
    for one, two, o in zip(found, again, order, strict=True):
        np.testing.assert_array_equal(one[o], two)


def test_ties_are_exact_at_any_size() -> None:
    """Equal features at different places of a matrix product, which in float32 give different last bits."""
    random = torch.Generator().manual_seed(0)
    row = torch.nn.functional.normalize(torch.randn(1, 515, generator=random), dim=1)
    count = 300
    right = np.stack([np.arange(count)] * 2, axis=1)
    for block in (40, 1024):
        by_image, by_caption = before_right(row.repeat(count, 1), row.repeat(count, 1), right, block)
        assert set(by_image.tolist()) == set(by_caption.tolist()) == {count - 1}


def test_no_more_than_a_block_of_similarities_is_in_memory() -> None:
    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.size = max(self.size, out.untyped_storage().nbytes() // out.element_size())
            return out

    features = torch.nn.functional.normalize(torch.randn(200, 4), dim=1)
    with Largest() as largest:
        before_right(features, features, np.stack([np.arange(200)] * 2, axis=1), 50)
    assert largest.size <= max(50 * 50, 200 * 4)


def test_recall_counts_the_queries_with_a_right_one_among_k(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.array([0, 0, 1, 4, 5, 9, 10, 400]), np.array([0, 3])
    monkeypatch.setattr(retrieval, "before_right", lambda *_: counts)
    monkeypatch.setattr("tasks.evaluate.towers.image_features", lambda *_: torch.zeros(1, 2))
    monkeypatch.setattr(retrieval, "text_features", lambda *_: torch.zeros(2, 2))
    among = Pairs(np.arange(8), torch.zeros(2, 3), np.zeros((8, 2), dtype=np.int64))
    found = retrieval.recall(None, np.zeros((8, 1, 1, 3)), among, None, 4, lambda _: None)  # type: ignore[arg-type]
    assert found == {
        "image_to_text": {"1": 25.0, "5": 50.0, "10": 75.0},
        "text_to_image": {"1": 50.0, "5": 100.0, "10": 100.0},
    }


def test_a_set_counts_by_the_mean_of_its_recall_at_5() -> None:
    recall = {
        "pairs": {
            "image_to_text": {"1": 1.0, "5": 20.0, "10": 90.0},
            "text_to_image": {"1": 2.0, "5": 100 / 3, "10": 90.0},
        }
    }
    top1 = {name: metrics.Accuracy(value, None, value, 4, 5) for name, value in {"a": 10.0, "c": 33.0}.items()}
    found = metrics.summary(top1, recall, {"pairs": 7}, ["a", "pairs"], ["c"])
    assert (found["A_KA"], found["A_ZS"]) == (round((10 + (20 + 100 / 3) / 2) / 2, 4), 33.0)
    assert found["top1"] == {"a": 10.0, "c": 33.0}
    assert found["recall"]["pairs"]["text_to_image"] == {"1": 2.0, "5": 33.3333, "10": 90.0}
    assert list(found) == [
        "A_KA", "A_ZS", "geometric_mean", "top1", "recall", "size", "mean_per_class_recall", "classes"
    ]  # fmt: skip
    alone = metrics.summary({}, recall, {"pairs": 7}, ["pairs"], ["pairs"])
    assert alone["top1"] == {}


def drawings(folder: Path, captions: Sequence[tuple[str, str]], label: int = -1) -> None:
    """A prepared set of squares: (name of the picture, caption)."""

    def samples() -> object:
        for number, (picture, caption) in enumerate(captions):
            random = np.random.default_rng([ord(letter) for letter in picture])
            image = np.array(COLOURS[picture.split()[0]]) + random.integers(-30, 30, (16, 16, 3))
            yield Sample(f"{number}", image.clip(0, 255).astype(np.uint8), caption, label)

    write(folder, Card(folder.name, 16), samples(), len(captions))  # type: ignore[arg-type]


PAIRS = [
    ("red 1", "a red square"),
    ("red 1", "something red"),
    ("red 2", "a red square"),
    ("green 1", "a green square"),
    ("green 1", "A  GREEN square"),
    ("blue 1", "a blue square"),
    ("yellow 1", "not blue at all"),
]


def test_what_is_equal_to_the_model_is_one(folder: Path) -> None:
    drawings(folder / "set", PAIRS)
    data = Dataset(folder / "set")
    found = retrieval.pairs("set", data, models.tokenizer(folder / "data/history/model"))
    assert found.images.tolist() == [0, 2, 3, 5, 6]
    assert len(found.tokens) == 5
    assert len(found) == 10
    texts = models.tokenizer(folder / "data/history/model")([caption for _, caption in PAIRS])
    named = {tuple(row): number for number, row in enumerate(found.tokens.tolist())}
    number = [named[tuple(row)] for row in texts.tolist()]
    assert number[0] == number[2]
    assert number[3] == number[4]
    expected = {(0, number[0]), (0, number[1]), (1, number[0]), (2, number[3]), (3, number[5]), (4, number[6])}
    assert found.right.tolist() == [list(pair) for pair in sorted(expected)]


def test_the_node_finds_what_open_clip_says(folder: Path) -> None:
    """One set with classes, one of pairs; the reference sees one image, one caption and all similarities."""
    drawings(folder / "data/step/evaluation/kept", PAIRS)
    pairs = params(0, evaluate={"batch_size": 3, **KEPT})
    heard: list[tuple[object, ...]] = []
    evaluate(folder, pairs, lambda *news: heard.append(news))
    found = json.loads((folder / METRICS).read_text())

    model = models.build(folder / "data/history/model").eval()
    model.load_state_dict(checkpoints.load(folder / DEPLOYED))
    data = Dataset(folder / "data/step/evaluation/kept")
    tokenize, how = models.tokenizer(folder / "data/history/model"), models.preprocess(folder / "data/history/model")
    rows, texts = (
        [0, 2, 3, 5, 6],
        ["a red square", "something red", "a green square", "a blue square", "not blue at all"],
    )
    with torch.no_grad():
        images = [
            model.encode_image(models.normalize(np.array(data.images[[row]]), how, torch.device("cpu")), normalize=True)
            for row in rows
        ]
        captions = [model.encode_text(tokenize([text]), normalize=True) for text in texts]
    right = [(0, 0), (0, 1), (1, 0), (2, 2), (3, 3), (4, 4)]
    by_image, by_caption = reference(torch.cat(images).numpy(), torch.cat(captions).numpy(), right)
    assert found["recall"] == {
        "kept": {
            "image_to_text": {str(k): 20.0 * sum(b < k for b in by_image) for k in (1, 5, 10)},
            "text_to_image": {str(k): 20.0 * sum(b < k for b in by_caption) for k in (1, 5, 10)},
        }
    }
    assert {*by_image, *by_caption} > {0}  # some are found late
    assert set(found["top1"]) == {"seen"}
    assert found["A_ZS"] == 100.0  # five candidates, and five may be looked at
    assert found["A_KA"] == found["top1"]["seen"]
    assert found["size"] == {"seen": 8, "kept": 7}
    assert [news[1:] for news in heard] == [
        (3, 18, "seen"), (6, 18, "seen"), (8, 18, "seen"),
        (11, 18, "kept"), (13, 18, "kept"), (16, 18, "kept"), (18, 18, "kept"),
    ]  # fmt: skip


def test_pairs_that_are_all_alike_are_refused(folder: Path) -> None:
    for alike in ([("red 1", "one"), ("red 1", "two")], [("red 1", "one"), ("red 2", "one")]):
        drawings(folder / "data/step/evaluation/kept", alike)
        with pytest.raises(UserError, match=r"'kept' has no classes, and .* differ .*retrieval needs two of each"):
            evaluate(folder, params(0, evaluate=KEPT))
        assert not (folder / METRICS).exists()


KEPT = {"adaptation": [{"name": "seen", "test": ["x"]}], "retention": [{"name": "kept", "test": ["x"]}]}
