"""Ready streams in miniature, from manifest to report: imported, checked, and run for real."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flows.cli.app import app
from tasks import params
from tasks.errors import UserError
from tasks.model import checkpoints, models
from tasks.params import Base
from tasks.prepare.registry import parse
from tasks.train.node import random_weights
from tasks.units import size
from tests import hub, miniatures
from tests import project as projects
from tests.project import chronomerge, git

NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hub.Hub]:
    with hub.serving() as one:
        miniatures.on_hub(one, tmp_path_factory.mktemp("parquet"), NAMES)
        home = tmp_path_factory.mktemp("archives")
        miniatures.fomo(home / "fomo", home)
        one.commit("mini/fomo", miniatures.fomo_archives(home / "fomo", home / "tars"), kind="datasets")
        yield one


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a base, miniatures in folders, tars and archives, and their manifests."""
    project = projects.make(tmp_path_factory.mktemp("ready") / "project")
    base = Base(model="tiny.json", pretrained="base.safetensors")
    model = tmp_path_factory.mktemp("model")
    models.resolve(base.model_copy(update={"pretrained": "train"}), project, model)
    checkpoints.save(project / "base.safetensors", random_weights(model, 3))
    miniatures.in_folders(project / "folders", [*NAMES, "held-out"])
    miniatures.in_tars(project / "tars", [*NAMES, "held-out"])
    miniatures.vision(project, NAMES, "hf:mini/{name}", "clip-benchmark:tars/held-out")
    miniatures.fomo(project / "fomo", project)
    (project / ".gitignore").open("a").write("/folders/\n/tars/\n/fomo/\n/base.safetensors\n")
    return project


