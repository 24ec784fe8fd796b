"""Samples/s of preparing Parquet, WebDataset and folders of images, beside ``datasets`` and torchvision's transforms.

    .venv/bin/python benchmarks/prepare.py [--count 2000] [--size 224] [--images FOLDER] [--repeat 3]

The same JPEG files in three forms, read from this machine's disk. ``ours`` reads raw files (``hf``, ``webdataset``,
``images``) and writes the prepared data set, raw pixels. The peer loads them with ``datasets`` (its builders, caches
in a folder of their own), applies open_clip's evaluation transform but for the normalization (torchvision: resize,
crop), and writes the same array: in one process, and in as many as there are cores (torch's DataLoader). What both
write is compared: the pixels must be equal. The best of several turns, each with caches of its own.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from prepared import photographs  # noqa: E402

from tasks.model import torchvision_shim  # noqa: E402
from tasks.model.datasets import Card, Dataset, Sample, write  # noqa: E402
from tasks.prepare import registry  # noqa: E402
from tasks.prepare.image_source import Listing  # noqa: E402
from tasks.prepare.listing import walk  # noqa: E402
from tasks.prepare.published import Fetched  # noqa: E402
from tasks.prepare.source import Context  # noqa: E402

CLASSES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    torchvision_shim.ensure()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        files = photographs(given.images, given.count)
        forms = {"parquet": parquet, "webdataset": tars, "folder": folders}
        print(
            f"{len(files)} images of {sum(map(len, files)) / len(files) / 1e3:.1f} kB, {given.size} px, {cores} cores"
        )
        print(f"{'samples/s':12} {'ours':>8} {'datasets + torchvision':>24} {f'{cores} workers':>12}  pixels")
        for form, make in forms.items():
            place = make(home / form, files)
            turns: dict[str, Callable[[Path], None]] = {
                "ours": lambda out, form=form, place=place: ours(form, place, given.size, out),  # type: ignore[misc]
                "one": lambda out, form=form, place=place: theirs(form, place, given.size, out, 0),  # type: ignore[misc]
                "all": lambda out, form=form, place=place: theirs(form, place, given.size, out, cores),  # type: ignore[misc]
            }
            best = dict.fromkeys(turns, float("inf"))
            for _ in range(given.repeat):
                for name, turn in turns.items():
                    shutil.rmtree(home / name, ignore_errors=True)
                    (home / name).mkdir()
                    best[name] = min(best[name], timed(turn, home / name))
            pixels = [np.sort(_rows(home / name)) for name in turns]
            same = "equal" if all((one == pixels[0]).all() for one in pixels) else "DIFFERENT"
            rate = {name: len(files) / seconds for name, seconds in best.items()}
            print(f"{form:12} {rate['ours']:8.0f} {rate['one']:24.0f} {rate['all']:12.0f}  {same}")


def timed(turn: Callable[[Path], None], out: Path) -> float:
    start = time.perf_counter()
    turn(out)
    return time.perf_counter() - start


def _rows(out: Path) -> np.ndarray:
    """A hash of each image that was written."""
    images = np.load(out / "images.npy", mmap_mode="r")
    return np.array([hash(image.tobytes()) for image in images])


def parquet(home: Path, files: list[bytes]) -> Path:
    """One file, as ``datasets`` writes it."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet

    classes = datasets.ClassLabel(names=[f"class {n}" for n in range(CLASSES)])
    schema = datasets.Features({"image": datasets.Image(), "label": classes}).arrow_schema
    rows = {
        "image": [{"bytes": file, "path": None} for file in files],
        "label": [n % CLASSES for n in range(len(files))],
    }
    (home / "data").mkdir(parents=True)
    pyarrow.parquet.write_table(pa.table(rows, schema=schema), home / "data/train.parquet", row_group_size=1000)
    return home


def tars(home: Path, files: list[bytes]) -> Path:
    home.mkdir(parents=True)
    with tarfile.open(home / "0.tar", "w") as tar:
        for number, file in enumerate(files):
            for end, content in (("jpg", file), ("cls", str(number % CLASSES).encode())):
                member = tarfile.TarInfo(f"{number:06d}.{end}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    (home / "classnames.txt").write_text("".join(f"class {number}\n" for number in range(CLASSES)), encoding="utf-8")
    return home


def folders(home: Path, files: list[bytes]) -> Path:
    for number, file in enumerate(files):
        (home / f"class {number % CLASSES}").mkdir(parents=True, exist_ok=True)
        (home / f"class {number % CLASSES}/{number:06d}.jpg").write_bytes(file)
    return home


def ours(form: str, place: Path, size: int, out: Path) -> None:
    """Raw files to a prepared data set; the raw files are links to the place, for copying them is not what is timed."""
    kind = {"parquet": "hf", "webdataset": "webdataset", "folder": "images"}[form]
    source: Any = registry.parse({"source": kind, "path": "org/data" if kind == "hf" else str(place)}, "benchmark")
    raw = out / "raw"
    (raw / source.store).parent.mkdir()
    (raw / source.store).symlink_to(place)
    names = [file.relative_to(place).as_posix() for file in walk(place) if file.suffix != ".txt"]
    if kind == "hf":
        facts = {"form": "parquet", "classes": {}, "columns": {}}
        record = Fetched(split="train", files=names, facts=facts).model_dump_json()
    else:
        record = Listing(given=False, files=names).model_dump_json()
    (raw / f"{source.store}.json").write_text(record, encoding="utf-8")
    (out / "scratch").mkdir()
    reading = source.read(raw, Context(0, size, "bicubic", squash=False, scratch=out / "scratch"))
    labels = {name: number for number, name in enumerate(reading.classes)}
    samples = (Sample(e.id, e.image, e.caption, labels[str(e.class_name)]) for e in reading.examples)
    card = Card("benchmark", size, tuple(labels))
    write(out, card, samples, reading.count)
    assert len(Dataset(out)) == reading.count


class Transformed:
    """The images of a Hugging Face data set through a transform."""

    def __init__(self, data: Any, column: str, transform: Any) -> None:
        self.data, self.column, self.transform = data, column, transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, number: int) -> np.ndarray:
        return np.asarray(self.transform(self.data[number][self.column].convert("RGB")))


def theirs(form: str, place: Path, size: int, out: Path, workers: int) -> None:
    """The same through ``datasets`` and torchvision."""
    import datasets
    from torch.utils.data import DataLoader
    from torchvision import transforms

    datasets.disable_progress_bars()
    names = {"parquet": "parquet", "webdataset": "webdataset", "folder": "imagefolder"}
    patterns = {"parquet": "data/*.parquet", "webdataset": "*.tar", "folder": "**"}
    place = place / patterns[form]
    data = datasets.load_dataset(names[form], data_files=str(place), split="train", cache_dir=str(out / "cache"))
    mode = transforms.InterpolationMode.BICUBIC
    transform = transforms.Compose([transforms.Resize(size, interpolation=mode), transforms.CenterCrop(size)])
    items = Transformed(data, "jpg" if form == "webdataset" else "image", transform)
    batches: Iterable[list[np.ndarray]] = (
        DataLoader(items, batch_size=64, num_workers=workers, collate_fn=list)  # type: ignore[arg-type]
        if workers
        else ([items[number]] for number in range(len(items)))
    )
    images = np.lib.format.open_memmap(out / "images.npy", "w+", np.uint8, (len(items), size, size, 3))
    at = 0
    for batch in batches:
        for image in batch:
            images[at] = image
            at += 1
    images.flush()


if __name__ == "__main__":
    main()
