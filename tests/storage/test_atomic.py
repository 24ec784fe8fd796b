"""A file is there whole or not at all."""

from pathlib import Path

import pytest

from tasks.storage import atomic


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.mark.parametrize("alone", [True, False])
def test_the_old_content_stays_until_the_new_is_whole(tmp_path: Path, alone: bool) -> None:
    path = tmp_path / "note"
    atomic.write(path, "old")
    with atomic.made(path, alone=alone) as part:
        part.write_text("half")
        assert path.read_text() == "old"
        part.write_text("new ä")
    assert path.read_bytes() == "new ä".encode()
    assert names(tmp_path) == ["note"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic.made(tmp_path / "note") as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        atomic.write(tmp_path / "folder", b"")
    assert names(tmp_path) == ["folder"]


def test_what_a_kill_left_is_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "note"
    with atomic.made(path) as part:
        part.write_bytes(b"")
    part.write_text("what a killed process left, and it is long")
    atomic.write(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["note"]
