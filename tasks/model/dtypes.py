"""The number formats of safetensors: their widths, and how tensors are decoded to compute and encoded to store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import UserError

BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip
"""Bits an entry, of every dtype that the safetensors format names."""

FLOATS = ("F32", "F16", "BF16", "F64")
"""What is merged: in float64 where an input is float64, otherwise in float32."""

NAMED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}
"""What people call the dtypes that a model can be written in."""

INTEGERS = ("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")
"""What counts, indexes or masks, and is copied."""

_NUMPY = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "C64": "<c8", "BOOL": "?",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
}  # fmt: skip
_OF_TORCH = {
    "torch.bfloat16": "BF16", "torch.float8_e4m3fn": "F8_E4M3", "torch.float8_e5m2": "F8_E5M2",
    "torch.float8_e8m0fnu": "F8_E8M0", "torch.float8_e4m3fnuz": "F8_E4M3FNUZ", "torch.float8_e5m2fnuz": "F8_E5M2FNUZ",
}  # fmt: skip
"""Torch's dtypes that NumPy has not: their bits are handed over as unsigned integers."""


def named(name: str | None) -> str | None:
    """The dtype that people call ``name``; None for None.

    Raises:
        UserError: there is none.
    """
    if name is not None and name not in NAMED:
        raise UserError(f"unknown dtype {name!r}; there are {', '.join(NAMED)}")
    return None if name is None else NAMED[name]


def require_precise(dtypes: Mapping[str, str], what: str) -> None:
    """Refuse weights in formats of 4 to 8 bits; ``dtypes`` of tensors are by name, as safetensors calls them.

    Raises:
        UserError: names ``what``, a tensor and its dtype.
    """
    for name, dtype in dtypes.items():
        if dtype.startswith(("F8_", "F6_", "F4")):
            raise UserError(
                f"{what}: tensor {name!r:.200} is {dtype}, too coarse to be trained or merged: give the model that it"
                " was made from, or load it in bfloat16 or float32 and save that"
            )


def stored_as(dtype: str) -> str:
    """NumPy's dtype of the same bits: bfloat16 as 16 of them, what NumPy has not as bytes."""
    return _NUMPY.get(dtype, "u1")


def width(dtype: str) -> int:
    """Bytes an entry of a dtype that is a whole number of bytes wide."""
    return BITS[dtype] // 8


def decode(raw: NDArray[Any], dtype: str, to: type[np.floating[Any]]) -> NDArray[Any]:
    """Stored floats (bfloat16: its 16 bits) to float32 or float64; ``raw`` itself where it is that already."""
    if dtype == "BF16":
        return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(to, copy=False)
    with np.errstate(over="ignore"):
        return raw.astype(to, copy=False)


def encode(x: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Float32 or float64 to another dtype, rounded to nearest even; bfloat16 (by way of float32) as its 16 bits."""
    with np.errstate(over="ignore"):
        if dtype != "BF16":
            return x.astype(_NUMPY[dtype], copy=False)
        bits = x.astype(np.float32, copy=False).view(np.uint32)
    return ((bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))) >> np.uint32(16)).astype("<u2")


def fits(encoded: NDArray[Any], dtype: str) -> bool:
    """Whether every entry is finite."""
    if dtype == "BF16":
        return bool(((encoded & np.uint16(0x7F80)) != 0x7F80).all())
    return bool(np.isfinite(encoded).all())


def as_numpy(tensor: Any, name: str) -> tuple[str, NDArray[Any]]:
    """The safetensors dtype name and an array over the same memory; bfloat16 as its 16 bits.

    Raises:
        UserError: it is no NumPy array or torch tensor, or of a dtype that safetensors has not.
    """
    if isinstance(tensor, (np.ndarray, np.generic)):
        array = np.asarray(tensor)
    elif hasattr(tensor, "detach"):
        plain = tensor.detach().cpu()
        special = _OF_TORCH.get(str(plain.dtype))
        if special is not None:
            import torch  # only for those who bring torch tensors: they have paid for it

            bits = torch.uint16 if special == "BF16" else torch.uint8
            return special, plain.contiguous().view(bits).numpy()
        try:
            array = plain.numpy()
        except TypeError:
            raise UserError(f"tensor {name!r} is of dtype {plain.dtype}, which cannot be merged") from None
    else:
        raise UserError(f"tensor {name!r} is a {type(tensor).__name__}; give NumPy arrays or torch tensors")
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    known = {np.dtype(of_numpy): dtype for dtype, of_numpy in _NUMPY.items() if dtype != "BF16"}
    if little.dtype not in known:
        raise UserError(f"tensor {name!r} is of dtype {array.dtype}, which safetensors does not have")
    return known[little.dtype], little


def as_given(array: NDArray[Any], dtype: str, like: Any) -> Any:
    """The inverse of `as_numpy`: an array, or a torch tensor where ``like`` is one."""
    if isinstance(like, (np.ndarray, np.generic)):
        return array
    import torch

    tensor = torch.from_numpy(array)
    special = next((of_torch for of_torch, known in _OF_TORCH.items() if known == dtype), None)
    return tensor if special is None else tensor.view(getattr(torch, special.removeprefix("torch.")))
