"""Whatever is wrong is said in one line, with the way out, a status, and nothing recorded."""

import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests import project as projects
from tests.project import chronomerge

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return projects.make(tmp_path_factory.mktemp("bad") / "project")


def refused(project: Path, *args: str, **environment: str) -> str:
    """Run, expect a refusal, and return its one line."""
    done = chronomerge(project, *args, check=False, **environment)
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert projects.tags(project) == []
    assert not (project / ".chronomerge" / "work").exists() or not list(project.glob(".chronomerge/work/*/*"))
    return lines[0]


def test_a_misspelt_key(project: Path) -> None:
    projects.write_params(project, trian={"steps": 3})
    line = refused(project, "run")
    assert "params.yaml: unknown key trian" in line
    assert "train" in line


def test_a_misspelt_key_inside_a_section(project: Path) -> None:
    projects.write_params(project, train={"steps": 3, "learning_rate": 1})
    line = refused(project, "run")
    assert "unknown key train.learning_rate" in line
    assert "lr" in line


def test_a_value_of_the_wrong_kind(project: Path) -> None:
    projects.write_params(project, time={"init": "best"})
    assert "time.init" in (line := refused(project, "run"))
    assert "'zs', 'ft' or 'ema'" in line


def test_an_unknown_technique(project: Path, prefect_api: dict[str, str]) -> None:
    projects.write_params(project, time={"technique": {"name": "telepathy"}})
    line = refused(project, "run", **prefect_api)
    assert "telepathy" in line
    assert "slerp" in line


def test_a_technique_that_cannot_be_deployed_so(project: Path, prefect_api: dict[str, str]) -> None:
    projects.write_params(project, time={"init": "zs", "deploy": "all", "technique": {"name": "slerp"}})
    assert "slerp" in refused(project, "run", **prefect_api)


@pytest.mark.parametrize(
    ("base", "named"),
    [
        ({"model": "nowhere.json"}, "base.model: "),
        ({"pretrained": "nowhere.safetensors"}, "base.pretrained: "),
        ({"model": "ViT-B-99"}, "base.model: open_clip has no model 'ViT-B-99'; near matches: "),
    ],
)
def test_a_missing_base_is_found_before_any_server_starts(project: Path, base: dict[str, str], named: str) -> None:
    """No address of a Prefect server is given here: one of the project's own would leave a log."""
    whole = {"model": "tiny.json", "pretrained": "train", **base}
    if whole["pretrained"] == "train":
        whole = {**projects.PARAMS["base"], **base}
    projects.write_params(project, base=whole)
    line = refused(project, "run")
    assert line.startswith(f"error: {named}")
    assert "no such file" in line or "near matches" in line
    assert not (project / ".chronomerge" / "logs" / "prefect.log").exists()
    assert not (project / ".chronomerge" / "store").exists()


def test_a_test_set_that_is_trained_on(project: Path, prefect_api: dict[str, str]) -> None:
    """Written by hand: the retention set is what the base is trained on."""
    leak = {**projects.PARAMS["evaluate"], "retention": [{"name": "old", "test": ["images:drawings/base#train"]}]}
    projects.write_params(project, evaluate=leak)
    line = refused(project, "run", **prefect_api)
    assert "arrival 'base' holds test images: 48 of 48 images of the test set 'old'" in line
    assert "evaluate.allow_overlap: true" in line


def test_a_missing_image_folder(project: Path, prefect_api: dict[str, str]) -> None:
    projects.write_params(project, stream=[{"name": "first", "update": ["images:nowhere"]}])
    assert "nowhere" in refused(project, "run", **prefect_api)


def test_a_missing_expert(project: Path, prefect_api: dict[str, str]) -> None:
    projects.write_params(project, stream=[{"name": "first", "expert": "nowhere.safetensors"}])
    assert "nowhere.safetensors" in refused(project, "run", **prefect_api)


def test_a_truncated_base_checkpoint(project: Path, prefect_api: dict[str, str]) -> None:
    save_file({"x": torch.zeros(100)}, project / "whole.safetensors")
    (project / "torn.safetensors").write_bytes((project / "whole.safetensors").read_bytes()[:200])
    projects.write_params(project, base={"model": "tiny.json", "pretrained": "torn.safetensors"})
    assert "torn.safetensors" in refused(project, "run", **prefect_api)


