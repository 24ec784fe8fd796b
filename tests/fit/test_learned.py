"""Coefficients that are learned: gradients against autograd, the hand cases, and what the engine deploys with them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.func import functional_call

from tasks import fit as fitting
from tasks import randomness
from tasks.errors import UserError
from tasks.fit.landscape import Landscape, TaskVectors, entropy
from tasks.fit.method import Problem
from tasks.fit.methods.adamerging import Adam
from tasks.fit.methods.frank_wolfe import hard, walk
from tasks.fit.node import fit
from tasks.fit.samples import of_step
from tasks.merge.node import deploy
from tasks.merge.step import StepMerge
from tasks.model import codec, coded, models
from tasks.params import Named
from tests.fit import steps
from tests.flows.test_fitted import example

ADA = {"name": "adamerging", "iterations": 6, "every": 2, "lr": 0.05}
WOLFE = {"name": "frank_wolfe", "iterations": 3, "search": 5}
EMA = {"init": "zs", "deploy": "ema", "technique": {"name": "linear", "weight": 0.5}}
ALL = {"init": "zs", "deploy": "all", "technique": {"name": "task_arithmetic", "scale": 0.3}}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return steps.project(tmp_path)


def problem(project: Path, step: int, **changes: Any) -> Problem:
    """The problem of a step whose history is there."""
    now = steps.params(step, method=ADA, time=ALL, **changes)
    merge = StepMerge.of(project, now)
    return Problem(
        project=project, params=now, technique=merge.technique, model=models.build(project / "data/history/model"),
        samples=of_step(project, now), base=merge.base, models=merge.models(), reference=merge.base,
        merged=lambda _: merge.base, scratch=project, out=Path("data/step/fit"), seed=1, progress=lambda *_: None,
    )  # fmt: skip


def landscape(given: Problem, kind: Any, *, elect: bool = False) -> Landscape:
    names = [name for name, _ in given.model.named_parameters()]
    vectors = TaskVectors(given.base, [given.project / path for _, path in given.models], names, elect=elect)
    return Landscape(given, vectors, given.samples.arrivals, kind)


def reference(given: Problem, found: Landscape, coefficients: np.ndarray, number: int, kind: str) -> np.ndarray:
    """∂L/∂λ in float64, by autograd through the merge itself."""
    vectors, base = found.vectors, load_file(given.base)
    experts = [load_file(given.project / path) for _, path in given.models]
    lam = torch.tensor(coefficients, dtype=torch.float64, requires_grad=True)
    merged = {}
    for i, name in enumerate(vectors.names):
        tau = torch.stack([expert[name].double() - base[name].double() for expert in experts])
        merged[name] = base[name].double() + torch.einsum("m,m...->...", lam[:, i], tau)
    model = given.model.double()
    tokenize = models.tokenizer(given.project / "data/history/model")
    preprocess = models.preprocess(given.project / "data/history/model")
    total = torch.zeros((), dtype=torch.float64)
    for pool in found.pools:
        draw = randomness.generator(given.seed, "fit", "batch", pool.name, number)
        rows = np.sort(draw.permutation(pool.rows)[:4])
        pixels = models.normalize(np.array(pool.data.images[rows]), preprocess, torch.device("cpu")).double()
        tokens = tokenize([pool.data.card.prompt.replace("{}", name) for name in pool.data.card.classes])
        image, text, scale = functional_call(model, merged, (pixels, tokens))[:3]
        logits = scale * image @ text.T
        labels = torch.from_numpy(np.asarray(pool.data.labels[rows])).long()
        log_p = torch.log_softmax(logits, dim=-1)
        loss = -(log_p.exp() * log_p).sum(-1).mean() if kind == "entropy" else -log_p[range(len(rows)), labels].mean()
        total = total + loss / len(found.pools)
    total.backward()  # type: ignore[no-untyped-call]
    given.model.float()
    assert lam.grad is not None
    return lam.grad.numpy()


@pytest.mark.parametrize("kind", ["entropy", "cross_entropy"])
def test_inner_products_are_the_gradient_through_the_merge(kind: str, project: Path) -> None:
    steps.run(project, 2, {"name": "paint", "setting": "scale", "values": 3}, time=ALL)
    given = problem(project, 2)
    found = landscape(given, kind)
    coefficients = np.random.default_rng(0).uniform(0.1, 0.6, (2, len(found.vectors.names)))
    expected = reference(given, found, coefficients, 7, kind)
    found = landscape(given, kind)
    found.gradient(coefficients, 7, 4)
    inner = found.vectors.inner(given.model, coefficients)
    np.testing.assert_allclose(inner, expected, rtol=2e-3, atol=2e-6)
    assert np.abs(expected).max() > 1e-4


def test_held_out_samples_are_looked_at_in_parts_and_their_classes_encoded_once(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps.prepare(project, 1)
    given = problem(project, 1)
    found = landscape(given, "cross_entropy")
    at_once = found.held_out_as_it_is(256)
    encoded: list[int] = []

    def counting(model: Any, tokens: torch.Tensor, encode: Any = models.text_features) -> torch.Tensor:
        encoded.append(len(tokens))
        features: torch.Tensor = encode(model, tokens)
        return features

    monkeypatch.setattr(models, "text_features", counting)
    monkeypatch.setattr("tasks.fit.landscape._FORWARD", 1)
    assert found.held_out_as_it_is(256) == pytest.approx(at_once, rel=1e-5)
    assert min(len(pool.held) for pool in found.pools) > 1
    assert encoded == [len(pool.data.card.classes) for pool in found.pools]


def test_the_slope_of_the_entropy_and_one_step_of_adam_by_hand() -> None:
    """Logits (z, −z), z = λ: dH/dλ at 0.3 is −0.2745, and Adam with 1e-3 goes to 0.301."""
    lam = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    entropy(torch.stack([lam, -lam])[None]).backward()  # type: ignore[no-untyped-call]
    assert lam.grad is not None
    assert float(lam.grad) == pytest.approx(-0.2745, abs=5e-5)
    adam = Adam(np.array([0.3]), 1e-3)
    adam.step(np.array([float(lam.grad)]))
    assert adam.values[0] == pytest.approx(0.301, abs=1e-8)


def test_adam_is_torchs_and_stays_between_0_and_1() -> None:
    random = np.random.default_rng(0)
    start, gradients = random.uniform(0.4, 0.6, 5), random.normal(size=(40, 5))
    value = torch.tensor(start, requires_grad=True)
    theirs, ours = torch.optim.Adam([value], lr=1e-3), Adam(start, 1e-3)
    for gradient in gradients:
        value.grad = torch.tensor(gradient)
        theirs.step()
        ours.step(gradient)
    np.testing.assert_allclose(ours.values, value.detach().numpy(), rtol=1e-12)
    for _ in range(5):
        ours.step(np.array([1e9, -1e9, 0, 0, 0]))
    far = Adam(np.array([0.01, 0.99]), 0.5)
    far.step(np.array([1.0, -1.0]))
    assert far.values.tolist() == [0, 1]


def test_frank_wolfe_by_hand() -> None:
    """Points 0 and 4, L = (θ − 1)²/2, from 0: 4, 4/3, 2/3, 2; with a line search 1 at once."""
    points = np.array([0.0, 4.0])

    def inner(weights: np.ndarray) -> np.ndarray:
        return (weights @ points - 1) * points

    start, seen = np.array([1.0, 0.0]), []
    for count in range(1, 5):
        weights, moves = walk(start, np.eye(2), inner, lambda t, *_: 2 / (t + 2), count, 0.0)
        seen.append(float(weights @ points))
        assert weights.sum() == pytest.approx(1)
    assert seen == pytest.approx([4, 4 / 3, 2 / 3, 2])
    assert moves[0].gap == pytest.approx(4)  # ⟨−1, 0 − 4⟩

    def exact(_number: int, weights: np.ndarray, vertex: np.ndarray) -> float:
        way = (vertex - weights) @ points
        return float(np.clip((1 - weights @ points) / way, 0, 1))

    weights, moves = walk(start, np.eye(2), inner, exact, 10, 1e-9)
    assert weights @ points == pytest.approx(1)
    assert [move.size for move in moves] == [0.25, 0.0]


def test_the_hard_form_takes_small_steps_to_the_least_cosine() -> None:
    """Vertices are two models, without the base, and the start."""
    start = np.array([0.3, 0.3, 0.4])
    weights, moves = hard(start, lambda _: np.zeros(3), lambda v: np.array([0.0, -1.0, 1.0])[: len(v)], 0.3, 2)
    first = start + 0.03 * (np.eye(3)[1] - start)
    np.testing.assert_allclose(weights, first + 0.02 * (np.eye(3)[1] - first))
    assert [move.vertex for move in moves] == [1, 1]


def test_the_hard_form_is_the_authors_recursion_on_whole_models(project: Path) -> None:
    """θ ← θ + 0.1 λ 2/(t+2) (s − θ), s the least of Σ cos(g, θ_m) over tensors, over experts and start: in float64."""
    report = steps.run(project, 2, {**WOLFE, "variant": "hard"}, time=ALL)
    given = replace(problem(project, 2), seed=randomness.derive(0, 2, "fit") % 2**63)
    names = [name for name, _ in given.model.named_parameters()]
    experts = [given.project / path for _, path in given.models]
    assert given.samples.pretraining
    pools = [*given.samples.arrivals, given.samples.pretraining]
    surface = Landscape(given, TaskVectors(given.base, experts, names), pools, "cross_entropy")
    base, *each = ({name: load_file(path)[name].double() for name in names} for path in (given.base, *experts))
    theta = {name: base[name] + 0.3 * sum(one[name] - base[name] for one in each) for name in names}
    vertices, chosen = [*each, dict(theta)], []
    for t in range(3):
        with torch.no_grad():
            for name, parameter in given.model.named_parameters():
                parameter.copy_(theta[name])
        surface.gradient_as_it_is(0, 100)
        g = {name: p.grad.double() for name, p in given.model.named_parameters() if p.grad is not None}
        sums = [sum(float(torch.cosine_similarity(g[n].flatten(), v[n].flatten(), dim=0)) for n in g) for v in vertices]
        chosen.append(int(np.argmin(sums)))
        for name in names:
            theta[name] = theta[name] + 0.1 * 0.3 * 2 / (t + 2) * (vertices[chosen[-1]][name] - theta[name])
    course = report["report"]["course"]
    assert [move["to"] for move in course] == [["expert 1", "expert 2", "start"][number] for number in chosen]
    assert [move["size"] for move in course] == pytest.approx([0.03, 0.02, 0.015])
    deployed = load_file(project / "data/step/deployed.safetensors")
    for name in names:
        torch.testing.assert_close(deployed[name].double(), theta[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("time", [EMA, ALL], ids=["ema", "all"])
@pytest.mark.parametrize(
    "method", [ADA, {**ADA, "by": "model"}, {**ADA, "trim": 0.2}, WOLFE, {**WOLFE, "variant": "hard"},
               {**WOLFE, "step": "harmonic"}],
    ids=["tensor", "model", "plus", "wolfe", "hard", "harmonic"],
)  # fmt: skip
def test_what_is_deployed_are_the_models_with_the_recorded_weights(
    method: dict[str, Any], time: dict[str, Any], project: Path
) -> None:
    found = steps.run(project, 2, method, time=time)["fitted"]
    base = load_file(project / "data/history/weights/base.safetensors")
    each = [load_file(project / path) for path in found["models"]]
    deployed = load_file(project / "data/step/deployed.safetensors")
    for name, theta in base.items():
        weights = found["tensors"].get(name, found["weights"])
        taus = torch.stack([one[name].double() - theta.double() for one in each])
        lam = torch.tensor(weights, dtype=torch.float64).reshape(-1, *[1] * theta.ndim)
        if method.get("trim"):
            continue
        torch.testing.assert_close(deployed[name].double(), theta + (lam * taus).sum(0), rtol=1e-5, atol=1e-6)
    if method["name"] == "frank_wolfe":
        assert sum(found["weights"]) == pytest.approx(1)
        assert found["models"][-1] == "data/history/weights/base.safetensors"
    else:
        values = np.array([*found["tensors"].values(), found["weights"]])
        assert 0 <= values.min() <= values.max() <= 1
        start = [0.3, 0.3] if time is ALL else [0.5, 0.5]
        assert found["tensors"]["logit_scale"] == start
        assert (np.abs(values - start).max() > 0.01) == (len(found["tensors"]) > 1 or found["weights"] != start)


def test_trimmed_vectors_with_elected_signs_are_what_the_engine_merges(project: Path) -> None:
    """AdaMerging++: the weights that the loss was computed at, and those that are deployed."""
    found = steps.run(project, 2, {**ADA, "trim": 0.3}, time=ALL)["fitted"]
    given = problem(project, 2)
    from tasks.fit.methods.adamerging import AdaMerging

    method = AdaMerging.model_validate({key: value for key, value in {**ADA, "trim": 0.3}.items() if key != "name"})
    files = [method._trimmed(given, i, project / path) for i, (_, path) in enumerate(given.models)]
    vectors = TaskVectors(given.base, files, [name for name, _ in given.model.named_parameters()], elect=True)
    coefficients = np.array([found["tensors"].get(name, found["weights"]) for name in vectors.names]).T
    vectors.place(given.model, coefficients)
    deployed, base = load_file(project / "data/step/deployed.safetensors"), load_file(given.base)
    moved = 0
    for name, parameter in given.model.named_parameters():
        torch.testing.assert_close(deployed[name], parameter.detach(), rtol=1e-5, atol=1e-6)
        moved += int((deployed[name] != base[name]).sum())
    assert moved > 0


def test_the_coefficients_with_the_least_entropy_on_held_out_samples_are_taken(project: Path) -> None:
    found = steps.run(project, 2, {**ADA, "iterations": 30, "every": 5, "patience": 2}, time=ALL)
    course = found["report"]["course"]
    held = [point["held_out"] for point in course]
    assert [point["iteration"] for point in course] == [5 * i for i in range(len(course))]
    assert len(held) - 1 - held.index(min(held)) <= 2
    given = replace(problem(project, 2), seed=randomness.derive(0, 2, "fit") % 2**63)
    again = landscape(given, "entropy")
    fitted = found["fitted"]
    chosen = np.array([fitted["tensors"][name] for name in again.vectors.names]).T
    assert again.held_out(chosen, 256) == pytest.approx(min(held), abs=1e-6)
    assert min(held) < held[0]
    assert found["report"]["scores"].keys() == {"start", "end"}


def test_the_guides_examples_are_learned(tmp_path: Path) -> None:
    for number, name in ((1, "adamerging"), (2, "frank_wolfe")):
        given = example(number)
        project = steps.project(tmp_path / name)
        found = steps.run(project, 1, {**given["fit"], "iterations": 2}, time=given["time"])
        assert found["report"]["method"] == name
        assert found["fitted"]["weights"]


def test_an_expert_that_does_not_help_gets_no_weight(project: Path) -> None:
    """The expert is far off; the running model is the base: a step to the expert would only raise the loss."""
    steps.prepare(project, 1)
    steps.weights(project, 9, project / "data/step/expert.safetensors", near=30.0)
    fit(project, steps.params(1, method=WOLFE, time={**EMA, "technique": {"name": "linear", "weight": 0.0}}))
    report = json.loads((project / "data/step/fit/fit.json").read_text())["report"]
    assert report["weights"]["expert"] == pytest.approx(0, abs=0.05)


def test_experts_that_are_stored_coded_are_learned_and_deployed_as_they_are(project: Path) -> None:
    steps.run(project, 2, ADA, time=ALL)
    plain = (project / "data/step/deployed.safetensors").read_bytes()
    now, history = project / "data/step", project / "data/history/weights"
    base = history / "base.safetensors"
    for stem in (now / "expert", history / "experts/0001"):
        file = stem.with_name(f"{stem.name}.safetensors")
        coded.encode(codec.chosen(Named(name="lossless")), file, base, stem.with_name(stem.name + coded.SUFFIX))
        file.unlink()
    given = steps.params(2, method=ADA, time=ALL)
    fit(project, given)
    deploy(project, given)
    assert (project / "data/step/deployed.safetensors").read_bytes() == plain


def test_captions_alone_can_be_learned_on(project: Path) -> None:
    for method in (ADA, WOLFE):
        fresh = steps.project(project / str(method["name"]))
        assert steps.run(fresh, 1, method, (), time=EMA)["fitted"]


@pytest.mark.parametrize("method", [ADA, WOLFE], ids=["ada", "wolfe"])
def test_learning_again_gives_the_same_bytes(method: dict[str, Any], project: Path) -> None:
    steps.run(project, 1, method, time=EMA)
    out = project / "data/step/fit/fit.json"
    before = out.read_bytes()
    fit(project, steps.params(1, method=method, time=EMA))
    assert out.read_bytes() == before


def test_a_class_without_a_name_is_one_sentence(project: Path) -> None:
    steps.prepare(project, 1, ("cat", " ", "fox"))
    with pytest.raises(UserError, match="class 1 of the data of 'a1' has no name, and so no prompt; name it"):
        fit(project, steps.params(1, method=ADA, time=EMA))


@pytest.mark.parametrize("method", [ADA, WOLFE], ids=["ada", "wolfe"])
def test_other_techniques_are_refused_before_any_work(method: dict[str, Any]) -> None:
    time = {**ALL, "technique": {"name": "ties"}}
    with pytest.raises(UserError, match=r"set time\.technique to linear or task_arithmetic"):
        fitting.check(steps.params(1, method=method, time=time))
