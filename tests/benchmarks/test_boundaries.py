"""The crash matrix strikes at functions of the product, which move and are renamed."""

import importlib
from operator import attrgetter

import pytest
from crashing.boundaries import BOUNDARIES, Boundary


@pytest.mark.parametrize("boundary", BOUNDARIES, ids=lambda boundary: boundary.name)
def test_a_boundary_is_a_function_of_the_product(boundary: Boundary) -> None:
    module, _, path = boundary.target.partition(":")
    assert callable(attrgetter(path)(importlib.import_module(module)))
