"""Evaluation divided among workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.evaluate import parts
from tasks.evaluate.node import METRICS, SETS, evaluate
from tasks.params import Params
from tests.evaluate.test_retrieval import PAIRS, drawings
from tests.train.project import dataset, params


@pytest.fixture
def settings(folder: Path) -> Params:
    """Params with sets of 8, 7 and 6 samples with classes, two of them with one class list, and one of pairs."""
    dataset(folder / SETS / "more", 7, noise=3)
    drawings(folder / SETS / "pairs", PAIRS)
    names = {"adaptation": ("seen", "pairs", "more"), "retention": ("kept",)}
    return params(
        0, evaluate={role: [{"name": one, "test": [f"folder:{one}"]} for one in sets] for role, sets in names.items()}
    )


def test_parts_join_to_the_bytes_of_the_whole(folder: Path, settings: Params) -> None:
    """Nothing of a score depends on the sets beside it, not even its last bit."""
    evaluate(folder, settings)
    wanted = (folder / METRICS).read_bytes()
    (folder / METRICS).unlink()
    results = []
    for part in reversed(parts.divide(folder, settings, 3)):
        parts.run(part.names, folder, settings)
        results.append((folder / parts.RESULT).read_bytes())
    parts.join(folder, settings, results)
    assert (folder / METRICS).read_bytes() == wanted


def test_parts_have_about_as_many_samples_each_and_read_no_others(folder: Path, settings: Params) -> None:
    names = [set(part.names) for part in parts.divide(folder, settings, 2)]
    sizes = {"seen": 8, "more": 7, "kept": 6, "pairs": len(PAIRS)}
    assert set.union(*names) == sizes.keys()
    assert not set.intersection(*names)
    assert {sum(sizes[name] for name in part) for part in names} == {14}
    for part in parts.divide(folder, settings, 2):
        others = sizes.keys() - set(part.names)
        assert {Path(path).name for path in part.spared} == {*others, "expert.safetensors"}  # no own set at step 0


def test_one_worker_or_one_set_is_not_divided(folder: Path, settings: Params) -> None:
    assert parts.divide(folder, settings, 1) == []
    assert len(parts.divide(folder, settings, 100)) == 4
