"""The content-addressed store agrees with DVC byte for byte, and never trusts what is not whole."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import UserError
from tasks.storage.cache import Cache, Entry, hash_of, listing


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def folder(path: Path) -> Path:
    for name, content in {"a": b"1", "b/c": b"2", "b/ü d": b"", "z.bin": bytes(1000)}.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def test_hashes_are_those_of_dvc(tmp_path: Path) -> None:
    made = folder(tmp_path / "data" / "x")
    (made / "__pycache__").mkdir()
    (made / "__pycache__" / "junk.pyc").write_bytes(b"junk")
    (tmp_path / ".dvcignore").write_text("__pycache__\n")
    dvc = str(Path(sys.executable).parent / "dvc")
    subprocess.run([dvc, "init", "--no-scm", "-q"], cwd=tmp_path, check=True)
    subprocess.run([dvc, "add", "-q", "data/x"], cwd=tmp_path, check=True)
    pointer = (tmp_path / "data" / "x.dvc").read_text()
    ours = hash_of(made)
    assert f"md5: {ours.md5}\n" in pointer
    assert f"size: {ours.size}\n" in pointer
    assert f"nfiles: {ours.nfiles}\n" in pointer
    theirs = Cache(tmp_path / ".dvc" / "cache")
    assert theirs.intact(ours)
    mine = Cache(tmp_path / "mine")
    assert mine.put(made) == ours
    assert mine.path(ours.md5).read_bytes() == theirs.path(ours.md5).read_bytes()


def test_put_then_link_brings_every_byte_back(tmp_path: Path, cache: Cache) -> None:
    entry = cache.put(folder(tmp_path / "x"))
    cache.link(entry, tmp_path / "y")
    assert hash_of(tmp_path / "y") == entry == hash_of(tmp_path / "x")
    assert (tmp_path / "y" / "a").stat().st_ino == cache.path(hash_of(tmp_path / "y" / "a").md5).stat().st_ino
    assert not list(tmp_path.rglob(".part-*"))


def test_the_cache_survives_a_rewrite_of_what_it_was_given(tmp_path: Path, cache: Cache) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    entry = cache.put(path)
    other = tmp_path / "other"
    other.write_bytes(b"two")
    other.replace(path)
    assert cache.intact(entry)


def test_a_damaged_object_is_found_dropped_and_stored_again(tmp_path: Path, cache: Cache) -> None:
    made = folder(tmp_path / "x")
    entry = cache.put(made)
    victim = cache.path(hash_of(made / "z.bin").md5)
    victim.chmod(0o644)
    victim.write_bytes(bytes(999) + b"\1")
    assert not cache.intact(entry)
    assert cache.drop_damaged(entry) == [victim.parent.name + victim.name]
    assert cache.missing(entry) == [victim.parent.name + victim.name]
    (made / "z.bin").unlink()
    (made / "z.bin").write_bytes(bytes(1000))
    assert cache.put(made) == entry
    assert cache.intact(entry)


def test_a_torn_object_is_not_taken_for_the_whole(tmp_path: Path, cache: Cache) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"whole")
    stored = cache.path(hash_of(path).md5)
    stored.parent.mkdir(parents=True)
    stored.write_bytes(b"who")
    entry = cache.put(path)
    assert cache.intact(entry)
    assert path.read_bytes() == b"whole"


def test_parts_and_compositions_are_inverse(tmp_path: Path, cache: Cache) -> None:
    entry = cache.put(folder(tmp_path / "x"))
    whole = cache.compose({"one": entry, "two/a": cache.put(tmp_path / "x" / "a")})
    assert cache.part(whole, "one") == entry
    assert cache.part(whole, "one/b") == cache.put(tmp_path / "x" / "b")
    assert cache.part(whole, "nothing") is None
    assert cache.objects([whole]) == cache.objects([entry])
    cache.link(whole, tmp_path / "y")
    assert hash_of(tmp_path / "y") == whole


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "leads outside"), (".", "leads outside"), ("/etc/x", "leads outside"), ("a/../../x", "leads outside"),
        ("a/../x", "leads outside"), (".git/hooks/post-checkout", "into a .git"), ("a/.GIT/config", "into a .git"),
        ("a\0b", "no file can have"), ("\ud800", "no file can have"), ("a/" + "y" * 256, "no file can have"),
    ],
)  # fmt: skip
def test_a_stored_folder_has_names_of_files_inside_it(name: str, said: str) -> None:
    assert listing('[{"md5": "a", "relpath": "b/c.git/\\udcff"}]', "x") == {"b/c.git/\udcff": "a"}
    with pytest.raises(UserError, match=said):
        listing(json.dumps([{"md5": "0" * 32, "relpath": name}]), "0")


def test_a_stored_folder_cannot_lead_outside(tmp_path: Path, cache: Cache) -> None:
    listing = json.dumps([{"md5": "0" * 32, "relpath": "../../evil"}]).encode()
    path = tmp_path / "listing"
    path.write_bytes(listing)
    md5 = cache.put(path).md5
    cache.path(md5).rename(cache.path(md5 + ".dir"))
    with pytest.raises(UserError, match=r"\.\./\.\./evil"):
        cache.link(Entry(md5 + ".dir", 0, 1), tmp_path / "out")


def test_links_are_refused(tmp_path: Path, cache: Cache) -> None:
    made = folder(tmp_path / "x")
    (made / "link").symlink_to("/etc/passwd")
    with pytest.raises(UserError, match="symbolic link"):
        cache.put(made)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text("abc.", min_size=1).filter(lambda n: set(n) != {"."}), st.binary(), min_size=1))
def test_any_folder_round_trips(tmp_path_factory: pytest.TempPathFactory, content: dict[str, bytes]) -> None:
    home = tmp_path_factory.mktemp("any")
    made = home / "x"
    made.mkdir()
    for name, data in content.items():
        (made / name).write_bytes(data)
    cache = Cache(home / "cache")
    entry = cache.put(made)
    cache.link(entry, home / "y")
    assert {p.name: p.read_bytes() for p in (home / "y").iterdir()} == content
