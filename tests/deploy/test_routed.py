"""The node ``deploy`` of a routed deployment, step by step without a flow, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.deploy import check, node
from tasks.deploy.routed import NOTE, PAST, ROUTED
from tasks.errors import UserError
from tasks.model import checkpoints, coded, models, router
from tasks.model.codecs.signs import Signs
from tasks.model.datasets import Dataset
from tasks.params import Params
from tests.fit import steps
from tests.project import PARAMS

BASE = "data/history/weights/base.safetensors"


def params(step: int, deploy: dict[str, Any] | None = None, **changes: Any) -> Params:
    return steps.params(step, method=None, time={"init": "zs", "deploy": "routed"}, deploy=deploy, **changes)


def run(project: Path, count: int, deploy: dict[str, Any] | None = None, **changes: Any) -> router.Router:
    """Deploy the steps up to one; each hands its folder on."""
    shutil.rmtree(project / PAST, ignore_errors=True)
    for step in range(1, count + 1):
        steps.prepare(project, step)
        (project / "data/history/weights/lineage.json").write_text(json.dumps({"step": step}))
        node.deploy(project, params(step, deploy, **changes))
        shutil.rmtree(project / PAST, ignore_errors=True)
        shutil.copytree(project / ROUTED, project / PAST)
    return router.load(project / ROUTED / router.FILE)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return steps.project(tmp_path / "project")


def expert(project: Path, step: int) -> dict[str, torch.Tensor]:
    path = project / "elsewhere.safetensors"
    steps.weights(project, step, path)
    return checkpoints.load(path)


def test_each_step_adds_its_expert_and_its_prototypes(project: Path) -> None:
    """And keeps those of the steps before, byte for byte."""
    first = run(project, 1)
    before = (project / ROUTED / "a1.weights").read_bytes()
    second = run(project, 2)
    assert (project / ROUTED / "a1.weights").read_bytes() == before
    assert [one.name for one in second.routes] == ["base", "a1", "a2"]
    assert sum(one.images for one in second.routes) == 3 * 30
    assert torch.equal(second.sums[:6], first.sums)
    assert not (project / "data/step/deployed.safetensors").exists()
    note = json.loads((project / NOTE).read_text())
    assert list(note["routes"]) == ["base", "a1", "a2"]
    assert note["bytes"] == sum(path.stat().st_size for path in (project / ROUTED).iterdir())
    for step in (1, 2):
        loaded = coded.load(project / ROUTED / f"a{step}.weights", project / BASE)
        assert all(torch.equal(tensor, loaded[name]) for name, tensor in expert(project, step).items())


def test_prototypes_are_the_class_means_of_the_bases_features(project: Path) -> None:
    known = run(project, 1)
    model = models.build(project / "data/history/model")
    models.load_weights(model, checkpoints.load(project / BASE), project / BASE)
    data = Dataset(project / "data/step/arrival")
    pixels = models.normalize(
        np.array(data.images), models.preprocess(project / "data/history/model"), torch.device("cpu")
    )
    with torch.inference_mode():
        features = model.eval().encode_image(pixels, normalize=True).double()
    for row, name in enumerate(known.classes[3:], start=3):
        mean = features[data.labels == data.card.classes.index(name)].mean(dim=0)
        assert torch.allclose(known.prototypes[row].double(), mean / mean.norm(), atol=1e-5)
    assert known.route.tolist() == [0, 0, 0, 1, 1, 1]


def test_without_a_pretraining_pool_no_image_goes_to_the_base(project: Path) -> None:
    shutil.rmtree(project / "data/history/pools/pretraining")
    assert [one.name for one in run(project, 1).routes] == ["a1"]


@pytest.mark.parametrize(
    ("codec", "exact"), [("lossless", True), ("full", True), ({"name": "ternary", "density": 0.5}, False)]
)
def test_deltas_are_coded_as_asked(project: Path, codec: Any, exact: bool) -> None:
    run(project, 1, {"deltas": codec})
    path = project / ROUTED / "a1.weights"
    assert coded.is_coded(path) == (codec != "full")
    loaded = coded.load(path, project / BASE)
    same = [torch.equal(tensor, loaded[name]) for name, tensor in expert(project, 1).items()]
    assert all(same) == exact


def test_a_coded_expert_is_handed_on_as_it_is_stored(project: Path) -> None:
    """And coded anew where deltas have a codec of their own."""
    for deltas in (None, {"deltas": "lossless"}):
        steps.prepare(project, 1)
        (project / "data/history/weights/lineage.json").write_text('{"step": 1}')
        stored = project / "data/step/expert.weights"
        coded.encode(Signs(), project / "data/step/expert.safetensors", project / BASE, stored)
        (project / "data/step/expert.safetensors").unlink()
        node.deploy(project, params(1, deltas, store={"experts": "signs"}))
        made = project / ROUTED / "a1.weights"
        assert (made.read_bytes() == stored.read_bytes()) == (deltas is None)
        decoded = [coded.load(path, project / BASE) for path in (made, stored)]
        assert all(torch.equal(decoded[0][name], decoded[1][name]) for name in decoded[0])
        stored.unlink()


def test_equal_inputs_give_equal_bytes(project: Path) -> None:
    made = []
    for _ in range(2):
        run(project, 1, {"deltas": "lossless"})
        made.append({path.name: path.read_bytes() for path in (project / ROUTED).iterdir()})
    assert made[0] == made[1]


def test_the_least_used_expert_is_folded_by_route_counts(project: Path) -> None:
    known = run(project, 2)
    images = [one.images for one in known.routes[1:]]
    less = run(project, 2, {"max_deltas": 1})
    [_, one] = less.routes
    assert set(one.arrivals) == {"a1", "a2"}
    assert one.images == sum(images)
    assert {path.name for path in (project / ROUTED).iterdir()} == {router.FILE, f"{one.name}.weights"}
    loaded = coded.load(project / ROUTED / f"{one.name}.weights", project / BASE)
    share = images[0] / sum(images)
    first, second = expert(project, 1), expert(project, 2)
    for name in first:
        exact = share * first[name].double() + (1 - share) * second[name].double()
        assert torch.allclose(loaded[name].double(), exact, atol=1e-6), name


def test_a_folded_expert_is_coded_too(project: Path) -> None:
    known = run(project, 3, {"max_deltas": 2, "deltas": "signs"})
    assert len(known.experts) == 2
    assert all(coded.is_coded(project / ROUTED / str(known.routes[number].file)) for number in known.experts)


def test_a_step_whose_earlier_router_is_gone_is_refused(project: Path) -> None:
    run(project, 1)
    shutil.rmtree(project / PAST)
    steps.prepare(project, 2)
    (project / "data/history/weights/lineage.json").write_text('{"step": 2}')
    with pytest.raises(UserError, match=r"data/history/routed/router\.safetensors: no such router"):
        node.deploy(project, params(2))


def test_a_router_of_another_base_is_refused_and_nothing_is_left(project: Path) -> None:
    run(project, 1)
    shutil.rmtree(project / ROUTED)
    steps.weights(project, 7, project / BASE)
    steps.prepare(project, 2)
    with pytest.raises(UserError, match="is a router of another base"):
        node.deploy(project, params(2))
    assert not (project / ROUTED).exists()
    assert {path.name for path in (project / "data/step").iterdir()} == {"arrival", "expert.safetensors", "running"}


ROUTED_TIME = {"init": "zs", "deploy": "routed"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time": {}, "deploy": {"max_deltas": 2}}, r"deploy\.max_deltas is for routed"),
        ({"time": {}, "deploy": {"deltas": "signs"}}, r"deploy\.deltas is for routed"),
        ({"deploy": {"compatible_with": "first"}}, r"deploy\.compatible_with: with time\.deploy: routed"),
        ({"deploy": {"deltas": "adapter"}}, r"deploy\.deltas: adapter codes what a training leaves"),
        ({"deploy": {"deltas": "none"}}, "none"),
        ({"fit": "paint"}, "fit: time.deploy: routed merges nothing"),
        ({"evaluate": {**PARAMS["evaluate"], "compatibility": "all"}}, r"evaluate\.compatibility: with"),
        (
            {"evaluate": {**PARAMS["evaluate"], "heads": [{"name": "gda", "features": "deployed"}]}},
            r"evaluate\.heads: gda: features: deployed need one deployed model",
        ),
        (
            {"stream": [*PARAMS["stream"], {"name": "vendor", "expert": "v.safetensors"}]},
            r"step 3, 'vendor', has no image to route by",
        ),
    ],
)
def test_what_routes_cannot_do_is_refused_before_any_work(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    given = Params.model_validate({**PARAMS, "time": ROUTED_TIME, **changes})
    with pytest.raises(UserError, match=message):
        check(given, tmp_path, base=False)
