"""The loop: one step is open_clip's; parts, saved states and a restricted vocabulary change nothing."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tasks import randomness
from tasks.errors import UserError
from tasks.model import models
from tasks.model.models import Preprocess
from tasks.train import augment
from tasks.train.loop import Batch, Training, fit
from tasks.train.recipe import Recipe
from tasks.train.saved import Saved
from tasks.train.vocabulary import NAME, Vocabulary
from tests.train.project import CONFIG

if TYPE_CHECKING:
    from tasks.model.models import Clip

RECIPE = Recipe(steps=6, batch_size=12, lr=1e-2, weight_decay=0.2, warmup=0.2, clip=1.0)
PREPROCESS = Preprocess(16, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
COUNT = RECIPE.batch_size
WORDS = 512


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """So small a model gains nothing from a second, and loses much where others want it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model(**changes: Any) -> Clip:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "vocab_size": WORDS}, **changes}  # type: ignore[dict-item]
        return models._construct(copy.deepcopy(config), "tiny", "cpu")


def batch(index: int) -> Batch:
    """A batch of random images with captions of two to nine tokens, all different."""
    random = randomness.generator(0, "batch", index)
    tokens = np.zeros((COUNT, 12), dtype=np.int64)
    for row, length in zip(tokens, random.integers(2, 10, COUNT), strict=True):
        row[: length + 1] = [*random.integers(1, 300, length), WORDS - 1]
    images = random.integers(0, 256, (COUNT, 16, 16, 3), dtype=np.uint8)
    crops = augment.draw(COUNT, randomness.generator(0, "crop", index)).squares()
    return Batch(images, crops, torch.from_numpy(tokens), torch.arange(COUNT), lambda: [f"s{i}" for i in range(COUNT)])


def trained(folder: Path, recipe: Recipe = RECIPE, start: Clip | None = None, dtype: Any = torch.float32) -> Training:
    training = Training((start or model()).to(dtype), recipe, PREPROCESS, seed=0)
    fit(training, batch, Saved(folder), every=1e9)
    return training


def assert_close(ours: Training | Clip, theirs: Training | Clip, **tolerance: float) -> None:
    a, b = ((t.model if isinstance(t, Training) else t).state_dict() for t in (ours, theirs))
    for name in b:
        torch.testing.assert_close(a[name], b[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def test_steps_are_those_of_open_clips_loss_and_adamw(tmp_path: Path) -> None:
    reference = model().double()
    from open_clip import ClipLoss

    def excluded(name: str, p: torch.Tensor) -> bool:
        return p.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))

    named = list(reference.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in named if excluded(n, p)], "weight_decay": 0.0},
            {"params": [p for n, p in named if not excluded(n, p)], "weight_decay": 0.2},
        ],
        betas=(0.9, 0.98), eps=1e-6,
    )  # fmt: skip
    for i in range(RECIPE.steps):
        given = batch(i)
        pixels = models.normalize(given.images, PREPROCESS, torch.device("cpu")).double()
        image_features, text_features, scale = reference(augment.crop(pixels, given.crops), given.tokens)
        optimizer.zero_grad()
        ClipLoss()(image_features, text_features, scale).backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = RECIPE.schedule(i)
        optimizer.step()
        with torch.no_grad():
            reference.logit_scale.clamp_(0, math.log(100))
    assert_close(trained(tmp_path, dtype=torch.float64), reference, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("changes", [{"accumulate": 4}, {"accumulate": 5}, {"checkpointing": True}], ids=str)
def test_parts_and_checkpointing_change_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    whole = trained(tmp_path / "a", dtype=torch.float64)
    assert_close(trained(tmp_path / "b", replace(RECIPE, **changes), dtype=torch.float64), whole, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_learns_much_the_same(tmp_path: Path, precision: Any) -> None:
    exact = trained(tmp_path / "a", replace(RECIPE, lr=1e-3))
    half = Training(model(), replace(RECIPE, lr=1e-3, precision=precision), PREPROCESS, seed=0)
    if precision == "float16":
        half.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)  # these gradients overflow the usual 65,536
    fit(half, batch, Saved(tmp_path / "b"), every=1e9)
    assert all(p.dtype == torch.float32 for p in half.parameters)
    losses = [[p.loss for p in t.curve] for t in (exact, half)]
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert [p.gradient_norm for p in half.curve] == pytest.approx([p.gradient_norm for p in exact.curve], rel=0.1)


def test_an_overflow_of_float16_is_a_smaller_scale_and_no_harm(tmp_path: Path) -> None:
    start = model()
    training = Training(start, replace(RECIPE, steps=1, precision="float16"), PREPROCESS, seed=0)
    training.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    before = copy.deepcopy(start.state_dict())
    fit(training, batch, Saved(tmp_path), every=1e9)
    assert training.scaler.get_scale() == 2.0**99
    assert (training.done, training.skipped, training.decay) == (1, 0, 1.0)
    for name, tensor in start.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_siglip_trains_its_bias_and_needs_one(tmp_path: Path) -> None:
    start = model(init_logit_scale=math.log(10), init_logit_bias=-10.0)
    done = trained(tmp_path, replace(RECIPE, loss="siglip", steps=12), start)
    assert done.model.logit_bias is not None
    assert done.model.logit_bias.item() != -10
    assert done.curve[-1].loss < done.curve[0].loss
    with pytest.raises(UserError, match=r"siglip needs a model with a logit bias"):
        Training(model(), replace(RECIPE, loss="siglip"), PREPROCESS, seed=0)


def test_a_batch_cannot_be_cut_where_the_model_normalizes_over_it() -> None:
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}
    resnet = model(vision_cfg=vision)
    Training(resnet, RECIPE, PREPROCESS, seed=0)
    for changes in ({"accumulate": 2}, {"on_nonfinite": "skip"}):
        with pytest.raises(UserError, match=r"normalizes over the batch \(visual.bn1\)"):
            Training(resnet, replace(RECIPE, **changes), PREPROCESS, seed=0)


