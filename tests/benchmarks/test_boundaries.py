"""What benchmarks use of the product and of its tests moves and is renamed."""

import importlib
import runpy
import sys
from operator import attrgetter
from pathlib import Path

import pytest
from crashing.boundaries import BOUNDARIES, Boundary

from tests.project import ROOT


@pytest.mark.parametrize("program", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda program: program.stem)
def test_what_a_benchmark_imports_is_there(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    runpy.run_path(str(program), run_name="imported")


@pytest.mark.parametrize("boundary", BOUNDARIES, ids=lambda boundary: boundary.name)
def test_a_boundary_is_a_function_of_the_product(boundary: Boundary) -> None:
    module, _, path = boundary.target.partition(":")
    assert callable(attrgetter(path)(importlib.import_module(module)))
