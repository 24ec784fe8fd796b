"""A state cannot put a file outside the folder it is restored to."""

import json
from pathlib import Path

import pytest

from tasks.errors import UserError
from tasks.record import commits, foreign
from tasks.record.restoration import restore_into
from tasks.record.state import State
from tasks.storage import dvc_config
from tasks.storage.cache import Cache
from tasks.storage.dvc import Dvc
from tasks.storage.git import git


def committed(project: Path, files: dict[str, str], links: dict[str, str] | None = None) -> State:
    """A state whose tree holds these files and links."""
    for path, text in files.items():
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).write_text(text)
    for path, target in (links or {}).items():
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).symlink_to(target)
    git(project, "add", "--force", "--all")
    tree = git(project, "write-tree")
    return commits.make(project, "x", 0, 1, tree, [git(project, "rev-parse", "HEAD")], "bad", None, pointers=())


def check(state: State) -> None:
    foreign.check(state.project, state.commit, state.tag)


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("evil", "/etc"),
        ("evil", ".."),
        ("a/evil", "../../elsewhere"),
        ("a/evil", "../b/../../elsewhere"),
        ("evil", ".git/hooks"),
    ],
)
def test_links_that_lead_out_are_refused(project: Path, tmp_path: Path, link: str, target: str) -> None:
    state = committed(project, {}, {link: target})
    with pytest.raises(UserError, match=f"the link {link} leads outside"):
        restore_into(project, state, tmp_path / "there", None)
    assert not (tmp_path / "there").exists()


def test_links_within_are_fine(project: Path) -> None:
    links = {"a/up": "../code.py", "b": "a", "here": "./code.py", "a/deep/er": "../../code.py"}
    check(committed(project, {}, links))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("data/x.dvc", "outs: [{md5: d41d8cd98f00b204e9800998ecf8427e, path: ../../x}]"),
        ("data/x.dvc", "outs: [{md5: d41d8cd98f00b204e9800998ecf8427e, path: /x}]"),
        ("data/x.dvc", "wdir: ../..\nouts: [{md5: d41d8cd98f00b204e9800998ecf8427e, path: x}]"),
        ("x.dvc", "outs: [{md5: d41d8cd98f00b204e9800998ecf8427e, path: .git/config}]"),
        ("dvc.lock", "stages: {one: {outs: [{md5: d41d8cd98f00b204e9800998ecf8427e, path: a/../../x}]}}"),
    ],
)
def test_outputs_that_lead_out_are_refused(project: Path, tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(UserError, match=f"{name} puts a file outside"):
        restore_into(project, committed(project, {name: text}), tmp_path / "there", None)
    assert not (tmp_path / "there").exists()


def test_a_file_that_is_no_dvc_file_is_named(project: Path) -> None:
    with pytest.raises(UserError, match=r"dvc\.lock is no DVC file"):
        check(committed(project, {"dvc.lock": "stages: [1, 2"}))


def test_a_folder_that_lists_files_elsewhere_is_not_checked_out(project: Path, tmp_path: Path) -> None:
    """DVC itself would write them. The folder is a user's own, not one of those that a step leaves."""
    cache = Cache(dvc_config.cache_dir(project))
    (project / "inside").write_text("x")
    content = cache.put(project / "inside")
    (project / "listing").write_text(json.dumps([{"md5": content.md5, "relpath": "../../escaped"}]))
    listing = cache.put(project / "listing")
    stored = cache.path(f"{listing.md5}.dir")
    cache.path(listing.md5).rename(stored)
    pointer = f"outs: [{{md5: {listing.md5}.dir, size: 1, nfiles: 1, hash: md5, path: folder}}]"
    committed(project, {"sub/folder.dvc": pointer, ".dvc/config": "[core]\n    analytics = false\n"})
    with Dvc(project) as dvc, pytest.raises(UserError, match=r"folder lists a file outside it, at \.\./\.\./escaped"):
        dvc("checkout", project)
    assert not (project / "escaped").exists()
    assert not (tmp_path / "escaped").exists()


def test_a_hash_is_a_hash(project: Path) -> None:
    with pytest.raises(UserError, match="is no content hash"):
        Cache(dvc_config.cache_dir(project)).path("../../../etc/passwd")
