"""What arrives is the project's own from then on: whole or not at all, whatever is killed, and once."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks import prepare
from tasks.arrive import ChangedError, Request, arrive, known
from tasks.errors import UserError
from tasks.model.datasets import Dataset
from tasks.params import load
from tasks.prepare.node import prepare_arrival
from tasks.record import project_code, worktrees
from tasks.storage import dvc_config, pointers
from tasks.storage.cache import Cache, Entry, hash_of
from tasks.storage.dvc import Dvc
from tests import project as projects
from tests.arrive.conftest import PARAMS, Arrive, drop, noise, tree


@pytest.fixture
def given(tmp_path: Path) -> Path:
    return drop(tmp_path / "given", {"cat": 4, "dog": 3})


def prepared(project: Path, name: str) -> Dataset:
    """An arrival of the stream, as its step would have it."""
    params = load(project / "params.yaml")
    (one,) = (one for one in params.stream if one.name == name)
    prepare.check(params, project)
    prepare.fetch_arrival(params, one, project / "data/raw/arrival", project / "downloads", project=project)
    model = project / "data/history/model"
    model.mkdir(parents=True, exist_ok=True)
    (model / "preprocess.json").write_text('{"image_size": 16}')
    prepare_arrival(project, params.model_copy(update={"arrival": one, "step": 1}))
    return Dataset(project / "data/step/arrival")


def test_the_original_may_go(arriving: Arrive, given: Path, project: Path, tmp_path: Path) -> None:
    (project / f".chronomerge/arriving/{2**22 + 1}-killed/raw").mkdir(parents=True)
    verdict = arriving("new", given)
    assert (verdict.outcome, verdict.step, verdict.kept) == ("arrived", 2, "data/arrivals/new.dvc")
    line = '  - {name: new, update: ["images:data/arrivals/new"]}\n'
    assert (project / "params.yaml").read_text() == PARAMS.replace("  # more", f"{line}  # more")
    entry, about = pointers.read(project / "data/arrivals/new.dvc")
    assert hash_of(project / "data/arrivals/new") == entry
    assert about["from"] == [str(given)]
    assert all(
        (tmp_path / "store/files/md5" / md5[:2] / md5[2:]).exists()
        for md5 in Cache(project / ".dvc/cache").md5s([entry])
    )
    shutil.rmtree(given)
    assert sorted(prepared(project, "new").captions) == ["a photo of a cat."] * 4 + ["a photo of a dog."] * 3
    assert not (project / ".chronomerge/arriving").exists()


def test_again_is_there_already_and_other_content_is_refused(arriving: Arrive, given: Path, project: Path) -> None:
    arriving("new", given)
    before = tree(project)
    verdict = arriving("new", given)
    assert (verdict.outcome, verdict.step) == ("already there", 2)
    noise(99).save(given / "cat/more.png")
    verdict = arriving("new", given)
    assert verdict.outcome == "refused"
    assert "the stream has another arrival 'new' already" in verdict.problems[0]
    assert arriving("first", given).refused
    assert tree(project) == before
    assert arriving("newer", given).outcome == "arrived"


def test_names_and_requests_that_make_no_sense(arriving: Arrive, given: Path) -> None:
    for name, words in (("../x", "cannot be the name"), ("base", "step 0"), ("a..b", "git allows")):
        with pytest.raises(UserError, match=words):
            arriving(name, given)
    with pytest.raises(UserError, match="one of the two"):
        arriving("new")


def test_splits_stay_what_they_were(arriving: Arrive, project: Path, tmp_path: Path) -> None:
    """A drawn one goes by the images' old names; of given ones, only the part asked for comes along."""
    drop(project / "photos", {"cat": 30, "dog": 30})
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("images:drawings/base#test", "images:photos#test"))
    assert arriving("all", project / "photos", dry_run=True).refused
    verdict = arriving("drawn", "photos#train")
    assert verdict.outcome == "arrived"
    assert len(prepared(project, "drawn")) == verdict.facts["samples"]
    for part in ("train", "test"):
        drop(tmp_path / "parted" / part, {"owl": 2}, seed=len(part))
    verdict = arriving("given", f"{tmp_path}/parted#train")
    assert verdict.arrival == {"name": "given", "update": ["images:data/arrivals/given/train"]}
    assert len(prepared(project, "given")) == 2


def test_images_of_a_table_from_anywhere_come_along(
    arriving: Arrive, given: Path, project: Path, tmp_path: Path
) -> None:
    (tmp_path / "tables").mkdir()
    rows = ["image,label", "../given/cat/0.png,cat", f"{given}/dog/0.png,dog"]
    (tmp_path / "tables/list.csv").write_text("\n".join(rows) + "\n")
    sources: list[Any] = [
        tmp_path / "tables/list.csv",
        f"{{source: images, path: {given}, only: [dog], template: 'a {{}}'}}",
    ]
    assert len(arriving("new", *sources).problems) == 0
    shutil.rmtree(given)
    shutil.rmtree(tmp_path / "tables")
    assert sorted(prepared(project, "new").captions) == ["a dog"] * 3 + ["a photo of a cat.", "a photo of a dog."]


