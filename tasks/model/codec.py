"""Codecs of the expert store: how the file of an expert becomes smaller, chunk by chunk, and weights again."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from tasks.choice import Choice, create
from tasks.errors import UserError
from tasks.model.sources import TensorSource
from tasks.params import Named, Params

Numbers = Mapping[str, tuple[float, ...]]
"""Tensor → the few numbers that a codec needs to decode it beside its chunks; a tensor without any may be left out."""


class DamagedChunkError(ValueError):
    """A coded chunk is not what its codec writes."""


@dataclass(frozen=True)
class Chunk:
    """What is known of a chunk of a tensor before it is decoded."""

    dtype: str
    """safetensors' name."""
    count: int
    """Entries; bytes, where the dtype is narrower than one."""
    base: NDArray[Any] | None
    """The same entries of the base as they are stored; None where the base has another dtype there."""
    numbers: tuple[float, ...] = ()


class Codec(Choice):
    """A codec; its fields are its settings. One file in `tasks.model.codecs` defines one.

    Chunks are coded one by one, in any order and from several threads. Decoding must give the same bits on every
    machine: no sums whose order a library chooses.
    """

    key: ClassVar[str] = "store.experts"
    package: ClassVar[str] = "tasks.model.codecs"
    codes: ClassVar[bool] = True
    """Whether there is a coded file at all."""
    exact: ClassVar[bool]
    """Whether every bit of the expert comes back."""
    factors: ClassVar[bool] = False
    """Whether it stores the factors of an adapter (`tasks.model.factors`)."""

    def prepare(self, expert: TensorSource, base: TensorSource) -> Numbers:  # noqa: ARG002 - most need no look
        """Look at the whole expert first; what decoding needs of that.

        Raises:
            UserError: the expert cannot be coded so.
        """
        return {}

    @abstractmethod
    def encode(self, values: NDArray[Any], chunk: Chunk) -> bytes:
        """Code the entries of a chunk, as they are stored."""

    @abstractmethod
    def decode(self, data: bytes, chunk: Chunk) -> NDArray[Any]:
        """The entries of a chunk, as they are stored.

        Raises:
            DamagedChunkError: the bytes are not what `encode` writes.
        """


def check(params: Params) -> list[str]:
    """Check ``store.experts`` before any work; returns warnings.

    Raises:
        UserError: an unknown codec, or a wrong setting.
    """
    codec = chosen(params.store.experts)
    if codec.factors and params.time.init != "zs":
        raise UserError(
            f"store.experts: {codec.name} needs time.init: zs, not {params.time.init}: factors change the weights that "
            "training started from, and later steps have the base alone; lossless serves every init"
        )
    if codec.codes and params.time.deploy == "ft":
        return [
            "store.experts: with deploy: ft the deployed model is the expert in full, so that coding it saves nothing; "
            "full stores both once"
        ]
    return []


def chosen(named: Named) -> Codec:
    """The codec of ``store.experts``.

    Raises:
        UserError: an unknown name, or a wrong setting.
    """
    return create(Codec, named)  # type: ignore[type-abstract]
