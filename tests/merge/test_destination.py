"""One model in one place: old shards, a single file beside an index, and two merges at once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tasks.errors import UserError
from tasks.merge import merge
from tests.merge.models import Model

INDEX = "model.safetensors.index.json"


def model(value: float) -> Model:
    return {f"t{i}": np.full((64, 64), value, np.float32) for i in range(6)}


def write(folder: Path, value: float, shards: int, *, index: str = INDEX, overwrite: bool = False) -> None:
    merge("linear", [model(value)], out=folder / index, shard_bytes=-(-6 // shards) * 64 * 64 * 4, overwrite=overwrite)


def values(folder: Path) -> set[float]:
    """Of all safetensors files, as a loader that takes the whole folder finds them."""
    return {float(v) for path in folder.glob("*.safetensors") for t in load_file(path).values() for v in np.unique(t)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("before", "after"), [(6, 2), (2, 6), (3, 1)])
def test_other_shards_are_refused_and_go_with_overwrite(before: int, after: int, tmp_path: Path) -> None:
    write(tmp_path, 1, before)
    files = names(tmp_path)
    with pytest.raises(UserError, match=r"holds files of an earlier model \(model-00001-of-.* --overwrite"):
        write(tmp_path, 2, after)
    assert (names(tmp_path), values(tmp_path)) == (files, {1})
    write(tmp_path, 2, after, overwrite=True)
    assert values(tmp_path) == {2}
    assert len(names(tmp_path)) == after + 1
    assert set(json.loads((tmp_path / INDEX).read_text())["weight_map"].values()) == set(names(tmp_path)) - {INDEX}


def test_the_same_shards_are_replaced_as_a_single_file_is(tmp_path: Path) -> None:
    write(tmp_path, 1, 3)
    write(tmp_path, 2, 3)
    assert values(tmp_path) == {2}


def test_shards_of_another_model_in_the_folder(tmp_path: Path) -> None:
    write(tmp_path, 1, 3)
    with pytest.raises(UserError, match=r"\(model-00001-of-00003\.safetensors, .*choose another folder"):
        write(tmp_path, 2, 3, index="other.safetensors.index.json")
    write(tmp_path, 2, 3, index="other.safetensors.index.json", overwrite=True)
    assert values(tmp_path) == {2}
    (tmp_path / "third-00001-of-00001.safetensors").write_bytes(b"of somebody")
    with pytest.raises(UserError, match=r"no index there names \(third-00001-of-00001\.safetensors\)"):
        write(tmp_path, 3, 2, overwrite=True)
    assert (tmp_path / "third-00001-of-00001.safetensors").exists()


def test_a_single_file_and_shards_of_one_name_exclude_each_other(tmp_path: Path) -> None:
    single = tmp_path / "model.safetensors"
    write(tmp_path, 1, 3)
    with pytest.raises(UserError, match="holds files of an earlier model"):
        merge("linear", [model(2)], out=single)
    merge("linear", [model(2)], out=single, overwrite=True)
    assert names(tmp_path) == ["model.safetensors"]
    with pytest.raises(UserError, match=r"holds files of an earlier model \(model\.safetensors\)"):
        write(tmp_path, 3, 3)
    write(tmp_path, 3, 3, overwrite=True)
    assert values(tmp_path) == {3}


def test_other_files_of_the_folder_stay(tmp_path: Path) -> None:
    save_file(model(9), tmp_path / "expert.safetensors")
    (tmp_path / "config.json").write_text("{}")
    write(tmp_path, 1, 3)
    write(tmp_path, 1, 2, overwrite=True)
    assert {"expert.safetensors", "config.json"} < set(names(tmp_path))
    merge("linear", [model(2)], out=tmp_path / "merged.safetensors")


def test_a_dry_run_finds_other_shards(tmp_path: Path) -> None:
    write(tmp_path, 1, 3)
    with pytest.raises(UserError, match="--overwrite"):
        merge("linear", [model(2)], out=tmp_path / INDEX, dry_run=True)


def test_a_folder_with_a_file_and_an_index_says_which_is_read(tmp_path: Path) -> None:
    write(tmp_path, 1, 3)
    save_file(model(9), tmp_path / "model.safetensors")
    outcome = merge("linear", [tmp_path])
    assert outcome.tensors is not None
    assert float(outcome.tensors["t0"][0, 0]) == 9
    (line,) = outcome.report.summary()
    assert line == f"note: {tmp_path} holds both model.safetensors and {INDEX}: model.safetensors was read"


def test_a_shard_that_the_index_leaves_out_is_refused_and_one_of_another_model_is_said(tmp_path: Path) -> None:
    write(tmp_path, 1, 3)
    index = json.loads((tmp_path / INDEX).read_text())
    left_out = {name: shard for name, shard in index["weight_map"].items() if "00003-of" not in shard}
    save_file(model(9), tmp_path / "model-00002-of-00002.safetensors")
    outcome = merge("linear", [tmp_path])
    assert outcome.tensors is not None
    assert (len(outcome.tensors), float(outcome.tensors["t5"][0, 0])) == (6, 1)
    assert outcome.report.summary() == [
        f"note: {tmp_path} holds model-00002-of-00002.safetensors, which the index does not name: it was not read"
    ]
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": left_out}))
    for path in (tmp_path, tmp_path / INDEX):
        with pytest.raises(UserError, match=r"the index leaves out model-00003-of-00003\.safetensors"):
            merge("linear", [path])


MERGE = """
import sys, time
from pathlib import Path
from tasks.merge import merge
folder, value, out = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
def wait(what, done, total, note=""):
    if not (folder / "go").exists():
        print("at work", flush=True)
        while not (folder / "go").exists():
            time.sleep(0.005)
