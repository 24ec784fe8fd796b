"""Records to one long table: every metric where it belongs, nothing counted twice."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from tasks.grid.cells import Cell
from tasks.record.manifest import RecordedCoding
from tasks.report import facts, states_table, tidy
from tasks.report.vectors import Geometry
from tasks.storage.cache import Entry
from tests.report import made_up

CELL = Cell("demo", "ema", "ema", "linear", 3)
TOP1 = [
    {"food": 10.0, "flags": 20.0, "faces": 60.0},
    {"food": 50.0, "flags": 22.0, "faces": 58.0},
    {"food": 40.0, "flags": 70.0, "faces": 55.0},
]


def values(table: pd.DataFrame, metric: str, **where: object) -> list[float]:
    rows = table[table["metric"] == metric]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return rows["value"].tolist()


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    records = {CELL: made_up.lineage(CELL, ["food", "flags"], TOP1, ["faces"])}
    return tidy.table(records, {})


def test_columns_and_what_every_row_says_of_its_state(table: pd.DataFrame) -> None:
    assert list(table.columns) == tidy.COLUMNS
    assert table["value"].dtype == "float64"
    assert not table.isna().any().any()
    last = table[table["step"] == 2].iloc[0]
    assert (last["timeline"], last["init"], last["technique"], last["seed"]) == ("demo", "ema", "linear", 3)
    assert (last["arrival"], last["tag"]) == ("flags", "state/demo/0002")


def test_every_data_set_at_every_step_in_its_role(table: pd.DataFrame) -> None:
    assert values(table, "top1", dataset="food") == [10, 50, 40]
    assert set(table[table["dataset"] == "food"]["role"]) == {"adaptation"}
    assert set(table[table["dataset"] == "faces"]["role"]) == {"retention"}
    assert values(table, "A_KA") == [20, 21, 22]


def test_metrics_over_the_stream(table: pd.DataFrame) -> None:
    assert values(table, "ACC") == [50, (40 + 70) / 2]
    assert values(table, "BWT") == [40 - 50]
    assert values(table, "FWT", step=2) == [22 - 20]
    assert values(table, "forgetting") == [10]


def test_an_arrival_without_a_data_set_of_its_name_takes_no_part() -> None:
    records = {CELL: made_up.lineage(CELL, ["food", "style"], TOP1, ["faces"])}
    table = tidy.table(records, {})
    assert values(table, "ACC") == [50, 40]
    assert values(table, "FWT") == []


def test_a_timeline_without_any_such_set_has_no_metrics_over_the_stream() -> None:
    """As the multitask reference, at which everything arrives at once."""
    records = {CELL: made_up.lineage(CELL, ["everything"], TOP1[:2], ["faces"])}
    table = tidy.table(records, {})
    assert not set(table["metric"]) & {"ACC", "BWT", "FWT", "forgetting"}


def test_sets_of_images_and_texts() -> None:
    def ways(of: float) -> dict[str, dict[str, dict[str, float]]]:
        return {"pairs": {
            "image_to_text": {"1": of, "5": of + 10, "10": of + 20},
            "text_to_image": {"1": of, "5": of + 20, "10": of + 30},
        }}  # fmt: skip

    recall = [ways(5), ways(25)]
    records = {CELL: made_up.lineage(CELL, ["pairs"], [{"food": 1.0}, {"food": 2.0}], recall=recall)}
    table = tidy.table(records, {})
    assert values(table, "image_to_text_recall@10", dataset="pairs") == [25, 45]
    assert values(table, "text_to_image_recall@1", dataset="pairs") == [5, 25]
    assert values(table, "score", dataset="pairs") == [20, 40]
    assert values(table, "top1", dataset="pairs") == []
    assert values(table, "ACC") == [40]  # of recall@5, the mean of both ways


def test_what_was_spent() -> None:
    spent = {"steps": 5, "samples": 50, "flops": 1e9, "mafs": 5e8, "memory": 0.5}
    table = tidy.table({CELL: made_up.lineage(CELL, ["food"], TOP1[:2], spent=spent)}, {})
    assert values(table, "budget_steps") == [5, 5]
    assert values(table, "budget_mafs") == [5e8, 5e8]
    assert "budget_memory" not in set(table["metric"])
    assert values(table, "seconds:train") == [10, 11]
    assert values(table, "seconds") == [12, 13]
    assert values(table, "bytes_new") == [1000, 1001]
    assert values(table, "bytes:inputs") == [107, 7]  # the test sets come once


def test_a_coded_expert_has_its_bytes_and_what_was_lost() -> None:
    found = made_up.lineage(CELL, ["food"], TOP1[:2])
    coding = RecordedCoding(codec={"name": "signs"}, decoded=Entry("d" * 32, 30), error=0.25)
    outputs = {**found[1].manifest.outputs, "data/step/expert.weights": Entry("c" * 32, 3)}
    manifest = found[1].manifest.model_copy(update={"coded": coding, "outputs": outputs})
    records = {CELL: [found[0], dataclasses.replace(found[1], manifest=manifest)]}
    table = tidy.table(records, {})
    assert values(table, "expert_bytes") == [3]
    assert values(table, "expert_bytes_decoded") == [30]
    assert values(table, "expert_lost") == [25]
    titles = [column.title for column in states_table.build(table).columns]
    assert titles[-2:] == ["expert", "lost of it (%)"]


def test_cells_that_share_experts_count_them_once() -> None:
    other = Cell("other", "ema", "all", "linear", 3)
    shared = ["base", "one", "two"]
    records = {
        cell: made_up.lineage(cell, ["food", "flags"], TOP1, ["faces"], experts=shared) for cell in (CELL, other)
    }
    table = tidy.table(records, {})
    assert values(table, "reused:train", timeline="demo") == [0, 0, 0]
    assert values(table, "reused:train", timeline="other") == [1, 1, 1]
    assert values(table, "bytes:train", timeline="other") == [0, 0, 0]
    assert values(table, "seconds:train", timeline="other") == values(table, "seconds:train", timeline="demo")


def test_task_vectors_stand_at_their_steps() -> None:
    geometry = Geometry((1, 2), ("food", "flags"), np.array([[4.0, 3.0], [3.0, 9.0]]))
    records = {CELL: made_up.lineage(CELL, ["food", "flags"], TOP1, ["faces"])}
    table = tidy.table(records, {"demo": geometry})
    assert values(table, "task_vector_norm") == [2, 3]
    assert values(table, "task_vector_cosine", step=1, dataset="flags") == [0.5]
    assert values(table, "task_vector_angle", step=2, dataset="food") == pytest.approx([60])
    assert values(table, "task_vector_distance", step=1) == pytest.approx([(4 + 9 - 6) ** 0.5])


def test_top5_recall_per_class_and_shares_of_sets_that_have_them() -> None:
    found = made_up.lineage(CELL, ["food", "flags"], TOP1, ["faces"])
    found[1].metrics.update(top5={"food": 80.0}, mean_per_class_recall={"food": 45.0}, share={"faces": 0.1})  # type: ignore[attr-defined]
    table = tidy.table({CELL: found}, {})
    assert values(table, "top5") == [80.0]
    assert values(table, "mean_per_class_recall", dataset="food", step=1) == [45.0]
    assert values(table, "evaluated_share", role="retention") == [0.1]
    assert facts.notes(table) == [
        "At step 1 scores are those of a share of the samples of faces: 10 % of each class."
        " All other scores are those of all samples."
    ]
    column = [one.title for one in states_table.build(table).columns].index("evaluated")
    assert [row.cells[column].text for row in states_table.build(table).rows] == ["all", "10 %", "all"]


def test_normalized_retention_leaves_out_sets_under_twice_chance_by_name() -> None:
    top1 = [{"food": 10.0, "faces": 60.0, "dice": 40.0}, {"food": 50.0, "faces": 45.0, "dice": 60.0}]
    found = made_up.lineage(CELL, ["food"], top1, ["faces", "dice"])
    found[0].metrics.update(classes={"food": 10, "faces": 3, "dice": 6})  # type: ignore[attr-defined]
    table = tidy.table({CELL: found}, {})
    assert values(table, "normalized_retention") == [100.0, 150.0]  # of dice: twice chance is 33.3
    assert values(table, "left_out_of_normalized", dataset="faces") == [60.0, 60.0]  # twice chance is 66.7
    assert values(table, "left_out_of_normalized", dataset="dice") == []
    assert facts.notes(table) == ["Normalized retention leaves out faces: the base is under twice chance there."]


def test_normalized_accuracy_is_of_each_arrivals_own_expert_on_the_same_samples() -> None:
    top1 = [{"food": 10.0, "flags": 9.0, "faces": 60.0}, {"food": 81.0, "flags": 8.0, "faces": 60.0}]
    top1.append({"food": 81.0, "flags": 76.0, "faces": 60.0})
    found = made_up.lineage(CELL, ["food", "flags"], top1, ["faces"])
    for record in found:
        record.metrics.update(classes={"food": 10, "flags": 10, "faces": 2})  # type: ignore[attr-defined]
    found[1].metrics.update(  # type: ignore[attr-defined]
        expert={"set": "food", "score": 90.0, "score_of_share": 60.0}, share={"food": 0.1}
    )
    found[2].metrics.update(expert={"set": "flags", "score": 80.0})  # type: ignore[attr-defined]
    table = tidy.table({CELL: found}, {})
    assert values(table, "expert_score") == [90.0, 80.0]
    assert values(table, "normalized_accuracy") == pytest.approx([135.0, 92.5])  # 81/60; then 81/90 and 76/80
    assert values(table, "left_out_of_normalized", role="adaptation") == []
    found[2].metrics["expert"]["score"] = 19.0  # twice chance is 20
    table = tidy.table({CELL: found}, {})
    assert values(table, "normalized_accuracy", step=2) == pytest.approx([90.0])
    assert values(table, "left_out_of_normalized", dataset="flags") == [19.0]
    assert "Normalized accuracy leaves out flags: the own expert is under twice chance there." in facts.notes(table)


def test_older_states_do_not_say_how_many_classes_there_are_and_have_no_normalized_retention(
    table: pd.DataFrame,
) -> None:
    assert values(table, "normalized_retention") == []
    assert values(table, "left_out_of_normalized") == []
    assert facts.notes(table) == []
