"""Data sets of torchvision: miniatures of the layouts and checksums of its classes, where its downloader looks."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from tasks.errors import UnavailableError, UserError
from tasks.model.datasets import Dataset
from tasks.model.torchvision_shim import ensure
from tasks.prepare import check, notes_on
from tasks.prepare.sources.torchvision import ELSEWHERE, KNOWN
from tests import published
from tests.prepare.conftest import params, picture

ensure()

import torchvision.datasets as theirs  # noqa: E402  once torchvision can be imported

Prepare = Callable[..., Dataset]


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    """In place of the session's: each test has its own."""
    return tmp_path / "downloads"


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def archive(path: Path, files: Mapping[str, bytes]) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path.read_bytes()


def named(data: Dataset) -> list[str]:
    return [data.card.classes[label] for label in data.labels]


FISH = ["apple", "aquarium_fish", "baby"]


def cifar100(path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Four images to train and three to test; torchvision is told their checksums."""
    pixels = np.random.default_rng(0).integers(0, 255, (7, 3072), dtype=np.uint8)
    labels = [0, 1, 2, 1, 2, 1, 0]
    files = {
        "train": pickle.dumps({"data": pixels[:4], "fine_labels": labels[:4]}),
        "test": pickle.dumps({"data": pixels[4:], "fine_labels": labels[4:]}),
        "meta": pickle.dumps({"fine_label_names": FISH}),
    }
    content = archive(path, {f"cifar-100-python/{name}": data for name, data in files.items()})
    monkeypatch.setattr(theirs.CIFAR100, "tgz_md5", md5(content))
    monkeypatch.setattr(theirs.CIFAR100, "train_list", [["train", md5(files["train"])]])
    monkeypatch.setattr(theirs.CIFAR100, "test_list", [["test", md5(files["test"])]])
    meta = {"filename": "meta", "key": "fine_label_names", "md5": md5(files["meta"])}
    monkeypatch.setattr(theirs.CIFAR100, "meta", meta)
    return pixels.reshape(7, 3, 32, 32).transpose(0, 2, 3, 1)


def test_an_archive_that_is_there_is_not_downloaded(
    prepare: Prepare, downloads: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(theirs.CIFAR100, "url", "http://127.0.0.1:9/none")
    place = downloads / "torchvision/CIFAR100/cifar-100-python.tar.gz"
    pixels = cifar100(place, monkeypatch)
    data = prepare("torchvision:CIFAR100#test")
    assert named(data) == ["baby", "aquarium fish", "apple"]
    assert (np.asarray(data.images) == pixels[4:]).all()
    assert data.ids[0] == "CIFAR100:test/000000"
    (origin,) = data.card.origins
    assert origin.source.startswith("torchvision.datasets.CIFAR100 (")
    content = place.read_bytes()
    assert origin.files == (("cifar-100-python.tar.gz", len(content), hashlib.sha256(content).hexdigest()),)
    raw = [p.name for p in (project / "data/raw/arrival/torchvision").rglob("*") if p.is_file()]
    assert sorted(p for p in raw if not p.endswith(".json")) == ["cifar-100-python.tar.gz"]
    both = prepare("torchvision:CIFAR100#train", "torchvision:CIFAR100#test")
    assert len(both) == 7


def test_the_raw_archive_is_enough_and_a_damaged_one_is_named(
    prepare: Prepare, downloads: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.prepare import node
    from tests.prepare.conftest import arrival

    monkeypatch.setattr(theirs.CIFAR100, "url", "http://127.0.0.1:9/none")
    cifar100(downloads / "torchvision/CIFAR100/cifar-100-python.tar.gz", monkeypatch)
    before = prepare("torchvision:CIFAR100#test").images[:].copy()
    again = params(arrival=arrival("torchvision:CIFAR100#test"), step=1)
    node.prepare_arrival(project, again)
    assert (Dataset(project / "data/step/arrival").images[:] == before).all()
    (raw,) = (project / "data/raw/arrival/torchvision").rglob("*.tar.gz")
    raw.write_bytes(raw.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"cifar-100-python.tar.gz: missing or damaged; fetch the arrival again"):
        node.prepare_arrival(project, again)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str, list[str]]]:
    """A folder, the address that serves it, and the paths that were asked for."""
    folder = tmp_path / "served"
    folder.mkdir()
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_what_is_not_there_is_downloaded_once_and_compared(
    prepare: Prepare, served: tuple[Path, str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address, asked = served
    cifar100(folder / "c.tar.gz", monkeypatch)
    monkeypatch.setattr(theirs.CIFAR100, "url", f"{address}/c.tar.gz")
    assert len(prepare("torchvision:CIFAR100#train")) == 4
    assert len(prepare("torchvision:CIFAR100#test")) == 3
    assert asked.count("/c.tar.gz") == 2  # HEAD and GET


def test_a_download_of_other_bytes_is_refused(
    prepare: Prepare, served: tuple[Path, str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address, _ = served
    cifar100(folder / "c.tar.gz", monkeypatch)
    (folder / "c.tar.gz").write_bytes((folder / "c.tar.gz").read_bytes()[:100])
    monkeypatch.setattr(theirs.CIFAR100, "url", f"{address}/c.tar.gz")
    with pytest.raises(UserError, match=r"torchvision: CIFAR100: File not found or corrupted.*put its archives into"):
        prepare("torchvision:CIFAR100#train")
    monkeypatch.setattr(theirs.CIFAR100, "url", f"{address}/none")
    with pytest.raises(UserError, match="its address answers with status 404"):
        prepare("torchvision:CIFAR100#train")
    monkeypatch.setattr(theirs.CIFAR100, "url", "http://127.0.0.1:9/none")
    with pytest.raises(UnavailableError, match="cannot be downloaded"):
        prepare("torchvision:CIFAR100#train")


def idx(values: np.ndarray) -> bytes:
    """As MNIST's files have it: magic number, sizes, bytes."""
    return gzip.compress(struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes())


def test_mnist_and_what_is_like_it(
    prepare: Prepare, served: tuple[Path, str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address, _ = served
    pixels = np.random.default_rng(0).integers(0, 255, (5, 28, 28), dtype=np.uint8)
    labels = np.array([3, 9, 0, 1, 3], np.uint8)
    contents = [idx(pixels[:3]), idx(labels[:3]), idx(pixels[3:]), idx(labels[3:])]
    names = [Path(name).name for name in KNOWN["MNIST"].archives]
    for kind in (theirs.MNIST, theirs.FashionMNIST):
        monkeypatch.setattr(kind, "mirrors", [f"{address}/"])
        monkeypatch.setattr(kind, "resources", [(n, md5(c)) for n, c in zip(names, contents, strict=True)])
    for name, content in zip(names, contents, strict=True):
        (folder / name).write_bytes(content)
    data = prepare("torchvision:MNIST#train")
    assert named(data) == ["3", "9", "0"]
    assert len(data.card.classes) == 10
    assert named(prepare("torchvision:FashionMNIST#test")) == ["Trouser", "Dress"]


def test_folders_of_files_keep_their_bytes_and_names(
    prepare: Prepare, downloads: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"dtd/images/{name}/{name}_{n}.jpg": published.png(picture(n), "JPEG") for name in "ab" for n in (1, 2)}
    files |= {
        f"dtd/labels/{part}1.txt": "".join(f"{name}/{name}_{n}.jpg\n" for name in "ba").encode()
        for n, part in ((1, "train"), (2, "test"))
    }
    content = archive(downloads / "torchvision/DTD/dtd/dtd-r1.0.1.tar.gz", files)
    monkeypatch.setattr(theirs.DTD, "_MD5", md5(content))
    data = prepare("torchvision:DTD#test")
    assert [i.partition(":")[2] for i in data.ids] == [f"test/dtd/dtd/images/{n}/{n}_2.jpg" for n in "ab"]
    (project / "plain/a").mkdir(parents=True)
    (project / "plain/a/2.jpg").write_bytes(files["dtd/images/a/a_2.jpg"])
    assert (prepare("images:plain").images[0] == data.images[0]).all()


def test_numbers_get_names_and_matlab_files_are_read(
    prepare: Prepare, downloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = downloads / "torchvision/SVHN/test_32x32.mat"
    place.parent.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3, 2), dtype=np.uint8)
    scipy.io.savemat(place, {"X": pixels, "y": np.array([[10], [7]], np.uint8)})
    split = {**theirs.SVHN.split_list, "test": ["http://127.0.0.1:9/", "test_32x32.mat", md5(place.read_bytes())]}
    monkeypatch.setattr(theirs.SVHN, "split_list", split)
    assert named(prepare("torchvision:SVHN#test")) == ["0", "7"]


def test_pets_are_named_and_selected(prepare: Prepare, downloads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = downloads / "torchvision/OxfordIIITPet/oxford-iiit-pet"
    ids = ["Bombay_1", "beagle_2", "american_bulldog_3"]
    images = archive(root / "images.tar.gz", {f"images/{i}.jpg": published.png(picture(0), "JPEG") for i in ids})
    lists = "".join(f"{i} {n} 1 1\n" for n, i in enumerate(ids, start=1)).encode()
    notes = archive(root / "annotations.tar.gz", {"annotations/trainval.txt": lists, "annotations/test.txt": lists})
    urls = [("http://127.0.0.1:9/images.tar.gz", md5(images)), ("http://127.0.0.1:9/annotations.tar.gz", md5(notes))]
    monkeypatch.setattr(theirs.OxfordIIITPet, "_RESOURCES", urls)
    assert sorted(named(prepare("torchvision:OxfordIIITPet#trainval"))) == ["American Bulldog", "Beagle", "Bombay"]
    some = prepare({"source": "torchvision", "path": "OxfordIIITPet", "split": "test", "only": ["Beagle"]})
    assert some.card.classes == ("Beagle",)
    assert len(prepare("torchvision:OxfordIIITPet#test[:2]")) == 2


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("torchvision:Cifar100#test", r"is not read; of torchvision's classes, CIFAR10, CIFAR100, .* are; download"),
        ("torchvision:StanfordCars#test", r"does not download and check it by itself; use hf:tanganke/stanford_cars"),
        ("torchvision:CIFAR100", r"has the splits train, test; pick one"),
        ("torchvision:CIFAR100#val", r"has no split 'val', only train, test"),
        ("torchvision:EuroSAT#test", r"comes without a train and a test part; draw two with \[:80%\]"),
        ("torchvision:EMNIST#test", r"name one of balanced, .*, as in torchvision:EMNIST/balanced"),
        ("torchvision:CIFAR100/fine#test", r"CIFAR100 has no variants"),
    ],
)
def test_what_is_not_read_is_said_before_any_work(project: Path, spec: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check(params(base={"model": "m", "pretrained": "p", "pretraining": [spec]}), project)


def test_every_class_is_one_of_torchvision_with_the_arguments_that_are_given() -> None:
    import inspect

    for name, known in KNOWN.items():
        accepted = set(inspect.signature(getattr(theirs, name).__init__).parameters)
        given = {argument for arguments in known.splits.values() for argument in arguments}
        accepted |= {"train"} if "kwargs" in accepted else set()
        assert {"root"} | given | ({"loader"} if known.loads else set()) <= accepted, name
        assert known.archives
        module = inspect.getsource(inspect.getmodule(getattr(theirs, name)))  # type: ignore[arg-type]
        assert "md5" in module.lower(), f"{name} checks nothing"
    assert all(hasattr(theirs, name) for name in ELSEWHERE)


def test_a_class_without_names_asks_for_them(
    prepare: Prepare, downloads: Path, monkeypatch: pytest.MonkeyPatch, project: Path
) -> None:
    from tasks.prepare.sources import torchvision as source

    place = downloads / "torchvision/SEMEION/semeion.data"
    place.parent.mkdir(parents=True)
    rows = np.concatenate([np.eye(1, 256, dtype=int).repeat(2, 0), np.eye(10, dtype=int)[[4, 8]]], axis=1)
    np.savetxt(place, rows, fmt="%d")
    monkeypatch.setattr(theirs.SEMEION, "md5_checksum", md5(place.read_bytes()))
    assert named(prepare("torchvision:SEMEION")) == ["4", "8"]
    assert notes_on(project / "data/raw/arrival") == []
    monkeypatch.setitem(source.KNOWN, "SEMEION", source.Known(source.ALL, ("semeion.data",)))
    with pytest.raises(UserError, match="comes without names of its classes; give them, in order"):
        prepare("torchvision:SEMEION")
    own = {"source": "torchvision", "path": "SEMEION", "classes": list("abcdefghij")}
    assert named(prepare(own)) == ["e", "i"]
