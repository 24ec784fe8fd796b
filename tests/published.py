"""Small published data sets in the exact layouts of those that people download."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

TEMPLATES = ("a photo of a {c}.", "a blurry photo of a {c}.")


def png(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **({"lossless": True} if form == "WEBP" else {}))
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def clip_benchmark(
    folder: Path,
    splits: Mapping[str, Sequence[tuple[Image.Image, Any]]],
    classes: Sequence[str] = ("cat", "dog", "polar bear"),
    templates: Sequence[str] = TEMPLATES,
    *,
    shard: int = 4,
    retrieval: bool = False,
    card: str = "---\nlicense: cc-by-4.0\npretty_name: Small Animals\n---\n# Small animals\n",
) -> Path:
    """As ``clip_benchmark_export_wds`` writes it: images and numbers of classes (or lists of captions), by split."""
    for split, samples in splits.items():
        count = 0
        for count, start in enumerate(range(0, len(samples), shard), start=1):
            members: list[tuple[str, bytes]] = []
            for number, (image, label) in enumerate(samples[start : start + shard], start=start):
                key = f"s{number:07d}"
                text = "\n".join(label) if retrieval else str(label)
                members += [
                    (f"{key}.webp", png(image, "WEBP")),
                    (f"{key}.{'txt' if retrieval else 'cls'}", text.encode()),
                ]
            write_tar(folder / split / f"{count - 1}.tar", members)
        (folder / split / "nshards.txt").write_text(f"{count}\n")
    if retrieval:
        (folder / "dataset_type.txt").write_text("retrieval\n")
    else:
        (folder / "classnames.txt").write_text("".join(f"{name}\n" for name in classes))
        if templates:
            (folder / "zeroshot_classification_templates.txt").write_text("".join(f"{one}\n" for one in templates))
    if card:
        (folder / "README.md").write_text(card)
    return folder


FEATURES = """\
dataset_info:
  features:
  - name: img
    dtype: image
  - name: fine_label
    dtype:
      class_label:
        names:
          '0': cat
          '1': dog
          '2': polar bear
"""


def bomb(mebibytes: int, *, dictionary: bool = False) -> bytes:
    """A small Parquet file whose rows, all of one value, unpack to many mebibytes; also as Arrow's dictionary."""
    import pyarrow as pa
    import pyarrow.parquet

    value = pa.array([bytes(8 << 20)])
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * (mebibytes // 4), pa.int32()), value)
    table = pa.table({"image": rows, "label": ["a"] * len(rows)})
    out = io.BytesIO()
    pyarrow.parquet.write_table(table, out, compression="zstd", store_schema=dictionary)
    assert out.tell() < 1 << 16
    return out.getvalue()


def parquet(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    classes: Mapping[str, Sequence[str]] = {},
    *,
    images: Sequence[str] = ("image",),
    group: int | None = None,
    known: bool = True,
) -> Path:
    """As ``datasets`` writes it: images as structures of bytes and path, features in the schema's metadata."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet

    columns = list(rows[0])
    values = {
        name: [{"bytes": png(row[name]), "path": None} if name in images else row[name] for row in rows]
        for name in columns
    }
    features = {}
    for name in columns:
        plain = datasets.Value("int64" if isinstance(rows[0][name], int) else "string")
        listed = datasets.List(datasets.Value("string")) if isinstance(rows[0][name], list) else plain
        own = datasets.ClassLabel(names=list(classes[name])) if name in classes else listed
        features[name] = datasets.Image() if name in images else own
    schema = datasets.Features(features).arrow_schema
    table = pa.table(values, schema=schema if known else schema.remove_metadata())
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path, row_group_size=group)
    return path
