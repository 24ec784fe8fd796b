"""WebDataset tars as they are met: the right image, the right text, every sample, and a count of what is left out."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks.errors import UserError
from tasks.model.datasets import Dataset
from tasks.prepare import files, notes_on, tars
from tests.prepare.conftest import picture

Prepare = Callable[..., Dataset]
Members = Iterable[tuple[str, bytes]]


def photo(number: int, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture(number).save(buffer, form)
    return buffer.getvalue()


def black() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, members: Members, mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def sample(key: str, number: int, text: str | None = None) -> list[tuple[str, bytes]]:
    return [(f"{key}.png", photo(number)), (f"{key}.txt", (text or key).encode())]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("own", "other"), [("jpg", "depth.png"), ("jpeg", "mask.jpg"), ("png", "seg.webp"), ("gif", "0.jpg")]
)
def test_the_bare_extension_is_the_image(prepare: Prepare, project: Path, other: str, first: bool, own: str) -> None:
    members: list[tuple[str, bytes]] = []
    for i in range(2):
        pair = [(f"{i}.{other}", black()), (f"{i}.{own}", photo(i + 1))]
        members += [*(pair if first else reversed(pair)), (f"{i}.txt", b"thing")]
    write(project / "a.tar", members)
    assert (prepare("webdataset:a.tar").images.max(axis=(1, 2, 3)) > 60).all()
    assert notes_on(project / "data/raw/arrival") == [f"webdataset: a.tar: left out of its tar files: 2 {other}"]


def test_the_image_can_be_named(prepare: Prepare, project: Path) -> None:
    write(project / "a.tar", [("0.left.png", photo(1)), ("0.right.png", black()), ("0.txt", b"x")])
    with pytest.raises(UserError, match=r"has several images \(left\.png, right\.png\); say which one with image"):
        prepare("webdataset:a.tar")
    assert not prepare({"source": "webdataset", "path": "a.tar", "image": "right.png"}).images.any()
    with pytest.raises(UserError, match=r"no member 'back\.png' in any sample|has no image 'back\.png'"):
        prepare({"source": "webdataset", "path": "a.tar", "image": "back.png"})


@pytest.mark.parametrize(
    ("members", "captions"),
    [
        ([*sample("22.05", 1), *sample("23.05", 2)], ["22.05", "23.05"]),
        ([*sample("22.05", 1), *sample("22.06", 2)], ["22.05", "22.06"]),
        ([*sample("a", 1), *sample("b.1", 2)], ["a", "b.1"]),
        ([*sample("v1.0/a", 1), *sample("v1.0/b", 2)], ["v1.0/a", "v1.0/b"]),
        ([*sample("./a", 1), *sample("b", 2)], ["./a", "b"]),
        ([("0.JPG", photo(1)), ("0.TXT", b"0"), ("1.Jpg", photo(2)), ("1.Txt", b"1")], ["0", "1"]),
        ([("0.png", photo(1)), ("1.png", photo(2)), ("1.txt", b"1"), ("0.txt", b"0")], ["0", "1"]),
        ([("0.txt", b"0"), ("1.txt", b"1"), ("1.png", photo(2)), ("0.png", photo(1))], ["0", "1"]),
        ([*sample("ключ-🦊", 1, "лиса"), *sample("b", 2, "日本語")], ["лиса", "日本語"]),
        ([("._a.png", b"mac"), ("__MACOSX/x.png", b"y"), *sample("a", 1)], ["a"]),
        ([("0.png", photo(1)), ("0.json", b'{"caption": "of json"}'), *sample("1", 2, "own")], ["of json", "own"]),
    ],
)
def test_names_and_orders_of_members(prepare: Prepare, project: Path, members: Members, captions: list[str]) -> None:
    write(project / "a.tar", members)
    assert prepare("webdataset:a.tar").captions == captions
    assert notes_on(project / "data/raw/arrival") == []


@pytest.mark.parametrize(("name", "mode"), [("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("a.tar", "w:xz")])
def test_compressed_tars(prepare: Prepare, project: Path, name: str, mode: str) -> None:
    write(project / "t" / name, [*sample("0", 1), *sample("1", 2)], mode)
    assert prepare("webdataset:t").captions == ["0", "1"]


@pytest.mark.parametrize("labels", [["1", "2"], ["0\n", "1\n"], ["1.0", "0.0"]])
def test_numbers_are_no_class_names(prepare: Prepare, project: Path, labels: list[str]) -> None:
    members = [m for i, label in enumerate(labels) for m in [(f"{i}.png", photo(i)), (f"{i}.cls", label.encode())]]
    write(project / "t/a.tar", members)
    with pytest.raises(UserError, match=r"webdataset: t: classes holds numbers; give their names"):
        prepare("webdataset:t")
    names = ["owl", "big cat", "dog"]
    expected = [names[int(float(label))] for label in labels]
    data = prepare({"source": "webdataset", "path": "t", "classes": names})
    assert [data.card.classes[label] for label in data.labels] == expected
    if "." not in labels[0]:
        (project / "t/classnames.txt").write_text("\n".join(names) + "\n")
        data = prepare("webdataset:t")
        assert [data.card.classes[label] for label in data.labels] == expected
        listed = "named by classnames.txt (3 names: 'owl', 'big cat', 'dog')"
        assert listed in notes_on(project / "data/raw/arrival")[0]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([*sample("0", 1, "a"), *sample("0", 2, "b")], "has two members '0.png'"),
        ([("0.txt", b"x"), *sample("1", 1)], "a.tar/0: has no image, only txt"),
        ([("0.png", photo(1)), ("0.txt", "a thing".encode("utf-16"))], "a.tar/0.txt: it is UTF-16; save it as UTF-8"),
        (
            [("0.png", photo(1)), ("0.txt", "a thing".encode("utf-16-le"))],
            "0.txt: it holds null bytes, so it is UTF-16",
        ),
        ([("0.png", photo(1)), ("0.note.txt", b"a")], "name the member (caption.txt, say) or the key of its JSON with"),
        (
            [("0.png", photo(1)), ("0.txt", "café".encode("latin-1"))],
            "a.tar/0.txt: line 1 is not UTF-8 (byte 0xe9), perhaps Latin-1",
        ),
        ([("0.png", photo(1)), ("0.json", b"[1]")], "a.tar/0.json: is no JSON of keys and values"),
        ([("0.png", photo(1)), ("0.json", b"[" * 5000)], "a.tar/0.json: is no JSON of keys and values"),
        ([("0.png", photo(1)), ("0.txt", b"x" * (1 << 20) + b"y")], "0.txt: is a text of 1048577 bytes"),
        ([*sample("0", 1), ("1.png", photo(2))], "a.tar/1: has neither a caption nor a class"),
    ],
)
def test_a_wrong_sample_is_named(prepare: Prepare, project: Path, members: Members, words: str) -> None:
    write(project / "a.tar", members)
    with pytest.raises(UserError) as caught:
        prepare("webdataset:a.tar")
    assert words in str(caught.value)


@pytest.mark.parametrize("spec", ["webdataset:a.tar", "images:folder", "table:t.csv"])
def test_a_file_that_is_too_large_for_an_image_is_not_read(
    prepare: Prepare, project: Path, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(project / "a.tar", [*sample("0", 1), *sample("1", 2)])
    for name in ("cat/1.png", "dog/2.png"):
        (project / "folder" / name).parent.mkdir(parents=True)
        (project / "folder" / name).write_bytes(photo(int(name[4])))
    (project / "t.csv").write_text("image,caption\nfolder/cat/1.png,a\nfolder/dog/2.png,b\n")
    monkeypatch.setattr(files, "IMAGE_BYTES", 20)
    with pytest.raises(UserError, match="bytes, and images of up to 20 are read"):
        prepare(spec)


def test_links_and_other_members_are_counted(prepare: Prepare, project: Path) -> None:
    path = write(
        project / "a.tar", [*sample("0", 1), ("README", b"x"), ("0.url", b"http://x"), ("d/1.json", b"{}")][:4]
    )
    with tarfile.open(path, "a") as tar:
        for name, kind in (("1.png", tarfile.SYMTYPE), ("2.png", tarfile.LNKTYPE), ("3.png", tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    prepare("webdataset:a.tar")
    (note,) = notes_on(project / "data/raw/arrival")
    assert note.endswith("left out of its tar files: 2 link, 1 device, 1 url, 1 without extension")


def test_what_a_compressed_tar_unpacks_to_is_limited(project: Path) -> None:
    path = write(project / "a.tar", [("0.png", bytes(5 << 20))], "w:gz")
    with pytest.raises(UserError, match=r"a\.tar unpacks to more than 1048576 bytes \(limits\.drop_bytes"):
        tars.read(path, project, "t", 1 << 20)


def test_a_long_header_is_refused(project: Path) -> None:
    write(project / "a.tar", [("a" * (3 << 20) + ".png", b"x")])
    with pytest.raises(UserError, match="damaged or no tar file: a header of"):
        tars.read(project / "a.tar", project, "t", 1 << 30)


def header(name: str, kind: bytes = tarfile.REGTYPE, **pax: str) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.pax_headers = kind, dict(pax)
    return member.tobuf(tarfile.PAX_FORMAT)


def negative() -> bytes:
    """The header of a member of -1 bytes, as GNU tar writes large numbers."""
    member = bytearray(header("a.png"))
    member[124:136] = b"\xff" * 12
    member[148:156] = b" " * 8
    member[148:156] = b"%06o\0 " % sum(member)
    return bytes(member)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (header("0.png") + header("a.png", size="-1536"), "a member of -1536 bytes"),  # back to the first header
        (negative(), "a member of -1 bytes"),
        (header("a.png", tarfile.GNUTYPE_SPARSE), "a sparse file"),
        (header("a.png", **{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}), "a sparse file"),
        (header("a.png", **{"GNU.sparse.map": "0,1"}), "a sparse file"),
        (b"".join(header(f"{number}.png") for number in range(7)), "has more than 6 members"),
    ],
)
def test_headers_that_lead_back_or_fill_the_memory_are_refused(
    tmp_path: Path, members: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tars, "MEMBERS", 6)
    path = tmp_path / "a.tar"
    path.write_bytes(members + bytes(4096))
    for read in (
        lambda: tars.read(path, tmp_path, "t", 1 << 30),
        lambda: tars.members(path, "t"),
        lambda: started(path, 100, tmp_path / "start.tar"),
    ):
        with pytest.raises(UserError, match=words):
            read()


@settings(deadline=None, max_examples=40)
@given(st.binary(max_size=60), st.integers(0, 4000), st.integers(0, 20_000))
def test_any_bytes_are_samples_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, place: int, length: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = write(folder / "any.tar", [("a.png", b"1" * 700), ("a.txt", b"x"), ("b.json", json.dumps({}).encode())])
    data = path.read_bytes()
    path.write_bytes((data[:place] + noise + data[place + len(noise) :])[:length])
    try:
        content = tars.read(path, folder, "t", 1 << 20)
    except UserError:
        return
    assert all(len(m.content()) == m.size for one in content.samples for m in one.members.values())


def test_a_sample_whose_only_image_is_no_bare_extension_is_said(prepare: Prepare, project: Path) -> None:
    members = [m for i in range(3) for m in [(f"{i}.seg.png", photo(i)), (f"{i}.txt", b"x")]]
    write(project / "a.tar", [*members, ("3.png", photo(3)), ("3.txt", b"x")])
    assert len(prepare("webdataset:a.tar").ids) == 4
    (note,) = notes_on(project / "data/raw/arrival")
    assert "the image of 3 of 4 samples is its seg.png, for it has no other" in note


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("café\nb\n".encode("latin-1"), "classnames.txt: line 1 is not UTF-8 (byte 0xe9), perhaps Latin-1"),
        ("a\nb\n".encode("utf-16"), "classnames.txt: it is UTF-16; save it as UTF-8"),
        (b"a\n\nb\n", "classnames.txt: line 2 is empty, so numbers of classes would shift; remove it"),
        (b"\n", "classnames.txt: holds no names"),
    ],
)
def test_a_list_of_class_names_that_would_name_others_is_refused(
    prepare: Prepare, project: Path, names: bytes, words: str
) -> None:
    write(project / "a.tar", [("0.png", photo(1)), ("0.cls", b"0"), ("1.png", photo(2)), ("1.cls", b"1")])
    (project / "classnames.txt").write_bytes(names)
    with pytest.raises(UserError, match=re.escape(words)):
        prepare("webdataset:a.tar")


def test_a_list_of_class_names_is_shown_and_names_that_stand_twice_are_said(prepare: Prepare, project: Path) -> None:
    write(project / "a.tar", [("0.png", photo(1)), ("0.cls", b"0"), ("1.png", photo(2)), ("1.cls", b"2\n")])
    (project / "classnames.txt").write_bytes("\ufeffcat\r\ncat\r\ndog".encode())
    data = prepare("webdataset:a.tar")
    assert [data.card.classes[label] for label in data.labels] == ["cat", "dog"]
    assert notes_on(project / "data/raw/arrival") == [
        "webdataset: a.tar: its classes are numbers, named by classnames.txt (3 names: 'cat', 'cat', 'dog')",
        "webdataset: a.tar: classnames.txt calls several numbers 'cat': they are one class",
    ]


def test_a_mark_at_the_start_of_a_text_is_no_part_of_the_caption(prepare: Prepare, project: Path) -> None:
    write(project / "a.tar", [("0.png", photo(1)), ("0.txt", "\ufeffa thing".encode())])
    assert prepare("webdataset:a.tar").captions == ["a thing"]


def started(path: Path, samples: int, target: Path) -> tuple[int | None, list[str]]:
    """What `tars.start` says, and the samples of the file that it made."""
    with path.open("rb") as file:
        found = tars.start(file, samples, target, "t")
    assert target.exists() == (found is not None)
    content = tars.read(target, target.parent, "t", 1 << 20) if found else None
    return found, [sample.key for sample in content.samples] if content else []


def test_the_start_of_a_tar_file_has_its_first_samples_and_is_one_itself(tmp_path: Path) -> None:
    members = [(f"{n}.{end}", bytes([n]) * (600 * n + 1)) for n in range(5) for end in ("png", "cls")]
    path, target = write(tmp_path / "a.tar", [("LICENSE", b"x"), *members]), tmp_path / "start.tar"
    whole = tars.read(path, tmp_path, "t", 1 << 20).samples
    for samples in range(1, 5):
        assert started(path, samples, target) == (samples, [str(n) for n in range(samples)])
        for mine, other in zip(tars.read(target, tmp_path, "t", 1 << 20).samples, whole, strict=False):
            assert {e: m.content() for e, m in mine.members.items()} == {
                e: m.content() for e, m in other.members.items()
            }
    assert started(path, 5, target)[0] is None  # all that there are
    dotted = [(f"{n}.05.{end}", b"x") for n in range(3) for end in ("png", "cls")]
    assert started(write(tmp_path / "b.tar", dotted), 2, target) == (2, ["0.05", "1.05"])


def test_where_the_start_does_not_tell_which_samples_are_complete_all_is_needed(tmp_path: Path) -> None:
    target = tmp_path / "start.tar"
    apart = [(f"{n}.{end}", b"x") for end in ("png", "cls") for n in range(4)]
    assert started(write(tmp_path / "a.tar", apart), 2, target)[0] is None
    again = [(f"{n}.{end}", b"x") for n in (0, 1, 0, 2, 3) for end in (("png", "cls") if n else ("png",))]
    assert started(write(tmp_path / "b.tar", [*again[:3], ("0.cls", b"x"), *again[3:]]), 3, target)[0] is None
    together = [(f"{n}.{end}", b"x") for n in range(4) for end in ("png", "cls")]
    assert started(write(tmp_path / "c.tar", together, "w:gz"), 2, target)[0] is None
    path = write(tmp_path / "d.tar", together)
    path.write_bytes(b"\0" * 100 + path.read_bytes()[100:])
    with pytest.raises(UserError, match="t is damaged or no tar file"), path.open("rb") as file:
        tars.start(file, 2, target, "t")
    path.write_bytes(path.read_bytes()[:0])
    with pytest.raises(UserError, match="t is damaged or no tar file"), path.open("rb") as file:
        tars.start(file, 2, target, "t")
