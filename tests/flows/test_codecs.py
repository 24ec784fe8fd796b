"""The expert store in a timeline, for real: recorded, restored, verified, handed on; the same weights as in full."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tasks import layout
from tasks.model import coded
from tasks.record import timelines, verification
from tasks.record.state import State
from tasks.storage import dvc_config
from tasks.storage.cache import Cache, md5_of
from tests import project as projects
from tests.project import chronomerge, git, program

pytestmark = pytest.mark.usefixtures("forked_children")

STREAM = [*projects.PARAMS["stream"], {"name": "third", "update": ["images:drawings/base#train"]}]
PROTOCOLS: dict[str, dict[str, Any]] = {
    # Each reads experts of earlier steps in another place; by another seed none has an expert of another.
    "ema": {"seed": 1, "time": {"init": "ema", "deploy": "ema"}},
    "ft-init": {"seed": 2, "time": {"init": "ft", "deploy": "ema", "ema_start": "first-expert"}},
    "batch": {"seed": 3, "time": {"init": "zs", "deploy": "all", "technique": {"name": "karcher"}}},
}
FULL = {"threads": 1, "stream": STREAM, "train": {"steps": 4, "batch_size": 8}}


def record(folder: Path, prefect_api: dict[str, str], *args: str, **changes: Any) -> list[State]:
    """Run a timeline, and another with the codec ``lossless`` in the same project; the states of both."""
    projects.write_params(folder, **{**FULL, **changes})
    chronomerge(folder, "run", *args, **prefect_api)
    return timelines.states(folder, changes["timeline"])


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return projects.make(tmp_path_factory.mktemp("codecs") / "project", **FULL)


@pytest.fixture(scope="module", params=[pytest.param(one, marks=pytest.mark.long) for one in PROTOCOLS])
def twins(
    request: pytest.FixtureRequest, project: Path, prefect_api: dict[str, str]
) -> tuple[list[State], list[State]]:
    """The states of one protocol: as they are by default, and with the codec ``lossless``."""
    name, protocol = request.param, PROTOCOLS[request.param]
    plain = record(project, prefect_api, timeline=f"{name}-full", **protocol)
    small = record(project, prefect_api, timeline=f"{name}-coded", store={"experts": "lossless"}, **protocol)
    return plain, small


@pytest.mark.slow
def test_lossless_makes_the_models_and_metrics_that_full_makes(twins: tuple[list[State], list[State]]) -> None:
    plain, small = twins
    assert [state.step for state in small] == [0, 1, 2, 3]
    assert small[0].entries[layout.EXPERT] == plain[0].entries[layout.EXPERT]
    for one, other in zip(plain[1:], small[1:], strict=True):
        assert one.entries[layout.DEPLOYED] == other.entries[layout.DEPLOYED]
        assert one.metrics == other.metrics
        expert, coding = one.entries[layout.EXPERT], other.manifest.coded
        assert coding is not None
        assert (coding.decoded.md5, coding.decoded.size, coding.error) == (expert.md5, expert.size, 0)
        assert layout.EXPERT not in other.entries
        assert other.entries[layout.CODED_EXPERT].size < 0.8 * expert.size
        if one.step > 1:  # at the first, the running model may be the expert, in full
            assert other.manifest.bytes.new < one.manifest.bytes.new


@pytest.mark.slow
def test_git_and_dvc_alone_bring_the_state_and_repro_does_nothing(
    twins: tuple[list[State], list[State]], project: Path, tmp_path: Path
) -> None:
    state = twins[1][-1]
    restored = state.restore(tmp_path / "restored").folder
    about = state.manifest.coded
    assert about is not None
    assert md5_of(restored / layout.EXPERT) == about.decoded.md5
    assert md5_of(restored / layout.CODED_EXPERT) == state.entries[layout.CODED_EXPERT].md5
    environment = {
        "DVC_NO_ANALYTICS": "1",
        "PATH": str(Path(program("python")).parent) + ":/usr/bin:/bin",
        "HOME": str(tmp_path),
    }
    shutil.rmtree(restored / "data/step")  # what `git checkout` of another state and `dvc checkout` would do
    for command in (["checkout"], ["repro"]):
        done = subprocess.run(
            [program("dvc"), *command], cwd=restored, env=environment, capture_output=True, text=True, check=True
        )
    assert "Data and pipelines are up to date." in done.stdout
    assert not (restored / layout.EXPERT).exists()
    said = chronomerge(restored, "decode").stdout
    assert "coded by lossless, every bit of it" in said
    assert md5_of(restored / layout.EXPERT) == about.decoded.md5
    assert (
        "Data and pipelines are up to date."
        in subprocess.run(
            [program("dvc"), "status"], cwd=restored, env=environment, capture_output=True, text=True, check=True
        ).stdout
    )
    git(project, "worktree", "remove", "--force", str(restored))


@pytest.mark.slow
def test_verify_makes_every_coded_state_again(twins: tuple[list[State], list[State]]) -> None:
    for state in twins[1][2:]:
        assert state.verify().same


@pytest.mark.slow
def test_what_gc_took_from_the_cache_comes_from_the_store_and_is_decoded(
    twins: tuple[list[State], list[State]], project: Path, tmp_path: Path
) -> None:
    state = twins[1][1]
    chronomerge(project, "gc", "--keep-last", "1", "--delete")
    lacking = Cache(dvc_config.cache_dir(project)).missing(state.entries[layout.CODED_EXPERT])
    assert bool(lacking) == (state.timeline != "batch-coded")  # there every later step reads it
    restored = state.restore(tmp_path / "restored")
    assert restored.fetched > 0
    about = state.manifest.coded
    assert about is not None
    assert md5_of(restored.folder / layout.EXPERT) == about.decoded.md5
    git(project, "worktree", "remove", "--force", str(restored.folder))
    assert chronomerge(project, "doctor").returncode == 0


@pytest.fixture(scope="module")
def mixed(project: Path, prefect_api: dict[str, str]) -> list[State]:
    """A timeline that stores its first expert in full, and later ones with loss."""
    protocol = {"timeline": "mixed", "time": {"init": "ft", "deploy": "all", "technique": {"name": "karcher"}}}
    record(project, prefect_api, "--until", "1", **protocol)
    record(project, prefect_api, "--until", "2", store={"experts": "signs"}, **protocol)
    store = {"experts": {"name": "ternary", "density": 0.2}}
    return record(project, prefect_api, store=store, **protocol)


@pytest.mark.slow
def test_the_codec_may_change_in_a_timeline_and_recorded_states_stay(mixed: list[State], tmp_path: Path) -> None:
    assert [state.manifest.coded is None for state in mixed] == [True, True, False, False]
    members = Cache(dvc_config.cache_dir(mixed[3].project)).members(mixed[3].entries[layout.HISTORY])
    experts = {name: md5 for name, md5 in members.items() if name.startswith("weights/experts/")}
    one, two = mixed[1].entries[layout.EXPERT], mixed[2].entries[layout.CODED_EXPERT]
    assert experts == {"weights/experts/0001.safetensors": one.md5, "weights/experts/0002.weights": two.md5}
    # The expert that training starts from is stored once, coded or not.
    assert mixed[2].entries[layout.CODED_INIT].md5 == one.md5
    assert mixed[3].entries[layout.CODED_INIT].md5 == two.md5
    for state, most in ((mixed[2], 0.05), (mixed[3], 0.05)):
        about = state.manifest.coded
        assert about is not None
        assert 0 < about.error < 1
        assert state.entries[layout.CODED_EXPERT].size < most * about.decoded.size
        restored = state.restore(tmp_path / state.name).folder
        assert md5_of(restored / layout.EXPERT) == about.decoded.md5
        assert coded.load(restored / layout.CODED_EXPERT, restored / layout.BASE).keys()
        git(state.project, "worktree", "remove", "--force", str(restored))
        assert state.verify().same


@pytest.mark.slow
def test_another_zstd_that_writes_other_bytes_for_the_same_weights_is_no_difference(
    mixed: list[State], tmp_path: Path
) -> None:
    state = mixed[3]
    (tmp_path / layout.CODED_EXPERT).parent.mkdir(parents=True)
    content = Cache(dvc_config.cache_dir(state.project)).path(state.entries[layout.CODED_EXPERT].md5).read_bytes()
    about = rb"\"error\":0."
    assert content.count(about) == 1
    (tmp_path / layout.CODED_EXPERT).write_bytes(content.replace(about, rb"\"error\":1."))
    outputs = {layout.CODED_EXPERT: ("what was recorded", "what came out")}
    assert verification._checked(state, tmp_path, "train", outputs).differing == []
    digest = state.manifest.coded.decoded.md5.encode()  # type: ignore[union-attr]
    (tmp_path / layout.CODED_EXPERT).write_bytes(content.replace(digest, b"0" * 32))
    assert verification._checked(state, tmp_path, "train", outputs).differing == [layout.CODED_EXPERT]


@pytest.mark.slow
def test_a_coded_expert_that_is_damaged_in_the_cache_is_named_and_comes_again(
    mixed: list[State], project: Path, tmp_path: Path
) -> None:
    path = Cache(dvc_config.cache_dir(project)).path(mixed[3].entries[layout.CODED_EXPERT].md5)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    done = chronomerge(project, "verify", "3", "--timeline", "mixed", "--quick", check=False)
    assert done.returncode == 1
    assert f"damaged: {layout.CODED_EXPERT} of state/mixed/0003" in done.stdout
    restored = mixed[3].restore(tmp_path / "restored")
    assert restored.damaged == (layout.CODED_EXPERT,)
    assert (restored.folder / layout.EXPERT).exists()
    git(project, "worktree", "remove", "--force", str(restored.folder))


STEPS = int(os.environ.get("CHRONOMERGE_STREAM_STEPS", "50"))
KILLS = 10
LORA = {"time": {"init": "zs", "deploy": "ema"}, "train": {**FULL["train"], "method": "lora"}}
STORES: dict[str, dict[str, Any]] = {
    "full": {},
    "lossless": {"store": {"experts": "lossless"}},
    "ternary": {"store": {"experts": "ternary"}, "time": {"init": "ft", "deploy": "ema"}},
    "signs": {"store": {"experts": "signs"}},
    "adapter": {"store": {"experts": "adapter"}, **LORA},
}


@pytest.mark.long
@pytest.mark.parametrize("codec", sorted(STORES))
def test_a_long_stream_killed_at_random_moments_has_the_same_bytes_and_restores(
    codec: str, tmp_path: Path, prefect_api: dict[str, str]
) -> None:
    pools = [f"images:drawings/{pool}#{part}" for pool in ("first", "second", "base") for part in ("train", "test")]
    stream = [{"name": f"arrival-{t}", "update": [pools[t % len(pools)]]} for t in range(STEPS)]
    evaluate = {**projects.PARAMS["evaluate"], "allow_overlap": True}
    changes = {**FULL, "stream": stream, "evaluate": evaluate, **STORES[codec]}
    calm, folder = (projects.make(tmp_path / name, **changes) for name in ("calm", "killed"))
    began = time.monotonic()
    chronomerge_without_limit(calm, prefect_api)
    seconds = time.monotonic() - began
    expected = {state.tag: {path: entry.md5 for path, entry in state.entries.items()} for state in every(calm)}
    moments = random.Random(codec)
    for _ in range(KILLS):
        process = projects.start(folder, "run", **prefect_api)
        time.sleep(moments.uniform(0.02, 1.5 / KILLS) * seconds)
        projects.kill(process)
    chronomerge_without_limit(folder, prefect_api)
    assert {s.tag: {path: entry.md5 for path, entry in s.entries.items()} for s in every(folder)} == expected
    for state in moments.sample(every(folder), 3):
        restored = state.restore(tmp_path / state.name).folder
        about = state.manifest.coded
        assert md5_of(restored / layout.EXPERT) == (about.decoded.md5 if about else state.entries[layout.EXPERT].md5)
        assert state.verify().same


def every(folder: Path) -> list[State]:
    return timelines.states(folder, "tiny")


def chronomerge_without_limit(folder: Path, prefect_api: dict[str, str]) -> None:
    """Run all pending steps, however long they take."""
    process = projects.start(folder, "run", **prefect_api)
    assert process.wait() == 0
