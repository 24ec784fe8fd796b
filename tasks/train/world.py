"""The processes that train together: each has a part of every batch, all have the same weights."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import distributed

from tasks.errors import UserError


@dataclass(frozen=True)
class World:
    """This process among ``size``."""

    rank: int = 0
    size: int = 1

    def part(self, count: int) -> slice:
        """The positions of this process in a batch of ``count`` samples; ``size`` divides ``count``."""
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
        """Wait until every process has called this."""
        if self.size > 1:
            distributed.barrier()


ALONE = World()


@contextmanager
def joined(rendezvous: Path, rank: int, size: int) -> Iterator[World]:
    """The world of ``size`` processes with a rendezvous file, which must not exist before.

    Each uses the GPU of its rank, if there are GPUs. They communicate only over the loopback interface.
    """
    gpus = torch.cuda.is_available()
    if gpus:
        torch.cuda.set_device(rank)
    loopback = _loopback()
    os.environ.update(GLOO_SOCKET_IFNAME=loopback, NCCL_SOCKET_IFNAME=loopback)
    store = distributed.FileStore(str(rendezvous), size)
    distributed.init_process_group("nccl" if gpus else "gloo", store=store, rank=rank, world_size=size)
    try:
        yield World(rank, size)
    finally:
        distributed.destroy_process_group()


def _loopback() -> str:
    """The name of the loopback interface.

    Raises:
        UserError: there is none.
    """
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == "127.0.0.1" for one in addresses):
            return name
    raise UserError(
        "train.processes: this machine has no loopback interface, which the processes need; bring it up "
        "(ip link set lo up), or set train.processes: 1"
    )
