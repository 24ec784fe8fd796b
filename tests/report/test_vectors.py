"""Inner products of task vectors against NumPy's, and what is said of weights that are not here."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tasks.grid.cells import Cell
from tasks.model import checkpoints
from tasks.record import retention
from tasks.record.state import State
from tasks.report import vectors
from tasks.report.records import Record
from tasks.report.vectors import Geometry
from tasks.storage import dvc_config
from tasks.storage.cache import Cache
from tasks.storage.git import git
from tests.report import made_up


def weights(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "tower.weight": torch.randn((40, 30), generator=random).to(dtype),
        "scale": torch.randn((), generator=random).to(dtype),
        "positions": torch.arange(7),  # no floating-point tensor: no part of a task vector
    }


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """A base and three experts."""
    paths = [tmp_path / f"{seed}.safetensors" for seed in range(4)]
    for seed, path in enumerate(paths):
        checkpoints.save(path, weights(seed))
    return paths


def expected(paths: list[Path]) -> np.ndarray:
    flat = [
        torch.cat([t.double().flatten() for t in checkpoints.load(p).values() if t.is_floating_point()]) for p in paths
    ]
    matrix = torch.stack([expert - flat[0] for expert in flat[1:]])
    return (matrix @ matrix.T).numpy()


def test_products_are_those_of_whole_vectors(models: list[Path]) -> None:
    assert vectors.products(models[0], models[1:]) == pytest.approx(expected(models), rel=1e-12)


def test_pieces_make_no_difference(models: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = vectors.products(models[0], models[1:])
    monkeypatch.setattr(vectors, "_HELD", 40)  # ten entries of each model at a time
    assert vectors.products(models[0], models[1:]) == pytest.approx(whole, rel=1e-12)


def test_half_precision(tmp_path: Path) -> None:
    paths = [tmp_path / "base.safetensors", tmp_path / "expert.safetensors"]
    for seed, path in enumerate(paths):
        checkpoints.save(path, weights(seed, torch.bfloat16))
    assert vectors.products(paths[0], paths[1:]) == pytest.approx(expected(paths), rel=1e-12)


@given(arrays(np.float64, (4, 6), elements=st.floats(-100, 100)))
def test_geometry_of_any_vectors(taus: np.ndarray) -> None:
    geometry = Geometry((1, 2, 3, 4), ("a", "b", "c", "d"), taus @ taus.T)
    assert geometry.norms == pytest.approx(np.linalg.norm(taus, axis=1), abs=1e-6)
    differences = np.linalg.norm(taus[:, None] - taus[None], axis=2)
    assert geometry.distances == pytest.approx(differences, abs=1e-4)
    defined = np.isfinite(geometry.cosines)
    assert (defined == (geometry.norms[:, None] * geometry.norms[None] > 0)).all()
    assert (np.abs(geometry.cosines[defined]) <= 1).all()
    assert geometry.angles[defined] == pytest.approx(np.degrees(np.arccos(geometry.cosines[defined])))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "--quiet")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "code")
    return folder


def lineage(project: Path, timeline: str, models: list[Path]) -> list[Record]:
    """A timeline whose experts are some models, copied into the project's cache."""
    cache = Cache(dvc_config.cache_dir(project))
    md5s = []
    for path in models:
        copy = project / path.name
        copy.write_bytes(path.read_bytes())
        md5s.append(cache.put(copy).md5)
    top1 = [{"food": 1.0}] * len(models)
    cell = Cell(timeline, "zs", "all", "ties", 0)
    return made_up.lineage(cell, ["food", "flags", "faces"], top1, experts=md5s, project=project)


def test_timelines_with_the_same_experts_share_them(project: Path, models: list[Path]) -> None:
    cells = [Cell("a", "zs", "all", "ties", 0), Cell("b", "zs", "ema", "ties", 0), Cell("c", "zs", "ema", "ties", 1)]
    found = vectors.of(project, {cell: lineage(project, cell.timeline, models) for cell in cells})
    (experts,) = found.known
    assert (experts.label, experts.timelines) == ("zs", ("a", "b"))  # of one seed
    assert experts.geometry.arrivals == ("food", "flags", "faces")
    assert experts.geometry.products == pytest.approx(expected(models), rel=1e-12)


def test_experts_are_called_by_what_tells_them_apart(project: Path, models: list[Path]) -> None:
    cells = {
        Cell("a", "ema", "ema", "ties", 0): lineage(project, "a", models),
        Cell("b", "ema", "ema", "slerp", 0): lineage(project, "b", models[::-1]),
    }
    assert [experts.label for experts in vectors.of(project, cells).known] == ["ema, ties", "ema, slerp"]


def test_weights_that_are_not_here_are_left_out_with_the_command_that_brings_them(
    project: Path, models: list[Path]
) -> None:
    cell, records = Cell("demo", "zs", "all", "ties", 0), lineage(project, "demo", models)
    cache = Cache(dvc_config.cache_dir(project))
    for step in (1, 3):
        cache.path(records[step].manifest.outputs["data/step/expert.safetensors"].md5).unlink()
    found = vectors.of(project, {cell: records})
    assert found.known == ()
    (missing,) = found.missing
    assert missing.reason == "the experts of states 1, 3 are not in this clone's cache"
    assert missing.command == "for t in 1 3; do chronomerge restore $t --timeline demo; done"


def test_weights_that_were_let_go_are_not_promised(project: Path, models: list[Path]) -> None:
    cell, records = Cell("demo", "zs", "all", "ties", 0), lineage(project, "demo", models)
    commit = git(project, "rev-parse", "HEAD")
    gone = State(project, "demo", 1, commit)
    records[1] = Record(gone, records[1].manifest, records[1].metrics, records[1].params, records[1].outputs)
    Cache(dvc_config.cache_dir(project)).path(gone_md5(records)).unlink()
    retention.note(project, [gone])
    (missing,) = vectors.of(project, {cell: records}).missing
    assert missing.reason == "the weights of state 1 were let go (chronomerge gc)"
    assert missing.command is None


def gone_md5(records: list[Record]) -> str:
    return str(records[1].manifest.outputs["data/step/expert.safetensors"].md5)


def test_a_timeline_of_one_step_has_no_pairs(project: Path, models: list[Path]) -> None:
    records = lineage(project, "demo", models[:2])
    assert vectors.of(project, {Cell("demo", "zs", "all", "ties", 0): records}) == vectors.Vectors()
