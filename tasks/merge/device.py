"""Where a merge computes: host memory with NumPy, or a CUDA device with CuPy.

Engine and techniques are written once, against NumPy. CuPy's arrays take part in NumPy's functions and operators, so
the same code runs on them. One rule keeps it so: an array that is made from nothing, or from host data, is made
``like=`` an existing one (``np.zeros(n, np.float32, like=x)``), since CuPy refuses to mix its arrays with NumPy's. Only
what is small (thresholds, norms, inner products) comes back to the host before the result does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import UserError


class Device:
    """Host memory, and the base of other devices: how arrays come and go, and how much is worked on at a time."""

    name = "cpu"
    """As a report has it."""
    slice_entries = 1 << 17
    """Entries of a tensor merged at a time: few enough for the caches, enough that threads seldom meet."""
    statistics_entries = 1 << 15
    """Entries in a piece of a statistics pass; fixed, since it decides the order of float sums."""
    search_entries = 1 << 17
    """Entries in a piece of a search for order statistics, which holds a few models' rows of it."""
    threads: int | None = None
    """Worker threads; None: as many as the process may use."""
    like: Any = np.empty(0, np.float32)
    """An array there, for NumPy's ``like=``."""

    def active(self) -> AbstractContextManager[None]:
        """Work of the current thread on this device's arrays happens inside."""
        return nullcontext()

    def put(self, x: NDArray[Any]) -> NDArray[Any]:
        """From host memory to the device."""
        return x

    def get(self, x: Any) -> NDArray[Any]:
        """From the device to host memory; what is there already stays as it is."""
        array: NDArray[Any] = x
        return array


HOST = Device()


class Cuda(Device):
    """One NVIDIA GPU. Each thread has a stream of its own, so that one's transfer overlaps another's computing.

    Elementwise operations are IEEE float32 as on the host, in the same order; sums, matrix products and exponentials
    differ in their last bits, and so may a result from the host's by about 1e-6 of a weight.

    Raises:
        UserError: CuPy, a driver or that GPU is missing, or CuPy cannot compute there.
    """

    # Large enough that a launch's microseconds vanish beside the transfer, small enough for many models' pieces.
    slice_entries = 1 << 22
    statistics_entries = 1 << 22
    search_entries = 1 << 21
    threads = 4

    def __init__(self, index: int) -> None:
        asked = f"device cuda:{index}"
        way_out = "merge on the CPU (device: cpu), which is the default"
        try:
            import cupy
        except ImportError as error:
            raise UserError(f"{asked}: needs CuPy; pip install -e '.[gpu]', or {way_out} ({_line(error)})") from None
        self._cupy = cupy
        self._index = index
        try:
            count = cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise UserError(f"{asked}: there is no usable GPU ({_line(error)}); {way_out}") from None
        if index >= count:
            raise UserError(f"{asked}: the GPUs are cuda:0 to cuda:{count - 1}; name one of them, or {way_out}")
        try:
            with self.active():
                self.like = cupy.zeros(1, np.float32) + 1  # compiles, which needs all that computing needs
                self.name = str(cupy.cuda.runtime.getDeviceProperties(index)["name"].decode())
        except (RuntimeError, ImportError) as error:
            raise UserError(f"{asked}: CuPy cannot compute there ({_line(error)}); {way_out}") from None

    @contextmanager
    def active(self) -> Iterator[None]:
        with self._cupy.cuda.Device(self._index), self._cupy.cuda.Stream.ptds:
            try:
                yield
            except self._cupy.cuda.memory.OutOfMemoryError as error:
                raise UserError(
                    f"device cuda:{self._index}: out of memory ({_line(error)}); "
                    "use fewer threads (--threads 1), or merge on the CPU"
                ) from None

    def put(self, x: NDArray[Any]) -> NDArray[Any]:
        array: NDArray[Any] = self._cupy.asarray(x)
        return array

    def get(self, x: Any) -> NDArray[Any]:
        array: NDArray[Any] = x.get() if isinstance(x, self._cupy.ndarray) else x
        return array


def find_device(name: str | Device) -> Device:
    """``cpu``, ``cuda`` (the first GPU) or ``cuda:1``; a device as it is.

    Raises:
        UserError: there is no such device.
    """
    if isinstance(name, Device):
        return name
    kind, _, index = name.partition(":")
    if name == "cpu":
        return HOST
    if kind == "cuda" and (index.isdecimal() or name == "cuda"):
        return Cuda(int(index or 0))
    raise UserError(f"unknown device {name!r}; there are cpu, cuda, and cuda:N for the N-th GPU, from 0")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
