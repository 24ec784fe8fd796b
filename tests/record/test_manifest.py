"""``manifest.json``: states of older versions are read, another value than expected is an error that names its key."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import UserError
from tasks.record import manifest
from tasks.storage.cache import Entry
from tests import manifests

ENTRY = {"md5": "a" * 32 + ".dir", "size": 5, "nfiles": 2}


def read(content: dict[str, Any]) -> manifest.Manifest:
    return manifest.read(json.dumps(content), "state/x/0000")


def test_the_file_keeps_its_keys_and_values() -> None:
    content = manifests.content(
        inputs={"data/raw/arrival": ENTRY}, outputs={"metrics.json": {"md5": "b" * 32, "size": 1}},
        seconds={"train": 2, "deploy": 0.5}, device={"train": {"threads": 2, "name": "cpu", "gpus": 0}},
        budget={"steps": 3, "drawn": {"update": 7}, "spent": {"steps": 3, "memory": 1.5}}, of_another_writer=[1],
        rollback={"to": "state/x/0000", "from": "state/x/0001", "at": "2026", "host": "h"},
    )  # fmt: skip
    assert json.loads(manifest.text(read(content))) == content


def test_a_manifest_from_before_versions_lines_and_gates_is_read() -> None:
    old = manifests.content(previous="state/x/0004")
    del old["version"]
    found = read(old)
    assert (found.version, found.line, found.promoted, found.start) == (1, 1, True, "state/x/0004")
    assert json.loads(manifest.text(found)) == old


def test_a_state_that_skips_held_ones_starts_from_another_than_the_previous() -> None:
    assert read(manifests.content(previous="state/x/0004", starts_from="state/x/0002")).start == "state/x/0002"
    assert read(manifests.content(previous="state/x/0004", starts_from=None)).start is None


def test_content_is_typed() -> None:
    found = read(manifests.content(inputs={"a": ENTRY}, outputs={"b": {"md5": "b" * 32, "size": 1}}))
    assert found.contents == {"a": Entry("a" * 32 + ".dir", 5, 2), "b": Entry("b" * 32, 1)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step": "1"}, "step: Input should be a valid integer (got '1')"),
        ({"inputs": [1]}, "inputs: Input should be an object"),
        ({"outputs": {"a": {"md5": 5, "size": 1}}}, "outputs.a.md5"),
        ({"technique": "linear"}, "technique: "),
        ({"seconds": {"train": "2"}}, "seconds.train"),
        ({"gate": {"promoted": "yes"}}, "gate.promoted"),
        ({"code": {"commit": None, "dirty": False}}, "code.commit"),
        ({"device": {"train": {"threads": "two"}}}, "device.train.threads"),
        ({"arrival": "\x1b[31mred"}, r"arrival: contains control characters (got '\x1b[31mred')"),
        ({"versions": {"torch": "1\x07"}}, "versions.torch: contains control characters"),
        ({"version": 99}, "version: this chronomerge reads versions 1 to 2; update it"),
    ],
)
def test_a_value_of_another_kind_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as raised:
        read(manifests.content(**change))
    assert str(raised.value).startswith("state/x/0000: manifest.json is damaged (")
    assert said in str(raised.value)
    assert "\x1b" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"inputs": {'])
def test_what_is_no_manifest_is_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match=r"state/x/0000: manifest\.json is damaged"):
        manifest.read(text, "state/x/0000")


def test_a_missing_key_is_named() -> None:
    content = manifests.content()
    del content["protocol"]
    with pytest.raises(UserError, match="protocol is missing"):
        read(content)


def test_nobody_else_reads_the_file() -> None:
    """One place knows the keys: no other module takes a value out of a manifest by a string."""
    for folder in ("tasks", "flows", "benchmarks"):
        for file in (Path(__file__).parents[2] / folder).rglob("*.py"):
            assert '.manifest["' not in file.read_text(), file
