"""Sequential forms: one expert and a running state give what all experts give, for every technique that has one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tasks.errors import UserError
from tasks.merge import Accumulator, advance, available, create, has_sequential_form, merge
from tests.merge.models import Model, base, experts, same, seen, statistics_of

FORMS: list[tuple[str, dict[str, Any]]] = [
    ("linear", {}),
    ("linear", {"recency": "exponential"}),
    ("linear", {"recency": "x5", "lines": {}}),
    ("task_arithmetic", {}),
    ("ties", {}),
    ("ties", {"scope": "tower", "density": 0.5}),
    ("dare_linear", {}),
    ("dare_ties", {"lines": {"alpha": 0.2}}),
    ("breadcrumbs", {"scope": "model"}),
    ("breadcrumbs_ties", {"density": 0.3}),
    ("della", {}),
    ("della_linear", {}),
    ("magmax", {}),
    ("karcher", {"iterations": 0}),
    ("iso_c", {}),
    ("opcm", {}),
    ("emr", {}),
    ("wudi", {}),
    ("dop", {}),
    ("fisher", {}),
    ("fisher", {"normalize": "none", "floor": 0.3, "prior": 0.5, "forgetting": 0.7}),
    ("regmean", {}),
    ("regmean", {"offdiagonal": 0.5, "ridge": 0.1, "lines": {}}),
]


def sequence(folder: Path, name: str, settings: dict[str, Any], models: list[Model], **arguments: Any) -> Model:
    """The merge of all, one expert at a time; each state is handed on and the one before removed."""
    technique = create(name, settings)
    assert isinstance(technique, Accumulator)
    save_file(base(), folder / "base.safetensors")
    previous = None
    for t, model in enumerate(models, 1):
        save_file(model, folder / "expert.safetensors")
        state = folder / f"state-{t}"
        given = {"statistics": statistics_of(model)} if technique.statistics else {}
        report = advance(
            technique,
            folder / "expert.safetensors",
            folder / "base.safetensors",
            previous,
            state,
            folder / "out.safetensors",
            seed=7,
            **given,
            **arguments,
        )
        assert (report.form, report.experts) == ("sequential", t)
        previous = state
    return load_file(folder / "out.safetensors")


@pytest.mark.parametrize("seed", [3, 4])
@pytest.mark.parametrize(("name", "settings"), FORMS)
def test_it_gives_the_bits_of_the_batch_form(name: str, settings: dict[str, Any], seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    models = [experts(4)[i] for i in random.permutation(4)]
    length = int(random.integers(1, 300))
    one_by_one = sequence(tmp_path, name, settings, models, slice_entries=length, threads=2)
    together = merge(name, models, base(), settings=settings, seed=7, threads=1, **seen(name, models)).tensors
    assert together is not None
    assert same(one_by_one, together)
    assert has_sequential_form(name, settings)


@pytest.mark.parametrize("shift", [0.001, 0.5])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_model_stock_is_its_batch_form_up_to_a_millionth_in_its_ratio(count: int, shift: float, tmp_path: Path) -> None:
    zero, models = base(), experts(count, shift=shift)
    one_by_one = sequence(tmp_path, "model_stock", {}, models, slice_entries=100)
    together = merge("model_stock", models, zero).tensors
    assert together is not None
    for name, expected in together.items():
        mean = np.mean([m[name] - zero[name] for m in models], axis=0)
        bound = 1e-6 * np.abs(mean) + np.spacing(np.abs(expected))
        assert (np.abs(one_by_one[name] - expected) <= bound).all(), name


def test_every_sequential_form_is_tested() -> None:
    assert {n for n, t in available().items() if t().sequential} <= {name for name, _ in FORMS} | {"model_stock"}


@pytest.mark.parametrize(
    ("name", "settings"),
    [("consensus", {}), ("pcb", {}), ("tsv", {}), ("iso_cts", {}), ("sce", {}), ("karcher", {}), ("slerp", {}),
     ("linear", {"recency": "square", "reverse": True})],
)  # fmt: skip
def test_without_a_sequential_form(name: str, settings: dict[str, Any]) -> None:
    assert not has_sequential_form(name, settings)


def test_a_state_costs_the_same_at_every_step(tmp_path: Path) -> None:
    sequence(tmp_path, "ties", {}, experts(4))
    sizes = [sum(f.stat().st_size for f in (tmp_path / f"state-{t}").glob("*.safetensors")) for t in (1, 2, 3, 4)]
    assert len(set(sizes)) == 1


def test_a_state_of_other_settings_is_refused(tmp_path: Path) -> None:
    sequence(tmp_path, "ties", {"density": 0.3}, experts(1))
    technique = create("ties", {"density": 0.2})
    assert isinstance(technique, Accumulator)
    with pytest.raises(UserError, match="the running state was made by ties"):
        advance(
            technique,
            tmp_path / "expert.safetensors",
            tmp_path / "base.safetensors",
            tmp_path / "state-1",
            tmp_path / "state-2",
            tmp_path / "out2.safetensors",
        )
    assert not (tmp_path / "out2.safetensors").exists()


def test_a_technique_without_a_sequential_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ties has no sequential form with these settings"):
        sequence(tmp_path, "ties", {"lines": {"alpha": "norm"}}, experts(1))


def test_draws_depend_on_the_expert_and_not_on_its_place() -> None:
    x, y = experts(2)
    for name in ("dare_linear", "della_linear"):
        settings = {"scale": 1.0}
        alone = [merge(name, [m], base(), settings=settings).tensors for m in (x, y)]
        both = [merge(name, pair, base(), settings=settings).tensors for pair in ([x, y], [y, x])]
        assert both[0] is not None
        assert both[1] is not None
        assert alone[0] is not None
        assert alone[1] is not None
        for key, zero in base().items():
            np.testing.assert_allclose(both[0][key], alone[0][key] + alone[1][key] - zero, atol=1e-5)
            np.testing.assert_allclose(both[0][key], both[1][key], atol=1e-5)
        other_seed = merge(name, [x], base(), settings=settings, seed=1).tensors
        assert other_seed is not None
        assert not same(other_seed, alone[0])
