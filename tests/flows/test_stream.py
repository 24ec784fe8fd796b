"""What a stream may be: experts trained elsewhere, streams that grow, protocols of all kinds, bad experts."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks import layout
from tasks.record import timelines
from tasks.storage import dvc_config
from tasks.storage.cache import Cache
from tests import project as projects
from tests.project import chronomerge, git

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, prefect_api: dict[str, str]) -> Path:
    """A timeline that recorded its base and a first step, to which an expert is then appended."""
    folder = projects.make(tmp_path_factory.mktemp("grown") / "project")
    chronomerge(folder, "run", "--until", "1", **prefect_api)
    chronomerge(folder, "restore", "1", "--to", str(folder / "elsewhere"))
    weights = load_file(folder / "elsewhere" / "data" / "step" / "expert.safetensors")
    save_file({k: t + 0.01 for k, t in weights.items()}, folder / "elsewhere" / "vendor.safetensors")
    return folder


def stream(*more: dict[str, object]) -> list[object]:
    return [projects.PARAMS["stream"][0], *more]


def test_an_expert_with_other_shapes_is_refused(grown: Path, prefect_api: dict[str, str]) -> None:
    weights = load_file(grown / "elsewhere" / "vendor.safetensors")
    name = next(k for k, t in weights.items() if t.ndim == 2)
    save_file({**weights, name: torch.zeros(3, 3)}, grown / "elsewhere" / "other.safetensors")
    projects.write_params(grown, stream=stream({"name": "vendor", "expert": "elsewhere/other.safetensors"}))
    done = chronomerge(grown, "run", check=False, **prefect_api)
    assert done.returncode == 2
    assert name in done.stderr
    assert "[3, 3]" in done.stderr
    assert projects.tags(grown) == ["state/tiny/0000", "state/tiny/0001"]


def test_an_expert_with_nan_is_refused(grown: Path, prefect_api: dict[str, str]) -> None:
    weights = load_file(grown / "elsewhere" / "vendor.safetensors")
    name = next(k for k, t in weights.items() if t.ndim == 2)
    save_file({**weights, name: weights[name] * float("nan")}, grown / "elsewhere" / "nan.safetensors")
    projects.write_params(grown, stream=stream({"name": "vendor", "expert": "elsewhere/nan.safetensors"}))
    done = chronomerge(grown, "run", check=False, **prefect_api)
    assert done.returncode == 2
    assert name in done.stderr
    assert len(projects.tags(grown)) == 2


def test_an_expert_trained_elsewhere_is_a_step(grown: Path, prefect_api: dict[str, str]) -> None:
    projects.write_params(grown, stream=stream({"name": "vendor", "expert": "elsewhere/vendor.safetensors"}))
    chronomerge(grown, "step", **prefect_api)
    manifest = json.loads(git(grown, "show", "state/tiny/0002:manifest.json"))
    assert manifest["arrival"] == "vendor"
    assert manifest["code"]["dirty"]  # params.yaml was edited and not committed: the state has it all the same
    chronomerge(grown, "restore", "2", "--to", str(grown / "elsewhere" / "two"))
    step = grown / "elsewhere" / "two" / "data" / "step"
    vendor, expert = load_file(grown / "elsewhere" / "vendor.safetensors"), load_file(step / "expert.safetensors")
    assert all(torch.equal(vendor[k], expert[k]) for k in vendor)
    before = load_file(grown / "elsewhere" / "data" / "step" / "deployed.safetensors")
    merged = load_file(step / "deployed.safetensors")
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, (vendor[name] + before[name]) / 2)


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("seed", {"seed": 5}),
        ("time", {"time": {"init": "ft"}}),
        ("arrival 'other'", {"stream": [{"name": "other", "update": ["images:drawings/first#train"]}]}),
        ("the stream has 0 arrivals", {"stream": []}),
    ],
)
def test_what_made_recorded_states_may_not_change_under_them(grown: Path, key: str, changes: dict[str, object]) -> None:
    projects.write_params(grown, **changes)
    done = chronomerge(grown, "run", check=False)
    assert done.returncode == 2
    assert key in done.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    "time",
    [
        {"init": "zs", "deploy": "all"},
        {"init": "ft", "deploy": "ft"},
        {"init": "ema", "deploy": "ft", "ema_start": "first-expert", "technique": {"name": "slerp", "t": 0.3}},
    ],
    ids=lambda time: f"{time['init']}-{time['deploy']}",
)
def test_other_protocols(grown: Path, prefect_api: dict[str, str], time: dict[str, object]) -> None:
    timeline = f"{time['init']}-{time['deploy']}"
    projects.write_params(grown, timeline=timeline, time=time)
    chronomerge(grown, "run", **prefect_api)
    weights = {}
    for step in range(3):
        entries, cache = timelines.find(grown, timeline, step).entries, Cache(dvc_config.cache_dir(grown))
        read = {"init": layout.INIT, "expert": layout.EXPERT, "deployed": layout.DEPLOYED}
        weights[step] = {name: load_file(cache.path(entries[path].md5)) for name, path in read.items()}
    base, experts = weights[0]["expert"], [weights[t]["expert"] for t in (1, 2)]
    name = next(k for k, t in base.items() if t.ndim == 2)
    if time["init"] == "zs":
        assert torch.equal(weights[2]["init"][name], base[name])
        torch.testing.assert_close(weights[2]["deployed"][name], (experts[0][name] + experts[1][name]) / 2)
    elif time["init"] == "ft":
        assert torch.equal(weights[2]["init"][name], experts[0][name])
        assert torch.equal(weights[2]["deployed"][name], experts[1][name])
    else:  # the recursion starts at the first expert, so that is where the second step starts
        assert torch.equal(weights[2]["init"][name], experts[0][name])
        assert torch.equal(weights[2]["deployed"][name], experts[1][name])
