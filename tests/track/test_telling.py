"""Trackers are told of recorded states; one that fails, hangs or is missing stops nothing. MLflow is the real one."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import socket
import sqlite3
from collections.abc import Collection, Iterator
from pathlib import Path

import mlflow
import psutil
import pytest

from tasks import layout, progress, track
from tasks.errors import UserError
from tasks.params import Named, Params, load, parse
from tasks.publish import public
from tasks.storage.dvc import Dvc
from tasks.storage.dvc_config import Remote
from tasks.track import telling
from tasks.track.tracker import Told, of
from tests.project import PARAMS
from tests.record import made_up

CURVE = b"step,loss,lr\n0,2.5,0.001\n5,1.25,nan\n"


@pytest.fixture
def project(tmp_path: Path, dvc: Dvc, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with two recorded states; MLflow's store is a folder."""
    folder = made_up.project(tmp_path / "project", remote(tmp_path))
    for _ in range(2):
        made_up.record(folder, remote(tmp_path), dvc, instead={f"{layout.TRAINING}/curve.csv": CURVE})
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    return folder


def remote(folder: Path) -> Remote:
    return Remote("there", str(folder / "remote"))


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []

    def listen(what: str, _done: int, _total: int, note: str = "") -> None:
        lines.append(f"{what} {note}")

    with progress.also(listen):
        yield lines


def params(project: Path, *trackers: object) -> Params:
    return load(project / "params.yaml").model_copy(update={
        "track": parse(json.dumps({**PARAMS, "track": list(trackers)}), project / "params.yaml").track
    })  # fmt: skip


def runs(experiment: str = "chronomerge") -> list[mlflow.entities.Run]:
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id]))


def test_mlflow_has_params_metrics_by_step_and_files_by_hash(
    project: Path, tmp_path: Path, dvc: Dvc, said: list[str]
) -> None:
    assert track.tell(project, params(project, "mlflow")) == 0, said
    (run,) = runs()
    assert run.data.tags["chronomerge.timeline"] == "x"
    assert run.data.params["train.steps"] == str(PARAMS["train"]["steps"])
    assert not [key for key in run.data.params if key.startswith(("store", "hooks"))]
    state = made_up.record(project, remote(tmp_path), dvc)
    assert run.data.tags[f"state/x/0001/{layout.DEPLOYED}"]
    assert track.tell(project, params(project, "mlflow")) == 0
    (run,) = runs()
    assert run.data.tags[f"{state.tag}/{layout.DEPLOYED}"] == state.entries[layout.DEPLOYED].md5
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "geometric_mean")
    assert [(point.step, point.value) for point in history] == [(0, 1.4), (1, 1.4), (2, 1.4)]
    losses = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/0001/loss")
    assert [(point.step, point.value) for point in losses] == [(0, 2.5), (5, 1.25)]
    assert next((tmp_path / "mlruns").rglob("state/x/0001/curve.csv")).read_bytes() == CURVE
    manifest = json.loads(next((tmp_path / "mlruns").rglob("state/x/0002/manifest.json")).read_text())
    assert manifest == public.manifest(state.manifest.as_dict())
    assert track.tell(project, params(project, {"name": "mlflow", "project": "other"})) == 0  # known already
    assert len(runs()) == 1


def test_mlflow_has_every_metric_and_param_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow refuses all that it is sent at once for one name with an ``@``, or one that would lead out of a folder."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    metrics = {"head.tip@4/food": 1.0, "image_to_text_recall@5/food": 2.0, "top1/../../x": 3.0, "top1/<script>": 4.0}
    told = Told(
        step=1, tag="state/x/0001", commit="c", recorded_at="2026-01-01T00:00:00+00:00", metrics=metrics,
        files={"../../x": "m", "/etc/passwd": "n"}, curve="step,l@ss\n0,5\n", manifest={},
    )  # fmt: skip
    of(Named(name="mlflow")).send("x", {"a.../../b": "v", "train.lr": "1", "k" * 300: "w"}, [told], tmp_path)
    (run,) = runs()
    assert run.data.metrics == {
        "head.tip_4/food": 1.0, "image_to_text_recall_5/food": 2.0, "top1/_/_/x": 3.0, "top1/_script_": 4.0,
        "train/0001/l_ss": 5.0,
    }  # fmt: skip
    assert run.data.params == {"a.../_/b": "v", "train.lr": "1", "k" * 250: "w"}
    assert {key: value for key, value in run.data.tags.items() if value in "mn"} == {
        "state/x/0001/_/_/x": "m", "state/x/0001/_/etc/passwd": "n",
    }  # fmt: skip


