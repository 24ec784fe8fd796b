"""Reading safetensors headers: what the safetensors library accepts is read, all else is one readable error."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tasks.errors import UserError
from tasks.merge import merge
from tasks.model.dtypes import BITS
from tasks.model.sources import FileSource
from tests.merge.raw import write_header

NUMBERS = st.one_of(
    st.integers(-2, 20), st.sampled_from([0, 4, 8, 2**31, 2**63, 2**64, 2**70, -0.0, 1.5, 1e400, True, None, "4"])
)
SHAPES = st.one_of(st.lists(NUMBERS, max_size=3), NUMBERS)
OFFSETS = st.one_of(st.sampled_from([[0, 4], [0, 8], [4, 8], [8, 4], [0, 0]]), st.lists(NUMBERS, max_size=3))
DTYPES = st.one_of(st.sampled_from(sorted(BITS)), st.sampled_from(["f32", "F128", "", 4, None, ["F32"]]))
TENSORS = st.one_of(
    st.fixed_dictionaries(
        {"dtype": DTYPES, "shape": SHAPES, "data_offsets": OFFSETS}, optional={"extra": st.just([[{}]]), "": NUMBERS}
    ),
    st.sampled_from([None, 3, [], {}, ["F32", [1], [0, 4]], {"dtype": "F32"}]),
)
SOUND = st.builds(
    lambda dtype, n: {"dtype": dtype, "shape": [n], "data_offsets": [0, n * BITS[dtype] // 8]},
    st.sampled_from(sorted(BITS)), st.sampled_from([0, 4, 8]),
)  # fmt: skip
METADATA = st.sampled_from([None, {}, {"format": "pt"}, {"a": 1}, {"a": None}, "text", [], {"format": "pt", "é": "ü"}])
HEADERS = st.dictionaries(st.text(max_size=3), st.one_of(TENSORS, SOUND), max_size=3).flatmap(
    lambda tensors: st.one_of(st.just(tensors), METADATA.map(lambda m: {"__metadata__": m, **tensors}))
)
TENSOR = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
DEEP = [b"[" * depth + b"]" * depth for depth in (200, 100_000)]
SPECIAL = [
    b"", b"{", b"[]", b"null", b"3", b'"a"', b"{}", b" {}", b"{} ", b"{}\n", b"\xef\xbb\xbf{}", b"{}\0",
    b"\xff\xfe{\0}\0", b'{"a":NaN}', b'{"a":Infinity}', b'{"\xff":{}}', b'{"\\ud800":{}}',
    b'{"__metadata__":{"a":"b"},"__metadata__":{}}',
    b"{%s}" % TENSOR, b"{%s,%s}" % (TENSOR, TENSOR), b"{%s,%s}" % (TENSOR, TENSOR.replace(b"a", b"b", 1)),
    b"{%s}" % TENSOR.replace(b"[1]", b"[-0]").replace(b"4", b"0"),
    *(b"{%s}" % TENSOR.replace(b"[1]", shape) for shape in (b"[1.0]", b"[true]", b"[-1]", b'["1"]', b"[1e0]", b"[]")),
    b"{%s}" % TENSOR.replace(b"4]", b"4.0]"), b"{%s}" % TENSOR.replace(b"}", b',"dtype":"F32"}'),
    b"{%s}" % TENSOR.replace(b"[1]", b"[4294967296,4294967296,4294967296]"),
    *(b'{"a":%s}' % deep for deep in DEEP), *(b"{%s}" % TENSOR.replace(b"}", b',"x":%s}' % deep) for deep in DEEP),
]  # fmt: skip


def read_both(path: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Name → (dtype, shape) as the library and as this package have it; None where it is refused."""
    theirs: dict[str, Any] | None
    try:
        with safe_open(path, framework="numpy") as file:
            theirs = {n: (s.get_dtype(), tuple(s.get_shape())) for n in file.keys() for s in (file.get_slice(n),)}  # noqa: SIM118
    except (SafetensorError, OSError):
        theirs = None
    try:
        with FileSource(path) as source:
            return theirs, {name: (entry.dtype, entry.shape) for name, entry in source.entries.items()}
    except UserError as error:
        message = str(error)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return theirs, None


@given(HEADERS, st.sampled_from([0, 4, 8, 16, 32]))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_headers_are_read_as_the_library_reads_them(tmp_path: Path, header: Any, size: int) -> None:
    path = tmp_path / "m.safetensors"
    write_header(path, json.dumps(header).encode(), bytes(size))
    theirs, ours = read_both(path)
    assert ours == theirs