one = folder / f"{value}.safetensors"
merge("linear", [one, one], out=folder / "out" / out, shard_bytes=40_000, threads=1, progress=wait)
"""


def start(folder: Path, value: int, out: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MERGE, str(folder), str(value), out]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "at work\n"
    return process


@pytest.mark.parametrize("out", ["m.safetensors", "m.safetensors.index.json"])
def test_two_merges_with_one_output_leave_one_of_the_models(out: str, tmp_path: Path) -> None:
    for value in (1, 2):
        save_file(model(value), tmp_path / f"{value}.safetensors")
    both = [start(tmp_path, value, out) for value in (1, 2)]
    (tmp_path / "go").touch()
    assert [process.wait(60) for process in both] == [0, 0]
    assert len(values(tmp_path / "out")) == 1
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize("out", ["m.safetensors", "m.safetensors.index.json"])
def test_the_second_of_two_merges_is_killed(out: str, tmp_path: Path) -> None:
    for value in (1, 2):
        save_file(model(value), tmp_path / f"{value}.safetensors")
    first, second = (start(tmp_path, value, out) for value in (1, 2))
    second.send_signal(signal.SIGKILL)
    second.wait(60)
    assert list((tmp_path / "out").glob(".*"))
    merge("linear", [model(3)], out=tmp_path / "out" / out, shard_bytes=40_000)
    assert values(tmp_path / "out") == {3}
    held = [path for path in (tmp_path / "out").rglob("*.safetensors") if path.parent.parent.name.endswith(".part")]
    assert {path.stat().st_size > 0 for path in held} == {True}
    assert len(held) == (1 if out == "m.safetensors" else 3)  # those of the first alone
    (tmp_path / "go").touch()
    assert first.wait(60) == 0
    assert values(tmp_path / "out") == {1}
    assert not list((tmp_path / "out").glob(".*"))


def test_what_a_killed_merge_left_goes_with_the_next_one(tmp_path: Path) -> None:
    save_file(model(1), tmp_path / "1.safetensors")
    process = start(tmp_path, 1, "m.safetensors")
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    time.sleep(0.01)
    merge("linear", [model(3)], out=tmp_path / "out" / "m.safetensors")
    assert names(tmp_path / "out") == ["m.safetensors"]
