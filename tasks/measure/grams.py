"""Gram matrices of the inputs of every linear map of a model, whatever module or function computes it.

Hooks on modules would miss most of them: attention multiplies with its packed weight and its output projection without
calling a module, and a projection is a parameter alone. So the matrix products, convolutions and look-ups themselves
are watched: those with an operand in a parameter's memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

_ATEN = torch.ops.aten


class Grams:
    """Σ x xᵀ by parameter, float32: (in, in), or (in,) for look-ups and for more than ``widest`` inputs."""

    def __init__(self, model: nn.Module, widest: int) -> None:
        self._widest = widest
        self._names: dict[int, tuple[str, torch.Tensor]] = {}
        for name, parameter in model.named_parameters():
            self._names.setdefault(parameter.untyped_storage().data_ptr(), (name, parameter))
        self._maps: dict[str, torch.Tensor] = {}
        self._counts: dict[str, torch.Tensor] = {}
        self.rows: set[str] = set()
        """Weights that are (in, out)."""

    @property
    def sums(self) -> dict[str, torch.Tensor]:
        """By name. A tied weight that is both looked up in and multiplied with has the inputs of the product."""
        return {**self._counts, **self._maps}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take in what is computed in the block, without gradients."""
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # computes whole attention in one kernel, which tells no inputs
        try:
            with torch.no_grad(), _Watch(self):
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)

    def product(self, x: torch.Tensor, weight: torch.Tensor) -> None:
        """X (n, in) times a matrix (in, out)."""
        known = self._names.get(weight.untyped_storage().data_ptr())
        if known is None or x.ndim != 2:
            return
        name, parameter = known
        if parameter.ndim != 2 or weight.shape not in (parameter.shape, parameter.shape[::-1]):
            return  # a part of it
        if weight.stride() == parameter.stride() and weight.shape == parameter.shape:
            self.rows.add(name)
        self._add(name, x)

    def convolution(self, x: torch.Tensor, weight: torch.Tensor, how: tuple[Any, ...]) -> None:
        """A convolution as a linear map of its patches."""
        known = self._names.get(weight.untyped_storage().data_ptr())
        stride, padding, dilation, transposed, _, groups = how
        if known is None or weight.ndim != 4 or transposed or groups != 1:
            return
        patches = functional.unfold(x, weight.shape[2:], dilation, padding, stride)  # (n, in, places)
        self._add(known[0], patches.transpose(1, 2).flatten(0, 1))

    def lookup(self, weight: torch.Tensor, ids: torch.Tensor) -> None:
        """A look-up of rows: inputs that are one-hot, whose Gram matrix is the diagonal of their counts."""
        known = self._names.get(weight.untyped_storage().data_ptr())
        if known is not None and weight.shape == known[1].shape:
            counts = torch.bincount(ids.reshape(-1), minlength=len(weight)).float()
            self._counts[known[0]] = self._counts.get(known[0], 0) + counts

    def _add(self, name: str, x: torch.Tensor) -> None:
        x = x.float()
        new = x.square().sum(dim=0) if x.shape[1] > self._widest else x.T @ x
        if name in self._maps:
            self._maps[name] += new
        else:
            self._maps[name] = new


class _Watch(TorchDispatchMode):
    def __init__(self, grams: Grams) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._grams = grams

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        if packet is _ATEN.mm:
            self._grams.product(args[0], args[1])
        elif packet is _ATEN.addmm:
            self._grams.product(args[1], args[2])
        elif packet is _ATEN.embedding:
            self._grams.lookup(args[0], args[1])
        elif packet is _ATEN.convolution:
            self._grams.convolution(args[0], args[1], args[3:9])
        return func(*args, **(kwargs or {}))


def gram_matrices(model: nn.Module, runs: Iterable[Any], widest: int) -> Grams:
    """The Gram matrices over some forward passes; each of ``runs`` is called once."""
    grams = Grams(model, widest)
    for run in runs:
        with grams.watching():
            run()
    return grams
