"""A node of the step: run from a clean start, or taken from an earlier run of the same key."""

from pathlib import Path

import pytest

from tasks import nodes, references
from tasks.params import Params
from tasks.progress import Progress
from tasks.references import Reference
from tasks.step.execute import intact, place, run
from tasks.storage.cache import Cache, hash_of
from tests.project import PARAMS

MACHINE: dict[str, str | int] = {"name": "cpu", "threads": 2}


def test_a_run_starts_clean_and_puts_what_it_made_into_the_cache(tmp_path: Path) -> None:
    node = nodes.Node("n", "cmd", (), (), ("out",), ("metrics.json",))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "left-over").write_text("from before")
    cache = Cache(tmp_path / "cache")

    def work(project: Path, _params: Params, _progress: Progress) -> None:
        (project / "out").mkdir()
        (project / "out" / "a").write_text("a")
        (project / "metrics.json").write_text("{}")

    reference = run(node, "key", work, tmp_path, Params.model_validate(PARAMS), cache, MACHINE)
    assert Reference.from_dict(reference.as_dict()) == reference
    assert intact(reference, cache)
    place(reference, tmp_path / "elsewhere", cache)
    assert [p.name for p in (tmp_path / "elsewhere" / "out").iterdir()] == ["a"]
    cache.path(hash_of(tmp_path / "metrics.json").md5).unlink()
    assert not intact(reference, cache)


def test_unfinished_work_is_found_again_under_its_key_alone_and_goes_when_it_is_done(tmp_path: Path) -> None:
    node = nodes.Node("n", "cmd", (), (), ("out",))
    cache, params = Cache(tmp_path / "cache"), Params.model_validate(PARAMS)
    found: list[str] = []

    def work(project: Path, _params: Params, _progress: Progress) -> None:
        half = nodes.unfinished(project, "n") / "half"
        found.append(half.read_text() if half.exists() else "")
        half.write_text("half done")
        if len(found) < 4:
            raise KeyboardInterrupt
        (project / "out").write_text("made")

    for key in ("a", "a", "b"):
        with pytest.raises(KeyboardInterrupt):
            run(node, key, work, tmp_path, params, cache, MACHINE)
    run(node, "b", work, tmp_path, params, cache, MACHINE)
    assert found == ["", "half done", "", "half done"]
    assert not nodes.unfinished(tmp_path, "n").exists()


def test_half_a_stored_reference_is_no_reference(tmp_path: Path) -> None:
    reference = Reference("n", "key", {}, 1.5, MACHINE)
    references.store(tmp_path, reference)
    assert references.find(tmp_path, "key") == reference
    assert references.find(tmp_path, "other") is None
    (file,) = (tmp_path / ".chronomerge" / "references").iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    assert references.find(tmp_path, "key") is None
