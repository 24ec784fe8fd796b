"""A small JSON file that a loss of power has torn is named, with the way out."""

from pathlib import Path

import pytest

from tasks.errors import UserError
from tasks.storage import dvc_config, jsonfile, seaweedfs


@pytest.mark.parametrize("torn", [b"", b"{]", b"\xff", b"[1]", b'"x"', b"{}", b"[" * 100_000, b"null"])
def test_every_kind_of_damage_is_one_sentence(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "note.json"
    path.write_bytes(torn)
    with pytest.raises(UserError, match=rf"^{path}: is damaged \([^\n]+\); remove it$"):
        jsonfile.read(path, lambda content: content["identities"][0]["key"], "remove it")


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        jsonfile.read(tmp_path / "note.json", dict, "remove it")


@pytest.mark.parametrize("name", ["server.json", "s3.json"])
def test_a_torn_note_of_the_embedded_store(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{]")
    with pytest.raises(UserError, match=rf"{name}: is damaged"):
        (seaweedfs.read_note if name == "server.json" else seaweedfs.credentials)(tmp_path)


@pytest.mark.parametrize("torn", [b"[core\n", b"[core]\nremote = \xff\n"])
def test_a_damaged_dvc_configuration(tmp_path: Path, torn: bytes) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_bytes(torn)
    with pytest.raises(UserError, match=rf"^{tmp_path}/\.dvc/config: not a DVC config file"):
        dvc_config.cache_dir(tmp_path)
