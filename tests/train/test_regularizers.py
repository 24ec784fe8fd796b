"""EWC and SI against closed forms, and what they hand from time step to time step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tasks import nodes, train
from tasks.choice import available
from tasks.errors import UserError
from tasks.merge import merge
from tasks.model import checkpoints
from tasks.params import Named, Params, Train
from tasks.train import importance
from tasks.train.node import EXPERT, IMPORTANCE, PAST_IMPORTANCE, TRAINING, initialize
from tasks.train.node import train as train_node
from tasks.train.regularizer import Importance, Pull, Regularizer, chosen
from tests.train.project import dataset, params, project


class Line(nn.Module):
    """Two parameters, so that everything can be worked out by hand."""

    def __init__(self, *values: float):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values, dtype=torch.float64))


def regularizer(name: str, **settings: Any) -> Regularizer:
    return chosen(Named(name=name, **settings))


def held(omega: list[float], anchor: list[float]) -> Importance:
    return Importance({"w": torch.tensor(omega, dtype=torch.float64)}, {"w": torch.tensor(anchor, dtype=torch.float64)})


def nothing(_: int) -> None:
    raise AssertionError("asked for gradients")


def test_both_are_found() -> None:
    assert set(available(Regularizer)) == {"ewc", "si"}  # type: ignore[type-abstract]


@pytest.mark.parametrize(("name", "weight", "factor"), [("ewc", 6.0, 3.0), ("si", 6.0, 6.0)])
def test_penalty_and_gradient_are_the_quadratics(name: str, weight: float, factor: float) -> None:
    model = Line(3.0, -1.0)
    pull = regularizer(name, weight=weight).begin(model, held([2.0, 0.5], [1.0, 1.0]))
    assert pull.penalty() == pytest.approx(factor * (2.0 * 4 + 0.5 * 4))
    model.w.grad = torch.tensor([10.0, 20.0], dtype=torch.float64)
    pull.before_step()
    torch.testing.assert_close(model.w.grad, torch.tensor([10 + factor * 8, 20 - factor * 2], dtype=torch.float64))
    wanted = torch.tensor([factor * 8, -factor * 2], dtype=torch.float64)
    model.w.grad = None
    pull.before_step()
    torch.testing.assert_close(model.w.grad, wanted)


def test_without_a_step_before_there_is_no_pull() -> None:
    model = Line(3.0, -1.0)
    pull = regularizer("ewc", weight=1.0).begin(model, None)
    pull.before_step()
    assert (pull.penalty(), model.w.grad) == (0.0, None)


def fisher(model: Line, pull: Pull, gradients: list[list[float]], samples: int = 1) -> Importance:
    def gradient(number: int) -> None:
        model.w.grad = torch.tensor(gradients[number], dtype=torch.float64)

    return pull.finish(gradient, samples)


def test_fisher_information_of_a_gaussians_mean_is_its_precision() -> None:
    """Batches of 50 draws of variance 0.25: the gradient of the mean log-likelihood squared, times 50, is 1 / 0.25."""
    random = torch.Generator().manual_seed(0)
    draws = 2.0 + 0.5 * torch.randn(4000, 50, generator=random, dtype=torch.float64)
    gradients = [[float((2.0 - batch).mean() / 0.25)] for batch in draws]
    model = Line(2.0)
    found = fisher(model, regularizer("ewc", weight=1.0, batches=4000).begin(model, None), gradients, samples=50)
    assert found.importance["w"].item() == pytest.approx(4.0, rel=0.05)
    assert found.anchor["w"].item() == 2.0


def test_ewc_over_three_steps_is_the_sum_of_their_penalties() -> None:
    steps = [([1.0, 0.0], [[2.0, 0.0]]), ([3.0, 5.0], [[1.0, 4.0]]), ([-1.0, 2.0], [[3.0, 0.5]])]
    before = None
    for values, gradients in steps:
        model = Line(*values)
        before = fisher(model, regularizer("ewc", weight=2.0, batches=1).begin(model, before), gradients)
    at = torch.tensor([0.7, -2.0], dtype=torch.float64, requires_grad=True)
    penalty = sum(
        (torch.tensor(g[0], dtype=torch.float64).square() * (at - torch.tensor(v, dtype=torch.float64)).square()).sum()
        for v, g in steps
    )
    (wanted,) = torch.autograd.grad(torch.as_tensor(penalty), at)
    model = Line(0.7, -2.0)
    regularizer("ewc", weight=2.0).begin(model, before).before_step()
    torch.testing.assert_close(model.w.grad, wanted)


def test_the_anchor_of_ewc_is_what_the_technique_fisher_merges(tmp_path: Path) -> None:
    experts = [
        ([1.0, 0.0, 7.0], [2.0, 0.0, 1.0]),
        ([3.0, 5.0, -2.0], [1.0, 4.0, 0.5]),
        ([-1.0, 2.0, 0.0], [3.0, 0.5, 2.0]),
    ]
    before, files = None, []
    for number, (values, gradient) in enumerate(experts):
        model = Line(*values)
        before = fisher(model, regularizer("ewc", weight=1.0, batches=1).begin(model, before), [gradient])
        files.append((tmp_path / f"{number}.safetensors", tmp_path / f"{number}.stats.safetensors"))
        checkpoints.save(files[-1][0], {"w": model.w.detach()})
        squares = {"fisher/w": torch.tensor(gradient, dtype=torch.float64).square()}
        checkpoints.save(files[-1][1], squares, {"samples": "1", "estimator": '"expected"', "pool": '"none"'})
    found = merge(
        "fisher", [expert for expert, _ in files], files[0][0], settings={"normalize": "none"},
        statistics=[statistics for _, statistics in files],
    ).tensors  # fmt: skip
    assert before
    torch.testing.assert_close(before.anchor["w"], torch.as_tensor(found["w"]))


def test_si_on_a_quadratic_is_the_loss_that_each_parameter_saved() -> None:
    """With loss Σ c_k θ_k² / 2 and small steps, the path integral is the fall of each parameter's part of the loss."""
    c = torch.tensor([1.0, 4.0], dtype=torch.float64)
    model, settings = Line(1.0, 0.5), regularizer("si", weight=0.1, xi=0.01)
    pull = settings.begin(model, None)
    for _ in range(2000):
        model.w.grad = c * model.w.detach()
        pull.before_step()
        with torch.no_grad():
            model.w -= 1e-3 * model.w.grad
        pull.after_step()
    end = model.w.detach()
    start = torch.tensor([1.0, 0.5], dtype=torch.float64)
    saved = c * (start.square() - end.square()) / 2
    found = pull.finish(nothing, 1)
    torch.testing.assert_close(found.importance["w"], saved / ((end - start).square() + 0.01), rtol=5e-3, atol=0)
    torch.testing.assert_close(found.anchor["w"], end)
    again = settings.begin(model, found)
    assert torch.equal(again.finish(nothing, 1).importance["w"], found.importance["w"])  # no step, nothing gained


