"""Each finished drop arrives once, however often it is seen and whatever is killed in between."""

from __future__ import annotations

import contextlib
import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks import inbox as inboxes
from tasks.arrive import known
from tasks.inbox import Scan, notes
from tasks.params import load
from tasks.storage import pointers
from tests.arrive.conftest import drop, noise, tree

pytestmark = pytest.mark.usefixtures("one_dvc")


def names(drops: list[inboxes.Drop]) -> list[str]:
    return [one.name for one in drops]


def stream(project: Path) -> list[str]:
    return [one.name for one in load(project / "params.yaml").stream]


def finished(folder: Path, classes: dict[str, int], seed: int = 0) -> Path:
    drop(folder, classes, seed)
    (folder / "READY").touch()
    return folder


@pytest.fixture
def scan(project: Path, inbox: Path) -> Callable[..., Scan]:
    def run(**options: Any) -> Scan:
        return inboxes.scan(project, str(inbox), **options)

    return run


def test_a_drop_is_taken_once(scan: Callable[..., Scan], project: Path, inbox: Path) -> None:
    drop(inbox / "spring", {"cat": 2})
    found = scan()
    assert names(found.waiting) == ["spring"]
    assert "not finished" in found.waiting[0].why
    (inbox / "spring/READY").touch()
    before = tree(project)
    assert names(scan(dry_run=True).taken) == ["spring"]
    assert tree(project) == before
    found = scan()
    assert (names(found.taken), stream(project)) == (["spring"], ["first", "spring"])
    assert found.taken[0].verdict
    assert found.taken[0].verdict.step == 2
    (inbox / "spring/READY").write_text("again")
    shutil.copytree(inbox / "spring", inbox / "autumn")
    found = scan()
    assert names(found.known) == ["autumn", "spring"]
    assert found.known[0].why == "has the very files of 'spring'"
    assert names(scan().known) == ["autumn", "spring"]
    noise(7).save(inbox / "spring/cat/more.png")
    for _ in range(2):
        found = scan()
        assert (names(found.changed), names(found.known)) == (["spring"], ["autumn"])
        assert "was taken as 'spring', and has other content since" in found.changed[0].why
    (inbox / "spring/cat/more.png").unlink()
    assert names(scan().known) == ["autumn", "spring"]
    assert stream(project) == ["first", "spring"]


def test_a_refused_drop_is_tried_again_when_it_changes(scan: Callable[..., Scan], project: Path, inbox: Path) -> None:
    finished(inbox / "bad", {"cat": 2})
    (inbox / "bad/cat/0.png").write_bytes(b"torn")
    found = scan()
    assert names(found.refused) == ["bad"]
    assert "bad/cat/0.png: not an image" in found.refused[0].why
    assert "is the same since; see .chronomerge/refused/bad-" in scan().known[0].why
    assert len(list((project / ".chronomerge/refused").iterdir())) == 1
    noise(1).save(inbox / "bad/cat/0.png")
    assert names(scan().taken) == ["bad"]


def test_manifests(scan: Callable[..., Scan], project: Path, inbox: Path) -> None:
    manifests = {
        "one": "name: renamed\nprompt: an icon of a {}\nlicence: CC0\n",
        "two": "expert: ../../secret.safetensors\n",
        "three": "name: [1\n",
        "four": "nmae: x\n",
        "five": "path: /etc\n",
        "no name": "",
        "six": "prompt: no place\n",
    }
    for seed, (name, text) in enumerate(manifests.items()):
        drop(inbox / name, {"cat": 2}, seed)
        (inbox / name / "arrival.yaml").write_text(text)
    found = scan()
    assert names(found.taken) == ["one"]
    spec = {"source": "images", "path": "data/arrivals/renamed", "template": "an icon of a {}", "licence": "CC0"}
    assert load(project / "params.yaml").stream[-1].update == [spec]
    why = {one.name: one.why for one in found.refused}
    assert "expert: '../../secret.safetensors' is none of the drop's files" in why["two"]
    assert "arrival.yaml: not a YAML file" in why["three"]
    assert "unknown key nmae" in why["four"]
    assert "path: the data are the drop's files" in why["five"]
    assert "'no name' cannot be the name of an arrival" in why["no name"]
    assert why["no name"].endswith("; put name: NAME into its arrival.yaml")
    assert "template: must hold {} once" in why["six"]


