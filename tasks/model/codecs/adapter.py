"""The factors of an adapter, and what they lack of its weights."""

from __future__ import annotations

from typing import ClassVar

from tasks.model.codecs.lossless import Lossless


class AdapterCodec(Lossless):
    """Every bit comes back: an expert trained by lora, dora or vera is its factors, and what their product lacks.

    The factors change the weights that training started from, and later steps have the base alone: so it needs
    ``init: zs``. The product is computed in an order that is the same everywhere; the bits in which the weights of the
    training differ from it are stored as `lossless` stores a difference to the base.
    """

    name: ClassVar[str] = "adapter"
    factors: ClassVar[bool] = True