def test_what_changes_while_it_is_copied(arriving: Arrive, given: Path, project: Path) -> None:
    before = tree(project)
    with pytest.raises(ChangedError):
        arriving("new", given, unchanged=lambda: False)
    assert tree(project) == before


class Killed(BaseException):
    """As if the process ended here."""


@pytest.mark.parametrize(
    ("name", "after"),
    [("keep", False), ("keep", True), ("write", True), ("place", False)],  # place comes when params.yaml is written
)
def test_killed_anywhere_there_is_nothing_or_all_of_it(
    arriving: Arrive, given: Path, project: Path, monkeypatch: pytest.MonkeyPatch, dvc_process: Dvc,
    name: str, after: bool,
) -> None:  # fmt: skip
    real: Callable[..., Any] = getattr(pointers, name)
    before = (project / "params.yaml").read_text()

    def killed(*args: Any, **named: Any) -> Any:
        if after:
            real(*args, **named)
        raise Killed

    monkeypatch.setattr(pointers, name, killed)
    with pytest.raises(Killed):
        arriving("new", given)
    monkeypatch.setattr(pointers, name, real)
    appended = (project / "params.yaml").read_text() != before
    if appended:
        shutil.rmtree(project / "data/arrivals/new", ignore_errors=True)
        dvc_config.write_workspace(project, project, dvc_config.remote(project, "disk"))
        pointer, cache = project / "data/arrivals/new.dvc", Cache(project / ".dvc/cache")
        pointers.bring(project, pointer, project, cache, dvc_process)
        assert len(prepared(project, "new")) == 7
    assert appended == (name == "place")  # the line in params.yaml is what makes it an arrival
    assert arriving("new", given).outcome == ("already there" if appended else "arrived")
    assert [one.name for one in load(project / "params.yaml").stream] == ["first", "new"]
    assert len(prepared(project, "new")) == 7


def test_two_at_once_do_not_lose_one_another(
    project: Path, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of two of one name, one is refused."""
    drop(tmp_path / "other", {"owl": 2}, seed=3)
    monkeypatch.setattr(known, "test_images", lambda *_: {})
    found: list[str] = []

    def run(name: str, folder: Path) -> None:
        found.append(arrive(project, Request(name, (str(folder),))).outcome)

    requests = [("one", given), ("two", given), ("two", tmp_path / "other")]
    threads = [threading.Thread(target=run, args=one) for one in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == ["arrived", "arrived", "refused"]
    assert sorted(one.name for one in load(project / "params.yaml").stream) == ["first", "one", "two"]


def test_a_clone_gets_the_files_from_the_store(
    arriving: Arrive, given: Path, project: Path, tmp_path: Path, dvc_process: Dvc
) -> None:
    arriving("new", given)
    projects.git(project, "add", "params.yaml", "data/arrivals/new.dvc")
    projects.git(project, "commit", "--quiet", "--message", "new")
    projects.git(tmp_path, "clone", "--quiet", str(project), "clone")
    clone = tmp_path / "clone"
    pointer, cache = clone / "data/arrivals/new.dvc", Cache(clone / ".dvc/cache")
    params = load(clone / "params.yaml")
    shutil.copytree(project / "drawings", clone / "drawings")
    prepare.check(params, clone)  # it is in order without the files
    assert prepare.pointers(params.stream[1], clone) == [pointer]
    dvc_config.write_workspace(clone, clone, dvc_config.remote(project, "disk"))

    def bring() -> None:
        pointers.bring(clone, pointer, clone, cache, dvc_process)

    bring()
    assert len(prepared(clone, "new")) == 7
    (clone / "data/arrivals/new/cat/0.png").unlink()
    with pytest.raises(UserError, match=r"new is not what arrived: it differs from data/arrivals/new\.dvc"):
        bring()
    shutil.rmtree(clone / "data/arrivals/new")
    stored = cache.path(cache.members(pointers.read(pointer)[0])["cat/0.png"])
    stored.chmod(0o644)
    stored.write_bytes(b"damaged")
    bring()
    assert hash_of(clone / "data/arrivals/new").md5 == pointers.read(pointer)[0].md5


def test_a_state_has_no_pointers_to_what_arrives_at_others(project: Path) -> None:
    """DVC would want their files wherever the state is checked out; what arrived at it, it has as raw files."""
    (project / "data/arrivals").mkdir(parents=True)
    for name in ("one", "two"):
        pointers.write(pointers.path(project, name), Entry("0" * 32 + ".dir", 1, 1), {})
    projects.git(project, "add", "data/arrivals/one.dvc")
    projects.git(project, "commit", "--quiet", "--message", "one")
    projects.git(project, "add", "data/arrivals/two.dvc")
    code = project_code.code_of(project)
    with worktrees.for_step(project, code, dvc_config.remote(project, "disk"), 1, None) as step:
        assert not (step.folder / "data/arrivals").exists()
        assert "data/arrivals" not in projects.git(step.folder, "ls-files")
    assert sorted(path.name for path in (project / "data/arrivals").iterdir()) == ["one.dvc", "two.dvc"]
