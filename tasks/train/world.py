"""The processes that train together: each has a part of every batch, all have the same weights."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed


@dataclass(frozen=True)
class World:
    """This process among ``size``."""

    rank: int = 0
    size: int = 1

    def part(self, count: int) -> slice:
        """The places of a batch of ``count`` samples that are this process's; ``size`` divides ``count``."""
        share = count // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def gather(self, features: torch.Tensor) -> torch.Tensor:
        """The features (n, D) of all processes, shape (size · n, D), in the batch's order; no gradient flows back."""
        if self.size == 1:
            return features
        parts = [torch.empty_like(features) for _ in range(self.size)]
        distributed.all_gather(parts, features.contiguous())
        return torch.cat(parts)

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        distributed.all_reduce(flat)
        for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            distributed.barrier()


ALONE = World()


@contextmanager
def joined() -> Iterator[World]:
    """The world that torchrun started this process in, its GPU chosen where there is one for each process."""
    gpus = torch.cuda.is_available()
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if gpus else "gloo")
    try:
        yield World(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
