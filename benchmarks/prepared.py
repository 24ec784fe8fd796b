"""Forms of prepared images side by side: bytes a sample, and images/s that are written and read.

    .venv/bin/python benchmarks/prepared.py [--count 512] [--size 224] [--images FOLDER]

The images are those of a folder, or parts of scikit-learn's two photographs (CC BY 2.0), each of another place and
scale. Every form holds the same samples; reading is what a training batch costs before it is on a device: random rows,
random crops, decoding. The peer is torchvision's way: each image file opened, RandomResizedCrop, by one thread.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tasks.model import jpeg, torchvision_shim  # noqa: E402
from tasks.model.datasets import Card, Dataset, Sample, write  # noqa: E402
from tasks.model.jpeg import Jpeg  # noqa: E402
from tasks.prepare.listing import walk  # noqa: E402
from tasks.train.augment import draw  # noqa: E402
from tasks.train.pools import Pool  # noqa: E402

BATCH = 128
FORMS: dict[str, Jpeg | None] = {
    "raw": None,
    "jpeg": Jpeg(),
    "jpeg, quality 85": Jpeg(quality=85),
    "jpeg, original": Jpeg("original"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=Path)
    given = parser.parse_args()
    files = photographs(given.images, given.count)
    print(f"{len(files)} images, {np.mean([len(file) for file in files]) / 1e3:.1f} kB a file")
    print(f"{'form':20} {'kB a sample':>12} {'written/s':>10} {'read/s':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, how) in enumerate(FORMS.items()):
            home = Path(folder) / str(number)
            written = timed(lambda home=home, how=how: store(home, files, given.size, how))  # type: ignore[misc]
            pool = Pool("update", [Dataset(home)])
            read = timed(lambda pool=pool: drawn(pool, len(files)))  # type: ignore[misc]
            size = sum(file.stat().st_size for file in home.glob("images.*")) / len(files) / 1e3
            print(f"{name:20} {size:12.1f} {len(files) / written:10.0f} {len(files) / read:10.0f}")
    peer = timed(lambda: torchvisions(files, given.size))
    print(f"{'torchvision, files':20} {'':12} {'':10} {len(files) / peer:10.0f}")


def photographs(folder: Path | None, count: int) -> list[bytes]:
    """JPEG files: those of a folder, or parts of two photographs."""
    if folder:
        return [file.read_bytes() for file in walk(folder) if file.suffix.lower() in (".jpg", ".jpeg")][:count]
    from sklearn.datasets import load_sample_images

    random, files = np.random.default_rng(0), []
    sources = [Image.fromarray(image) for image in load_sample_images().images]
    for number in range(count):
        source = sources[number % len(sources)]
        side = int(random.integers(160, min(source.size)))
        left, top = (int(random.integers(0, edge - side + 1)) for edge in source.size)
        scaled = source.crop((left, top, left + side, top + side)).resize((500, 375), Image.Resampling.BICUBIC)
        content = io.BytesIO()
        scaled.save(content, "JPEG", quality=90)
        files.append(content.getvalue())
    return files


def store(folder: Path, files: list[bytes], size: int, how: Jpeg | None) -> None:
    originals = how is not None and how.size == "original"

    def samples() -> Iterator[Sample]:
        for number, file in enumerate(files):
            image = jpeg.decode(file, size, Jpeg("original"))
            yield Sample(str(number), image, "a photograph", -1, file if originals else None)

    write(folder, Card("photographs", size, jpeg=how), samples(), len(files))


def drawn(pool: Pool, count: int) -> None:
    random = np.random.default_rng(1)
    for _ in range(0, count, BATCH):
        pool.views(random.integers(0, len(pool), BATCH), draw(BATCH, random))


def torchvisions(files: list[bytes], size: int) -> None:
    torchvision_shim.ensure()
    from torchvision.transforms import InterpolationMode, RandomResizedCrop

    crop = RandomResizedCrop(size, (0.9, 1.0), interpolation=InterpolationMode.BICUBIC)
    for file in files:
        np.asarray(crop(Image.open(io.BytesIO(file)).convert("RGB")))


def timed(work: Callable[[], None]) -> float:
    """Seconds; the best of three."""
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


if __name__ == "__main__":
    main()
