"""Running states that hold arrays of a shape and dtype of their own."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tasks.errors import UserError
from tasks.merge import Accumulator, advance, merge
from tasks.merge.layout import Tensor
from tasks.merge.sequential import Expert, State, Summary
from tasks.merge.types import Array, Unit
from tasks.model.sources import TensorEntry
from tests.merge.models import Model, base, experts, same


class Whitened(Accumulator):
    """Σ τ (Σ τᵀτ + I)⁻¹ of a matrix, where most experts rise; of another tensor, Σ τ."""

    name: ClassVar[str] = "whitened"
    source: ClassVar[str] = "a test"
    unit: ClassVar[Unit] = "tensor"
    state: ClassVar[tuple[str, ...]] = ("sum", "gram", "rises")

    def kept_as(self, array: str, tensor: Tensor) -> TensorEntry | None:
        if array == "gram":
            return TensorEntry("F64", 2 * tensor.shape[1:]) if len(tensor.shape) == 2 else None
        return TensorEntry("I16", tensor.shape) if array == "rises" else super().kept_as(array, tensor)

    def update(self, state: State, x: Array, expert: Expert) -> None:  # noqa: ARG002
        state["sum"] += x
        state["rises"] += np.sign(x).astype(np.int16)
        if "gram" in state:
            state["gram"] += x.T.astype(np.float64) @ x

    def finalise(self, state: State, summary: Summary) -> Array:  # noqa: ARG002
        total = state["sum"] * (state["rises"] >= 0)
        if "gram" in state:
            return total @ np.linalg.inv(state["gram"] + np.eye(len(state["gram"])))
        return total


def sequence(folder: Path, technique: Accumulator, models: list[Model]) -> Model:
    save_file(base(), folder / "base.safetensors")
    previous = None
    for t, model in enumerate(models, 1):
        save_file(model, folder / "expert.safetensors")
        files = (folder / "expert.safetensors", folder / "base.safetensors")
        advance(technique, *files, previous, folder / f"state-{t}", folder / "out.safetensors")
        previous = folder / f"state-{t}"
    return load_file(folder / "out.safetensors")


def test_one_by_one_gives_the_bits_of_all_together(tmp_path: Path) -> None:
    models = experts(4)
    together = merge(Whitened(), models, base()).tensors
    assert together is not None
    assert same(sequence(tmp_path, Whitened(), models), together)
    grams = load_file(tmp_path / "state-4" / "gram.safetensors")
    assert {n: (g.shape, g.dtype) for n, g in grams.items()} == {
        n: (2 * (x.shape[1],), np.float64) for n, x in base().items() if x.ndim == 2
    }
    tau = np.stack([m["text_projection"] - base()["text_projection"] for m in models]).astype(np.float64)
    np.testing.assert_allclose(grams["text_projection"], np.einsum("eij,eik->jk", tau, tau), rtol=1e-6)


def test_an_array_that_no_tensor_has_is_an_empty_file(tmp_path: Path) -> None:
    vectors = [{"bias": np.float32([i, -i])} for i in range(3)]
    save_file(vectors[0], tmp_path / "base.safetensors")
    save_file(vectors[1], tmp_path / "one.safetensors")
    files = (tmp_path / "one.safetensors", tmp_path / "base.safetensors")
    advance(Whitened(), *files, None, tmp_path / "state-1", tmp_path / "out.safetensors")
    advance(Whitened(), *files, tmp_path / "state-1", tmp_path / "state-2", tmp_path / "out.safetensors")
    assert load_file(tmp_path / "state-2" / "gram.safetensors") == {}
    np.testing.assert_array_equal(load_file(tmp_path / "out.safetensors")["bias"], [2, 0])


def test_a_damaged_gram_is_refused_by_name(tmp_path: Path) -> None:
    sequence(tmp_path, Whitened(), experts(1))
    path = tmp_path / "state-1" / "gram.safetensors"
    grams = load_file(path)
    grams["text_projection"][0, 0] = np.nan
    save_file(grams, path)
    files = (tmp_path / "expert.safetensors", tmp_path / "base.safetensors")
    with pytest.raises(UserError, match=r"gram.safetensors: tensor 'text_projection' holds NaN"):
        advance(Whitened(), *files, tmp_path / "state-1", tmp_path / "state-2", tmp_path / "out2.safetensors")
    save_file({n: g for n, g in grams.items() if n != "text_projection"}, path)
    with pytest.raises(UserError, match="another architecture"):
        advance(Whitened(), *files, tmp_path / "state-1", tmp_path / "state-2", tmp_path / "out2.safetensors")
    assert not (tmp_path / "out2.safetensors").exists()


class Sliced(Whitened):
    name: ClassVar[str] = "sliced"
    unit: ClassVar[Unit] = "row"


class Halved(Whitened):
    name: ClassVar[str] = "halved"

    def kept_as(self, array: str, tensor: Tensor) -> TensorEntry | None:  # noqa: ARG002
        return TensorEntry("BF16", tensor.shape)


class Replaced(Whitened):
    name: ClassVar[str] = "replaced"

    def update(self, state: State, x: Array, expert: Expert) -> None:  # noqa: ARG002
        state["sum"] = state["sum"] + x.astype(np.float64)


@pytest.mark.parametrize(
    ("technique", "message"),
    [
        (Sliced(), r"'gram' in a shape of its own, \[5, 5\] for \[8, 5\]; that needs unit = .tensor."),
        (Halved(), "keeps 'sum' as BF16; a state holds F32, F64"),
        (Replaced(), r"left 'sum' as float64 .*, and the state keeps F32 .*; change the array in place"),
    ],
)
def test_what_a_state_cannot_hold_is_refused(technique: Accumulator, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        sequence(tmp_path, technique, experts(1))
    assert not (tmp_path / "out.safetensors").exists()
