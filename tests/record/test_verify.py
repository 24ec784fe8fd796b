"""Running a state again, and reading what is stored of it, on a state of two tiny nodes; DVC and S3 are real."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows.cli import verification as shown
from tasks import layout, nodes
from tasks.progress import silent
from tasks.record import commits, integrity, retention, timelines
from tasks.record.repro import Repro
from tasks.record.state import State
from tasks.storage import dvc_config, store
from tasks.storage.cache import Cache, Entry, hash_of
from tasks.storage.git import git
from tests import manifests
from tests.project import PARAMS

DVC_YAML = """
stages:
  double:
    cmd: python double.py
    params: [threads]
    deps: [double.py, data/raw/arrival]
    outs: [data/step/doubled]
  measure:
    cmd: python measure.py
    deps: [measure.py, data/step/doubled]
    metrics:
      - metrics.json:
          cache: false
"""
DOUBLE = """
from pathlib import Path
raw = Path("data/raw/arrival/raw.txt")
made = Path("data/step/doubled")
made.mkdir(parents=True, exist_ok=True)
threads = [line for line in Path("params.yaml").read_text().splitlines() if line.startswith("threads")]
(made / "a.txt").write_text(2 * raw.read_text() + threads[0])
(made / "b.txt").write_text("b")
raw.chmod(0o644)
raw.write_text("overwritten in place")  # bad manners, which must not reach the cache
"""
MEASURE = """
from pathlib import Path
Path("metrics.json").write_text(str(len(Path("data/step/doubled/a.txt").read_text())))
"""

Recording = Callable[..., State]


@pytest.fixture
def record(project: Path) -> Recording:
    """Record step 0 of a timeline ``x``: what its nodes make, or what is said instead."""

    def record(code: str = DOUBLE, made: dict[str, str] | None = None, inputs: str = "raw", **manifest: Any) -> State:
        cache = Cache(dvc_config.cache_dir(project))
        entries: dict[str, Entry] = {}
        made = {"a.txt": "rawrawthreads: 3", "b.txt": "b"} if made is None else made
        for path, files in {
            layout.RAW_ARRIVAL: {"raw.txt": inputs},
            layout.RAW_EVALUATION: {"x": "1"},
            layout.HISTORY: {"y": "2"},
            "data/step/doubled": made,
        }.items():
            (project / path).mkdir(parents=True)
            for name, text in files.items():
                (project / path / name).write_text(text)
            entries[path] = cache.put(project / path)
        metrics = str(len(made["a.txt"]))
        (project / "metrics.json").write_text(metrics)
        measured = hash_of(project / "metrics.json")
        for path, text in {
            "dvc.yaml": DVC_YAML,
            "double.py": code, "measure.py": MEASURE, ".gitignore": "/data/*/*/\n/.chronomerge/\n",
            ".dvc/config": "[core]\n    analytics = false\n", ".dvc/.gitignore": "/cache\n/tmp\n/config.local*\n",
        }.items():  # fmt: skip
            (project / path).write_text(text)
        settings = {**PARAMS, "timeline": "x", "store": {"remote": "embedded", "git": None}}
        YAML(typ="safe").dump(settings, project / "params.yaml")

        def dump(content: Any, path: str) -> None:
            YAML().dump(content, project / path)

        outs = {"double": "data/step/doubled", "measure": "metrics.json"}
        known = {**entries, "metrics.json": measured}
        dump(
            {"schema": "2.0", "stages": {
                name: {"cmd": f"python {name}.py", "outs": [{"path": path, "hash": "md5", **known[path].as_dict()}]}
                for name, path in outs.items()
            }}, "dvc.lock",
        )  # fmt: skip
        for path in layout.PLOTS:
            (project / path).parent.mkdir(exist_ok=True)
            (project / path).write_text("step\n0\n")
        for path in layout.INPUTS:
            dump({"outs": [{"path": Path(path).name, "hash": "md5", **entries[path].as_dict()}]}, f"{path}.dvc")
        written = {
            "versions": nodes.versions(), "recorded": {"at": "2026-01-01", "host": socket.gethostname()},
            "device": {name: {"name": "any", "threads": 3} for name in outs},
            "inputs": {path: entries[path].as_dict() for path in layout.INPUTS},
            "outputs": {path: known[path].as_dict() for path in outs.values()},
        }  # fmt: skip
        (project / "manifest.json").write_text(json.dumps(manifests.content(**{**written, **manifest})))
        git(project, "add", "--all")
        git(project, "commit", "--quiet", "--message", "code and state")
        return commits.commit(project, project, "x", 0, None, git(project, "rev-parse", "HEAD"), "state 0", None)

    return record


def test_the_same_bytes_again_and_nothing_of_the_user_is_touched(project: Path, record: Recording) -> None:
    """The node sees the recorded thread count, and overwrites its input in place: a copy, so the cache stays whole."""
    state = record()
    found = state.verify()
    assert found.same, found
    assert [check.node for check in found.nodes] == ["double", "measure"]
    assert next(shown.recomputed_lines(found)).startswith("state/x/0000: all 2 nodes make the same bytes")
    cache = Cache(dvc_config.cache_dir(project))
    assert all(cache.intact(entry) for entry in state.entries.values())
    assert git(project, "status", "--porcelain") == ""
    assert git(project, "worktree", "list", "--porcelain").count("worktree ") == 1
    assert not list((project / ".chronomerge" / "verify").iterdir())


def test_stored_bytes_that_are_damaged_fail_a_verification(project: Path, record: Recording) -> None:
    """The nodes make the recorded bytes again: the state is sound all the same only if the stored ones are."""
    state = record()
    cache = Cache(dvc_config.cache_dir(project))
    found = state.verify()
    assert found.same
    assert found.objects == (9, 9)
    assert "9 of 9 stored objects read in the cache, all intact" in "\n".join(shown.recomputed_lines(found))
    cache.path(cache.members(state.entries["data/step/doubled"])["b.txt"]).unlink()
    found = state.verify()
    assert found.same
    assert "8 of 9 stored objects read in the cache, all intact; 1 are not" in "\n".join(shown.recomputed_lines(found))
    flipped = cache.path(cache.members(state.entries["data/step/doubled"])["a.txt"])
    flipped.chmod(0o644)
    flipped.write_text("x" + flipped.read_text()[1:])
    found = state.verify()
    assert not found.same
    assert (found.first, found.failure, found.damaged) == (None, None, ("data/step/doubled",))
    text = "\n".join(shown.recomputed_lines(found))
    assert "the same bytes again, but the stored ones are wrong" in text
    assert "data/step/doubled: the bytes in the cache are damaged" in text
    assert shown.recomputed_row(found)["damaged"] == ["data/step/doubled"]
    assert not shown.recomputed_row(found)["same"]


def test_recorded_code_gets_no_credentials(record: Recording, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "PREFECT_API_KEY", "DVC_STUDIO_TOKEN", "GITHUB_TOKEN"):
        monkeypatch.setenv(name, "a secret")
    seen = tmp_path / "seen"
    spy = f"import os\nopen({str(seen)!r}, 'w').write(repr(dict(os.environ)))\n" + DOUBLE
    assert record(code=spy).verify().same
    assert "PATH" in seen.read_text()
    assert "a secret" not in seen.read_text()


def test_the_first_node_that_differs_is_named_with_the_reasons(record: Recording) -> None:
    then = {**nodes.versions(), "torch": "0.1"}
    state = record(
        made={"a.txt": "something else", "b.txt": "b"},
        versions=then,
        recorded={"at": "2026-01-01", "host": "elsewhere"},
    )
    found = state.verify()
    assert not found.same
    assert found.first is not None
    assert found.first.node == "double"
    text = "\n".join(shown.recomputed_lines(found))
    assert "first to differ: double" in text
    assert f"torch was 0.1, here it is {nodes.versions()['torch']}" in text
    assert "recorded on elsewhere" in text
    row = shown.recomputed_row(found)
    assert [node["same"] for node in row["nodes"]] == [False, False]
    assert row["nodes"][0]["outputs"]["data/step/doubled"]["recorded"] == state.locked["data/step/doubled"]


def test_a_node_that_fails_and_a_manifest_that_lies(project: Path, record: Recording) -> None:
    outputs = {"data/step/doubled": {"md5": "0" * 32, "size": 1}}
    state = record(code="import sys; sys.exit('error: no such tensor')", outputs=outputs)
    found = state.verify()
    assert found.failure is not None
    assert found.failure.startswith("double failed: no such tensor")
    assert found.nodes == ()
    assert found.contradictions == ("data/step/doubled", "metrics.json")
    assert "no such tensor" in (project / ".chronomerge" / "logs" / "verify.log").read_text()


def test_reading_all_that_is_stored(project: Path, record: Recording) -> None:
    state = record(inputs="of the state alone")
    cache = Cache(dvc_config.cache_dir(project))
    with store.open_store(project, "embedded") as remote:
        s3 = store.client(remote)
        for path in (cache.folder / "files" / "md5").glob("*/*"):
            key = f"{remote.prefix}/files/md5/{path.parent.name}/{path.name}"
            s3.put_object(Bucket=remote.bucket, Key=key, Body=path.read_bytes())
        found = integrity.check([state], cache, remote)
        assert found.same
        assert found.cache == found.remote
        assert found.objects == 9  # four listings, five files
        raw = next(iter(cache.members(state.entries[layout.RAW_ARRIVAL]).values()))
        doubled = cache.members(state.entries["data/step/doubled"])
        flipped, listing = doubled["a.txt"], state.entries[layout.HISTORY].md5
        inside = cache.members(state.entries[layout.HISTORY])["y"]
        s3.put_object(
            Bucket=remote.bucket, Key=f"{remote.prefix}/files/md5/{flipped[:2]}/{flipped[2:]}", Body=b"x" * 16
        )
        s3.delete_object(Bucket=remote.bucket, Key=f"{remote.prefix}/files/md5/{raw[:2]}/{raw[2:]}")
        s3.delete_object(Bucket=remote.bucket, Key=f"{remote.prefix}/files/md5/{listing[:2]}/{listing[2:]}")
        cache.path(doubled["b.txt"]).unlink()
        cache.path(inside).chmod(0o644)
        cache.path(inside).write_text("rotten")
        found = integrity.check([state], cache, remote)
        retention.note(project, [state])  # its history is let go, and nobody misses it any more
        rest = integrity.check([state], cache, remote)
    here, there = found.cache, found.remote
    assert [one.md5 for one in here.damaged] == [inside]
    assert here.damaged[0].needed_by == (("state/x/0000", "data/history/y"),)
    assert [one.md5 for one in here.missing] == [doubled["b.txt"]]
    assert [one.md5 for one in there.damaged] == [flipped]
    assert {one.md5 for one in there.missing} == {raw, listing}
    assert not found.same
    assert listing not in {one.md5 for one in (*rest.remote.missing, *rest.cache.damaged)}
    assert {one.md5 for one in rest.remote.missing} == {raw}
    text = "\n".join(shown.stored_lines({"embedded": found}))
    assert "damaged: data/step/doubled/a.txt of state/x/0000 (object" in text
    assert json.dumps(shown.stored_rows({"embedded": found}))


def test_a_store_that_is_gone_is_said_and_an_empty_clone_is_told_where_to_look(
    project: Path, record: Recording, tmp_path: Path
) -> None:
    record()
    subprocess.run(["git", "clone", "--quiet", project, tmp_path / "clone"], check=True)
    clone = tmp_path / "clone"
    found = timelines.find(clone, "x", 0).verify()
    assert found.failure is not None
    assert "chronomerge remote use" in found.failure
    assert not (clone / ".chronomerge" / "store").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="no server elsewhere")
def test_nodes_of_all_states_are_forks_of_one_process_and_have_only_their_own_code(tmp_path: Path) -> None:
    stage = {"cmd": "python -m tasks", "outs": ["made"]}
    code = "import importlib.util, os\nfrom pathlib import Path\nfrom tasks import own\n" + (
        "found = importlib.util.find_spec('tasks.later') is not None\n"
        "Path('made').write_text(f'{os.getppid()} {own.NAME} {found}')\n"
        "print('this is', own.NAME)\n"
    )
    made = []
    with Repro(tmp_path / "home", tmp_path / "logs") as repro:
        for name in ("one", "two"):
            folder = tmp_path / name
            (folder / ".dvc").mkdir(parents=True)
            (folder / ".dvc/config").write_text("[core]\n    analytics = false\n    no_scm = true\n")
            YAML(typ="safe").dump({"stages": {"node": stage}}, folder / "dvc.yaml")
            (folder / "tasks").mkdir()
            for file, text in {"__init__": "", "__main__": code, "own": f"NAME = {name!r}\n"}.items():
                (folder / f"tasks/{file}.py").write_text(text)
            if name == "one":
                (folder / "tasks/later.py").touch()
            assert repro.run(folder, tmp_path / f"scratch-{name}", silent) == (["node"], None)
            made.append((folder / "made").read_text().split())
    assert made[0][0] == made[1][0]
    assert [one[1:] for one in made] == [["one", "True"], ["two", "False"]]
    log = (tmp_path / "logs/verify.log").read_text()
    assert "this is one\n" in log
    assert "this is two\n" in log
