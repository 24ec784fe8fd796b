"""``chronomerge stream`` on a project: what it writes is a stream that the project can run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from flows.cli.app import app
from tasks import params, prepare
from tasks.errors import UserError
from tasks.model import checkpoints, models
from tasks.model.datasets import Dataset
from tasks.params import Base
from tasks.prepare.node import prepare_arrival
from tasks.train.node import random_weights
from tests.project import make, write_params


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("stream") / "project")


@pytest.fixture(autouse=True)
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)


def cut(*args: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["stream", "cut", *args])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return dict(YAML(typ="safe").load(done.stdout))


def test_the_streams_own_classes_are_cut_again_and_run(project: Path) -> None:
    found = cut("--steps", "3", "--order", "random", "--seed", "4")
    assert found == cut("--steps", "3", "--order", "random", "--seed", "4")
    classes = [name for one in found["stream"] for source in one["update"] for name in source["only"]]
    shapes = [f"{c} {s}" for c in ("blue", "yellow", "purple", "orange") for s in ("circle", "square")]
    assert sorted(classes) == sorted(shapes)
    assert [sum(len(source["only"]) for source in one["update"]) for one in found["stream"]] == [3, 3, 2]
    write_params(project, stream=found["stream"])
    try:
        settings = params.load(project / "params.yaml")
    finally:
        write_params(project)
    prepare.check(settings, project)
    model = project / "data/history/model"
    models.resolve(settings.base, project, model)
    for arrival in settings.stream:
        now = settings.model_copy(update={"arrival": arrival, "step": 1})
        prepare.fetch_arrival(now, arrival, project / "data/raw/arrival", project / "downloads", project=project)
        prepare_arrival(project, now)
        made = Dataset(project / "data/step/arrival")
        assert list(made.card.classes) == sorted(n for s in arrival.model_dump()["update"] for n in s["only"])
        assert len(made) == 12 * len(made.card.classes)


def test_reversed_is_the_other_way_round(project: Path) -> None:
    forward, backward = (cut("--steps", "8", "--order", "random", *more) for more in ([], ["--reverse"]))
    assert [one["update"] for one in backward["stream"]] == [one["update"] for one in forward["stream"]][::-1]
    assert backward["stream"][0]["name"] == "random-reversed-001"
    assert not list((project / ".chronomerge").glob("stream-*"))


def test_orders_that_ask_the_base_and_a_file(project: Path, tmp_path: Path) -> None:
    base = Base.model_validate({"model": "tiny.json", "pretrained": "x.safetensors"})
    models.resolve(base, project, tmp_path / "model")
    checkpoints.save(tmp_path / "w.safetensors", random_weights(tmp_path / "model", 0))
    for order in ("performance", "similarity"):
        with pytest.raises(UserError, match="not trained yet: first `chronomerge run --until 0`"):
            cut("--steps", "2", "--order", order)
        found = cut("--steps", "2", "--order", order, "--weights", str(tmp_path / "w.safetensors"))
        assert len(found["stream"]) == 2
    out = tmp_path / "stream.yaml"
    (tmp_path / "sets.yaml").write_text("- {name: one, update: ['images:drawings/first#train']}\n")
    done = CliRunner().invoke(
        app, ["stream", "cut", str(tmp_path / "sets.yaml"), "--steps", "4", "--order", "frequency", "--out", str(out)]
    )
    assert "4 classes in 4 time steps" in done.stdout
    assert len(YAML(typ="safe").load(out.read_text())["stream"]) == 4


def test_orders_are_listed() -> None:
    done = CliRunner().invoke(app, ["stream", "orders"])
    assert done.exit_code == 0
    assert "similarity\n" in done.stdout
    assert "settings: counts" in done.stdout
