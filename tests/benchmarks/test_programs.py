"""Every benchmark runs, small: what it measures here means nothing, that it ends and reports does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import postgres
from tests import project as projects
from tests.project import ROOT, chronomerge

pytestmark = pytest.mark.long


def ran(*command: object, status: tuple[int, ...] = (0,), **environment: str) -> str:
    """What a benchmark prints; it may say that a goal is missed where ``status`` has 1 in it."""
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT / "benchmarks", env={**os.environ, **environment},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode in status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_prepared_images() -> None:
    assert "jpeg, original" in ran("prepared.py", "--count", 8, "--size", 32)


def test_preparing() -> None:
    assert ran("prepare.py", "--count", 24, "--size", 32, "--repeat", 1).count(" equal") == 3


@pytest.mark.skipif("CLIP_BENCHMARK_PYTHON" not in os.environ, reason="set it to a Python that has clip-benchmark")
def test_scores_beside_clip_benchmark() -> None:
    assert "acc1" in ran("clip_benchmark.py", "--python", os.environ["CLIP_BENCHMARK_PYTHON"], "--count", 60)


def test_recording() -> None:
    assert "goal" in ran("record.py", "--megabytes", 20, "--repeat", 1, status=(0, 1))


def test_transfers() -> None:
    assert "of boto3's speed" in ran("transfer.py", "--megabytes", 20, "--small", 5, "--repeat", 1, status=(0, 1))


def test_startup() -> None:
    assert "a recorded state" in ran("startup.py", "--repeat", 1, status=(0, 1))


def test_overhead_and_a_fresh_clone(tmp_path: Path) -> None:
    assert "nodes" in ran("overhead.py", "--until", 1, "--keep", tmp_path / "project")
    ran("fresh_clone.py", tmp_path / "project")


@pytest.mark.parametrize("only", ["grid", "nodes"])
def test_scaling(only: str, tmp_path: Path) -> None:
    ran("scaling.py", "--only", only, "--results", tmp_path / "results.json")


def test_grid(tmp_path: Path) -> None:
    cells = {"init": ["zs"], "deploy": ["ema"], "technique": ["linear"], "references": []}
    folder = projects.make(tmp_path / "project", grid=cells)
    chronomerge(folder, "grid", PYTHONDONTWRITEBYTECODE="1")
    assert "nodes" in ran("grid.py", folder, "--parallel", 1)


@pytest.mark.skipif(postgres.programs() is None, reason="no PostgreSQL")
def test_servers() -> None:
    assert "PostgreSQL" in ran("servers.py", "--tasks", 5, "--repeat", 1)


def test_training(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path]
    subprocess.run([*pip, "webdataset", "braceexpand"], check=True)
    small = ("--model", "demo", "--steps", 8, "--batch", 8, "--threads", 1)
    assert "samples/s" in ran("train.py", *small, "--peer", tmp_path)


def test_techniques(tmp_path: Path) -> None:
    small = ("--seeds", 0, "--arrivals", 1, "--steps", 2, "--techniques", "fisher", "paint", "--deploy", "all")
    printed = ran("techniques.py", "--keep", tmp_path / "project", *small)
    assert "| fisher | " in printed
    assert "| paint | " in printed


def test_heads() -> None:
    small = ("--classes", 20, "--width", 16, "--queries", 50, "--threads", 1, "--peer", "--linear")
    assert "scikit-learn LDA" in ran("heads.py", *small)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A timeline of two steps."""
    folder = projects.make(tmp_path_factory.mktemp("recorded") / "project")
    chronomerge(folder, "run")
    return folder


def test_compatibility(recorded: Path) -> None:
    said = ran("compatibility.py", "--project", recorded, "--timeline", "tiny", "--probe", 50)
    assert "3 states, 48 queries in 3 sets" in said
    assert "recall@1: compatible pairs" in said


def test_few_shots(recorded: Path) -> None:
    said = ran("fewshot.py", "--project", recorded, "--timeline", "tiny", "--draws", 2, "--peer", "--linear")
    assert "scikit-learn logistic regression" in said
    assert "2 sets" in said
    assert "12 classes, base features" in said
    said = ran("fewshot.py", "--project", recorded, "--timeline", "tiny", "--draws", 1, "--step", 1, "--sets", "first")
    assert "8 classes, base features" in said
    assert "1 sets" in said


def test_converting() -> None:
    assert "transformers, load and save" in ran("convert.py", "--model", "tiny", "--repeat", 1)


def test_routed_deployment(tmp_path: Path) -> None:
    (tmp_path / "tiny.json").write_text(json.dumps(projects.MODEL))
    small = ("--experts", 2, "--images", 4, "--batches", 2, "--codecs", "full", "ternary", "--resident", 1)
    said = ran("routed.py", "--model", tmp_path / "tiny.json", *small)
    assert [line.split("  ")[0] for line in said.splitlines()[2:]] == [
        "merged", "full, 1 resident", "ternary, 1 resident"
    ]  # fmt: skip


def test_codecs() -> None:
    small = ("--change", 1e-3, "--repeat", 1, "--codec", "lossless")
    for weights in (("--megabytes", 10), ("--model", "ViT-S-32-alt", "--experts", 1)):
        assert "lossless" in ran("codecs.py", *weights, *small)


def test_simulation() -> None:
    assert ran("simulate.py", "--arrivals", 5, "--model", "ViT-B-32")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts small file systems")
@pytest.mark.parametrize("what", [("--cases", 12), ("--random", 6)], ids=["matrix", "random"])
def test_crashes(what: tuple[str, int]) -> None:
    assert " 0 failures" in ran("crash.py", "--seed", 7, *what)
