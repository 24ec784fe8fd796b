"""Trackers are told of recorded states; one that fails, hangs or is missing stops nothing. MLflow is the real one."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from tasks import layout, progress, track
from tasks.errors import UserError
from tasks.params import Params, load, parse
from tasks.publish import public
from tasks.storage.dvc import Dvc
from tasks.storage.dvc_config import Remote
from tasks.track import telling
from tests.project import PARAMS
from tests.record import made_up


@pytest.fixture
def project(tmp_path: Path, dvc: Dvc, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with two recorded states; MLflow's store is a folder."""
    folder = made_up.project(tmp_path / "project", remote(tmp_path))
    for _ in range(2):
        made_up.record(folder, remote(tmp_path), dvc)
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
    manifest = json.loads(next((tmp_path / "mlruns").rglob("state/x/0002/manifest.json")).read_text())
    assert manifest == public.manifest(state.manifest.as_dict())
    assert track.tell(project, params(project, {"name": "mlflow", "project": "other"})) == 0  # known already
    assert len(runs()) == 1


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
    assert track.tell(project, params(project, "mlflow")) == 0
    assert len(runs()) == 1


def test_one_that_hangs_is_ended(project: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes connections, and never answers
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(telling, "SECONDS", 3)
        assert track.tell(project, params(project, "mlflow")) == 1
    assert said == ["tracker mlflow: 2 states not told (no answer within 3 s); tried again after the next step"]


def test_one_that_is_not_installed_is_said_before_the_run(project: Path, said: list[str]) -> None:
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
