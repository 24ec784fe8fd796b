"""Every problem of data is found, named, and named together with all the others; nothing is changed."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from tasks.arrive import Verdict
from tasks.params import load
from tests.arrive.conftest import Arrive, drop, noise, tree


@pytest.fixture
def given(tmp_path: Path) -> Path:
    return drop(tmp_path / "given", {"cat": 4, "dog": 3})


def has(verdict: Verdict, *words: str) -> bool:
    """Whether one problem holds all these words."""
    return any(all(word in problem for word in words) for problem in verdict.problems)


def test_what_is_in_order(arriving: Arrive, given: Path, project: Path) -> None:
    before = tree(project)
    verdict = arriving("new", given, dry_run=True)
    assert (verdict.outcome, verdict.problems, verdict.step) == ("would arrive", (), 2)
    assert (verdict.facts["samples"], verdict.facts["classes"]) == (7, {"cat": 4, "dog": 3})
    assert tree(project) == before
    assert "new would arrive at step 2; nothing was changed" in list(verdict.lines())


def test_all_problems_at_once(arriving: Arrive, given: Path, project: Path) -> None:
    (given / "cat/0.png").write_bytes((given / "cat/1.png").read_bytes()[:300])
    (given / "dog/0.png").write_text("no image")
    (given / "loose.png").write_bytes((given / "cat/1.png").read_bytes())
    (given / "owl").mkdir()
    test = project / "drawings/base/test/red circle/0.png"
    Image.open(test).save(given / "dog/copy.bmp")  # another file, the same image
    before = tree(project)
    verdict = arriving("new", given)
    assert verdict.outcome == "refused"
    assert len(verdict.problems) == 5
    assert has(verdict, "given/cat/0.png", "truncated")
    assert has(verdict, "given/dog/0.png", "not an image")
    assert has(verdict, "given/loose.png", "outside any class folder")
    assert has(verdict, "given/owl", "holds no images")
    assert has(
        verdict, "dog/copy.bmp", "is a test image (drawings/base/test/red circle/0.png of the retention set 'base')"
    )
    assert verdict.facts["classes"] == {"cat": 3, "dog": 3}
    assert tree(project) == before
    assert not list((project / ".chronomerge").glob("arriving/*"))
    assert verdict.report
    report = json.loads((project / verdict.report).read_text())
    assert report["problems"] == list(verdict.problems)
    assert list(verdict.lines())[-1].startswith(
        "new is refused for 5 problems, nothing was changed; the report is .chron"
    )


def test_an_image_of_the_adaptation_sets_is_a_test_image_too(arriving: Arrive, given: Path, project: Path) -> None:
    (given / "dog/9.png").write_bytes((project / "drawings/first/test/blue circle/1.png").read_bytes())
    assert has(arriving("new", given, dry_run=True), "dog/9.png", "adaptation set 'first'")


def test_duplicates_are_a_note(arriving: Arrive, given: Path) -> None:
    (given / "cat/again.png").write_bytes((given / "cat/1.png").read_bytes())
    (given / "dog/cat.png").write_bytes((given / "cat/2.png").read_bytes())
    verdict = arriving("new", given, dry_run=True)
    assert verdict.outcome == "would arrive"
    (note,) = verdict.notes
    assert note.startswith("2 exact duplicates within it: ")
    assert f"{given}/dog/cat.png, as 'dog', is {given}/cat/2.png, as 'cat'" in note


def test_classes_that_came_before_are_a_note(arriving: Arrive, given: Path, tmp_path: Path) -> None:
    drop(tmp_path / "more", {"dog": 1, "blue_circle": 2}, seed=1)
    arriving("new", given)
    (note,) = arriving("more", tmp_path / "more", dry_run=True).notes
    assert note == "2 of its 2 classes arrive with 'first', 'new' too: blue circle, dog"


@pytest.mark.usefixtures("given")
def test_a_table(arriving: Arrive, tmp_path: Path) -> None:
    rows = ["image,label", "given/cat/0.png,cat", "gone.png,cat", "gone.png,dog", "given/dog/1.png,"]
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    verdict = arriving("new", tmp_path / "table.csv", dry_run=True)
    assert len(verdict.problems) == 2
    assert has(verdict, "names the image 'gone.png', and there is no such file")
    assert has(verdict, "table.csv:4: has neither a caption nor a class")
    named = {"source": "table", "path": str(tmp_path / "numbers.csv"), "classes": ["cat", "dog", "owl"]}
    (tmp_path / "numbers.csv").write_text("image,label\ngiven/cat/0.png,0\ngiven/dog/1.png,1\n")
    (problem,) = arriving("new", named, dry_run=True).problems
    assert "the class 'owl' has no sample" in problem


def test_several_sources_of_which_one_is_bad(arriving: Arrive, given: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_text("no table")
    verdict = arriving("new", given, tmp_path / "bad.parquet", tmp_path / "none", dry_run=True)
    assert len(verdict.problems) == 2
    assert has(verdict, "bad.parquet: is no readable Parquet file")
    assert has(verdict, f"{tmp_path}/none: no such file or folder")
    assert verdict.facts["samples"] == 7


def test_what_a_bare_path_is(arriving: Arrive, project: Path, given: Path, tmp_path: Path) -> None:
    table = pa.table({"image": [(given / "cat/0.png").read_bytes()], "text": ["a cat"]})
    pa.parquet.write_table(table, tmp_path / "cats.parquet")
    assert arriving("one", tmp_path / "cats.parquet").arrival == {"name": "one", "update": ["table:data/arrivals/one"]}
    (given / "list.csv").write_text("image,label\ncat/0.png,cat\n")
    (problem,) = arriving("new", given, dry_run=True).problems
    assert f"say images:{given} or table:{given}" in problem
    (tmp_path / "e.safetensors").write_bytes(b"")
    assert has(arriving("new", tmp_path / "e.safetensors", dry_run=True), "is a checkpoint; it arrives with --expert")
    (tmp_path / "nothing").mkdir()
    assert has(arriving("new", tmp_path / "nothing", dry_run=True), "holds nothing that is read")
    assert load(project / "params.yaml").stream[-1].name == "one"


def test_only_so_many_problems_are_shown(arriving: Arrive, given: Path) -> None:
    for number in range(30):
        (given / f"cat/torn-{number}.png").write_bytes(b"torn")
    lines = list(arriving("new", given, dry_run=True).lines())
    assert sum("problem:" in line for line in lines) == 20
    assert "  … and 10 more" in lines


def test_sixteen_bits_more_do_not_hide_a_copy(arriving: Arrive, given: Path) -> None:
    noise(0).save(given / "cat/other.tiff")
    assert "1 exact duplicate within" in arriving("new", given, dry_run=True).notes[0]
