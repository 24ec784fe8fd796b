"""Techniques on a device, a strict stand-in for a GPU: no array mixes with the host's, and results are the CPU's.

On a machine with CuPy and a GPU, the same tests run on it as well.
"""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tasks.errors import UserError
from tasks.merge import Accumulator, advance, available, create, merge
from tasks.merge.device import Cuda, Device, find_device
from tests.merge import strict
from tests.merge.models import Model, base, close, experts, same, seen, statistics_of

CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in sorted(available())),
    ("linear", {"lines": {}, "recency": "square"}),
    ("karcher", {"iterations": 0, "lines": {"alpha": "norm"}}),
    ("ties", {"scope": "tower", "normalize": False}),
    ("breadcrumbs", {"scope": "model", "normalize": True}),
    ("consensus", {"on": "ties", "scope": "tower"}),
    ("sce", {"scope": "model", "density": 0.3}),
    ("pcb", {"scope": "tensor", "density": 0.1}),
]
EXACT = {"linear", "fisher", "task_arithmetic", "ties", "magmax", "consensus"} | {
    name for name in available() if name.startswith(("dare", "della", "breadcrumbs"))
}
"""Elementwise, in the same order: the same bits."""


def devices() -> list[Any]:
    found: list[Any] = [pytest.param(strict.StrictDevice, id="strict")]
    try:
        find_device("cuda")
    except UserError:
        return found
    return [*found, pytest.param(lambda: Cuda(0), id="cuda")]


@pytest.fixture(params=devices())
def device(request: pytest.FixtureRequest) -> Device:
    made: Device = request.param()
    return made


def count_of(name: str) -> int:
    return available()[name].models[1] or 3


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("name", "settings"), CASES)
def test_a_device_gives_what_the_cpu_gives(name: str, settings: dict[str, Any], threads: int, device: Device) -> None:
    models = experts(count_of(name))
    given = seen(name, models)
    outcome = merge(name, models, base(), settings=settings, device=device, threads=threads, **given)
    expected = merge(name, models, base(), settings=settings, **given).tensors
    assert outcome.tensors is not None
    assert expected is not None
    assert outcome.report.device == device.name != "cpu"
    if name in EXACT:
        assert same(outcome.tensors, expected)
    else:
        close(outcome.tensors, expected, 2e-4 if name in ("tsv", "iso_c", "opcm", "pcb") else 1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_on_a_device(dtype: str, device: Device, tmp_path: Path) -> None:
    halves = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path, model in zip(halves, experts(2), strict=True):
        merge("linear", [model], out=path, dtype=dtype)
    merge("linear", halves, out=tmp_path / "cpu.safetensors")
    merge("linear", halves, out=tmp_path / "device.safetensors", device=device)
    assert (tmp_path / "cpu.safetensors").read_bytes() == (tmp_path / "device.safetensors").read_bytes()


@pytest.mark.parametrize("name", sorted(n for n, t in available().items() if t().sequential))
def test_a_running_state_on_a_device(name: str, device: Device, tmp_path: Path) -> None:
    technique = create(name, {})
    assert isinstance(technique, Accumulator)
    save_file(base(), tmp_path / "base.safetensors")
    previous = None
    for t, model in enumerate(experts(3), 1):
        save_file(model, tmp_path / "expert.safetensors")
        state = tmp_path / f"state-{t}"
        files = tmp_path / "expert.safetensors", tmp_path / "base.safetensors"
        given = {"statistics": statistics_of(model)} if technique.statistics else {}
        report = advance(technique, *files, previous, state, tmp_path / "out.safetensors", device=device, **given)
        previous = state
    assert report.device == device.name
    expected = merge(name, experts(3), base(), **seen(name, experts(3))).tensors
    assert expected is not None
    close(load_file(tmp_path / "out.safetensors"), expected, 2e-4)


def test_thresholds_over_large_tensors(device: Device) -> None:
    """Sampled on the host, searched on the device, by brackets and, where values are equal, by counting."""
    r = np.random.default_rng(3)
    zero = {"visual.a": np.zeros(60_000, np.float32), "visual.b": np.zeros(40_000, np.float32)}
    models: list[Model] = [
        {
            "visual.a": r.standard_normal(60_000).astype(np.float32),
            "visual.b": r.integers(-3, 4, 40_000).astype(np.float32),
        }
        for _ in range(2)
    ]
    for scope in ("tensor", "tower"):
        settings = {"scope": scope, "density": 0.2}
        on_device = merge("ties", models, zero, settings=settings, device=device).tensors
        expected = merge("ties", models, zero, settings=settings).tensors
        assert on_device is not None
        assert expected is not None
        assert same(on_device, expected)


def test_weights_that_are_not_finite_and_results_that_overflow(device: Device) -> None:
    broken = experts(1)[0]
    broken["text_projection"][3, 2] = np.nan
    with pytest.raises(UserError, match="'text_projection' holds NaN or infinity"):
        merge("ties", [broken], base(), device=device)
    big = {"w": np.full(3, 60000, np.float16)}
    with pytest.raises(UserError, match="the merged tensor 'w' overflows F16"):
        merge("linear", [big, big], settings={"normalize": False}, device=device)


class TestTheStandInIsStrict:
    """Else the tests above would show nothing."""

    def test_it_refuses_what_cupy_refuses(self) -> None:
        device = strict.StrictDevice()
        host = np.ones(3, np.float32)
        with device.active():
            x = device.put(host)
            for mistake in (
                lambda: x + host,
                lambda: np.add(host, x, out=host),
                lambda: np.asarray(x),
                lambda: np.array([x.sum(), x.sum()]),
                lambda: np.stack([x, host]),
                lambda: np.where(host > 0, x, x),
                lambda: x.__setitem__(slice(None), host),
                lambda: np.divide(x, x, where=x > 0),
                lambda: np.einsum("i,i->", x, x, casting="same_kind"),
                lambda: np.add.reduce(x),
                lambda: np.median(x),
            ):
                with pytest.raises(TypeError):
                    mistake()
            assert device.get(x + np.zeros(3, np.float32, like=x)).tolist() == [1, 1, 1]
        with pytest.raises(AssertionError, match=r"outside of Device\.active"):
            _ = x + 1

    def test_the_engine_brings_every_model_there(self) -> None:
        device = strict.StrictDevice()
        merge("linear", experts(3), device=device, slice_entries=10**6)
        assert device.moved == 3 * len(base())


def test_cupy_has_all_that_the_stand_in_allows() -> None:
    cupy = pytest.importorskip("cupy")
    for name in strict.UFUNCS | strict.FUNCTIONS | strict.CREATION:
        assert callable(reduce(getattr, name.split("."), cupy)), name
    for name in (*strict.METHODS, "T", "astype", "view", "sort"):
        assert hasattr(cupy.ndarray, name), name


def test_devices_by_name() -> None:
    assert find_device("cpu").name == "cpu"
    for name in ("gpu", "cuda:", "cuda:x", "cpu:0", ""):
        with pytest.raises(UserError, match=r"unknown device .*; there are cpu, cuda, and cuda:N"):
            find_device(name)


def test_without_cupy_or_a_gpu_a_merge_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    save_file(base(), tmp_path / "base.safetensors")
    # No machine has a hundred GPUs.
    with pytest.raises(UserError, match=r"device cuda:99: .*merge on the CPU"):
        merge("linear", [tmp_path / "base.safetensors"], out=tmp_path / "out.safetensors", device="cuda:99")
    assert [p.name for p in tmp_path.iterdir()] == ["base.safetensors"]
