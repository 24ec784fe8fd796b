"""Published data sets arrive: looked at in full, and pinned to the commit that was looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.arrive import Request
from tasks.arrive.request import located
from tasks.errors import UserError
from tasks.params import Limits, load
from tasks.prepare.source import refuse
from tasks.progress import silent
from tests import hub, published
from tests.arrive.conftest import Arrive, noise


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    return published.clip_benchmark(tmp_path / "animals", {"train": [(noise(n), n % 3) for n in range(6)]})


def test_a_data_set_of_a_hub_arrives_at_the_commit_that_was_looked_at(
    arriving: Arrive, project: Path, animals: Path, tmp_path: Path
) -> None:
    with hub.serving() as server, server.used(tmp_path / "home"):
        commit = server.commit("clip-benchmark/wds_vtab-animals", animals, kind="datasets")
        verdict = arriving("new", "clip-benchmark:vtab/animals#train")
        assert (verdict.outcome, verdict.problems) == ("arrived", ())
    (spec,) = load(project / "params.yaml").stream[-1].update
    assert spec == f"clip-benchmark:hf:clip-benchmark/wds_vtab-animals@{commit}#train"


def test_a_request_of_others_names_nothing_on_a_hub(project: Path, tmp_path: Path) -> None:
    others = Request("new", ("clip-benchmark:vtab/animals#train",), drop="inbox/new")
    with pytest.raises(UserError, match="a drop brings its own files"):
        located(others.data[0], others, project, tmp_path, silent, Limits(), refuse)
