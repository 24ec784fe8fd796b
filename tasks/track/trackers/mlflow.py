"""MLflow, to a server or a database (MLFLOW_TRACKING_URI)."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tasks.track.tracker import Told, Tracker


class MLflow(Tracker):
    """A run of the experiment, found again by its tag ``chronomerge.timeline``; metrics by step, params, tags."""

    name: ClassVar[str] = "mlflow"
    source: ClassVar[str] = "https://mlflow.org"
    module: ClassVar[str] = "mlflow"

    def send(self, timeline: str, params: Mapping[str, str], states: Sequence[Told], folder: Path) -> None:  # noqa: ARG002
        for name, value in {
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "DO_NOT_TRACK": "true",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }.items():  # fmt: skip
            os.environ.setdefault(name, value)
        import mlflow
        from mlflow.entities import Metric, Param, RunTag

        client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name(self.project)
        number = experiment.experiment_id if experiment else client.create_experiment(self.project)
        tag = "chronomerge.timeline"
        runs = client.search_runs([number], f"tags.`{tag}` = '{timeline}'", max_results=1)
        run = runs[0] if runs else client.create_run(number, run_name=timeline, tags={tag: timeline})
        run_id, known = run.info.run_id, run.data.params
        named = {_name(key): value[:6000] for key, value in params.items()}
        new = [Param(key, value) for key, value in named.items() if key not in known]
        for start in range(0, len(new), 100):  # as many as MLflow takes at a time
            client.log_batch(run_id, params=new[start : start + 100])
        for state in states:
            metrics = [
                Metric(_name(name), value, _milliseconds(state), state.step) for name, value in state.metrics.items()
            ]
            tags = [RunTag(_name(f"{state.tag}/{path}"), md5) for path, md5 in state.files.items()]
            for start in range(0, max(len(metrics), len(tags)), 100):
                client.log_batch(run_id, metrics[start : start + 100], tags=tags[start : start + 100])
            client.log_dict(run_id, state.manifest, f"{state.tag}/manifest.json")
            if state.curve:
                client.log_text(run_id, state.curve, f"{state.tag}/curve.csv")
                points = list(_points(state))
                for start in range(0, len(points), 1000):
                    client.log_batch(run_id, points[start : start + 1000])
        client.set_terminated(run_id)


def _name(text: str) -> str:
    """A name that MLflow takes, of which it may make a path: other characters are ``_``, as in ``head.tip_4/food``."""
    parts = (re.sub(r"[^\w\-. :]", "_", part) for part in text.split("/"))
    return "/".join(part if part.strip(".") else "_" for part in parts)[:250]


def _points(state: Told) -> Iterator[Any]:
    """The training curve as metrics by training step: ``train/0003/loss``."""
    from mlflow.entities import Metric

    for row in csv.DictReader(io.StringIO(state.curve or "")):
        at, *columns = row.items()
        for name, value in columns:
            if value and math.isfinite(number := float(value)):
                yield Metric(_name(f"train/{state.step:04d}/{name}"), number, _milliseconds(state), int(float(at[1])))


def _milliseconds(state: Told) -> int:
    from datetime import datetime

    return int(datetime.fromisoformat(state.recorded_at).timestamp() * 1000)
