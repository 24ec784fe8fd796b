"""Loss, optimizer, schedule and crops: each against its reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from tasks import randomness
from tasks.model import models, torchvision_shim
from tasks.train import augment
from tasks.train.features import features as features_of
from tasks.train.loss import contrastive_loss, sigmoid_loss
from tasks.train.optimizer import adamw, decays
from tasks.train.schedule import MetaSchedule, Schedule
from tests.train.project import CONFIG


def features(count: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(count, 8, dtype=torch.float64, generator=random), dim=-1)


@pytest.fixture(scope="module")
def clip_loss() -> Callable[..., torch.Tensor]:
    torchvision_shim.ensure()
    from open_clip import ClipLoss

    loss: Callable[..., torch.Tensor] = ClipLoss()
    return loss


@settings(deadline=None)
@given(count=st.integers(2, 40), seed=st.integers(0, 1000))
def test_loss_is_open_clips_where_all_captions_differ(
    clip_loss: Callable[..., torch.Tensor], count: int, seed: int
) -> None:
    images, texts = features(count, seed).requires_grad_(), features(count, seed + 1).requires_grad_()
    scale = torch.tensor(14.3, dtype=torch.float64, requires_grad=True)
    ours = contrastive_loss(images, texts, scale, torch.randperm(count))
    theirs = clip_loss(images, texts, scale)
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-14)
    for a, b in zip(*(torch.autograd.grad(loss, (images, texts, scale)) for loss in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_sigmoid_loss_is_open_clips_where_all_captions_differ(clip_loss: Callable[..., torch.Tensor]) -> None:  # noqa: ARG001 - open_clip imports after it
    from open_clip.loss import SigLipLoss

    inputs = [features(9, 0), features(9, 1), torch.tensor(10.0).double(), torch.tensor(-10.0).double()]
    for tensor in inputs:
        tensor.requires_grad_()
    images, texts, scale, bias = inputs
    ours = sigmoid_loss(images, texts, scale, bias, torch.arange(9))
    theirs = SigLipLoss()(images, texts, scale, bias)
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-14)
    for a, b in zip(*(torch.autograd.grad(loss, inputs) for loss in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    twice = sigmoid_loss(images, texts[[0, 0, 2, 3, 4, 5, 6, 7, 8]], scale, bias, torch.tensor([0, 0, *range(2, 9)]))
    swapped = sigmoid_loss(
        images[[1, 0, *range(2, 9)]], texts[[0, 0, *range(2, 9)]], scale, bias, torch.tensor([0, 0, *range(2, 9)])
    )
    torch.testing.assert_close(twice, swapped)


def test_equal_captions_are_positives_of_each_other() -> None:
    texts = features(3, 0)[[0, 0, 1, 2]]
    captions = torch.tensor([7, 7, 1, 2])
    scale = torch.tensor(10.0)
    log_p = (scale * texts @ texts.T).log_softmax(dim=1)
    target = torch.tensor([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert contrastive_loss(texts, texts, scale, captions).item() == pytest.approx(-(target * log_p).sum().item() / 4)


def test_swapping_the_images_of_equal_captions_changes_nothing() -> None:
    images, texts = features(4, 0), features(3, 1)[[0, 0, 1, 2]]
    captions = torch.tensor([7, 7, 1, 2])
    a = contrastive_loss(images, texts, torch.tensor(10.0), captions)
    b = contrastive_loss(images[[1, 0, 2, 3]], texts, torch.tensor(10.0), captions)
    torch.testing.assert_close(a, b)


def test_leaving_out_the_unused_context_changes_neither_features_nor_gradients() -> None:
    model = models._construct(CONFIG, "tiny", "cpu").double()
    images = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    tokens = torch.zeros(3, 12, dtype=torch.int64)
    tokens[:, :5] = torch.tensor([[49406, 8, 9, 49407, 0], [49406, 8, 49407, 0, 0], [49406, 7, 7, 9, 49407]])
    whole = model.encode_image(images, normalize=True), model.encode_text(tokens, normalize=True)
    ours = features_of(model, images, tokens)
    for a, b in zip(ours, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    named = [(n, p) for n, p in model.named_parameters() if n != "logit_scale"]
    ours_grad, whole_grad = (torch.autograd.grad((i[0] * t).sum(), [p for _, p in named]) for i, t in (ours, whole))
    for (name, _), a, b in zip(named, ours_grad, whole_grad, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, msg=name)


def test_what_decays_is_what_open_clips_script_decays() -> None:
    model = models._construct(CONFIG, "tiny", "cpu")
    optimizer = adamw(model, 0.2)
    free, decayed = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.2]
    for name, p in model.named_parameters():
        excluded = p.ndim < 2 or "bn" in name or "ln" in name or "bias" in name or "logit_scale" in name
        assert (id(p) in free, id(p) in decayed) == (excluded, not excluded), name
        assert decays(name, p) is not excluded
    assert {"token_embedding.weight", "visual.conv1.weight"} <= {n for n, p in model.named_parameters() if decays(n, p)}


def test_one_step_is_plain_adamw() -> None:
    start = models._construct(CONFIG, "tiny", "cpu").state_dict()
    after = []
    for reference in (False, True):
        model = models._construct(CONFIG, "tiny", "cpu").double()
        model.load_state_dict(start)
        optimizer: torch.optim.Optimizer = adamw(model, 0.2)
        if reference:
            groups = [{"params": g["params"], "weight_decay": g["weight_decay"]} for g in optimizer.param_groups]
            optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), eps=1e-6, foreach=False, fused=False)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
        optimizer.step()
        after.append(model.state_dict())
    for name in start:
        torch.testing.assert_close(after[0][name], after[1][name], rtol=1e-12, atol=1e-12)


def test_schedule_at_known_steps() -> None:
    schedule = Schedule(101, 2.0, 0.1)
    rates = [schedule(i) for i in range(101)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == 2.0
    assert rates[55] == pytest.approx(2 * (1e-3 + 0.999 / 2))
    assert rates[100] == pytest.approx(2e-3)


@settings(deadline=None)
@given(st.integers(1, 300), st.floats(0, 0.99), st.sampled_from(["constant", "decaying", "rsqrt"]), st.integers(0, 30))
def test_schedule_rises_then_falls_and_never_leaves_its_bounds(
    steps: int, warmup: float, meta: MetaSchedule, earlier: int
) -> None:
    schedule = Schedule(steps, 1.0, warmup, meta, earlier)
    rates = [schedule(i) for i in range(steps)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == pytest.approx(sorted(rates[top:], reverse=True), rel=1e-12)
    assert min(rates) > 0
    assert max(rates) <= 1.0 + 1e-12


def test_the_decaying_peak_is_where_one_cosine_over_all_steps_would_be() -> None:
    def peak(earlier: int) -> float:
        schedule = Schedule(1000, 1.0, 0.1, "decaying", earlier)
        return max(schedule(i) for i in range(1000))

    one = Schedule(3 * 900, 1.0, 0.0)  # the falling parts of three steps, as one
    assert peak(0) == 1.0
    assert peak(2) == pytest.approx(one(2 * 900), abs=2e-3)
    assert peak(1) == pytest.approx(0.5, abs=2e-3)


def test_rsqrt_recovers_what_the_cool_down_left() -> None:
    def rates(earlier: int) -> list[float]:
        schedule = Schedule(100, 1.0, 0.1, "rsqrt", earlier)
        return [schedule(i) for i in range(100)]

    first, second = rates(0), rates(1)
    assert first[9] == pytest.approx(1.0)
    assert first[40] == pytest.approx(1e-3 + 0.999 * 0.5)  # the square root of 10 / 40
    assert first[99] == pytest.approx(1e-3)
    assert second[9] == pytest.approx(first[79], rel=0.01)
    assert second[79] == pytest.approx(1e-3 + 0.999 * (10 / 149) ** 0.5)


def test_crops_are_torchvisions_in_size_and_stay_inside() -> None:
    boxes = augment.draw(4000, randomness.generator(0, "crop")).squares()
    centre, size = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64)
    area = size.prod(axis=1)
    assert (centre - size / 2).min() >= -1e-6
    assert (centre + size / 2).max() <= 1 + 1e-6
    assert area.min() >= 0.9 - 1e-6
    torchvision_shim.ensure()
    from torchvision.transforms import RandomResizedCrop

    with torch.random.fork_rng():
        torch.manual_seed(0)
        image = torch.zeros(3, 1000, 1000)
        drawn = [RandomResizedCrop.get_params(image, [0.9, 1.0], [3 / 4, 4 / 3])[2:] for _ in range(2000)]
    theirs = np.array([h * w / 1e6 for h, w in drawn])
    assert area.mean() == pytest.approx(theirs.mean(), abs=2e-3)
    assert area.std() == pytest.approx(theirs.std(), abs=2e-3)


def test_crop_of_the_whole_image_is_the_image_and_a_box_is_what_it_covers() -> None:
    images = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).view(2, 3, 8, 8)
    whole = np.tile(np.array([0.5, 0.5, 1, 1], dtype=np.float32), (2, 1))
    torch.testing.assert_close(augment.crop(images, whole), images)
    ramp = torch.linspace(0, 1, 9)[:-1].add(1 / 16).expand(1, 3, 8, 8)  # the value is x itself
    left = augment.crop(ramp, np.array([[0.25, 0.5, 0.5, 1]], dtype=np.float32))
    assert left.mean().item() == pytest.approx(0.25, abs=0.01)
    assert math.isclose(left.max().item(), 0.5 - 1 / 32, abs_tol=0.01)


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (500, 333), (40, 400), (224, 224), (1, 1)])
def test_boxes_of_originals_are_torchvisions(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision_shim.ensure()
    from torchvision.transforms import RandomResizedCrop

    draws = augment.draw(50, randomness.generator(0, "crop"))
    ours = draws.pixels(np.array([size] * 50))
    for row, (left, top, right, bottom) in enumerate(ours.tolist()):
        # Their random numbers become ours: an area, then the logarithm of a ratio, and last two places.
        numbers = iter([x for pair in zip(draws.area[row], np.log(draws.ratio[row]), strict=True) for x in pair])

        class Next:
            def __init__(self, numbers: Iterator[float] = numbers):
                self._numbers = numbers

            def uniform_(self, *_bounds: float) -> torch.Tensor:
                return torch.tensor(next(self._numbers), dtype=torch.float64)

        places = iter([draws.place[row, 1], draws.place[row, 0]])
        monkeypatch.setattr(torch, "empty", lambda *_size, source=Next: source())

        def randint(low: int, high: int, places: Iterator[float] = places, **_size: object) -> torch.Tensor:
            return torch.tensor([low + int(next(places) * (high - low))])

        monkeypatch.setattr(torch, "randint", randint)
        i, j, h, w = RandomResizedCrop.get_params(Image.new("RGB", size), [0.9, 1.0], [3 / 4, 4 / 3])
        monkeypatch.undo()
        assert (left, top, right, bottom) == (j, i, j + w, i + h)