@pytest.fixture(autouse=True)
def here(made: Path, server: hub.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(made)
    with server.used(tmp_path / "hub"):
        yield made


def command(*args: str) -> Result:
    done = CliRunner().invoke(app, args)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def imported(*args: str) -> params.Params:
    done = command("stream", "import", *args)
    assert done.exit_code == 0, done.output
    return params.parse(done.stdout, Path("imported"))


def commit_of(server: hub.Hub, name: str) -> str:
    return server.repositories[f"datasets/mini/{name}"].refs["main"]


def test_a_stream_of_a_hub_becomes_params_and_says_what_it_takes(here: Path, server: hub.Hub) -> None:
    done = command("stream", "import", "mini-vision", "--orders", "2")
    read = params.parse(done.stdout, here / "params.yaml")
    assert [one.name for one in read.stream] == list(NAMES)
    assert read.stream[0].update[0] == {
        "source": "hf", "path": f"mini/one@{commit_of(server, 'one')}", "split": "train", "share": "[:91.67%]",
        "licence": "CC0",
        "classes": list(miniatures.NAMES), "template": "a photo of a {}.",
    }  # fmt: skip
    assert read.grid is not None
    assert list(read.grid.variants) == ["order-1", "order-2"]
    assert "samples: 60" in done.stderr
    assert "to download: " in done.stderr
    assert "of unknown size" not in done.stderr
    assert "on disk: 9.0 MB prepared at 224 pixels (raw)" in done.stderr
    # 3 trainings of 3 steps; 4 evaluations of 4 test sets; the classes of the set in tars are in its files.
    assert "times 9 training steps, 96 images scored and 60 prepared; downloads" in done.stderr


def test_params_name_the_commits_of_the_import_and_a_check_says_which_it_looked_at(here: Path, server: hub.Hub) -> None:
    before = commit_of(server, "two")
    content = imported("mini-vision")
    server.commit("mini/two", {"note.txt": "changed"}, kind="datasets")
    after = commit_of(server, "two")
    source = parse(content.stream[1].update[0], "two")
    assert source.place(here).commit == before != after  # type: ignore[attr-defined]
    assert {one["at"] for one in check("mini-vision/two")[1]} == {f"hf:mini/two@{after}"}
    assert f"two: hf:mini/two@{after}" in command("data", "check", "mini-vision/two").stdout


def test_without_a_hub_the_size_is_said_to_be_unknown(
    server: hub.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server.used(tmp_path / "empty"):
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
        hub.reread()
        done = command("stream", "import", "mini-vision")
    assert "3 sets of unknown size (one, two, three)" in done.stderr
    assert "note: no hub answers for mini/one, mini/two, mini/three: which commit is meant" in done.stderr
    assert params.parse(done.stdout, tmp_path).stream[0].update[0]["path"] == "mini/one"  # type: ignore[index]


def test_a_folder_in_place_of_sources_and_validation_in_place_of_tests() -> None:
    read = imported("mini-vision", "--data", "folders", "--validation", "--prepared", "jpeg", "--timeline", "other")
    assert read.timeline == "other"
    assert read.prepared.form == "jpeg"
    assert read.evaluate.adaptation[0].test[0]["path"] == "folders/one"  # type: ignore[index]
    assert read.evaluate.adaptation[0].test[0]["share"] == "[91.67%:]"  # type: ignore[index]


def test_a_params_file_is_written_and_never_over_another(here: Path) -> None:
    command("stream", "import", "mini-vision", "--out", "vision.yaml")
    assert params.load(here / "vision.yaml").timeline == "mini-vision"
    with pytest.raises(UserError, match=r"vision\.yaml: exists; remove it"):
        command("stream", "import", "mini-vision", "--out", "vision.yaml")


def test_what_cannot_be_imported_is_one_line() -> None:
    for args, message in (
        (["mini-vision", "--experts"], "one: the manifest has no expert for it"),
        (["mini-fomo"], r"SHAPES: ask us \(licence: CC0\); give a folder with it: --data"),
        (
            ["mini-fomo", "--data", "fomo", "--sequence", "fomo/random_1.json"],
            "--sequence FILE and --steps T go together",
        ),
        (["mini-vision", "--sequence", "fomo/random_1.json", "-T", "2"], "mini-vision has no adaptation set SHAPES"),
    ):
        with pytest.raises(UserError, match=message):
            command("stream", "import", *args)


def test_a_class_sequence_is_cut_and_takes_the_budget_of_its_steps() -> None:
    read = imported("mini-fomo", "--data", "fomo", "--sequence", "fomo/random_1.json", "--steps", "2")
    assert [one.name for one in read.stream] == ["random_1-001", "random_1-002"]
    assert [(one["path"], one["only"]) for one in read.stream[0].update] == [  # type: ignore[index]
        ("fomo/SHAPES", ["green", "red"]), ("fomo/SKETCHES", ["red"]),
    ]  # fmt: skip
    assert read.train.steps == 3
    assert [one.prompt for one in read.evaluate.sets] == ["A photo of {}.", None, "A photo of {}."]


def test_archives_of_a_hub_in_place_of_a_folder(server: hub.Hub) -> None:
    args = ("--sequence", "fomo/random_1.json", "-T", "2", "--info", "fomo/00_info")
    done = command("stream", "import", "mini-fomo", "--data", "hf:mini/fomo", *args)
    read = params.parse(done.stdout, Path("imported"))
    at = f"hf:mini/fomo@{commit_of(server, 'fomo')}"
    assert [(one["path"], one["only"]) for one in read.stream[0].update] == [  # type: ignore[index]
        (f"{at}/SHAPES", ["green", "red"]), (f"{at}/SKETCHES", ["red"]),
    ]  # fmt: skip
    assert {one.test[0]["info"] for one in read.evaluate.sets} == {"fomo/00_info"}  # type: ignore[index]
    archives = sum(
        len(data) for name, data in server.files("mini/fomo", kind="datasets").items() if name[-4:] == ".tar"
    )
    assert f"to download: {size(archives)}, " in done.stderr
    with pytest.raises(UserError, match="mini-vision reads folders; its sets have addresses of their own"):
        command("stream", "import", "mini-vision", "--data", "hf:mini/fomo")


def test_ready_streams_are_listed() -> None:
    assert (
        "mini-fomo: FoMo-in-Flux in miniature; 2 sets arrive, 1 are only tested on" in command("stream", "list").stdout
    )


def check(*args: str) -> tuple[int, list[dict[str, object]]]:
    done = command("data", "check", *args, "--json")
    return done.exit_code, json.loads(done.stdout)


@pytest.mark.parametrize(
    "args",
    [
        ["mini-vision"], ["mini-vision", "--data", "folders"], ["mini-fomo", "--data", "fomo"],
        ["mini-fomo", "--data", "hf:mini/fomo", "--info", "fomo/00_info"],
    ],
)  # fmt: skip
def test_a_right_copy_agrees_in_samples_and_classes(args: list[str]) -> None:
    status, found = check(*args)
    assert status == 0, found
    assert not [one for one in found if one["agrees"] is False or one["problem"]]
    assert {one["what"] for one in found} == {"train samples", "test samples", "classes"}


def test_a_copy_that_lacks_an_image_differs_and_one_that_is_missing_is_named(here: Path) -> None:
    next((here / "folders/two/train").rglob("*.png")).unlink()
    (here / "folders/three").rename(here / "folders/gone")
    status, found = check("mini-vision", "--data", "folders")
    assert status == 1
    assert [(one["set"], one["what"], one["found"]) for one in found if one["agrees"] is False] == [
        ("two", "train samples", miniatures.TRAIN - 1)
    ]
    assert [one["set"] for one in found if "no such file or folder" in str(one["problem"])] == ["three"]


def test_a_copys_score_is_that_of_the_model_and_compared_with_the_known_one(here: Path) -> None:
    status, found = check("mini-vision/one", "--score")
    (score,) = [one for one in found if one["what"] == "score"]
    assert (status, score["agrees"]) == (0, None)
    known = float(str(score["found"]))
    for value, agrees in ((known, True), (abs(known - 30), False)):
        miniatures.vision(here, NAMES, "hf:mini/{name}", "clip-benchmark:tars/held-out", scores=value)
        status, found = check("mini-vision/one", "--score")
        assert [one["agrees"] for one in found if one["what"] == "score"] == [agrees]
        assert status == (0 if agrees else 1)
    miniatures.vision(here, NAMES, "hf:mini/{name}", "clip-benchmark:tars/held-out")


def test_a_score_of_no_known_model_is_refused(here: Path) -> None:
    text = (here / "streams/mini-vision.yaml").read_text()
    (here / "streams/own.yaml").write_text(re.sub("scored_by: .*\n", "", text).replace("mini-vision", "own"))
    try:
        assert check("own/three")[0] == 0
        with pytest.raises(UserError, match="own: names no model that scores are of; write scored_by: MODEL, TAG"):
            command("data", "check", "own", "--score")
    finally:
        (here / "streams/own.yaml").unlink()


def test_an_unknown_set_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match="mini-vision has no set 'four'; it has one, two, three, held-out"):
        command("data", "check", "mini-vision/four")


@pytest.mark.long
def test_a_vision_stream_ends_in_the_table_over_its_orders(
    made: Path, server: hub.Hub, tmp_path: Path, prefect_api: dict[str, str]
) -> None:
    project = projects.copy(made, tmp_path / "project")
    environment = {**prefect_api, **server.environment(tmp_path / "hub")}
    (project / "params.yaml").unlink()
    chronomerge(project, "stream", "import", "mini-vision", "--orders", "2", "-o", "params.yaml", **environment)
    git(project, "commit", "--all", "--quiet", "--message", "a ready stream")
    chronomerge(project, "grid", "--technique", "opcm", **environment)
    said = chronomerge(project, "report", "--json", **environment).stdout
    rows = {one["cell"]: one for one in json.loads(said)["orders"]}
    assert set(rows) == {"zs + all, opcm"}
    assert all(one["orders"] == 2 and 0 <= one["acc"] <= 100 for one in rows.values())


@pytest.mark.long
def test_fomo_in_flux_runs_by_its_class_sequence(
    made: Path, server: hub.Hub, tmp_path: Path, prefect_api: dict[str, str]
) -> None:
    """From the archives of a hub; `tests.prepare.test_fomo_tar` shows that unpacked ones give the same."""
    project = projects.copy(made, tmp_path / "project")
    (project / "params.yaml").unlink()
    environment = {**prefect_api, **server.environment(tmp_path / "hub")}
    chronomerge(
        project, "stream", "import", "mini-fomo", "--data", "hf:mini/fomo", "--info", "fomo/00_info",
        "--sequence", "fomo/random_1.json", "-T", "2", "-o", "params.yaml", **environment,
    )  # fmt: skip
    git(project, "commit", "--all", "--quiet", "--message", "a ready stream")
    chronomerge(project, "run", **environment)
    metrics = json.loads(git(project, "show", "state/mini-fomo/0002:metrics.json"))
    assert set(metrics["top1"]) == {"SHAPES", "BIRDS"}
    assert metrics["recall"].keys() == {"SKETCHES"}
    assert metrics["size"]["SKETCHES"] == miniatures.TEST
