"""Budgets: how many training steps a time step's budget buys.

Memory-Adjusted FLOPs (FoMo-in-Flux, arXiv 2408.14471): the FLOPs of an optimizer step times its peak memory over that
of full fine-tuning at the same batch size. So a method that computes as much in half the memory may take twice the
steps.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from tasks import layout, randomness
from tasks.errors import UserError
from tasks.model import models
from tasks.params import Budget
from tasks.storage import atomic
from tasks.train.loss import contrastive_loss
from tasks.train.method import Method
from tasks.train.methods.full import Full
from tasks.train.regularizer import Regularizer

if TYPE_CHECKING:
    from tasks.model.models import Clip


@dataclass(frozen=True)
class Cost:
    """The cost of one optimizer step."""

    flops: int
    """Forward and backward: matrix products, convolutions, attention, as torch's `FlopCounterMode` counts them."""
    bytes: int
    """Peak memory."""


@dataclass(frozen=True)
class Price:
    """The cost of one optimizer step in a budget of MAFs."""

    flops: int
    memory: float
    """Peak memory over that of full fine-tuning."""
    measured: bool
    """Whether memory was measured on the GPU, or estimated (see `estimated`)."""

    @property
    def mafs(self) -> float:
        return self.flops * self.memory


Measure = Callable[[Method, Regularizer | None], int]
"""Trains with a method and a regularizer on the GPU for two steps and returns the peak memory, in bytes.

Raises:
    torch.OutOfMemoryError: it does not fit.
"""


def steps(given: Budget, batch_size: int, price: Callable[[], Price], extra: int = 0) -> int:
    """The optimizer steps that a budget buys, rounded down.

    ``extra`` batches are computed after training (a regularizer's); a budget of MAFs pays for them too.

    Raises:
        UserError: it does not buy one step.
    """
    if given.steps is not None:
        return given.steps
    if given.samples is not None:
        bought = given.samples // batch_size
        if not bought:
            raise UserError(f"train.budget: {given.samples} samples are less than one batch of {batch_size}")
        return bought
    assert given.mafs is not None
    each = price().mafs
    bought = int(given.mafs / each) - extra
    if bought < 1:
        raise UserError(
            f"train.budget: {given.mafs:g} MAFs do not buy one step: each costs {each:.4g}"
            + (f", and the regularizer's {extra} batches as much as {extra} steps" if extra else "")
        )
    return bought


def price(
    folder: Path,
    method: Method,
    regularizer: Regularizer | None,
    batch_size: int,
    measure: Measure | None = None,
    device: Mapping[str, object] | None = None,
) -> Price:
    """The cost of a step of a method, from a file of an earlier call if there is one.

    With ``measure`` memory is measured on ``device`` (what the measurement depends on beside the other arguments),
    unless full fine-tuning does not fit there.
    """
    facts = {
        "model": json.loads((folder / "model.json").read_text(encoding="utf-8")),
        "image_size": models.preprocess(folder).image_size,
        "choices": [(c.name, c.model_dump(mode="json")) for c in (method, regularizer) if c],
        "batch_size": batch_size,
        "device": dict(device or {}),
        "torch": torch.__version__,
        "version": 1,
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    stored = layout.user_cache("prices") / f"{key}.json"
    try:
        return Price(**json.loads(stored.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # missing or damaged: compute it again
        computed = _price(folder, method, regularizer, batch_size, measure)
    stored.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(stored, json.dumps(asdict(computed)) + "\n")
    return computed


def _price(
    folder: Path, method: Method, regularizer: Regularizer | None, batch_size: int, measure: Measure | None
) -> Price:
    own, full = estimated(folder, method, batch_size, regularizer), estimated(folder, Full(), batch_size)
    if measure:
        try:
            return Price(own.flops, measure(method, regularizer) / measure(Full(), None), measured=True)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    return Price(own.flops, own.bytes / full.bytes, measured=False)


def estimated(folder: Path, method: Method, batch_size: int, regularizer: Regularizer | None = None) -> Cost:
    """The cost of a step over whole contexts, counted on torch's meta device: nothing is computed, nothing is stored.

    Attention counts as a fused kernel does, whose backward pass computes the scores again. Peak memory is estimated, as
    in float32, as the weights, the gradients and AdamW's two moments of what trains, what a regularizer keeps, and the
    tensors that the forward pass saves for the backward pass. Passing buffers, the allocator's slack and lower
    precision are not in it.

    Raises:
        UserError: the model cannot run on the meta device.
    """
    model = models.build(folder, "meta")
    method.start(model, functools.partial(randomness.generator, 0, "cost"))
    model.train()
    own = {id(t.untyped_storage()): t for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage
        return tensor

    try:
        with (
            FlopCounterMode(display=False) as counter,
            _fused_attention(),
            saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            _loss(model, folder, batch_size).backward()
    except (RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"train.budget: the FLOPs of this model cannot be counted ({reason}); give the budget in steps or samples"
        ) from None
    weights = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in own.values()}
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    activations = sum(storage.nbytes() for place, storage in saved.items() if place not in weights)
    copies = 3 + (regularizer.copies if regularizer else 0)
    return Cost(int(counter.get_total_flops()), sum(weights.values()) + copies * trained + activations)


def _loss(model: Clip, folder: Path, batch_size: int) -> torch.Tensor:
    size = models.preprocess(folder).image_size
    context = json.loads((folder / "model.json").read_text(encoding="utf-8"))["model_cfg"]["text_cfg"]["context_length"]
    images = torch.empty(batch_size, 3, size, size, device="meta")
    tokens = torch.empty(batch_size, context, dtype=torch.int64, device="meta")
    image_features = model.encode_image(images, normalize=True)
    text_features = model.encode_text(tokens, normalize=True)
    captions = torch.arange(batch_size, device="meta")
    return contrastive_loss(image_features, text_features, model.logit_scale.exp(), captions)


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Count attention as one fused kernel, as on a GPU; on the meta device torch decomposes it."""
    usual = functional.scaled_dot_product_attention

    def attention(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, **more: object,
    ) -> torch.Tensor:  # fmt: skip
        if not q.is_meta:
            return usual(q, k, v, attn_mask, dropout_p, is_causal, **more)  # type: ignore[arg-type]
        fused = torch.ops.aten._scaled_dot_product_efficient_attention
        output: torch.Tensor = fused(q, k, v, None, True, dropout_p, is_causal)[0]
        return output

    functional.scaled_dot_product_attention = attention  # type: ignore[assignment]
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = usual
