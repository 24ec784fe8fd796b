"""The router against its formula in NumPy's float64, and its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.errors import UserError
from tasks.model import checkpoints, router
from tasks.model.router import Route, Router

D = 8


def features(seed: int, count: int = 40) -> torch.Tensor:
    """Unit vectors around a direction of their own."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(count, D)) * 0.6 + np.eye(D)[seed % D] * 2
    return torch.from_numpy(values / np.linalg.norm(values, axis=1, keepdims=True)).float()


def labels(seed: int, count: int = 40, classes: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed + 100).integers(0, classes, count))


def route(name: str) -> Route:
    return Route(name=name, file=f"{name}.weights", arrivals=(name,), images=0)


def grown(names: str) -> Router:
    """A router of one arrival a letter; of the base for ``_``."""
    known = router.empty("0" * 64)
    for seed, name in enumerate(names):
        one = Route(name=router.BASE, file=None, arrivals=(), images=0) if name == "_" else route(name)
        known = router.joined(known, one, ("x", "y", "z"), features(seed), labels(seed))
    return known


def test_an_image_goes_to_the_arrival_of_the_nearest_class_mean() -> None:
    known = grown("_abc")
    means, owners = [], []
    for seed in range(4):
        own, of = features(seed).double().numpy(), labels(seed).numpy()
        for label in np.unique(of):
            mean = own[of == label].mean(axis=0)
            means.append(mean / np.linalg.norm(mean))
            owners.append(seed)
    queries = torch.cat([features(seed, 50) for seed in range(4)])
    expected = np.array(owners)[(queries.double().numpy() @ np.array(means).T).argmax(axis=1)]
    assert known.routed(queries).tolist() == expected.tolist()
    assert np.abs(known.prototypes.double().numpy() - np.array(means)).max() < 1e-7
    assert known.classes == ("x", "y", "z") * 4


def test_an_arrival_joins_without_a_look_at_the_others() -> None:
    two, three = grown("ab"), grown("abc")
    for name in ("sums", "counts", "route"):
        assert torch.equal(getattr(three, name)[:6], getattr(two, name))
    used = three.routed(features(2)).bincount(minlength=3).tolist()
    before = [one.images for one in two.routes]
    assert [one.images for one in three.routes] == [before[0] + used[0], before[1] + used[1], used[2]]
    assert sum(one.images for one in three.routes) == 120


def test_samples_without_a_class_have_one_prototype_together() -> None:
    some = labels(0)
    some[::2] = -1
    known = router.joined(router.empty("0" * 64), route("a"), ("x", "y", "z"), features(0), some)
    assert known.classes == (router.UNLABELLED, "x", "y", "z")
    assert torch.allclose(known.sums[0], features(0)[::2].double().sum(dim=0), atol=1e-12)
    assert known.counts.sum() == 40


def test_equally_near_prototypes_lead_to_the_first() -> None:
    known = router.joined(router.empty("0" * 64), route("a"), ("x",), features(0), torch.zeros(40, dtype=torch.int64))
    known = router.joined(known, route("b"), ("x",), features(0), torch.zeros(40, dtype=torch.int64))
    assert known.routed(features(0)).tolist() == [0] * 40


def test_the_least_used_expert_is_folded_into_the_nearest_and_its_images_follow() -> None:
    known = grown("_abc")
    images = [0, 40, 3, 50]
    known = Router(
        known.base,
        tuple(one.model_copy(update={"images": n}) for one, n in zip(known.routes, images, strict=True)),
        known.classes, known.route, known.sums, known.counts,
    )  # fmt: skip
    means = [known.sums[known.route == number].sum(dim=0) for number in range(4)]
    near = [float(torch.cosine_similarity(means[2], means[number], dim=0)) for number in (1, 3)]
    least, into = router.to_fold(known)
    assert (least, into) == (2, 1 if near[0] >= near[1] else 3)
    less = router.folded(known, least, into, "new.weights")
    assert [one.name for one in less.routes] == ["base", "a", "c"]
    both = less.routes[less.own("b") or 0]
    assert set(both.arrivals) == {known.routes[into].name, "b"}
    assert (both.file, both.images) == ("new.weights", images[into] + 3)
    queries = torch.cat([features(seed, 50) for seed in range(4)])
    names = [known.routes[number].name for number in known.routed(queries).tolist()]
    expected = [both.name if name == "b" else name for name in names]
    assert [less.routes[number].name for number in less.routed(queries).tolist()] == expected


def test_the_base_is_never_folded() -> None:
    assert router.to_fold(grown("_ab"))[0] in (1, 2)
    with pytest.raises(UserError, match="fewer than two experts"):
        router.to_fold(grown("_a"))


def test_a_file_is_the_router_and_equal_ones_have_equal_bytes(tmp_path: Path) -> None:
    known = grown("_ab")
    for name in ("one", "two"):
        router.save(tmp_path / name, known)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    back = router.load(tmp_path / "one")
    assert (back.base, back.routes, back.classes) == (known.base, known.routes, known.classes)
    assert all(torch.equal(getattr(back, name), getattr(known, name)) for name in ("route", "sums", "counts"))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(0, D), "arrival 'a' has no image to route by"),
        (torch.full((40, D), torch.nan), "not finite"),
        (torch.ones(40, D + 1), "have 9 dimensions, and those of 'base' 8"),
    ],
)  # fmt: skip
def test_what_cannot_join_is_refused(features: torch.Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        router.joined(grown("_"), route("a"), ("x", "y", "z"), features, labels(0)[: len(features)])


def test_an_arrival_joins_once() -> None:
    with pytest.raises(UserError, match="'a' has a route already"):
        router.joined(grown("a"), route("a"), ("x", "y", "z"), features(0), labels(0))


def test_features_of_another_model_are_refused() -> None:
    with pytest.raises(UserError, match=r"features of shape \[2, 5\]"):
        grown("a").routed(torch.ones(2, 5))


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "router.safetensors"
    router.save(path, grown("_ab"))
    tensors, note = load_file(path), checkpoints.metadata(path)
    save_file({**tensors, "route": tensors["route"] + 5}, path, note)
    with pytest.raises(UserError, match="its tensors do not fit its note"):
        router.load(path)
    save_file(tensors, path, {"router": note["router"].replace("a.weights", "../a.weights")})
    with pytest.raises(UserError, match="its tensors do not fit its note"):
        router.load(path)
    save_file(tensors, path, {"router": "{}"})
    with pytest.raises(UserError, match="damaged"):
        router.load(path)
    save_file(tensors, path)
    with pytest.raises(UserError, match="not the router"):
        router.load(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="truncated"):
        router.load(path)
