"""Experts out of one set of arrays: by hand, against a reference, and out of damaged files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from flows.cli.app import app
from tasks.errors import UserError
from tasks.merge.engine import merge
from tasks.model import checkpoints, shared
from tasks.model.codecs.lossless import Lossless
from tasks.model.coded import encode
from tests.model.damaged import gives_the_right_weights_or_one_sentence

Changes = list[dict[str, torch.Tensor]]


def files(folder: Path, base: dict[str, torch.Tensor], changes: Changes) -> tuple[Path, list[Path]]:
    checkpoints.save(folder / "base.safetensors", base)
    paths = [folder / f"{number}.safetensors" for number in range(len(changes))]
    for path, change in zip(paths, changes, strict=True):
        checkpoints.save(path, {name: t + change[name] if name in change else t for name, t in base.items()})
    return folder / "base.safetensors", paths


def back(folder: Path, kind: shared.Kind, base: Path, experts: list[Path], **how: Any) -> list[dict[str, torch.Tensor]]:
    """What packing and unpacking make of experts."""
    made = shared.pack(kind, experts, base, folder / "packed", **how)
    found = []
    for number, one in enumerate(made.experts):
        assert shared.unpack(folder / "packed", number, base, folder / "out.safetensors") == one
        found.append(checkpoints.load(folder / "out.safetensors"))
    return found


def by_hand(folder: Path) -> tuple[Path, list[Path]]:
    """τ = 3 and −1 on a base of 1."""
    return files(folder, {"w": torch.ones(1)}, [{"w": torch.tensor([3.0])}, {"w": torch.tensor([-1.0])}])


@pytest.mark.parametrize(("kind", "how", "wanted"), [("tall", {"lambda_": 0.4}, [3, 1]), ("emr", {}, [4, 1])])
def test_two_experts_by_hand(tmp_path: Path, kind: shared.Kind, how: dict[str, float], wanted: list[float]) -> None:
    """TALL: S = 2, and 3 > 0.4·1 while 1 < 0.4·3. EMR: u = 3, masks 1 and 0."""
    base, experts = by_hand(tmp_path)
    assert [one["w"].item() for one in back(tmp_path, kind, base, experts, **how)] == wanted


@pytest.fixture
def random(tmp_path: Path) -> tuple[Path, list[Path], dict[str, torch.Tensor], Changes]:
    """Three experts with entries that did not change, of two dtypes, and a tensor of integers."""
    generator = torch.Generator().manual_seed(0)
    base = {
        "a": torch.randn(7, 5, generator=generator), "b": torch.randn(11, generator=generator).bfloat16(),
        "scale": torch.tensor(2.5), "ids": torch.arange(4),
    }  # fmt: skip
    changes = [
        {n: 0.1 * torch.randn(base[n].shape, generator=generator) for n in ("a", "b", "scale")} for _ in range(3)
    ]
    for one in changes:
        one["a"][2:4], one["b"] = 0, one["b"].bfloat16()
    return *files(tmp_path, base, changes), base, changes


def task_vectors(base: Path, experts: list[Path]) -> np.ndarray:
    """Of the float tensors: float64, shape (experts, entries)."""
    names = sorted(name for name, t in checkpoints.load(base).items() if t.is_floating_point())
    flat = [torch.cat([checkpoints.load(p)[n].double().reshape(-1) for n in names]).numpy() for p in (base, *experts)]
    return np.array(flat[1:]) - flat[0]


@pytest.mark.parametrize("kind", ["emr", "tall"])
def test_experts_are_those_of_a_reference_in_float64(
    tmp_path: Path, kind: shared.Kind, random: tuple[Path, list[Path], Any, Any]
) -> None:
    base, experts, tensors, _ = random
    found = back(tmp_path, kind, base, experts)
    vectors = task_vectors(base, experts)
    total = vectors.sum(axis=0)
    for number, vector in enumerate(vectors):
        if kind == "emr":
            elected = np.where(total > 0, 1.0, -1.0)
            unified = elected * np.max(np.where(np.sign(vectors) == elected, np.abs(vectors), 0), axis=0)
            wanted = np.where(vector * unified > 0, unified, 0)
            wanted *= np.abs(vector).sum() / np.abs(wanted).sum()
        else:
            tried = [np.where(np.abs(vector) > x * np.abs(total - vector), total, 0) for x in shared.LAMBDAS]
            wanted = min(tried, key=lambda one: float(np.linalg.norm(vector - one)))
        names = sorted(name for name, t in tensors.items() if t.is_floating_point())
        made = torch.cat([(found[number][n].double() - tensors[n].double()).reshape(-1) for n in names]).numpy()
        rounding = np.concatenate([np.full(tensors[n].numel(), 2e-2 if n == "b" else 1e-6) for n in names])
        assert (np.abs(made - wanted) <= rounding).all()
        error = shared.about(tmp_path / "packed").experts[number].error
        assert error == pytest.approx(np.linalg.norm(vector - wanted) / np.linalg.norm(vector), rel=1e-3)
        assert torch.equal(found[number]["ids"], tensors["ids"])


def test_the_running_form_of_emr_has_the_same_shared_vector_and_masks(
    tmp_path: Path, random: tuple[Path, list[Path], Any, Any]
) -> None:
    """Σ τ, the highest and the lowest, and the sign planes of each expert are enough."""
    base, experts, tensors, _ = random
    made = shared.pack("emr", experts, base, tmp_path / "packed")
    merge("emr", experts, base, tmp_path / "unified.safetensors", settings={"scale": 1.0})
    unified = checkpoints.load(tmp_path / "unified.safetensors")["a"].double() - tensors["a"].double()
    for number, one in enumerate(made.experts):
        shared.unpack(tmp_path / "packed", number, base, tmp_path / "one.safetensors")
        change = checkpoints.load(tmp_path / "one.safetensors")["a"].double() - tensors["a"].double()
        signs = torch.sign(checkpoints.load(experts[number])["a"].double() - tensors["a"].double())
        masked = torch.where((signs == torch.sign(unified)) & (signs != 0), unified, 0)
        assert torch.allclose(change, one.scale * masked, atol=1e-6)


def test_an_expert_takes_a_bit_an_entry_and_may_be_coded(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    change = [{"w": torch.randn(1 << 15, generator=generator)} for _ in range(5)]
    base, experts = files(tmp_path, {"w": torch.zeros(1 << 15)}, change)
    shared.pack("emr", experts[:4], base, tmp_path / "four")
    encode(Lossless(), experts[4], base, tmp_path / "5.weights")
    shared.pack("emr", [*experts[:4], tmp_path / "5.weights"], base, tmp_path / "five")
    more = (tmp_path / "five").stat().st_size - (tmp_path / "four").stat().st_size
    assert 8 * more / (1 << 15) == pytest.approx(1, abs=0.15)
    with pytest.raises(UserError, match=r"was packed against another base than .*0\.safetensors"):
        shared.unpack(tmp_path / "five", 0, experts[0], tmp_path / "out.safetensors")
    with pytest.raises(UserError, match="has experts 1 to 5, no 6"):
        shared.unpack(tmp_path / "five", 5, base, tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    ("expert", "message"),
    [
        ({"w": torch.tensor([float("nan")])}, "tensor 'w' is not finite"),
        ({"w": torch.ones(2)}, r"tensor 'w' is F32 \[2\], in .*base\.safetensors F32 \[1\]"),
        ({"v": torch.ones(1)}, "'v' is a tensor of the expert or of"),
    ],
)
def test_what_cannot_be_packed_is_named_and_nothing_is_left(
    tmp_path: Path, expert: dict[str, torch.Tensor], message: str
) -> None:
    base, experts = by_hand(tmp_path)
    checkpoints.save(experts[1], expert)
    with pytest.raises(UserError, match=message):
        shared.pack("emr", experts, base, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_a_model_may_be_given_as_its_folder(tmp_path: Path) -> None:
    base, experts = by_hand(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    base.rename(folder / "model.safetensors")
    shared.pack("emr", experts, folder, tmp_path / "packed")
    shared.unpack(tmp_path / "packed", 0, folder, tmp_path / "one")
    shared.unpack(tmp_path / "packed", 0, folder / "model.safetensors", tmp_path / "same")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "same").read_bytes()
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"w": "part.safetensors"}}')
    with pytest.raises(UserError, match="model: has its weights in several files; write them into one"):
        shared.pack("emr", experts, folder, tmp_path / "packed")


def test_a_damaged_file_gives_the_right_weights_or_one_sentence(tmp_path: Path) -> None:
    base, experts = by_hand(tmp_path)
    path, target = tmp_path / "packed", tmp_path / "out" / "expert.safetensors"
    shared.pack("tall", experts, base, path)
    gives_the_right_weights_or_one_sentence(path, target, lambda: shared.unpack(path, 0, base, target))


def test_the_example_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_hand(tmp_path)
    monkeypatch.chdir(tmp_path)
    guide = (Path(__file__).parents[2] / "docs/guides/store.md").read_text()
    commands = [
        line.split()[1:] for line in guide.splitlines() if line.startswith(("chronomerge pack", "chronomerge unpack"))
    ]
    assert len(commands) == 2
    for name, to in (("0", "cats"), ("1", "dogs")):
        (tmp_path / f"{name}.safetensors").rename(tmp_path / f"{to}.safetensors")
    said = [CliRunner().invoke(app, command, catch_exceptions=False).stdout for command in commands]
    assert "2 experts by tall" in said[0]
    assert "1  cats.safetensors: 33.3% of its change is lost, lambda 0.2" in said[0]
    assert "cats.safetensors; 33.3% of its change is lost" in said[1]
    assert checkpoints.load(tmp_path / "cats-again.safetensors")["w"].item() == 3
