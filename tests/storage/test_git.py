"""Calls of git: many files of many commits in one, and what may be a project."""

import os
from pathlib import Path

import pytest

from tasks.errors import UserError
from tasks.storage.git import GitError, git, show_all, top_level


def test_files_come_as_they_are_committed(project: Path) -> None:
    texts = {"ü.txt": "é\r\n\r\nno end", "empty": "", "name with spaces": "x\n"}
    for name, text in texts.items():
        (project / name).write_bytes(text.encode())
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "files")
    found = show_all(project, [f"HEAD:{name}" for name in texts])
    assert list(found.values()) == list(texts.values())


def test_nothing_asked_nothing_found(project: Path) -> None:
    assert show_all(project, []) == {}


def test_what_is_missing_is_named(project: Path) -> None:
    with pytest.raises(GitError, match=r"nowhere\.txt of HEAD cannot be read: it is missing"):
        show_all(project, ["HEAD:code.py", "HEAD:nowhere.txt"])


def test_a_file_that_is_not_utf8_is_named(project: Path) -> None:
    (project / "manifest.json").write_bytes(b"\xff")
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "bytes")
    with pytest.raises(GitError, match=r"^manifest\.json of HEAD cannot be read: it is not UTF-8"):
        show_all(project, ["HEAD:manifest.json"])


def test_names_of_files_need_not_be_utf8(project: Path) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    (project / name).touch()
    git(project, "add", "--all")
    assert git(project, "ls-files", "-z").split("\0")[:-1] == [name, "code.py"]


def test_a_machine_without_git_is_told_so(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UserError, match=r"there is no program git; install it"):
        git(project, "status")


def test_a_failure_of_a_thousand_files_is_one_line(project: Path) -> None:
    with pytest.raises(GitError) as raised:
        git(project, "rm", "--", *(f"missing-{number}" for number in range(3)), "-x\n" * 1000)
    assert "\n" not in str(raised.value)
    with pytest.raises(GitError, match=r"git cat-file failed in .*") as raised:
        git(project, "cat-file", "--wrong")
    assert "\n" not in str(raised.value)
    assert "more lines)" in str(raised.value)


@pytest.mark.parametrize(
    ("path", "link"),
    [
        (".dvc/config.local", None), (".DVC/Config.Local", None), (".dvc/tmp/lock", None), (".dvc/cache/files/x", None),
        (".chronomerge/logs/x", None), (".chronomerge", None), (".dvc", None), (".chronomerge", "elsewhere"),
        (".chronomerge/logs/dvc.log", "../../.bashrc"), (".dvc/config", "../x"), (".dvc", "elsewhere"),
    ],
)  # fmt: skip
def test_a_clone_that_brings_what_each_machine_makes_for_itself_is_no_project(
    project: Path, path: str, link: str | None
) -> None:
    """Its keys and addresses would be trusted, and what is written there would go where it leads."""
    assert top_level(project) == project
    (project / path).parent.mkdir(parents=True, exist_ok=True)
    if link:
        (project / path).symlink_to(link)
    else:
        (project / path).write_text("x")
    git(project, "add", "--force", "--all")
    with pytest.raises(UserError, match=rf"{path} is committed, and cannot be part of a project"):
        top_level(project)


def test_what_a_project_commits_of_dvc_is_fine(project: Path) -> None:
    (project / ".dvc").mkdir()
    for name in ("config", ".gitignore", "plots"):
        (project / ".dvc" / name).touch()
    git(project, "add", "--all")
    assert top_level(project) == project


def test_a_folder_that_looks_like_a_repository_is_none(project: Path) -> None:
    """A clone may hold one, with a configuration of its author's."""
    buried = project / "docs"
    git(project, "init", "--quiet", "--bare", "docs")
    for key, value in {"core.bare": "false", "core.worktree": str(project)}.items():
        git(buried, "config", key, value)
    assert git(buried, "rev-parse", "--show-toplevel") == str(project)
    with pytest.raises(UserError, match="is not in a git repository"):
        top_level(buried)