@given(st.binary(max_size=40), st.sampled_from([0, 3, 8]))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_are_never_a_traceback(tmp_path: Path, content: bytes, cut: int) -> None:
    path = tmp_path / "m.safetensors"
    write_header(path, content)
    path.write_bytes(path.read_bytes()[cut:])
    theirs, ours = read_both(path)
    assert ours == theirs


@pytest.mark.parametrize("header", SPECIAL, ids=range(len(SPECIAL)))
def test_particular_headers_are_read_as_the_library_reads_them(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for body in (b"", bytes(4), bytes(8)):
        write_header(path, header, body)
        theirs, ours = read_both(path)
        assert ours == theirs


def test_a_file_of_many_tensors_is_cut_at_any_byte(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    from tests.merge.models import base

    path = tmp_path / "m.safetensors"
    save_file(base(), path)
    content = path.read_bytes()
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="not a readable safetensors file, perhaps truncated"):
            FileSource(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 605\n", r"a git-lfs pointer.*git lfs pull"),
        (b"TensorEntry not found", "a text file, not a safetensors file"),
        ("Bäume und Häuser".encode(), "a text file, not a safetensors file"),
        (b"<!DOCTYPE html>\n<html></html>", "a text file"),
        (b'{"weight_map": {}}', "a JSON file; give the .safetensors file, or an index"),
        (b"PK\x03\x04" + bytes(60), "a torch file; save its tensors with safetensors"),
        (b"\x80\x02" + bytes(60), "a torch file"),
        (b"", r"perhaps truncated \(it is empty\)"),
        (bytes(3), "perhaps truncated"),
    ],
)
def test_what_a_file_is_instead_is_said(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"m\.safetensors: .*{message}"):
        merge("linear", [path])


def test_a_dtype_that_the_format_does_not_have_is_refused_with_its_tensor(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write_header(path, b'{"fc.w":{"dtype":"F128","shape":[1],"data_offsets":[0,16]}}', bytes(16))
    with pytest.raises(UserError, match=r"tensor 'fc\.w' has the dtype F128, which the safetensors format"):
        merge("linear", [path])


def test_pipes_sockets_and_folders_are_named_and_do_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    os.mkfifo("pipe.safetensors")
    with pytest.raises(UserError, match=r"pipe\.safetensors: not a regular file"):
        merge("linear", [Path("pipe.safetensors")])
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.safetensors")
        with pytest.raises(UserError, match=r"socket\.safetensors: (not a regular file|cannot be read)"):
            merge("linear", [Path("socket.safetensors")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: a folder without open_clip_model\.safetensors, model\.saf"):
        merge("linear", [Path("empty")])


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[]", "not a safetensors index"),
        ('{"weight_map": []}', "should map tensor names"),
        ('{"weight_map": {"a": 3}}', "should map tensor names"),
        ('{"weight_map": {}}', "its weight_map is empty"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "outside its folder"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "outside its folder"),
        ('{"weight_map": {"a": "x\\u0000.safetensors"}}', "outside its folder"),
        ('{"weight_map": {"a": "gone.safetensors"}}', r"gone\.safetensors: no such checkpoint"),
        ("[" * 100_000, "not a safetensors index"),
    ],
)
def test_indexes_that_are_wrong_are_named(index: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(index)
    for given_as in (path, tmp_path):
        with pytest.raises(UserError, match=message):
            merge("linear", [given_as])


@pytest.mark.parametrize("technique", ["linear", "ties"])
def test_a_checkpoint_that_is_written_to_while_it_is_read_is_refused(technique: str, tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.safetensors" for name in ("base", "expert")]
    for value, file in enumerate(files):
        save_file({"a": np.full((64, 64), value, "f4"), "b": np.full((64, 64), value, "f4")}, file)
    out = tmp_path / "out.safetensors"

    def overwritten(_what: str, done: int, _total: int, _note: str = "") -> None:
        if done:  # the first tensor is written; the bytes of the second change, but not their number
            content = files[1].read_bytes()
            with files[1].open("r+b") as file:
                file.write(content[:-4] + b"\0\0\0\x40")

    with pytest.raises(UserError, match=r"expert\.safetensors: changed while it was read; run again when nothing"):
        merge(technique, [files[1]], files[0], out, progress=overwritten, slice_entries=512, threads=1)
    assert not out.exists()


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(4, "f4")}, file)
    with FileSource(file) as source:
        save_file({"a": np.ones(4, "f4")}, tmp_path / "other.safetensors")
        (tmp_path / "other.safetensors").replace(file)
        found = np.empty(4, "f4")
        source.read_into("a", 0, found)
    assert (found == 0).all()
