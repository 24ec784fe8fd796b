"""``torchvision``: data sets that torchvision downloads and checks itself, by the names of its classes.

Short form ``torchvision:CLASS#SPLIT``, as in ``torchvision:CIFAR100#test``; ``torchvision:EMNIST/letters#train`` where
a class has variants. Its archives are the raw files, and are unpacked when they are read. Those that are there already
(in ``.chronomerge/downloads/torchvision/CLASS``) are compared with torchvision's checksums, and not downloaded; an
archive that broke off is downloaded again. Settings: `PublishedSource`; ``classes`` replaces torchvision's names.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from tasks.errors import UnavailableError, UserError
from tasks.model.datasets import Origin
from tasks.model.torchvision_shim import ensure
from tasks.prepare import files
from tasks.prepare.image_source import Row, Rows
from tasks.prepare.places import pick
from tasks.prepare.published import Fetched, PublishedSource
from tasks.prepare.source import Context, Outside


@dataclass(frozen=True)
class Known:
    """How a class of torchvision is called."""

    splits: Mapping[str, Mapping[str, Any]]
    """Split → arguments; of one that has no splits, ``all``."""
    archives: tuple[str, ...] | Mapping[str, tuple[str, ...]]
    """What it downloads, relative to its root; by split, where each has its own."""
    variants: tuple[str, ...] = ()
    """What may follow ``/``; the first is not the default: one must be named."""
    names: tuple[str, ...] = ()
    """Names of classes, where the class of torchvision has none or others."""
    loads: bool = False
    """Whether it takes a loader, so that images are read as they are."""
    arguments: Mapping[str, Any] = field(default_factory=dict)


def _train_test() -> dict[str, dict[str, Any]]:
    return {"train": {"train": True}, "test": {"train": False}}


def _splits(*names: str) -> dict[str, dict[str, Any]]:
    return {name: {"split": name} for name in names}


ALL: dict[str, dict[str, Any]] = {"all": {}}
DIGITS = tuple("0123456789")
NO_CLASS = "N/A"
"""What EMNIST's letters call the number that is no class."""
_IDX = (
    "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)  # fmt: skip


def _idx(name: str, names: tuple[str, ...] = ()) -> Known:
    return Known(_train_test(), tuple(f"{name}/raw/{file}" for file in _IDX), names=names)


KNOWN: dict[str, Known] = {
    "CIFAR10": Known(_train_test(), ("cifar-10-python.tar.gz",)),
    "CIFAR100": Known(_train_test(), ("cifar-100-python.tar.gz",)),
    "Caltech256": Known(ALL, ("caltech256/256_ObjectCategories.tar",)),
    "Country211": Known(_splits("train", "valid", "test"), ("country211.tgz",), loads=True),
    "DTD": Known(_splits("train", "val", "test"), ("dtd/dtd-r1.0.1.tar.gz",), loads=True),
    "EMNIST": Known(
        _train_test(), ("EMNIST/raw/gzip.zip",),
        variants=("balanced", "byclass", "bymerge", "digits", "letters", "mnist"),
    ),
    "EuroSAT": Known(ALL, ("eurosat/EuroSAT.zip",), loads=True),
    "FashionMNIST": _idx("FashionMNIST"),
    "Flowers102": Known(
        _splits("train", "val", "test"),
        ("flowers-102/102flowers.tgz", "flowers-102/imagelabels.mat", "flowers-102/setid.mat"), loads=True,
    ),
    "Food101": Known(_splits("train", "test"), ("food-101.tar.gz",), loads=True),
    "GTSRB": Known(
        _splits("train", "test"),
        {
            "train": ("gtsrb/GTSRB-Training_fixed.zip",),
            "test": ("gtsrb/GTSRB_Final_Test_Images.zip", "gtsrb/GTSRB_Final_Test_GT.zip"),
        },
    ),
    "Imagenette": Known(_splits("train", "val"), ("imagenette2.tgz",), loads=True),
    "KMNIST": _idx("KMNIST"),
    "MNIST": _idx("MNIST", DIGITS),
    "OxfordIIITPet": Known(
        _splits("trainval", "test"), ("oxford-iiit-pet/images.tar.gz", "oxford-iiit-pet/annotations.tar.gz")
    ),
    "RenderedSST2": Known(_splits("train", "val", "test"), ("rendered-sst2.tgz",), loads=True),
    "SEMEION": Known(ALL, ("semeion.data",), names=DIGITS),
    "STL10": Known(_splits("train", "test"), ("stl10_binary.tar.gz",)),
    "SUN397": Known(ALL, ("SUN397.tar.gz",), loads=True),
    "SVHN": Known(
        _splits("train", "test", "extra"), {one: (f"{one}_32x32.mat",) for one in ("train", "test", "extra")},
        names=DIGITS,
    ),
    "USPS": Known(_train_test(), {"train": ("usps.bz2",), "test": ("usps.t.bz2",)}, names=DIGITS),
}  # fmt: skip
"""What is read; all of it is classification."""

ELSEWHERE = {
    "Caltech101": "clip-benchmark:vtab/caltech101", "FER2013": "clip-benchmark:fer2013",
    "FGVCAircraft": "clip-benchmark:fgvc_aircraft",
    "ImageNet": "hf:ILSVRC/imagenet-1k, or images: with classnames: imagenet", "PCAM": "clip-benchmark:vtab/pcam",
    "StanfordCars": "hf:tanganke/stanford_cars, or clip-benchmark:cars",
    "CocoCaptions": "clip-benchmark:mscoco_captions", "Flickr30k": "clip-benchmark:flickr30k",
    "Flickr8k": "clip-benchmark:flickr8k",
}  # fmt: skip
"""Where others are that torchvision does not download, or not without a file host's program, or without a checksum."""


class Torchvision(PublishedSource):
    """Data sets that torchvision downloads and checks itself: ``torchvision:CIFAR100#test``."""

    name: ClassVar[str] = "torchvision"

    @property
    def known(self) -> Known:
        """How the class is called.

        Raises:
            UserError: it is none of those that are read; says which, and where it may be had.
        """
        name, slash, variant = self.path.partition("/")
        if name not in KNOWN:
            if name in ELSEWHERE:
                raise UserError(
                    f"{self.what}: torchvision does not download and check it by itself; use {ELSEWHERE[name]}"
                )
            raise UserError(
                f"{self.what}: is not read; of torchvision's classes, {', '.join(KNOWN)} are; download another one "
                "yourself, and read it with images:, table: or webdataset:"
            )
        known = KNOWN[name]
        if (slash or known.variants) and variant not in known.variants:
            if not known.variants:
                raise UserError(f"{self.what}: {name} has no variants; write torchvision:{name}")
            there = ", ".join(known.variants)
            raise UserError(f"{self.what}: name one of {there}, as in torchvision:{name}/{known.variants[0]}")
        return known

    @property
    def selection(self) -> list[Any]:
        return []  # all archives of a split

    def check(self, project: Path) -> None:  # noqa: ARG002 - nothing is looked up
        self._split()
        if self.path.partition("/")[0] in ("SVHN", "Flowers102"):
            _require("scipy", self.what)

    def _split(self) -> str:
        if len(self.known.splits) == 1 and self.split in ("train", "test"):
            raise UserError(
                f"{self.what}: comes without a train and a test part; draw two with [:80%] and [80%:], as in "
                f"torchvision:{self.path}#[:80%]"
            )
        return pick(list(self.known.splits), self.split, self.what)[0]

    def _archives(self) -> list[str]:
        archives = self.known.archives
        return list(archives[self._split()] if isinstance(archives, Mapping) else archives)

    def is_there(self, cache: Path) -> bool:
        """Whether all of its archives are among downloads; they are compared with checksums as they are read."""
        root = cache / self.name / self.path.partition("/")[0]
        return all((root / archive).is_file() for archive in self._archives())

    def fetch(self, into: Path, outside: Outside) -> None:
        name = self.path.partition("/")[0]
        root = outside.cache / self.name / name
        root.mkdir(parents=True, exist_ok=True)
        outside.progress(f"downloading torchvision's {name}", 0, 1)
        with _torchvision(self.what, root):
            self._made(root)
        outside.progress(f"downloading torchvision's {name}", 1, 1)
        facts = {}
        for archive in self._archives():
            if not (root / archive).is_file():
                raise UserError(
                    f"{self.what}: this release of torchvision leaves no {archive}; `make install` has another"
                )
            files.copy(root / archive, into / self.store / archive)
            facts[archive] = [(root / archive).stat().st_size, files.digest(root / archive).hex()]
        record = Fetched(split=self._split(), files=list(facts), facts=facts)
        (into / f"{self.store}.json").write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")

    def _made(self, root: Path) -> Any:
        """The data set of torchvision, unpacked below a root; what is not there is downloaded."""
        ensure()
        import torchvision.datasets

        name, _, variant = self.path.partition("/")
        known = self.known
        arguments = {**known.arguments, **known.splits[self._split()]}
        if variant:
            arguments["split"] = variant
        if known.loads:
            arguments["loader"] = Path
        return getattr(torchvision.datasets, name)(root=str(root), download=True, **arguments)

    def rows(self, home: Path, files_: Sequence[Path], context: Context) -> Rows:  # noqa: ARG002 - those of the record
        root = context.scratch / self.store
        for archive, (_, sha256) in self.record(home.parent).facts.items():
            if not (home / archive).is_file() or files.digest(home / archive).hex() != sha256:
                raise UserError(f"{home / archive}: missing or damaged; fetch the arrival again")
            (root / archive).parent.mkdir(parents=True, exist_ok=True)
            if not (root / archive).exists():
                _linked(home / archive, root / archive)
        with _torchvision(self.what, root):
            made = self._made(root)
        labels = _labels(made)
        names = self.classes or self.known.names or _names(made)
        if not names:
            raise UserError(f"{self.what}: comes without names of its classes; give them, in order, as classes: [...]")
        if labels and not 0 <= min(labels) <= max(labels) < len(names):
            raise UserError(f"{self.what}: has classes {min(labels)} to {max(labels)}, and {len(names)} names")
        rows = [
            Row(shown, shown, None, names[label], load)
            for shown, label, load in _samples(made, labels, root, self.path, self._split())
        ]
        notes = ("its images are transposed, as torchvision gives them",) if self.path.startswith("EMNIST") else ()
        return Rows(rows, given=True, notes=notes, classes=tuple(name for name in names if name != NO_CLASS))

    def origin(self, raw: Path) -> Origin:
        from importlib.metadata import version

        pinned = tuple((name, size, sha) for name, (size, sha) in self.record(raw).facts.items())
        source = f"torchvision.datasets.{self.path} ({version('torchvision')})"
        return Origin(source, self.licence or "unknown", self.attribution, pinned)


def _samples(
    made: Any, labels: Sequence[int], root: Path, path: str, split: str
) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    """Name, label and loader of each sample, in an order that no file system decides."""
    first = made[0][0] if len(made) else None
    if not isinstance(first, Path):
        for number, label in enumerate(labels):
            yield f"{path}:{split}/{number:06d}", label, partial(_encoded, made, number)
        return
    samples = [(os.path.relpath(made[number][0], root), label) for number, label in enumerate(labels)]
    for inside, label in sorted(samples):
        yield f"{path}:{split}/{inside}", label, partial(files.image, root / inside)


def _encoded(made: Any, number: int) -> bytes:
    """An image that torchvision has decoded, without loss."""
    buffer = io.BytesIO()
    made[number][0].save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _labels(made: Any) -> list[int]:
    """The class of each sample, without decoding it where the data set knows."""
    for attribute in ("targets", "labels", "_labels", "y"):
        values = getattr(made, attribute, None)
        if values is not None and len(values) == len(made):
            return [int(value) for value in values]
    pairs = getattr(made, "_samples", None)
    if pairs is not None and len(pairs) == len(made):
        return [int(label) for _, label in pairs]
    return [int(made[number][1]) for number in range(len(made))]


def _names(made: Any) -> tuple[str, ...]:
    """The names of classes as words: of ``apple_pie`` and ``001.ak47``, ``apple pie`` and ``ak47``."""
    given = getattr(made, "classes", None) or getattr(made, "categories", None) or ()
    names = [one[0] if isinstance(one, tuple) else str(one) for one in given]
    if names and all(name[:3].isdigit() and name[3:4] == "." for name in names):  # Caltech-256
        names = [name[4:].removesuffix("-101").replace("-", " ") for name in names]
    return tuple(" ".join(name.replace("_", " ").split()) for name in names)


def _linked(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        files.copy(source, target)


def _require(module: str, what: str) -> None:
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise UserError(f"{what}: torchvision reads it with {module}, which is not installed: pip install {module}")


@contextmanager
def _torchvision(what: str, root: Path) -> Iterator[None]:
    """What torchvision and its downloader raise, in a sentence; its bars are not printed."""
    import http.client
    import tarfile
    import urllib.error
    import zipfile

    way_out = f"or put its archives into {root}"
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    except urllib.error.HTTPError as error:
        raise UserError(f"{what}: its address answers with status {error.code}; try again later, {way_out}") from None
    except (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UnavailableError(f"{what}: cannot be downloaded ({reason}); try again later, {way_out}") from None
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{what}: an archive in {root} is damaged ({error}); remove it") from None
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(f"{what}: {error or type(error).__name__} (torchvision); {way_out}") from None
