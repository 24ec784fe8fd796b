"""What each method trains, what it leaves alone, and adapters against peft's on plain linear layers."""

from __future__ import annotations

import copy
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tasks import randomness, train
from tasks.choice import available
from tasks.errors import UserError
from tasks.model import checkpoints, codec, coded, models, torchvision_shim
from tasks.model.checkpoints import Weights
from tasks.model.factors import Factors
from tasks.params import Named, Store, Train
from tasks.storage.cache import md5_of
from tasks.train.method import Method, chosen
from tasks.train.methods.adapters import AdapterMethod
from tasks.train.node import CODED_EXPERT, EXPERT, INIT, TRAINING, initialize
from tasks.train.node import train as train_node
from tests.train.project import CONFIG, dataset, params, project

ADAPTERS = ("dora", "lora", "vera")
draw = functools.partial(randomness.generator, 0, "test")


def method(name: str, **settings: Any) -> Method:
    return chosen(Named(name=name, **settings))


@pytest.fixture(scope="module")
def step_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose random base is placed for step 1."""
    folder = project(tmp_path_factory.mktemp("methods"))
    initialize(folder, params(0))
    weights = folder / "data/history/weights"
    shutil.copy(folder / INIT, weights / "base.safetensors")
    dataset(folder / "data/step/arrival", 16)
    return folder


@pytest.fixture(scope="module")
def trained(step_one: Path) -> Callable[[str], tuple[Weights, Weights]]:
    """Weights before and after one time step by a method."""

    @functools.cache
    def run(name: str) -> tuple[Weights, Weights]:
        settings = params(1, train={"steps": 2, "batch_size": 8, "lr": 1e-2, "warmup": 0, "method": name})
        train_node(step_one, settings)
        return checkpoints.load(step_one / INIT), checkpoints.load(step_one / EXPERT)

    return run


def test_every_method_is_found() -> None:
    found = available(Method)  # type: ignore[type-abstract]
    assert set(found) == {"full", "locked-text", "locked-image", "lnfit", "bitfit", *ADAPTERS}
    assert {name for name, one in found.items() if one.adapts} == set(ADAPTERS)
    assert all(one.__doc__ and one.source for one in found.values())


def is_image(name: str) -> bool:
    return name.startswith("visual.")


TRAINS: dict[str, Callable[[str], bool]] = {
    "full": lambda _: True,
    "locked-text": lambda name: is_image(name) or name == "logit_scale",
    "locked-image": lambda name: not is_image(name),
    "lnfit": lambda name: ".ln_" in f".{name}",
    "bitfit": lambda name: name.endswith("bias"),
    **dict.fromkeys(ADAPTERS, lambda name: name.endswith(("in_proj_weight", "c_fc.weight"))),
}


@pytest.mark.parametrize("name", TRAINS)
def test_a_method_changes_what_it_trains_and_not_a_bit_more(
    name: str, trained: Callable[[str], tuple[Weights, Weights]]
) -> None:
    before, after = trained(name)
    assert {n: (t.shape, t.dtype) for n, t in after.items()} == {n: (t.shape, t.dtype) for n, t in before.items()}
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed == {n for n in before if TRAINS[name](n)}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_changes_nothing_before_training_and_ends_as_plain_weights(name: str) -> None:
    model = models._construct(CONFIG, "tiny", "cpu")
    before = {n: t.clone() for n, t in model.state_dict().items()}
    one = method(name, targets=["qkv", "out", "fc", "proj"])
    one.start(model, draw)
    adapted = {n for n, p in model.named_parameters() if p.requires_grad}
    assert adapted
    assert all("parametrizations" in n for n in adapted)
    one.finish(model)
    assert not any("parametrizations" in n for n, _ in model.named_parameters())
    after = model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[n], before[n]) for n in before)


@pytest.mark.parametrize("name", ADAPTERS)
def test_merged_weights_compute_what_the_adapter_did(name: str) -> None:
    model = models._construct(CONFIG, "tiny", "cpu")
    one = method(name, targets=["qkv", "out", "fc", "proj"], rank=3)
    one.start(model, draw)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=random) * 0.1)
        images, tokens = torch.rand(3, 3, 16, 16, generator=random), torch.randint(1, 99, (3, 12), generator=random)
        adapted = model.encode_image(images), model.encode_text(tokens)
        one.finish(model)
        merged = model.encode_image(images), model.encode_text(tokens)
    assert torch.equal(adapted[0], merged[0])
    assert torch.equal(adapted[1], merged[1])


def test_a_step_of_the_same_seed_draws_the_same_adapter_and_another_seed_another() -> None:
    drawn = []
    for seed in (0, 0, 1):
        linear = nn.ModuleDict({"c_fc": nn.Linear(4, 6)})
        method("lora").start(linear, functools.partial(randomness.generator, seed, "method"))
        drawn.append(linear.get_parameter("c_fc.parametrizations.weight.0.down").detach())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def _ours(name: str, linear: nn.Linear, values: dict[str, torch.Tensor]) -> nn.Module:
    holder = nn.ModuleDict({"c_fc": copy.deepcopy(linear)})
    settings = {"d_initial": 0.1} if name == "vera" else {"alpha": 6}
    method(name, rank=3, **settings).start(holder, draw)
    parametrization = holder.get_submodule("c_fc.parametrizations.weight.0")
    for key, value in values.items():
        getattr(parametrization, key).data.copy_(value)
    return holder


def _theirs(name: str, linear: nn.Linear, values: dict[str, torch.Tensor]) -> nn.Module:
    torchvision_shim.ensure()
    import peft  # two seconds

    if name == "vera":
        config = peft.VeraConfig(r=3, target_modules=["c_fc"], d_initial=0.1)
    else:
        config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["c_fc"], use_dora=name == "dora")
    model: nn.Module = peft.get_peft_model(nn.ModuleDict({"c_fc": copy.deepcopy(linear)}), config)
    home = "base_model.model.c_fc."
    shared = model.get_submodule("base_model")
    names = {
        "down": f"{home}lora_A.default.weight",
        "up": f"{home}lora_B.default.weight",
        "magnitude": f"{home}lora_magnitude_vector.default.weight",
        "b": f"{home}vera_lambda_b.default",
        "d": f"{home}vera_lambda_d.default",
    }
    state = dict(model.named_parameters())
    if name == "vera":  # its buffers are in no module's list
        state |= {names["down"]: shared.vera_A["default"], names["up"]: shared.vera_B["default"]}
    for key, value in values.items():
        state[names[key]].data.copy_(value)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTERS)
def test_output_and_gradients_are_pefts(name: str) -> None:
    random = torch.Generator().manual_seed(0)
    shapes = {"down": (3, 5), "up": (7, 3)} | {"dora": {"magnitude": (7,)}, "vera": {"b": (7,), "d": (3,)}}.get(
        name, {}
    )
    values = {key: torch.randn(shape, generator=random) for key, shape in shapes.items()}
    linear, x = nn.Linear(5, 7), torch.randn(4, 5, generator=random)
    linear.weight.data.copy_(torch.randn(7, 5, generator=random))
    ours, theirs = _ours(name, linear, values), _theirs(name, linear, values)
    a, b = ours.get_submodule("c_fc")(x), theirs.get_submodule("base_model.model.c_fc")(x)
    torch.testing.assert_close(a, b)
    a.square().sum().backward()
    b.square().sum().backward()
    our_gradients = {tuple(p.shape): p.grad for p in ours.parameters() if p.grad is not None}
    their_gradients = {tuple(p.shape): p.grad for p in theirs.parameters() if p.grad is not None}
    assert our_gradients.keys() == their_gradients.keys()
    for shape, gradient in our_gradients.items():
        torch.testing.assert_close(gradient, their_gradients[shape], rtol=1e-4, atol=1e-3)


def test_a_frozen_batch_norm_keeps_its_statistics() -> None:
    model = nn.ModuleDict({"visual": nn.Sequential(nn.BatchNorm1d(3)), "text": nn.Linear(3, 3)})
    method("locked-image").start(model, draw)
    model.train()
    model["visual"](torch.randn(8, 3))
    assert torch.equal(model["visual"][0].running_mean, torch.zeros(3))


def test_a_model_without_what_is_trained_is_refused() -> None:
    for name in ("lnfit", "bitfit", *ADAPTERS):
        with pytest.raises(UserError, match=f"train.method: {name} .*this model"):
            method(name).start(nn.Sequential(nn.Conv2d(3, 3, 1, bias=False)), draw)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("lorra", ["there is no 'lorra'", "bitfit, dora, full"]),
        ({"name": "lora", "ranks": 3}, ["lora: no setting 'ranks'", "accepts targets, rank, alpha"]),
        ({"name": "lora", "rank": 0}, ["lora: rank got 0", "greater than 0"]),
        ({"name": "lora", "targets": ["mlp"]}, ["targets", "'qkv', 'out', 'fc' or 'proj'"]),
        ({"name": "full", "rank": 3}, ["full: no setting 'rank'; it has none"]),
    ],
)
def test_a_wrong_method_is_one_sentence(given: Any, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        train.check(Train.model_validate({"steps": 1, "method": given}))
    assert str(caught.value).startswith("train.method: ")
    for word in words:
        assert word in str(caught.value)


def test_settings_reach_the_method_and_the_report(step_one: Path) -> None:
    lora = {"name": "lora", "rank": 2, "targets": ["out"]}
    settings = params(1, train={"steps": 1, "batch_size": 8, "warmup": 0, "method": lora})
    train_node(step_one, settings)
    before, after = checkpoints.load(step_one / INIT), checkpoints.load(step_one / EXPERT)
    assert {n.rpartition("attn.")[2] for n in before if not torch.equal(before[n], after[n])} == {"out_proj.weight"}
    assert json.loads((step_one / TRAINING / "training.json").read_text())["method"] == {**lora, "alpha": None}
    assert isinstance(chosen(settings.train.method), AdapterMethod)


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_stored_as_its_factors_and_every_bit_comes_back(
    name: str, step_one: Path, tmp_path: Path
) -> None:
    method = {"name": name, "rank": 4}  # small beside the model
    training = {"steps": 2, "batch_size": 8, "lr": 1e-2, "warmup": 0, "method": method}
    full = params(1, train=training, time={"init": "zs", "deploy": "ema"})
    train_node(step_one, full)
    plain = checkpoints.load(step_one / EXPERT)
    train_node(step_one, full.model_copy(update={"store": Store(experts="adapter")}))
    path, base = step_one / CODED_EXPERT, step_one / "data/history/weights/base.safetensors"
    assert coded.coding(path).factors
    weights = coded.load(path, base)
    assert weights.keys() == plain.keys()
    assert all(torch.equal(weights[one], tensor) for one, tensor in plain.items())
    lossless = tmp_path / "lossless.weights"
    coded.encode(codec.chosen(Named(name="lossless")), step_one / EXPERT, base, lossless)
    assert path.stat().st_size < lossless.stat().st_size
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1  # of a factor
    path.write_bytes(bytes(changed))
    with pytest.raises(UserError, match=r"expert\.weights: tensor .* is damaged"):
        coded.load(path, base)
    path.unlink()


def test_what_a_product_of_factors_lacks_takes_few_bytes(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    base, up, down = (torch.randn(shape, generator=random) for shape in ((1024, 512), (1024, 4), (4, 512)))
    checkpoints.save(tmp_path / "base.safetensors", {"w": base})
    checkpoints.save(tmp_path / "expert.safetensors", {"w": base + 0.01 * (up @ down)})
    factors = {"w": Factors(up.numpy(), down.numpy(), scale=0.01)}
    path = tmp_path / "expert.weights"
    adapter = codec.chosen(Named(name="adapter"))
    about = coded.encode(adapter, tmp_path / "expert.safetensors", tmp_path / "base.safetensors", path, factors=factors)
    assert about.decoded.md5 == md5_of(tmp_path / "expert.safetensors")
    assert torch.equal(coded.load(path, tmp_path / "base.safetensors")["w"], base + 0.01 * (up @ down))
    assert path.stat().st_size < 4 * (up.numel() + down.numel()) + 0.03 * 4 * base.numel()


def test_factors_by_hand() -> None:
    up, down = np.array([[1.0], [2.0]], np.float32), np.array([[1.0, 0.0, 3.0]], np.float32)
    base = np.ones((2, 3), np.float32)
    assert Factors(up, down, scale=2).predict(base, 0).tolist() == [[3, 1, 7], [5, 1, 13]]
    gain = np.array([1.0, 10.0], np.float32)
    assert Factors(up, down, gain=gain).predict(base[1:], 1).tolist() == [[30, 10, 70]]
    rows, middle = np.array([0.0, 1.0], np.float32), np.array([0.5], np.float32)
    assert Factors(up, down, rows=rows, middle=middle).predict(base, 0).tolist() == [[1, 1, 1], [2, 1, 4]]
    assert Factors(up, down).fit((2, 3))
    assert not Factors(up, down).fit((3, 2))
    assert not Factors(up, down, gain=down).fit((2, 3))


@pytest.mark.parametrize(
    ("method", "init", "message"),
    [("full", "zs", "train.method full has none"), ("lora", "ema", "needs time.init: zs, not ema")],
)
def test_a_codec_of_adapters_needs_an_adapter_and_a_start_at_the_base(method: str, init: str, message: str) -> None:
    given = params(1, train={"steps": 2, "method": method}, time={"init": init, "deploy": "ema"})
    given = given.model_copy(update={"store": Store(experts="adapter")})

    def check() -> None:
        train.check_codec(given)
        codec.check(given)

    with pytest.raises(UserError, match=message):
        check()