def test_only_the_rows_in_use_are_trained_to_the_same_result(tmp_path: Path) -> None:
    tokens = torch.cat([batch(i).tokens for i in range(RECIPE.steps)])
    dense = trained(tmp_path / "a", dtype=torch.float64)
    start = model().double()
    vocabulary = Vocabulary(start, tokens)
    assert start.get_parameter(NAME).shape[0] == len(tokens.unique()) < 301

    def renumbered(index: int) -> Batch:
        given = batch(index)
        return replace(given, tokens=vocabulary.renumber(given.tokens))

    training = Training(start, RECIPE, PREPROCESS, seed=0)
    fit(training, renumbered, Saved(tmp_path / "b"), every=1e9)
    weights = start.state_dict()
    vocabulary.restore(weights, training.decay)
    for name, tensor in dense.model.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-9, atol=1e-12, msg=name)
    assert [p.gradient_norm for p in training.curve] == pytest.approx([p.gradient_norm for p in dense.curve])


def test_a_training_that_goes_on_ends_with_the_same_bits(tmp_path: Path) -> None:
    recipe = replace(RECIPE, precision="float16")  # the scaler's state too
    config = {"vision_cfg": {**CONFIG["vision_cfg"], "patch_dropout": 0.4}}  # type: ignore[dict-item]
    whole = trained(tmp_path / "whole", recipe, model(**config))

    class EnoughError(Exception):
        pass

    for stop in (1, 3, 5):

        def killed(index: int, stop: int = stop) -> Batch:
            if index == stop:
                raise EnoughError
            return batch(index)

        with pytest.raises(EnoughError):
            fit(Training(model(**config), recipe, PREPROCESS, seed=0), killed, Saved(tmp_path / "cut"), every=0)
    last = Training(model(**config), recipe, PREPROCESS, seed=0)
    fit(last, batch, Saved(tmp_path / "cut"), every=0)
    assert repr(last.curve) == repr(whole.curve)  # a NaN among the norms is no reason to differ
    assert (last.done, last.decay) == (whole.done, whole.decay)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(last.model.state_dict()[name], tensor), name


def test_a_damaged_saved_state_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "training.safetensors").write_bytes(b"half a fi")
    assert trained(tmp_path).curve == trained(tmp_path / "other").curve


def poisoned(recipe: Recipe) -> Training:
    """A training whose images turn into NaN inside the model, in two of its steps."""
    training = Training(model(), recipe, PREPROCESS, seed=0)
    visual = training.model.get_submodule("visual")
    visual.register_forward_hook(lambda _m, _i, out: out * torch.nan if training.done in (2, 4) else out)
    return training


def test_a_loss_that_is_not_finite_stops_at_the_last_good_state(tmp_path: Path) -> None:
    training, saved = poisoned(RECIPE), Saved(tmp_path)
    with pytest.raises(UserError, match=r"training step 2: loss nan .* on samples s0, s1, s2, s3, … ") as stopped:
        fit(training, batch, saved, every=1e9)
    assert f"(all 12 in {tmp_path}/nonfinite.json); the last good checkpoint is {saved.path}; " in str(stopped.value)
    report = json.loads((tmp_path / "nonfinite.json").read_text())
    assert (report["step"], report["loss"], len(report["samples"])) == ("2", "nan", 12)
    good = Training(model(), RECIPE, PREPROCESS, seed=0)
    saved.load(good)
    assert good.done == 2
    assert len(good.curve) == 2
    assert all(p.isfinite().all() for p in good.parameters)


def test_such_steps_may_be_skipped_so_many_times(tmp_path: Path) -> None:
    lenient = replace(RECIPE, on_nonfinite="skip", skip_at_most=2)
    training = poisoned(lenient)
    fit(training, batch, Saved(tmp_path / "a"), every=1e9)
    assert (training.done, training.skipped) == (6, 2)
    assert [math.isnan(p.loss) for p in training.curve] == [False, False, True, False, True, False]
    assert all(p.isfinite().all() for p in training.parameters)
    with pytest.raises(UserError, match=r"training step 4: .* after 1 skipped steps"):
        fit(poisoned(replace(lenient, skip_at_most=1)), batch, Saved(tmp_path / "b"), every=1e9)
