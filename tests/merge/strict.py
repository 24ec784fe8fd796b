"""A stand-in for a GPU: arrays that do for NumPy's functions what CuPy's do, and refuse all that CuPy's refuse.

NumPy computes underneath. What would fail or be wrong on a GPU fails here: implicit conversion to a host array, mixing
with host arrays, functions and keywords that CuPy lacks, work outside of `Device.active`, and arrays that go from one
thread (on a GPU: one stream) to another.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray

from tasks.merge.device import Device

UFUNCS = frozenset(
    {"absolute", "add", "bitwise_and", "bitwise_or", "bitwise_xor", "divide", "equal", "exp", "greater"}
    | {"greater_equal", "invert", "isfinite", "left_shift", "less", "less_equal", "matmul", "maximum", "minimum"}
    | {"multiply", "negative", "not_equal", "power", "right_shift", "sqrt", "square", "subtract"}
)
FUNCTIONS = frozenset(
    {"argmax", "argsort", "ascontiguousarray", "bincount", "broadcast_to", "clip", "concatenate", "count_nonzero"}
    | {"cumsum", "diag", "diagonal", "einsum", "empty_like", "fill_diagonal", "linalg.cholesky", "linalg.eigh"}
    | {"linalg.inv", "linalg.norm", "linalg.solve", "max", "mean", "min", "partition"}
    | {"put_along_axis", "sort", "split", "stack", "sum", "take_along_axis", "where", "zeros_like"}
)
CREATION = frozenset({"arange", "array", "asarray", "empty", "full", "ones", "zeros"})
"""By ``like=``; alone in taking host arrays."""

_inside = threading.local()


class StrictArray(NDArrayOperatorsMixin):
    """An array on the stand-in."""

    def __init__(self, values: Any) -> None:
        _check_active()
        self._values: NDArray[Any] = np.asarray(values)
        self._thread = threading.get_ident()

    def raw(self) -> NDArray[Any]:
        _check_active()
        assert self._thread == threading.get_ident(), "an array of another thread's stream"
        return self._values

    # NumPy's protocols

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("implicit conversion of a device array to a host array")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__" or ufunc.__name__ not in UFUNCS:
            raise TypeError(f"np.{ufunc.__name__}.{method} is not known to be in CuPy; if it is, add it to UFUNCS")
        if not kwargs.keys() <= {"out", "dtype", "casting"}:
            raise TypeError(f"CuPy's {ufunc.__name__} has no {', '.join(kwargs)}")
        out = kwargs.pop("out", (None,))[0]
        if out is not None:
            kwargs["out"] = _unwrap(out)
        result = getattr(ufunc, method)(*map(_unwrap, inputs), **kwargs)
        return out if out is not None else StrictArray(result)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        name = f"{func.__module__}.{func.__name__}".removeprefix("numpy.")
        if name in CREATION:
            return StrictArray(func(*args, **kwargs))
        if name not in FUNCTIONS:
            raise TypeError(f"np.{name} is not known to be in CuPy; if it is, add it to FUNCTIONS")
        if name == "einsum" and not kwargs.keys() <= {"dtype", "optimize"}:
            raise TypeError(f"CuPy's einsum has no {', '.join(kwargs)}")
        return _wrap(func(*_unwrap(list(args)), **{key: _unwrap(value) for key, value in kwargs.items()}))

    # What of ndarray CuPy has

    @property
    def shape(self) -> tuple[int, ...]:
        return self._values.shape

    @property
    def ndim(self) -> int:
        return self._values.ndim

    @property
    def size(self) -> int:
        return self._values.size

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._values.dtype

    @property
    def T(self) -> StrictArray:  # noqa: N802
        return StrictArray(self.raw().T)

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[StrictArray]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> StrictArray:
        return StrictArray(self.raw()[_unwrap(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self.raw()[_unwrap(index)] = _unwrap(value)

    def __bool__(self) -> bool:
        return bool(self.raw())

    def __int__(self) -> int:
        return int(self.raw())

    def __float__(self) -> float:
        return float(self.raw())

    def astype(self, dtype: Any, copy: bool = True) -> StrictArray:
        return StrictArray(self.raw().astype(dtype, copy=copy))

    def view(self, dtype: Any) -> StrictArray:
        return StrictArray(self.raw().view(dtype))

    def sort(self, axis: int = -1) -> None:
        self.raw().sort(axis=axis)


def _method(name: str) -> Any:
    def call(self: StrictArray, *args: Any, **kwargs: Any) -> Any:
        return StrictArray(getattr(self.raw(), name)(*map(_unwrap, args), **kwargs))

    return call


METHODS = ("all", "any", "argmax", "clip", "copy", "max", "mean", "min", "ravel", "reshape", "sum", "transpose")
for _name in METHODS:
    setattr(StrictArray, _name, _method(_name))


def _check_active() -> None:
    assert getattr(_inside, "device", False), "device arrays outside of Device.active"


def _unwrap(value: Any) -> Any:
    if isinstance(value, StrictArray):
        return value.raw()
    if isinstance(value, np.ndarray):
        raise TypeError("a host array among device arrays")
    if isinstance(value, (list, tuple)):
        return type(value)(_unwrap(v) for v in value)
    return value


def _wrap(value: Any) -> Any:
    """Arrays and NumPy scalars both become arrays, as in CuPy."""
    if isinstance(value, (list, tuple)):
        return tuple(_wrap(v) for v in value)
    return None if value is None else StrictArray(value)


class StrictDevice(Device):
    """With pieces so small that the tests' models fall into several."""

    name = "strict"
    slice_entries = 100
    statistics_entries = 128
    search_entries = 1 << 12

    def __init__(self) -> None:
        with self.active():
            self.like = StrictArray(np.zeros(1, np.float32))
        self.moved = 0
        """Arrays brought to the device."""

    @contextmanager
    def active(self) -> Iterator[None]:
        before, _inside.device = getattr(_inside, "device", False), True
        try:
            yield
        finally:
            _inside.device = before

    def put(self, x: NDArray[Any]) -> Any:
        assert isinstance(x, np.ndarray)
        self.moved += 1
        return StrictArray(x.copy())

    def get(self, x: Any) -> NDArray[Any]:
        return x.raw().copy() if isinstance(x, StrictArray) else x
