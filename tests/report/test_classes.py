"""Classes and pictures of the page: what the newest model takes test samples for, and what it has forgotten."""

from __future__ import annotations

import base64
import io
import re
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser

from tasks.errors import UserError
from tasks.evaluate import predictions
from tasks.grid.cells import Cell
from tasks.model.datasets import Card, Sample, write
from tasks.report import classes, page
from tasks.report.classes import Classes
from tasks.report.provenance import Provenance
from tasks.report.records import Record
from tasks.storage import dvc_config
from tasks.storage.cache import Cache, Entry
from tests.report import made_up, synthetic

NAMES = ("ant", "bee", "<cat>")
LABELS = [0, 0, 0, 0, 1, 1, 2, 2]
STEPS = [
    [0, 0, 0, 1, 1, 1, 0, 0],  # the base
    [0, 1, 0, 1, 1, 0, 2, 0],
    [0, 1, 2, 2, 1, 0, 0, 2],
]
"""Predictions at each step. Samples 1 and 5 are forgotten since step 1, samples 2 and 6 since step 2."""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / ".dvc").mkdir()
    return tmp_path


def lineage(project: Path, steps: Sequence[Sequence[int]] = STEPS, size: int = 120) -> list[Record]:
    """States of one test set, ``animals``, with these predictions in the cache."""
    cache = Cache(dvc_config.cache_dir(project))

    def samples() -> object:
        for number, label in enumerate(LABELS):
            yield Sample(f"s{number}", np.full((size, size, 3), 30 * number, np.uint8), "", label)

    write(project / "tests/animals", Card("animals", size, NAMES), samples(), len(LABELS))  # type: ignore[arg-type]
    sets = cache.put(project / "tests")
    top1 = [{"animals": 100 * float(np.mean(np.array(one) == LABELS))} for one in steps]
    found = []
    for record, predicted in zip(
        made_up.lineage(Cell("t", "ema", "ema", "linear", 0), ["x"] * 9, top1), steps, strict=True
    ):
        predictions.write(project / "predictions", {"animals": np.array(predicted, np.int32)})
        found.append(with_outputs(record, sets, cache.put(project / "predictions")))
    return found


def with_outputs(record: Record, sets: Entry, predicted: Entry) -> Record:
    outputs = {**record.manifest.outputs, "data/step/evaluation": sets, "data/step/predictions": predicted}
    return replace(record, manifest=record.manifest.model_copy(update={"outputs": outputs}))


def test_worst_classes_first_with_their_confusions(project: Path) -> None:
    (one,) = classes.of(project, lineage(project)).sets
    assert (one.name, one.evaluated, one.total, one.classes) == ("animals", 8, 8, 3)
    assert one.top1 == 100 * 3 / 8
    assert [(row.name, row.samples, row.recall, row.before) for row in one.worst] == [
        ("ant", 4, 25.0, 75.0), ("<cat>", 2, 50.0, 0.0), ("bee", 2, 50.0, 100.0)
    ]  # fmt: skip
    assert one.worst[0].confusions == (("<cat>", 2), ("bee", 1))


def test_forgotten_is_what_some_earlier_model_knew_and_since_when(project: Path) -> None:
    (one,) = classes.of(project, lineage(project)).sets
    assert one.forgotten_count == 4
    assert sorted((picture.name, picture.taken_for, picture.since) for picture in one.forgotten) == [
        ("<cat>", "ant", 2), ("ant", "<cat>", 2), ("ant", "bee", 1), ("bee", "ant", 1)
    ]  # fmt: skip
    assert [(picture.name, picture.taken_for, picture.since) for picture in one.wrong] == [("ant", "<cat>", None)]
    assert sorted(picture.name for picture in one.right) == ["<cat>", "ant", "bee"]


@pytest.mark.parametrize(("size", "kind"), [(16, "png"), (96, "png"), (120, "jpeg")])
def test_pictures_are_images_of_96_pixels_at_most(project: Path, size: int, kind: str) -> None:
    (one,) = classes.of(project, lineage(project, size=size)).sets
    source = one.wrong[0].source
    assert source.startswith(f"data:image/{kind};base64,")
    image = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    assert image.size == (min(size, 96), min(size, 96))
    assert abs(np.array(image.convert("L"))[5, 5] - 90) <= 2  # sample 3


