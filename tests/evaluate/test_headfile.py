"""Files of heads: added, read back, refused when damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from flows.cli.app import app
from tasks.errors import UserError
from tasks.evaluate import headfile, support
from tasks.evaluate.head import ALL, SupportHead, Text, chosen, fit
from tasks.evaluate.support import Moments, Support
from tasks.model import checkpoints
from tasks.params import LabelledHead

WIDTH = 8
NAMES = ("ant", "bee", "cat", "dog")


def samples(classes: tuple[str, ...], seed: int, each: int = 6) -> Support:
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(classes)).repeat_interleave(each)
    own = torch.tensor([NAMES.index(name) for name in classes])[labels]
    features = torch.eye(WIDTH)[own] + 0.4 * torch.randn(len(labels), WIDTH, generator=random)
    ranks = torch.randperm(10_000, generator=random)[: len(labels)].reshape(len(classes), each).sort().values.flatten()
    return Support(classes, torch.nn.functional.normalize(features, dim=1), labels, ranks)


def texts(classes: tuple[str, ...]) -> Text:
    return Text(torch.eye(WIDTH)[[NAMES.index(name) for name in classes]], 50.0)


def write(path: Path, data: Support | Moments, name: str = "gda", **facts: Any) -> Path:
    shots = ALL if isinstance(data, Moments) else 4
    head = chosen(LabelledHead.model_validate({"name": name, "shots": [shots]}))
    assert isinstance(head, SupportHead)
    if isinstance(data, Support):
        data = data.at(4)
    text = texts(data.classes)
    fitted = fit(head, data, text)
    given = {"shots": shots, "space": "base", "weights": ("w",), "seed": 0, **facts}
    headfile.save(path, headfile.note_of(head, fitted, data, text, **given), data, text, fitted)
    return path


def both(a: Support, b: Support) -> Support:
    return support.join(a, b, 100)


def test_adding_two_files_gives_the_head_of_all_samples(tmp_path: Path) -> None:
    """A class comes back in the second file, and another one is new."""
    a, b = samples(NAMES[:3], 1), samples(NAMES[1:], 2)
    one, two = write(tmp_path / "a", a.moments()), write(tmp_path / "b", b.moments())
    done = CliRunner().invoke(app, ["heads", "merge", str(one), str(two), "--out", str(tmp_path / "c")])
    assert done.exit_code == 0
    assert "head gda of 4 classes" in done.output
    whole = write(tmp_path / "whole", both(a, b).moments())
    found, expected = checkpoints.load(tmp_path / "c"), checkpoints.load(whole)
    assert found["counts"].tolist() == [6, 12, 12, 6]
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)
    headfile.merge(two, one, tmp_path / "d")
    for name, tensor in checkpoints.load(tmp_path / "d").items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)


def test_a_mean_is_weighed_by_its_samples() -> None:
    """Four samples with mean 1 and one with mean 6 have the mean 2, not 3.5 (Federated Reconnaissance)."""
    one = Moments(("a",), torch.tensor([4]), torch.tensor([[4.0]]).double(), torch.tensor([[4.0]]).double())
    two = Moments(("a",), torch.tensor([1]), torch.tensor([[6.0]]).double(), torch.tensor([[36.0]]).double())
    total = support.plus(one, two)
    assert (total.sums / total.counts[:, None]).tolist() == [[2.0]]


@pytest.mark.parametrize("name", ["tip", "knn", "linear", "gda"])
def test_adding_supports_keeps_the_lowest_ranks_of_both(name: str, tmp_path: Path) -> None:
    a, b = samples(NAMES[:3], 1), samples(NAMES[1:], 2)
    headfile.merge(write(tmp_path / "a", a, name), write(tmp_path / "b", b, name), tmp_path / "c")
    whole = write(tmp_path / "whole", both(a, b), name)
    assert (tmp_path / "c").read_bytes() == whole.read_bytes()


def test_what_is_added_twice_counts_once_in_a_support(tmp_path: Path) -> None:
    one = write(tmp_path / "a", samples(NAMES[:3], 1), "tip")
    headfile.merge(one, one, tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == one.read_bytes()


@pytest.mark.parametrize(
    ("name", "facts", "says"),
    [
        ("prototype", {}, "name differs"),
        ("gda", {"seed": 1}, "seed differs .* give both timelines the same head and seed"),
        ("gda", {"weights": ("v",)}, "weights differs .* only features of one model can be added"),
        ("gda", {"space": "deployed"}, "space differs"),
    ],
)
def test_heads_that_do_not_fit_are_refused(name: str, facts: dict[str, Any], says: str, tmp_path: Path) -> None:
    one = write(tmp_path / "a", samples(NAMES, 1).moments())
    two = write(tmp_path / "b", samples(NAMES, 2).moments(), name, **facts)
    with pytest.raises(UserError, match=says):
        headfile.merge(one, two, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_other_prompts_are_refused(tmp_path: Path) -> None:
    one, two = (write(tmp_path / name, samples(NAMES, 1).moments()) for name in "ab")
    tensors = checkpoints.load(two)
    tensors["text"] = tensors["text"].flip(0)
    checkpoints.save(two, tensors, checkpoints.metadata(two))
    with pytest.raises(UserError, match="class 'ant' has other prompts in each"):
        headfile.merge(one, two, tmp_path / "c")


def changed(tensors: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    if kind == "missing":
        del tensors["gram"]
    elif kind == "width":
        tensors["gram"] = torch.zeros(3, 3, dtype=torch.float64)
    elif kind == "dtype":
        tensors["sums"] = tensors["sums"].float()
    elif kind == "nan":
        tensors["sums"] = tensors["sums"] / 0
    else:
        tensors["counts"] = tensors["counts"] * 0
    return tensors


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "lacks the tensor 'gram'"),
        ("width", r"'gram' is float64 \[3, 3\]; it should be float64 \[8, 8\]"),
        ("dtype", r"'sums' is float32 \[4, 8\]; it should be float64 \[4, any\]"),
        ("nan", "'sums' holds values that are not finite"),
        ("empty", "'counts' has a class without a sample"),
    ],
)
def test_a_damaged_file_is_named(kind: str, says: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a", samples(NAMES, 1).moments())
    checkpoints.save(path, changed(checkpoints.load(path), kind), checkpoints.metadata(path))
    with pytest.raises(UserError, match=f"a: {says}"):
        headfile.read(path)


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"name": "evil.py:Evil"}, r"evaluate\.heads: there is no 'evil\.py:Evil'"),
        ({"name": "zeroshot", "settings": {}}, "is no file of a head: zeroshot has none"),
        ({"settings": {"name": "knn", "none": 1}}, r"evaluate\.heads: gda: no setting 'none'"),
        ({"scale": float("nan")}, r"not a file of a head that can be read \(scale: "),
        ({"scale": 1e308}, r"not a file of a head that can be read \(scale: "),
    ],
)
def test_a_note_of_somebody_elses_is_checked(facts: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a", samples(NAMES, 1).moments())
    note = json.loads(checkpoints.metadata(path)["head"]) | facts
    checkpoints.save(path, checkpoints.load(path), {"head": json.dumps(note)})
    with pytest.raises(UserError, match=f"a: {says}"):
        headfile.remove(path, ["ant"], tmp_path / "b")


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "x", {"a": torch.zeros(1)})
    with pytest.raises(UserError, match="x: not the file of a head"):
        headfile.read(tmp_path / "x")
    checkpoints.save(tmp_path / "x", {"a": torch.zeros(1)}, {"head": '{"version": 2}'})
    with pytest.raises(UserError, match="x: not a file of a head that can be read"):
        headfile.read(tmp_path / "x")
    with pytest.raises(UserError, match="nothing: no such checkpoint"):
        headfile.read(tmp_path / "nothing")


# A class that is taken out


def remove(path: Path, out: Path, *classes: str) -> str:
    done = CliRunner().invoke(app, ["heads", "remove", str(path), *classes, "--out", str(out)])
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


@pytest.mark.parametrize("name", ["tip", "knn", "linear", "gda", "prototype"])
def test_a_head_of_shots_without_a_class_has_never_had_it(name: str, tmp_path: Path) -> None:
    data = samples(NAMES, 1)
    whole = write(tmp_path / "whole", data, name)
    assert "of 3 classes" in remove(whole, tmp_path / "out", "bee")
    expected = write(tmp_path / "expected", support.without(data, ["bee"]), name)
    assert (tmp_path / "out").read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("name", ["tip", "gda"])
def test_a_class_that_was_taken_out_comes_back(name: str, tmp_path: Path) -> None:
    data = samples(NAMES, 1)
    whole = write(tmp_path / "whole", data, name)
    remove(whole, tmp_path / "without", "bee", "dog")
    again = write(tmp_path / "again", support.without(data, ["ant", "cat"]), name)
    headfile.merge(tmp_path / "without", again, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == whole.read_bytes()


def test_sums_without_a_class_have_exact_counts_and_means_and_an_estimate_is_said(tmp_path: Path) -> None:
    data = samples(NAMES, 1)
    whole = write(tmp_path / "whole", data.moments())
    said = remove(whole, tmp_path / "out", "bee")
    assert "of bee it kept sums alone: counts and means are exact, the covariance is an estimate" in said
    note, left, text = headfile.read(tmp_path / "out")
    assert note.estimated == ("bee",)
    exact = support.without(data, ["bee"]).moments()
    assert isinstance(left, Moments)
    assert left.classes == exact.classes
    assert torch.equal(left.counts, exact.counts)
    assert torch.equal(left.sums, exact.sums)
    assert torch.equal(text.features, texts(exact.classes).features)
    assert 0.8 < float((left.gram - means_of(left)).trace() / (exact.gram - means_of(exact)).trace()) < 1.25
    assert "estimated" not in checkpoints.metadata(whole)["head"]


def means_of(data: Moments) -> torch.Tensor:
    return data.sums.T @ (data.sums / data.counts[:, None])


def test_the_estimate_by_hand() -> None:
    """Scatter 2 within each of two classes of two samples: one class alone has 2; where the other has one sample, 0."""
    features = torch.tensor([[1.0], [3.0], [10.0], [12.0]])
    data = support.moments(("a", "b"), features, torch.tensor([0, 0, 1, 1]))
    left = support.reduced(data, ["b"])
    assert (left.counts.tolist(), left.sums.tolist(), left.gram.tolist()) == ([2], [[4.0]], [[10.0]])  # 1 + 9
    alone = support.moments(("a", "b"), features[:3], torch.tensor([0, 0, 1]))
    assert support.reduced(alone, ["a"]).gram.tolist() == [[100.0]]
    assert support.reduced(alone, ["b"]).gram.tolist() == [[10.0]]


def test_an_estimate_is_handed_on_by_adding(tmp_path: Path) -> None:
    data = samples(NAMES, 1)
    headfile.remove(write(tmp_path / "whole", data.moments()), ["bee"], tmp_path / "out")
    other = write(tmp_path / "other", samples(("ant", "bee"), 2).moments())
    note = headfile.merge(other, tmp_path / "out", tmp_path / "both")
    assert note.estimated == ("bee",)
    assert note.classes == NAMES


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        (["bees"], "has no class 'bees' among its 4 classes; near: 'bee'"),
        (["whale"], "has no class 'whale' among its 4 classes"),
        (["ant", "bee", "cat"], "1 of its 4 classes would be left; a head needs two"),
    ],
)
def test_a_class_that_cannot_be_taken_out_is_one_line(classes: list[str], says: str, tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", samples(NAMES, 1))
    before = whole.read_bytes()
    with pytest.raises(UserError) as refused:
        headfile.remove(whole, classes, whole)
    assert str(refused.value) == f"{whole}: {says}"
    assert whole.read_bytes() == before