def test_an_unknown_model(project: Path, prefect_api: dict[str, str]) -> None:
    projects.write_params(project, base={"model": "ViT-B-31", "pretrained": "openai"})
    line = refused(project, "run", **prefect_api)
    assert "ViT-B-31" in line
    assert "ViT-B-32" in line


def test_a_store_that_is_not_there(project: Path, prefect_api: dict[str, str]) -> None:
    projects.write_params(project, store={"remote": "mine"})
    assert "no DVC remote is named 'mine'" in refused(project, "run", **prefect_api)


def test_a_store_that_is_down(project: Path) -> None:
    line = refused(
        project, "remote", "setup", "s3://bucket/states", "--endpoint-url", "http://127.0.0.1:9",
        AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret",
    )  # fmt: skip
    assert "cannot be reached" in line
    assert "127.0.0.1:9" in line


def test_wrong_credentials(project: Path) -> None:
    chronomerge(project, "remote", "start")
    try:
        from tasks.storage import dvc_config

        endpoint = dvc_config.remote(project, "embedded").options["endpointurl"]
        line = refused(
            project, "remote", "setup", "s3://chronomerge/states", "--endpoint-url", endpoint,
            AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="not-the-secret",
        )  # fmt: skip
    finally:
        chronomerge(project, "remote", "stop")
    assert "refuses these credentials" in line
    assert "not-the-secret" not in line


def test_no_params(tmp_path: Path) -> None:
    projects.git(tmp_path, "init", "--quiet")
    projects.git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "empty")
    done = chronomerge_elsewhere(tmp_path, "status")
    assert "params.yaml: no such file" in done


def test_no_repository(tmp_path: Path) -> None:
    assert "not in a git repository" in chronomerge_elsewhere(tmp_path, "status")


def chronomerge_elsewhere(folder: Path, *args: str) -> str:
    done = chronomerge(folder, *args, check=False, PYTHONPATH=str(projects.ROOT), GIT_CEILING_DIRECTORIES="/")
    assert done.returncode == 2
    return done.stderr


def test_a_run_whose_store_is_down_or_refuses(project: Path, prefect_api: dict[str, str]) -> None:
    from tasks.storage import dvc_config, store

    dvc_config.write_remote(project, dvc_config.Remote("down", "s3://bucket/states", {
        "endpointurl": "http://127.0.0.1:9", "access_key_id": "key", "secret_access_key": "secret",
    }))  # fmt: skip
    projects.write_params(project, store={"remote": "down"})
    assert "cannot be reached" in refused(project, "run", **prefect_api)
    with store.open_store(project, "embedded") as remote:
        wrong = {**remote.options, "secret_access_key": "not-the-secret"}
        dvc_config.write_remote(project, dvc_config.Remote("refuses", remote.url, wrong))
        projects.write_params(project, store={"remote": "refuses"})
        line = refused(project, "run", **prefect_api)
    assert "refuses these credentials" in line
    assert "not-the-secret" not in line


def test_a_branch_that_is_checked_out(project: Path, tmp_path: Path) -> None:
    projects.write_params(project)
    projects.git(project, "worktree", "add", "--quiet", "-b", "states/tiny", str(tmp_path / "mine"))
    try:
        done = chronomerge(project, "run", check=False)
        assert done.returncode == 2
        assert "states/tiny" in done.stderr
    finally:
        projects.git(project, "worktree", "remove", str(tmp_path / "mine"))
        projects.git(project, "branch", "--quiet", "-D", "states/tiny")


@pytest.mark.parametrize("kind", ["table:table.csv", "webdataset:samples.tar"])
def test_a_batch_larger_than_a_table_or_a_tar_is_found_before_any_server_starts(project: Path, kind: str) -> None:
    images = sorted((project / "drawings/first/train").rglob("*.png"))[:5]
    rows = [f"{image.relative_to(project)},{image.parent.name}\n" for image in images]
    (project / "table.csv").write_text("image,caption\n" + "".join(rows))
    with tarfile.open(project / "samples.tar", "w") as tar:
        for number, image in enumerate(images):
            tar.add(image, f"{number}.png")
            (project / "caption.txt").write_text(image.parent.name)
            tar.add(project / "caption.txt", f"{number}.txt")
    params = {**projects.PARAMS["base"], "pretraining": [kind]}
    projects.write_params(project, base=params)
    line = refused(project, "run")
    assert "base.train.batch_size: a batch of 16 is more than the 5 samples that step 0 trains on" in line
    assert not (project / ".chronomerge" / "logs" / "prefect.log").exists()