def test_samples_that_were_not_evaluated_take_no_part(project: Path) -> None:
    (one,) = classes.of(project, lineage(project, [STEPS[0], [0, -1, 1, -1, 1, -1, 0, -1]])).sets
    assert (one.evaluated, one.total, one.top1) == (4, 8, 50.0)
    assert {row.name: row.samples for row in one.worst} == {"ant": 2, "bee": 1, "<cat>": 1}
    assert [(picture.name, picture.since) for picture in one.forgotten] == [("ant", 1)]


def test_a_state_without_predictions_has_no_classes_and_one_whose_files_are_elsewhere_says_so(project: Path) -> None:
    found = lineage(project)
    old = made_up.lineage(Cell("t", "ema", "ema", "linear", 0), [], [{"animals": 1.0}])
    assert classes.of(project, old) == Classes()
    for path in (project / ".dvc/cache").rglob("*"):
        if path.is_file():
            path.unlink()
    said = classes.of(project, found)
    assert said.sets == ()
    assert "not in this clone's cache; `chronomerge restore 2 --timeline t` brings them" in said.missing


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (np.zeros(7, np.int32), r"int32 of shape \(7,\) for 8 samples"),
        (np.zeros(8, np.int64), "int64 of shape"),
        (np.full(8, 3, np.int32), "a class beyond the 3 of the set"),
        (b"nothing", "allow_pickle"),
        (np.array([None] * 8), "allow_pickle"),
    ],
)
def test_damaged_predictions_are_an_error(project: Path, damage: np.ndarray | bytes, says: str) -> None:
    cache = Cache(dvc_config.cache_dir(project))
    (record,) = lineage(project, STEPS[:1])
    (project / "predictions/animals.npy").unlink()
    if isinstance(damage, bytes):
        (project / "predictions/animals.npy").write_bytes(damage)
    else:
        np.save(project / "predictions/animals.npy", damage)
    damaged = with_outputs(record, record.manifest.outputs["data/step/evaluation"], cache.put(project / "predictions"))
    with pytest.raises(UserError, match=f"state/t/0000: the predictions on 'animals' are damaged.*{says}"):
        classes.of(project, [damaged])


def test_names_of_any_length_leave_the_numbers_in_sight(
    project: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "NAMES", ("w" * 50_000, "bee", "cat"))
    html = page.build(
        synthetic.table(("w" * 300,), 1, 2), [], [], Provenance((), (), {}, ()), classes.of(project, lineage(project))
    )
    assert f"{'w' * 50} … (50000 characters in all)" in re.sub("w{50,}", "w" * 50, html)
    assert len(max(re.findall("w+", html), key=len)) <= 300
    with closing(browser.new_page(viewport={"width": 1000, "height": 900})) as opened:
        opened.set_content(html)
        assert opened.evaluate("document.documentElement.scrollWidth") == 1000
        assert opened.evaluate("document.querySelector('table.classes').clientWidth") <= 1000
        small = "[...document.querySelectorAll('.facts div')].every((one) => one.scrollWidth <= one.clientWidth)"
        assert opened.evaluate(small)


def test_the_page_has_the_table_and_the_pictures(project: Path) -> None:
    made = Provenance((), (), {}, ())
    table = synthetic.table(("linear",), 1, 2)
    html = page.build(table, [], [], made, classes.of(project, lineage(project)))
    assert "&lt;cat&gt; (2), bee (1)" in html
    assert "<cat>" not in html
    assert len(re.findall(r'<img src="data:image/jpeg;base64,[A-Za-z0-9+/=]+"', html)) == 3 + 1 + 4
    assert "Forgotten (4)" in html
    assert "since step 1" in html
    assert '<section id="classes"' not in page.build(table, [], [], made, Classes())
    missing = page.build(table, [], [], made, Classes(missing="they are <gone>"))
    assert "Classes and pictures are left out: they are &lt;gone&gt;." in missing