def needs(module: str) -> pytest.MarkDecorator:
    """Of trackers that are no part of what tests install."""
    there = importlib.util.find_spec(module) is not None
    return pytest.mark.skipif(not there, reason=f"{module} is not installed; pip install -e '.[{module}]'")


@needs("trackio")
def test_trackio_has_metrics_by_step_and_each_state_as_an_artifact(
    project: Path, tmp_path: Path, dvc: Dvc, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    assert track.tell(project, params(project, "trackio")) == 0, said
    state = made_up.record(project, remote(tmp_path), dvc)
    assert track.tell(project, params(project, "trackio")) == 0, said
    assert track.tell(project, params(project, "trackio")) == 0
    with contextlib.closing(sqlite3.connect(tmp_path / "trackio/chronomerge.db")) as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
        assert [(name, step, json.loads(each)["geometric_mean"]) for name, step, each in rows] == [
            ("x", 0, 1.4), ("x", 1, 1.4), ("x", 2, 1.4),
        ]  # fmt: skip
        assert database.execute("SELECT COUNT(*) FROM artifact_versions").fetchone() == (3,)
    kept = b"".join(path.read_bytes() for path in (tmp_path / "trackio").rglob("*") if path.is_file())
    assert f'"{layout.DEPLOYED}": "{state.entries[layout.DEPLOYED].md5}"'.encode() in kept
    assert CURVE in kept


@needs("wandb")
def test_wandb_offline_keeps_what_it_is_told_until_it_is_sent(
    project: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(project.parent / "wandb-cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(project.parent / "wandb-data"))
    assert track.tell(project, params(project, "wandb")) == 0, said
    folder = project / ".chronomerge/track/wandb"
    (run,) = (folder / "wandb").glob("offline-run-*")
    content = next(run.glob("*.wandb")).read_bytes()
    for word in ("geometric_mean", "train.steps", "x-0001"):
        assert word.encode() in content
    assert not list(folder.glob("tmp*"))


@needs("wandb")
def test_wandb_that_does_not_answer_is_ended_with_all_that_it_started(
    project: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        monkeypatch.setenv("WANDB_ENTITY", project.name)  # which its processes can be told by
        monkeypatch.setattr(telling, "SECONDS", 10)
        assert track.tell(project, params(project, "wandb")) == 1
    assert said == ["tracker wandb: 2 states not told (no answer within 10 s); tried again after the next step"]
    address = os.environ["WANDB_BASE_URL"]
    assert not [one.pid for one in psutil.process_iter() if one.pid != os.getpid() and address in _environment(one)]


def _environment(process: psutil.Process) -> Collection[str]:
    try:
        return process.environ().values()
    except psutil.Error:
        return ()


def test_one_that_does_not_answer_is_counted_and_told_later(
    project: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://somebody:pass-Word0@127.0.0.1:9")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        assert track.tell(project, params(project, "mlflow")) == 1
    assert len(said) == 1
    assert said[0].startswith("tracker mlflow: 2 states not told (MlflowException: ")
    assert said[0].endswith("; tried again after the next step")
    assert "pass-Word0" not in said[0]
    log = (project / ".chronomerge/logs/track.log").read_text()
    assert "Traceback" in log
    assert "pass-Word0" not in log
    assert track.tell(project, params(project, "mlflow")) == 0
    assert len(runs()) == 1


def test_one_that_hangs_is_ended(project: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes connections, and never answers
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(telling, "SECONDS", 3)
        assert track.tell(project, params(project, "mlflow")) == 1
    assert said == ["tracker mlflow: 2 states not told (no answer within 3 s); tried again after the next step"]


def test_one_that_is_not_installed_is_said_before_the_run(
    project: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.track.trackers.wandb.WandB.installed", classmethod(lambda _: False))
    chosen = params(project, "mlflow", "wandb")
    assert track.check(chosen) == [
        "track: wandb is not installed, so it is told nothing; pip install 'chronomerge[wandb]'"
    ]
    assert track.tell(project, chosen) == 0
    assert not said


def test_unknown_trackers_and_settings_are_refused(project: Path) -> None:
    with pytest.raises(UserError, match="track: there is no 'tensorboard'; there are mlflow, trackio, wandb"):
        track.check(params(project, "tensorboard"))
    with pytest.raises(UserError, match="track: mlflow: no setting 'uri'; it accepts project"):
        track.check(params(project, {"name": "mlflow", "uri": "http://x"}))
