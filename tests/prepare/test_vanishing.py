"""Files that go or change while they are copied: one line names the file, and nothing is prepared."""

from __future__ import annotations

import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import UserError
from tasks.model.datasets import Dataset
from tasks.prepare import files, node
from tests.prepare.conftest import arrival, image_folder, params

Prepare = Callable[..., Dataset]

SOURCES = [
    ("images:photos", "photos/cat/01.png"),
    ("table:t.csv", "t.csv"),
    ("table:t.csv", "photos/cat/00.png"),
    ("webdataset:a.tar", "a.tar"),
]


@pytest.fixture
def given(project: Path) -> Path:
    image_folder(project / "photos", {"cat": 2})
    (project / "t.csv").write_text("image,caption\nphotos/cat/00.png,a\n")
    with tarfile.open(project / "a.tar", "w") as tar:
        tar.add(project / "photos/cat/00.png", "0.png")
        tar.add(project / "t.csv", "0.txt")
    return project


@pytest.mark.parametrize(("source", "file"), SOURCES)
def test_a_file_that_goes_before_it_is_copied_is_named(
    prepare: Prepare, given: Path, monkeypatch: pytest.MonkeyPatch, source: str, file: str
) -> None:
    copy = files.copy

    def after_it_is_gone(one: Path, target: Path) -> None:
        if one == given / file:
            one.unlink()
        copy(one, target)

    monkeypatch.setattr(files, "copy", after_it_is_gone)
    words = f"{given / file}: cannot be read: No such file or directory; run again when nothing changes it"
    with pytest.raises(UserError, match=re.escape(words)):
        prepare(source)
    assert not (given / "data/step/arrival").exists()


@pytest.mark.parametrize(("source", "file"), SOURCES)
def test_a_file_that_is_written_to_while_it_is_copied_is_named(
    prepare: Prepare, given: Path, monkeypatch: pytest.MonkeyPatch, source: str, file: str
) -> None:
    copied = shutil.copyfileobj

    def and_written_to(a: Any, b: Any, size: int) -> None:
        copied(a, b, size)
        if Path(a.name) == given / file:
            (given / file).write_bytes(b"other")

    monkeypatch.setattr(shutil, "copyfileobj", and_written_to)
    words = f"{given / file}: changed while it was copied; run again when nothing writes to it"
    with pytest.raises(UserError, match=re.escape(words)):
        prepare(source)
    assert not (given / "data/step/arrival").exists()
    assert not [path for path in (given / "data/raw").rglob(f"*{Path(file).name}*") if path.is_file()]


@pytest.mark.parametrize(("source", "file"), SOURCES)
def test_a_raw_copy_that_is_gone_is_named(prepare: Prepare, given: Path, source: str, file: str) -> None:
    prepare(source)
    (raw,) = (path for path in (given / "data/raw").rglob(Path(file).name) if path.is_file())
    raw.unlink()
    with pytest.raises(UserError, match=re.escape(Path(file).name)):
        node.prepare_arrival(given, params(arrival=arrival(source), step=1))