def test_what_changes_while_it_is_read_waits(
    scan: Callable[..., Scan], project: Path, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(inbox / "late", {"cat": 2})
    monkeypatch.setattr(known, "test_images", lambda *_: noise(5).save(inbox / "late/cat/5.png") or {})
    found = scan()
    assert names(found.waiting) == ["late"]
    assert "changed while they were copied" in found.waiting[0].why
    assert stream(project) == ["first"]
    monkeypatch.setattr(known, "test_images", lambda *_: {})
    assert names(scan().taken) == ["late"]


def test_what_cannot_be_read_waits_and_keeps_nobody_waiting(scan: Callable[..., Scan], inbox: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        finished(inbox / name, {"cat": 1}, seed)
    (inbox / "a/cat/gone.png").symlink_to("nowhere")
    found = scan()
    assert (names(found.waiting), names(found.taken)) == (["a"], ["b"])
    assert "gone.png: No such file" in found.waiting[0].why


def test_two_scans_at_once(scan: Callable[..., Scan], project: Path, inbox: Path) -> None:
    for number in range(2):
        finished(inbox / f"drop-{number}", {"cat": 1}, number)
    found: list[Scan] = []
    threads = [threading.Thread(target=lambda: found.append(scan())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for one in found for name in names(one.taken)) == ["drop-0", "drop-1"]
    assert stream(project) == ["first", "drop-0", "drop-1"]


class ScanKilled(BaseException):
    """As if the process ended here."""


BOUNDARIES: list[tuple[Any, str]] = [
    (pointers, "keep"), (pointers, "write"), (pointers, "replace"), (pointers, "place"), (notes, "write"),
]  # fmt: skip


@pytest.mark.parametrize("seed", range(2))
def test_exactly_once_whatever_happens(
    scan: Callable[..., Scan], project: Path, inbox: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Drops come, are finished, copied, touched, changed and spoilt; scans are killed; notes are lost."""
    monkeypatch.setattr(known, "test_images", lambda *_: {})
    chance = random.Random(seed)
    reported: Counter[str] = Counter()
    lines = stream(project)

    def some() -> Path | None:
        there = sorted(path for path in inbox.iterdir() if path.is_dir())
        return chance.choice(there) if there else None

    def add() -> None:
        number = len(list(inbox.iterdir()))
        folder = drop(inbox / f"drop-{number}", {"cat": 1, "dog": 1}, seed=number + 1)
        if chance.random() < 0.25:
            (folder / "dog/0.png").write_bytes(b"torn")

    def finish() -> None:
        if folder := some():
            (folder / chance.choice(["READY", "READY", "arrival.yaml"])).touch()

    def copy() -> None:
        if folder := some():
            shutil.copytree(folder, inbox / f"copy-{len(list(inbox.iterdir()))}")

    def change() -> None:
        if folder := some():
            noise(chance.randrange(10**6)).save(folder / "cat/1.png")

    def lose() -> None:
        for path in (project / ".chronomerge/inbox").glob("*.json"):
            path.unlink()

    def killed() -> None:
        owner, name = chance.choice(BOUNDARIES)
        real, countdown, after = getattr(owner, name), chance.randrange(2), chance.random() < 0.5

        def deadly(*args: Any, **named: Any) -> Any:
            nonlocal countdown
            countdown -= 1
            done = real(*args, **named) if after or countdown >= 0 else None
            if countdown < 0:
                raise ScanKilled
            return done

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, deadly)
            with contextlib.suppress(ScanKilled):
                look()

    def look() -> None:
        found = scan()
        reported.update(str(one.verdict.arrival["name"]) for one in found.taken if one.verdict and one.verdict.arrival)

    for _ in range(24):
        chance.choice([add, add, finish, finish, copy, change, killed, killed, look])()
        now = stream(project)
        assert now[: len(lines)] == lines  # only ever appended to
        lines = now
        contents = [pointers.read(pointers.path(project, name))[0].md5 for name in lines[1:]]
        assert len(set(contents)) == len(contents)
    for folder in inbox.iterdir():
        (folder / "READY").touch()
    look()
    lines = stream(project)
    assert set(reported) <= set(lines[1:])
    assert max(reported.values()) == 1  # nobody is told twice
    found = scan()
    assert not found.taken
    assert not found.refused
    whole = [one for one in inbox.iterdir() if (one / "dog/0.png").stat().st_size > 4]
    assert {path.name for path in whole} <= set(names(found.known)) | set(names(found.changed))
    lose()
    scan()  # a drop that changed when it was known by another's name may be new now; nothing comes twice
    assert stream(project)[: len(lines)] == lines
    contents = [pointers.read(pointers.path(project, name))[0].md5 for name in stream(project)[1:]]
    assert len(set(contents)) == len(contents)
