"""Inputs of people who mean harm, or of a broken disk: valid files, changed in their structure or in their bytes.

Everything follows from the kind of input and a number, so that a finding can be made again from these two alone.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import shutil
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hypothesis.errors import HypothesisWarning
from safetensors.torch import save

from tasks import yaml
from tests.arrive.conftest import noise

DROPS = ("manifest", "table", "archive", "safetensors", "torch", "model_drop")
"""Kinds that are drops in an inbox; `tests.fuzz.readers` reads all others."""

_ODD_TEXTS = ("", "\0", "\x1b]0;x\x07", "../../secret/key.png", "/etc/passwd", "{} {x}", "a" * 5000, "0" * 5000, "NaN",
              "é", "\u202e", "=cmd()", "[/red]", "-1", "1e999", "READY", "base",
              "http://u:p@h/", "s3://a/b", "x/" * 500)  # fmt: skip
_TEXTS = st.text(max_size=30) | st.sampled_from(_ODD_TEXTS)
_NUMBERS = st.sampled_from((-1, 0, 1, 2, 3, 1 << 31, 1 << 63, 10**30, 1e308, -0.5, float("nan"), float("inf")))
_VALUES = st.recursive(
    st.none() | st.booleans() | _NUMBERS | _TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXTS, inner, max_size=4),
    max_leaves=8,
)
_KEYS = ("name", "expert", "prompt", "source", "path", "drawn_as", "only", "classes", "fraction", "template", "image",
         "caption", "label", "quoted", "split", "seed", "licence", "test", "count", "")  # fmt: skip
_SETTINGS = st.dictionaries(st.sampled_from(_KEYS) | _TEXTS, _VALUES, max_size=4)


def drawn(strategy: st.SearchStrategy[Any], number: int) -> Any:
    """One value of a strategy: the same for the same number."""
    values: list[Any] = []

    @hypothesis.seed(number)
    @hypothesis.settings(
        max_examples=3, database=None, deadline=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(strategy)
    def collect(value: Any) -> None:
        values.append(value)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HypothesisWarning)
        collect()
    return values[-1]  # the first is always the simplest


def changed(content: bytes, chance: random.Random) -> bytes:
    """Some bytes replaced, removed, repeated or cut off."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        at, size = chance.randrange(len(data) + 1), chance.choice((1, 1, 2, 4, 8, 100))
        match chance.randrange(5):
            case 0:
                data[at : at + size] = chance.randbytes(size)
            case 1:
                del data[at : at + size]
            case 2:
                data[at:at] = data[at : at + size] * chance.choice((1, 3, 50))
            case 3:
                data[at : at + 1] = chance.choice((b"\xff", b"\0", b"\x80", b'"', b"\n", b"9", b"-", b"/", b"{", b"["))
            case _:
                del data[len(data) - chance.randrange(len(data) // 2 + 1) :]
    return bytes(data)


def make(kind: str, number: int, folder: Path, valid: Path) -> None:
    """Write the input ``number`` of a kind into the new folder; ``valid`` holds a valid input of most kinds."""
    folder.mkdir()
    _KINDS[kind](folder, number, random.Random(f"{kind} {number}"), valid)
    if kind in DROPS:
        (folder / "READY").touch()


def png(seed: int) -> bytes:
    out = io.BytesIO()
    noise(seed).save(out, "png")
    return out.getvalue()


def _manifest(folder: Path, number: int, chance: random.Random, _: Path) -> None:
    _write_data(folder, chance)
    settings = drawn(_SETTINGS, number)
    text = json.dumps(settings).encode()
    if chance.random() < 0.4:
        text = changed(b"name: fine\nprompt: 'a {}'\nsource: images\nonly: [cat]\nfraction: 0.5\n", chance)
    (folder / "arrival.yaml").write_bytes(text)


def _write_data(folder: Path, chance: random.Random) -> None:
    match chance.randrange(4):
        case 0:
            (folder / "cat").mkdir()
            (folder / "cat/0.png").write_bytes(png(1))
        case 1:
            (folder / "0.png").write_bytes(png(1))
            (folder / "t.csv").write_text("image,caption,label\n0.png,a cat,cat\n")
        case 2:
            (folder / "t.tar").write_bytes(_tar([("0.png", png(1)), ("0.txt", b"a cat")]))
        case _:
            (folder / "m.safetensors").write_bytes(save({"a": torch.zeros(2)}))


def _table(folder: Path, number: int, chance: random.Random, _: Path) -> None:
    (folder / "0.png").write_bytes(png(1))
    row = st.fixed_dictionaries({"image": _TEXTS | st.just("0.png"), "caption": _VALUES, "label": _TEXTS})
    rows = drawn(st.lists(row, min_size=1, max_size=4), number)
    form = chance.choice(("csv", "tsv", "jsonl", "json", "parquet"))
    delimiter = "\t" if form == "tsv" else ","
    if form == "parquet":
        out = io.BytesIO()
        captions = pa.array([1, 2]) if chance.random() < 0.2 else pa.array(["a cat", "a dog"])
        images = pa.array([png(1), png(2)]) if chance.random() < 0.7 else pa.array([[1], [2]])
        pq.write_table(pa.table({"image": images, "caption": captions}), out)
        content = out.getvalue()
        if chance.random() < 0.8:
            content = changed(content, chance)
    elif form == "jsonl":
        content = "\n".join(map(json.dumps, rows)).encode()
    elif form == "json":
        content = json.dumps(rows).encode()
    else:
        lines = [["image", "caption", "label"], *([str(cell) for cell in row.values()] for row in rows)]
        content = "\n".join(delimiter.join(line) for line in lines).encode(errors="surrogatepass")
    if form != "parquet" and chance.random() < 0.5:
        content = changed(content, chance)
    (folder / f"t.{form}").write_bytes(content)


def _tar(members: list[tuple[str, bytes]], kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content) if kind == tarfile.REGTYPE else 0
            member.type, member.linkname = kind, link
            file.addfile(member, io.BytesIO(content))
    return out.getvalue()


def _archive(folder: Path, number: int, chance: random.Random, _: Path) -> None:
    name = drawn(_TEXTS, number).encode("utf-8", "replace").decode() or "x"
    image = changed(png(1), chance) if chance.random() < 0.5 else png(1)
    fields = json.dumps(drawn(_VALUES, number)).encode()
    kind = tarfile.REGTYPE if chance.random() < 0.7 else chance.choice((b"1", b"2", b"3", b"4", b"5", b"6", b"S", b"x"))
    content = _tar(
        [(f"{name}.png", image), (f"{name}.txt", b"a cat"), (f"{name}.json", fields)], kind, "../../secret/key"
    )
    if chance.random() < 0.6:
        content = changed(content, chance)
    if chance.random() < 0.3:
        content = gzip.compress(content)
        content = changed(content, chance) if chance.random() < 0.5 else content
    (folder / chance.choice(("t.tar", "t.tar.gz", "t.tgz"))).write_bytes(content)


def _safetensors(folder: Path, number: int, chance: random.Random, _: Path) -> None:
    content = save({"a.weight": torch.zeros(2, 3), "b": torch.ones(1, dtype=torch.bfloat16)})
    (folder / "m.safetensors").write_bytes(_with_changed_header(content, number, chance))


def _with_changed_header(content: bytes, number: int, chance: random.Random) -> bytes:
    if chance.random() < 0.5:
        return changed(content, chance)
    (size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    _replaced(header, drawn(_VALUES, number), drawn(_TEXTS, number), chance)
    text = json.dumps(header).encode()
    return struct.pack("<Q", chance.choice((len(text), len(text), len(text), 1 << 62, 0))) + text + data


def _replaced(content: dict[str, Any], value: Any, key: str, chance: random.Random) -> None:
    """Change one place of a nested mapping, in whose lists the entries are places too."""
    while content:
        name = chance.choice(sorted(content, key=str))
        inner = content[name]
        if isinstance(inner, list) and inner and isinstance(inner[0], dict) and chance.random() < 0.7:
            content = chance.choice([one for one in inner if isinstance(one, dict)])
            continue
        if not isinstance(inner, dict) or not inner or chance.random() < 0.2:
            match chance.randrange(4):
                case 0:
                    content[key] = content.pop(name)
                case 1:
                    del content[name]
                case _:
                    content[name] = value
            return
        content = inner


def _torch(folder: Path, number: int, chance: random.Random, _: Path) -> None:
    one = torch.arange(6.0).reshape(2, 3)
    odd: tuple[Callable[[], Any], ...] = (
        lambda: one, lambda: one[:1].expand(1 << 33, 3), lambda: one.to_sparse(), lambda: one.to(torch.complex64),
        lambda: torch.empty(1 << 40, device="meta"), lambda: torch.quantize_per_tensor(one, 0.1, 0, torch.qint8),
        lambda: [1, 2], lambda: torch.nn.Parameter(one), lambda: {"x": one}, lambda: drawn(_VALUES, number),
        lambda: torch.zeros(0), lambda: one.T, lambda: torch.nested.nested_tensor([one, one[:1]]),
    )  # fmt: skip
    out = io.BytesIO()
    key = drawn(_TEXTS, number) if chance.random() < 0.5 else "a.weight"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content: Any = {key: chance.choice(odd)(), "b": one}
        torch.save({"state_dict": content} if chance.random() < 0.3 else content, out,
                   _use_new_zipfile_serialization=chance.random() < 0.8)  # fmt: skip
    data = out.getvalue()
    match chance.randrange(3):
        case 0:
            data = changed(data, chance)
        case 1 if zipfile.is_zipfile(out):
            data = _with_changed_members(data, chance)
    (folder / chance.choice(("m.pt", "m.bin", "m.pth", "m.ckpt"))).write_bytes(data)


def _with_changed_members(content: bytes, chance: random.Random) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, changed(data, chance) if chance.random() < 0.4 else data)
    return out.getvalue()


def _configuration(folder: Path, number: int, chance: random.Random, valid: Path) -> None:
    shutil.copytree(valid / "model", folder, dirs_exist_ok=True)
    _change_file(folder / chance.choice(("config.json", "config.json", "preprocessor_config.json")), number, chance)


def _open_clip(folder: Path, number: int, chance: random.Random, valid: Path) -> None:
    shutil.copytree(valid / "open_clip", folder, dirs_exist_ok=True)
    _change_file(folder / "open_clip_config.json", number, chance)


def _adapter(folder: Path, number: int, chance: random.Random, valid: Path) -> None:
    shutil.copytree(valid / "adapter", folder, dirs_exist_ok=True)
    if chance.random() < 0.6:
        _change_file(folder / "adapter_config.json", number, chance)
    else:
        weights = folder / "adapter_model.safetensors"
        weights.write_bytes(_with_changed_header(weights.read_bytes(), number, chance))


def _model_drop(folder: Path, number: int, chance: random.Random, valid: Path) -> None:
    kind = chance.choice(("small", "small_open_clip", "small_adapter", "small_words"))
    shutil.copytree(valid / kind, folder, dirs_exist_ok=True)
    _change_one(folder, number, chance)


def _tokenizer(folder: Path, number: int, chance: random.Random, valid: Path) -> None:
    shutil.copytree(valid / chance.choice(("own-words", "own-pieces")), folder, dirs_exist_ok=True)
    names = [path for path in sorted(folder.iterdir()) if path.name not in ("config.json", "model.safetensors")]
    for path in chance.sample(names, chance.choice((1, 1, len(names)))):
        _change_file(path, number, chance) if path.suffix == ".json" else path.write_text("[PAD]\n\0\n" * 9)


def _coded(folder: Path, number: int, chance: random.Random, valid: Path) -> None:
    content = chance.choice(sorted((valid / "coded").glob("*.weights"))).read_bytes()
    if chance.random() < 0.5:
        content = _with_changed_note(content, "chronomerge.coded", number, chance)
    else:
        content = _with_changed_header(content, number, chance)
    (folder / "expert.weights").write_bytes(content)


def _packed(folder: Path, number: int, chance: random.Random, valid: Path) -> None:
    content = chance.choice(sorted((valid / "packed").iterdir())).read_bytes()
    if chance.random() < 0.6:
        content = _with_changed_note(content, "chronomerge.shared", number, chance)
        (size,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + size])
        note = header["__metadata__"]["chronomerge.shared"]
        header["__metadata__"]["chronomerge.shared.crc"] = str(zlib.crc32(note.encode()))
        text = json.dumps(header, separators=(",", ":")).encode()
        content = struct.pack("<Q", len(text)) + text + content[8 + size :]
    else:
        content = _with_changed_header(content, number, chance)
    (folder / "experts.packed").write_bytes(content)


def _statistics(folder: Path, number: int, chance: random.Random, valid: Path) -> None:
    content = chance.choice(sorted((valid / "statistics").glob("*.stats.safetensors"))).read_bytes()
    (folder / "a.stats.safetensors").write_bytes(_with_changed_header(content, number, chance))


def _heads(folder: Path, number: int, chance: random.Random, valid: Path) -> None:
    content = chance.choice(sorted((valid / "heads").iterdir())).read_bytes()
    if chance.random() < 0.6:
        content = _with_changed_note(content, "head", number, chance)
    else:
        content = _with_changed_header(content, number, chance)
    (folder / "head.safetensors").write_bytes(content)


def _with_changed_note(content: bytes, key: str, number: int, chance: random.Random) -> bytes:
    """A safetensors file whose metadata has another JSON text under a key."""
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    note = json.loads(header["__metadata__"][key])
    for i in range(chance.choice((1, 1, 2))):
        value = drawn(_VALUES | _NUMBERS | st.sampled_from(("full", "lossless", "ternary", "signs")), number + i)
        _replaced(note, value, chance.choice((drawn(_TEXTS, number), "name", "settings")), chance)
    header["__metadata__"][key] = json.dumps(note)
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


_MERGES = """\
merge_method: {method}
base_model: base.safetensors
models:
  - model: a.safetensors
    parameters: {{weight: 0.5, density: [0.2, 0.8]}}
  - model: b.safetensors
    parameters: {{weight: [{{filter: x, value: 1}}, {{value: 0.3}}]}}
parameters: {{normalize: true}}
dtype: float32
"""


def _recipe(folder: Path, number: int, chance: random.Random, valid: Path) -> None:
    for path in (valid / "statistics").iterdir():
        shutil.copyfile(path, folder / path.name)
    methods = (
        "linear",
        "slerp",
        "karcher",
        "task_arithmetic",
        "ties",
        "dare_ties",
        "breadcrumbs",
        "model_stock",
        "sce",
    )
    _write_yaml(folder / "merge.yaml", _MERGES.format(method=chance.choice(methods)), number, chance)


def _stream(folder: Path, number: int, chance: random.Random, valid: Path) -> None:
    shutil.copytree(valid / "streams", folder, dirs_exist_ok=True)
    name = chance.choice(("vision20", "vision8", "fomo-in-flux"))
    _write_yaml(folder / "stream.yaml", (folder / f"{name}.yaml").read_text(encoding="utf-8"), number, chance)


def _write_yaml(path: Path, text: str, number: int, chance: random.Random) -> None:
    """A YAML file, changed in its bytes or in its structure."""
    if chance.random() < 0.4:
        path.write_bytes(changed(text.encode(), chance))
        return
    content = yaml.load(text)
    for i in range(chance.choice((1, 1, 3))):
        _replaced(content, drawn(_VALUES | _NUMBERS, number + i), drawn(_TEXTS, number + i), chance)
    path.write_text(json.dumps(content), encoding="utf-8")


def _data_set(folder: Path, number: int, chance: random.Random, valid: Path) -> None:
    form = chance.choice(("parquet", "images", "tars", "clip_benchmark"))
    shutil.copytree(valid / "sets" / form, folder, dirs_exist_ok=True)
    if form != "clip_benchmark" and chance.random() < 0.5:
        settings = {"configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "train/*"}]}],
                    "dataset_info": {"features": [{"name": "label", "dtype": {"class_label": {"names": {"0": "a"}}}}]},
                    "license": "mit"}  # fmt: skip
        for i in range(chance.choice((1, 1, 2, 3))):
            _replaced(settings, drawn(_VALUES | _NUMBERS, number + i), drawn(_TEXTS, number + i), chance)
        card = f"---\n{json.dumps(settings)}\n---\n"
        (folder / "README.md").write_bytes(changed(card.encode(), chance) if chance.random() < 0.3 else card.encode())
    if chance.random() < 0.7:
        _change_one(folder, number, chance)


def _fomo(folder: Path, number: int, chance: random.Random, valid: Path) -> None:
    """A set of FoMo-in-Flux as an archive or unpacked, changed in its members or in its annotations."""
    form = chance.choice(("archives", "archives", "unpacked"))
    shutil.copytree(valid / "fomo" / form, folder, dirs_exist_ok=True)
    if form == "archives" and chance.random() < 0.4:
        name = drawn(_TEXTS, number).encode("utf-8", "replace").decode() or "x"
        kind = tarfile.REGTYPE if chance.random() < 0.5 else chance.choice((b"1", b"2", b"3", b"5", b"6", b"S", b"x"))
        names = [chance.choice((f"SHAPES/{name}", name, "SHAPES/pictures/0.png", "./SHAPES/pictures/1.png"))] * 2
        content = _tar([(one, png(1)) for one in names], kind, "../../secret/key.png")
        start = (folder / "SHAPES.tar").read_bytes().rstrip(b"\0") if chance.random() < 0.5 else b""
        (folder / "SHAPES.tar").write_bytes(start + bytes(-len(start) % tarfile.BLOCKSIZE) + content)
    if chance.random() < 0.8:
        _change_one(folder, number, chance)


def _change_one(folder: Path, number: int, chance: random.Random) -> None:
    """Change a file of a folder."""
    path = chance.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    if path.suffix == ".json" and chance.random() < 0.7:
        _change_file(path, number, chance)
    elif path.suffix == ".safetensors":
        path.write_bytes(_with_changed_header(path.read_bytes(), number, chance))
    else:
        path.write_bytes(changed(path.read_bytes(), chance))


def _change_file(path: Path, number: int, chance: random.Random) -> None:
    text = path.read_bytes()
    if chance.random() < 0.3:
        text = changed(text, chance)
    else:
        content = json.loads(text)
        for i in range(chance.choice((1, 1, 2, 3))):
            _replaced(content, drawn(_VALUES | _NUMBERS, number + i), drawn(_TEXTS, number + i), chance)
        text = json.dumps(content).encode()
    path.write_bytes(text)


_KINDS: dict[str, Callable[[Path, int, random.Random, Path], None]] = {
    "manifest": _manifest,
    "table": _table,
    "archive": _archive,
    "safetensors": _safetensors,
    "torch": _torch,
    "configuration": _configuration,
    "open_clip": _open_clip,
    "adapter": _adapter,
    "model_drop": _model_drop,
    "tokenizer": _tokenizer,
    "coded": _coded,
    "packed": _packed,
    "statistics": _statistics,
    "heads": _heads,
    "recipe": _recipe,
    "stream": _stream,
    "data_set": _data_set,
    "fomo": _fomo,
}
KINDS = tuple(_KINDS)
