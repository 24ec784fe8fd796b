"""What published data sets cost is said before a run, to the byte, and a disk without the room is refused."""

from __future__ import annotations

import re
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import UserError
from tasks.params import Params
from tasks.prepare import demanded
from tasks.prepare.demand import demand, shown
from tasks.prepare.registry import parse
from tests import hub, published
from tests.prepare.conftest import image_folder, params, picture

NAMES = ("cat", "dog", "owl")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[hub.Hub]:
    rows = [{"image": picture(n), "label": n // 2} for n in range(6)]
    files = {
        f"data/train-{n}.parquet": published.parquet(
            tmp_path / f"{n}.parquet", rows[3 * n : 3 * n + 3], {"label": NAMES}, group=1
        )
        for n in (0, 1)
    }
    wds = published.clip_benchmark(tmp_path / "wds", {"test": [(picture(n), n % 3) for n in range(4)]}, shard=2)
    with hub.serving() as one, one.used(tmp_path / "home"):
        one.commit("org/animals", files, kind="datasets")
        one.commit("clip-benchmark/wds_animals", wds, kind="datasets")
        yield one


def size(server: hub.Hub, repository: str, *names: str) -> int:
    files = server.files(repository, kind="datasets")
    return sum(len(files[name]) for name in names)


def experiment(*train: Any, test: Any = "clip-benchmark:animals#test") -> Params:
    evaluate = {"adaptation": [{"name": "one", "test": [test]}], "retention": [{"name": "two", "test": [test]}]}
    return params(stream=[{"name": "new", "update": list(train)}], evaluate=evaluate)


def test_every_file_counts_once_and_what_is_there_is_not_downloaded(
    server: hub.Hub, project: Path, tmp_path: Path
) -> None:
    both = [("a", ["hf:org/animals#train", "hf:org/animals#train[:80%]"]), ("b", ["hf:org/animals#train[20%:]"])]
    found = demand(both, project, tmp_path / "cache")
    assert found is not None
    every = size(server, "org/animals", "data/train-0.parquet", "data/train-1.parquet")
    assert (found.sources, found.files, found.download, found.kept) == (3, 2, every, every)
    parse("hf:org/animals#train", "a").place(project).bring(["data/train-0.parquet"])  # type: ignore[attr-defined]
    again = demand(both, project, tmp_path / "cache")
    assert again is not None
    assert (again.download, again.kept) == (size(server, "org/animals", "data/train-1.parquet"), every)


def test_a_selection_of_classes_costs_its_files_alone_and_a_number_of_samples_at_most(
    server: hub.Hub, project: Path, tmp_path: Path
) -> None:
    some = {"source": "hf", "path": "org/animals", "split": "train", "only": ["cat"]}
    found = demand([("a", [some])], project, tmp_path / "cache")
    assert found is not None
    assert found.files == 1
    assert 0 < found.download < size(server, "org/animals", "data/train-0.parquet")  # one of its row groups
    whole = demand([("a", [some, "hf:org/animals#train"])], project, tmp_path / "cache")
    assert whole is not None
    assert whole.download == size(server, "org/animals", "data/train-0.parquet", "data/train-1.parquet")
    assert not [r for r in server.requests if r.method == "GET" and "/objects/" in r.path and r.range is None]
    first = demand([("a", ["hf:org/animals#train[:1]"])], project, tmp_path / "cache")
    assert first is not None
    assert first.at_most
    assert "may need fewer" in str(first)


@pytest.mark.usefixtures("server")
def test_a_run_hears_of_steps_that_are_pending_alone(project: Path, tmp_path: Path) -> None:
    image_folder(project / "photos", {"cat": 1})
    given = experiment("images:photos", "hf:org/animals#train", "torchvision:CIFAR100#train")
    said = demanded(given, [0, 1], project, tmp_path / "cache", tests=True)
    assert said is not None
    assert said.startswith("3 published data sets: ")
    assert re.search(r" to download, [0-9.]+ s at 50 Mbit/s; ", said)
    assert "; the sizes of torchvision:CIFAR100 are unknown" in said
    assert demanded(given, [0], project, tmp_path / "cache", tests=False) is None
    assert demanded(experiment("images:photos", test="images:photos"), [0, 1], project, tmp_path, tests=True) is None


@pytest.mark.usefixtures("server")
def test_what_cannot_be_had_names_its_key(project: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stream: arrival new: hf: org/animals: has no split 'dev'"):
        demanded(experiment("hf:org/animals#dev"), [0, 1], project, tmp_path / "cache", tests=True)
    with pytest.raises(UserError, match=r"evaluate: one: .*no such repository"):
        demanded(
            experiment("hf:org/animals#train", test="hf:org/none#test"), [0], project, tmp_path / "cache", tests=True
        )


@pytest.mark.usefixtures("server")
def test_a_disk_without_the_room_is_refused(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 90, 10))
    with pytest.raises(UserError, match=r"to download, .* Mbit/s; .* of disk, .*; and 10 bytes are free at"):
        demanded(experiment("hf:org/animals#train"), [0, 1], project, tmp_path / "cache", tests=False)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 kB"), (3 << 30, "3.0 GB"), (5 << 40, "5.0 TB")],
)
def test_numbers_of_bytes(count: int, text: str) -> None:
    assert shown(count) == text
