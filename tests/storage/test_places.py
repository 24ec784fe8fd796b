"""Places for output: what stands in the way is named before any work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.errors import UserError
from tasks.storage import places
from tests.project import ROOT


def test_a_new_place_is_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "to-come").symlink_to("later")
    assert places.output("new/deep/x.safetensors") == tmp_path / "new/deep/x.safetensors"
    assert places.output("link/x", folder=True) == tmp_path / "real/x"
    assert places.output("to-come", folder=True) == tmp_path / "later"
    assert places.output("link", folder=True) == tmp_path / "real"


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("file/x", "file is a file, not a folder"),
        ("file/deep/x", "file is a file, not a folder"),
        ("fifo/x", "fifo is a file, not a folder"),
        ("circle/x", "its links lead in a circle"),
        ("x\0y", "a path cannot hold a null character"),
        ("y" * 300 + "/x", "File name too long"),
    ],
)
def test_what_stands_in_the_way_is_named(tmp_path: Path, name: str, words: str, folder: bool) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(UserError, match=words):
        places.output(f"{tmp_path}/{name}", folder=folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circle", "fifo", "file"]


@pytest.mark.parametrize("name", ["file", "fifo", "circle"])
def test_a_folder_takes_the_place_of_no_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(UserError, match=r"is a file, not a folder|lead in a circle"):
        places.output(tmp_path / name, folder=True)


def test_a_folder_that_one_may_not_write_to_is_named(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        (tmp_path / "others").mkdir(mode=0o555)
        with pytest.raises(UserError, match=r"you may not write to .*others"):
            places.output(tmp_path / "others/x/y")
        return
    program = (  # root may write anywhere, so another user tries
        f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); from tasks.storage import places; os.setuid(65534)\n"
        f"try: places.output('/usr/x/y')\nexcept Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "you may not write to /usr" in done.stdout
