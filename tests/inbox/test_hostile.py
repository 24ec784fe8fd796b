"""Drops of somebody who means harm: each is refused by name, and none keeps another waiting."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks import inbox as inboxes
from tasks.arrive import drops, known
from tasks.errors import UserError
from tasks.inbox import Scan
from tasks.params import Limits, load
from tests.arrive.conftest import drop, noise
from tests.inbox.test_scan import finished, names

pytestmark = pytest.mark.usefixtures("one_dvc")


@pytest.fixture
def look(project: Path, inbox: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Scan]:
    monkeypatch.setattr(known, "test_images", lambda *_: {})
    return lambda: inboxes.scan(project, str(inbox))


def refusals(found: Scan) -> dict[str, str]:
    return {one.name: " ".join(one.verdict.problems) for one in found.refused if one.verdict}


def test_what_is_no_file_of_the_drop_is_refused_by_name(
    look: Callable[[], Scan], project: Path, inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = drop(tmp_path / "private", {"cat": 1}, seed=3)
    for seed, name in enumerate(("link", "folder", "fifo", "socket", "marker", "inside", "good"), start=1):
        finished(inbox / name, {"cat": 1, "dog": 1}, seed)
    (inbox / "link/cat/p.png").symlink_to(secret / "cat/0.png")
    (inbox / "folder/owl").symlink_to(secret / "cat")
    os.mkfifo(inbox / "fifo/cat/p.png")
    monkeypatch.chdir(inbox / "socket/cat")
    socket.socket(socket.AF_UNIX).bind("p.png")
    (inbox / "marker/arrival.yaml").symlink_to(project / "params.yaml")
    (inbox / "inside/cat/p.png").symlink_to(inbox / "inside/dog/0.png")
    (inbox / "whole").symlink_to(secret)
    (secret / "READY").touch()
    found = look()
    assert names(found.taken) == ["good", "inside"]
    why = refusals(found)
    assert "link/cat/p.png: is a link that leads out of the drop" in why["link"]
    assert "folder/owl: is a link that leads out of the drop" in why["folder"]
    assert "fifo/cat/p.png: is a FIFO, not a file; remove it" in why["fifo"]
    assert "socket/cat/p.png: " in why["socket"]
    assert "marker/arrival.yaml: is a link that leads out of the drop" in why["marker"]
    assert "whole: is a link; put the folder itself there" in why["whole"]
    taken = list((project / "data/arrivals").rglob("*.png"))
    assert len(taken) == 5  # of good 2, of inside 3


def test_tables_name_images_of_the_drop_alone(look: Callable[[], Scan], inbox: Path, tmp_path: Path) -> None:
    noise(1).save(tmp_path / "private.png")
    for name, image in (("absolute", str(tmp_path / "private.png")), ("above", "../../private.png")):
        (inbox / name).mkdir()
        (inbox / name / "t.csv").write_text(f"image,caption\n{image},x\n")
        (inbox / name / "READY").touch()
    why = refusals(look())
    assert f"names the image '{tmp_path}/private.png', which lies outside" in why["absolute"]
    assert "names the image '../../private.png', which lies outside" in why["above"]


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ("[" * 60_000, "is nested deeper than 20 levels (limits.yaml_depth)"),
        ("a: &a [x]\nb: [*a, *a]\n", "has more than 0 aliases (limits.yaml_aliases)"),
        ("licence: " + "x" * 70_000, "has more than 65536 bytes"),
        ("name: " + "x" * 5000, "more than 100 characters"),
        ("fraction: " + "9" * 5000, "not a YAML file"),
        ("drawn_as: /etc", "drawn_as: '/etc' leads out of the drop"),
        ("drawn_as: a/../../b", "leads out of the drop"),
        ("name: \0", "not a YAML file"),
        ("- 1", "arrival.yaml: it: "),
        ("licence: \x1b]0;x\x07", "not a YAML file"),
    ],
)
def test_manifests_are_limited(look: Callable[[], Scan], inbox: Path, manifest: str, words: str) -> None:
    drop(inbox / "bad", {"cat": 1})
    (inbox / "bad/arrival.yaml").write_text(manifest)
    finished(inbox / "good", {"cat": 1}, 2)
    found = look()
    assert names(found.taken) == ["good"]
    why = refusals(found)["bad"]
    assert words in why
    assert len(why) <= 500
    assert why.isprintable()


@pytest.mark.parametrize("prompt", ["{} {x}", "{} {0.__class__}", "{} {{", "}{}{"])
def test_a_prompt_knows_one_pair_of_braces_alone(
    look: Callable[[], Scan], project: Path, inbox: Path, prompt: str
) -> None:
    drop(inbox / "one", {"cat": 1})
    (inbox / "one/arrival.yaml").write_text(f'prompt: "{prompt}"')
    found = look()
    assert names(found.taken) == ["one"]
    spec = load(project / "params.yaml").stream[-1].update[0]
    assert isinstance(spec, dict)
    assert spec["template"] == prompt


@pytest.mark.parametrize("image", ["a\0b.png", "x" * 5000, "x/" * 3000, "caf\udce9.png"])
def test_names_of_images_that_no_file_can_have(look: Callable[[], Scan], inbox: Path, image: str) -> None:
    (inbox / "bad").mkdir()
    (inbox / "bad/t.jsonl").write_text(f'{{"image": {json.dumps(image)}, "caption": "x"}}\n')
    (inbox / "bad/READY").touch()
    finished(inbox / "good", {"cat": 1}, 2)
    found = look()
    assert (names(found.taken), names(found.refused)) == (["good"], ["bad"])
    assert len(refusals(found)["bad"]) <= 1000


def test_an_error_that_nobody_expects_is_of_one_drop(
    look: Callable[[], Scan], inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.arrive import copying

    def failing(name: str, *args: Any) -> None:
        if name == "bad":
            raise KeyError("what")
        real(name, *args)

    real = copying.samples.check
    monkeypatch.setattr(copying.samples, "check", failing)
    for seed, name in enumerate(("bad", "good")):
        finished(inbox / name, {"cat": 1}, seed)
    found = look()
    assert (names(found.taken), names(found.refused)) == (["good"], ["bad"])
    assert "cannot be taken: KeyError: 'what'" in refusals(found)["bad"]
    assert names(look().known) == ["bad", "good"]


def test_bytes_of_a_drop_are_limited(tmp_path: Path) -> None:
    folder = drop(tmp_path / "d", {"cat": 3})
    (folder / "cat/big.png").write_bytes(bytes(5000))
    for limits, words in (
        (Limits(file_bytes=4000), "limits.file_bytes"),
        (Limits(drop_bytes=6000), "limits.drop_bytes"),
    ):
        with pytest.raises(UserError, match=words):
            drops.copied(folder, tmp_path / words, limits, pytest.fail, lambda *_: None)


def test_a_drop_whose_name_is_not_utf8_waits(look: Callable[[], Scan], inbox: Path) -> None:
    (inbox / os.fsdecode(b"caf\xe9")).mkdir()
    finished(inbox / "good", {"cat": 1}, 2)
    found = look()
    assert names(found.taken) == ["good"]
    assert found.waiting[0].why == "its name is not UTF-8; rename it"
    assert found.waiting[0].name.isprintable()
