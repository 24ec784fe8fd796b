"""The params of a state: what the user's file says, whatever its form, with every default spelled out."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks import yaml
from tasks.params import load
from tasks.record import project_code
from tests import project as projects


@pytest.mark.parametrize("form", [yaml.dump, json.dumps, lambda given: json.dumps(given, indent=2)])
def test_a_users_file_may_be_json(tmp_path: Path, form: Callable[[object], str]) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(form({**projects.PARAMS, "timeline": "x" * 100}))
    before = load(path)
    project_code.write_params(path, 1, before.stream[0])
    written = yaml.load(path.read_text())
    assert (written["step"], written["arrival"]["name"]) == (1, "first")
    assert {key: written[key] for key in ("timeline", "stream")} == {
        "timeline": "x" * 100, "stream": projects.PARAMS["stream"]
    }  # fmt: skip
    assert load(path).train == before.train
