"""Reading many files of many commits in one call of git."""

from pathlib import Path

import pytest

from tasks.storage.git import GitError, git, show_all


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