def test_si_integrates_the_loss_alone_not_the_penalty() -> None:
    model = Line(1.0)
    pull = regularizer("si", weight=1.0, xi=1.0).begin(model, held([5.0], [0.0]))
    model.w.grad = torch.tensor([2.0], dtype=torch.float64)
    pull.before_step()
    assert model.w.grad.item() == 12.0
    with torch.no_grad():
        model.w -= 0.1
    pull.after_step()
    assert pull.finish(nothing, 1).importance["w"].item() == pytest.approx(5 + 2.0 * 0.1 / (0.01 + 1))


def test_a_harmful_move_is_no_importance() -> None:
    model = Line(1.0)
    pull = regularizer("si").begin(model, None)
    model.w.grad = torch.tensor([2.0], dtype=torch.float64)
    pull.before_step()
    with torch.no_grad():
        model.w += 0.1
    pull.after_step()
    assert pull.finish(nothing, 1).importance["w"].item() == 0.0


def test_si_goes_on_from_what_it_had_gathered() -> None:
    def advance(model: Line, pull: Pull) -> None:
        model.w.grad = 3 * model.w.detach()
        pull.before_step()
        with torch.no_grad():
            model.w -= 0.01 * model.w.grad
        pull.after_step()

    model = Line(1.0, 2.0)
    pull = regularizer("si").begin(model, None)
    advance(model, pull)
    resumed = Line(*model.w.tolist())
    other = regularizer("si").begin(resumed, None)
    other.load({name: tensor.clone() for name, tensor in pull.tensors().items()})
    for one, its in ((model, pull), (resumed, other)):
        advance(one, its)
    assert torch.equal(other.finish(nothing, 1).importance["w"], pull.finish(nothing, 1).importance["w"])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project placed for step 0."""
    folder = project(tmp_path_factory.mktemp("regularized"))
    initialize(folder, params(0))
    return folder


def settings(step: int, name: str | None = "ewc", **more: Any) -> Params:
    chosen = {"ewc": {"name": "ewc", "weight": 50.0, "batches": 3}, "si": "si", None: None}[name]
    train = {"steps": 3, "batch_size": 8, "lr": 1e-2, "warmup": 0, "regularizer": chosen, **more}
    return params(step, train=train)


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "project"))


def next_step(folder: Path) -> None:
    """Place what step 0 left for step 1."""
    weights = folder / "data/history/weights"
    shutil.copy(folder / EXPERT, weights / "base.safetensors")
    shutil.rmtree(folder / PAST_IMPORTANCE)
    shutil.copytree(folder / IMPORTANCE, folder / PAST_IMPORTANCE)
    shutil.rmtree(folder / "data/step/arrival")
    dataset(folder / "data/step/arrival", 16, ("blue", "yellow"), noise=3)


@pytest.mark.parametrize("name", ["ewc", "si"])
def test_a_step_hands_on_what_holds_the_next_one_back(name: str, folder: Path) -> None:
    train_node(folder, settings(0, name))
    first = importance.read(folder / IMPORTANCE, name)
    assert first is not None
    assert first.importance.keys() == first.anchor.keys() == checkpoints.load(folder / EXPERT).keys()
    assert all((tensor >= 0).all() for tensor in first.importance.values())
    next_step(folder)
    moved = {}
    for chosen_name in (name, None):
        initialize(folder, settings(1, chosen_name))
        train_node(folder, settings(1, chosen_name))
        weights = checkpoints.load(folder / EXPERT)
        moved[chosen_name] = sum(
            float((omega * (weights[n] - first.anchor[n]).square()).sum()) for n, omega in first.importance.items()
        )
        said = json.loads((folder / TRAINING / "training.json").read_text())["regularizer"]
        assert (said and said["name"]) == chosen_name
    assert moved[name] < moved[None]
    assert importance.read(folder / IMPORTANCE, name) is None  # the step without a regularizer hands on nothing
    assert sorted(p.name for p in (folder / IMPORTANCE).iterdir()) == ["regularizer.json"]


def test_an_expert_that_arrives_passes_on_what_was_held(folder: Path) -> None:
    train_node(folder, settings(0))
    next_step(folder)
    shutil.rmtree(folder / "data/step/arrival")
    (folder / "data/step/arrival").mkdir()
    shutil.copy(folder / EXPERT, folder / "data/step/arrival/expert.safetensors")
    train_node(folder, settings(1))
    for part in ("regularizer.json", "importance.safetensors", "anchor.safetensors"):
        assert (folder / IMPORTANCE / part).read_bytes() == (folder / PAST_IMPORTANCE / part).read_bytes()


def test_another_regularizer_starts_anew_and_damage_is_named(folder: Path) -> None:
    train_node(folder, settings(0))
    assert importance.read(folder / IMPORTANCE, "si") is None
    (folder / PAST_IMPORTANCE / "regularizer.json").write_text("")
    with pytest.raises(UserError, match=r"regularizer\.json: not readable"):
        train_node(folder, settings(0))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"regularizer": "ewc"}, "train.regularizer: ewc: weight is missing"),
        ({"regularizer": "l2"}, "train.regularizer: there is no 'l2'; there are ewc, si"),
        ({"regularizer": "si", "method": "lora"}, "train.regularizer: si pulls the model's own parameters, and lora"),
    ],
)
def test_a_wrong_regularizer_is_one_sentence(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        train.check(Train.model_validate({"steps": 1, **given}))
    assert str(caught.value).startswith(words)


class Stopped(Exception):  # noqa: N818 - no error
    pass


@pytest.mark.parametrize(("method", "name"), [("full", "si"), ("lora", None), ("vera", None), ("lnfit", "ewc")])
def test_a_training_that_goes_on_ends_with_the_same_bytes(method: str, name: str | None, folder: Path) -> None:
    train_node(folder, settings(0, "si" if name is None else name))
    next_step(folder)
    given = settings(1, name, method=method).model_copy(update={"save_every": 0.0})
    initialize(folder, given)
    outputs = []
    for stopped in (False, True):

        def heard(what: str, done: int, *_: object, stopped: bool = stopped) -> None:
            if stopped and (what, done) == ("train", 2):
                raise Stopped

        shutil.rmtree(nodes.unfinished(folder, "train"), ignore_errors=True)
        if stopped:
            with pytest.raises(Stopped):
                train_node(folder, given, heard)
            assert (nodes.unfinished(folder, "train") / "training.safetensors").exists()
        train_node(folder, given)
        outputs.append([p.read_bytes() for p in (folder / EXPERT, *sorted((folder / IMPORTANCE).iterdir()))])
    assert outputs[0] == outputs[1]
