"""Retrieval across models, by hand; and the node ``compatibility`` on a small project."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group

from tasks import gate
from tasks.deploy import folding
from tasks.errors import UserError
from tasks.evaluate import compatibility, crossing
from tasks.evaluate.compatibility import GALLERIES, METRICS, PAIRS, PAST
from tasks.model import checkpoints
from tasks.model.datasets import Card, Dataset, Sample, write
from tasks.params import Params
from tests.train.project import dataset, params

AXES = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
LABELS = torch.tensor([0, 0, 1, 1])


def unit(features: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(features.double(), dim=1).float()


def test_each_image_finds_its_class_by_hand() -> None:
    assert crossing.before_class(unit(AXES), unit(AXES), LABELS).tolist() == [0, 0, 0, 0]


def test_a_mirrored_model_finds_the_other_class_by_hand() -> None:
    """With both axes exchanged, both images of the other class come before the right one."""
    assert crossing.before_class(unit(AXES.flip(1)), unit(AXES), LABELS).tolist() == [2, 2, 2, 2]


def test_an_image_does_not_find_itself_and_a_class_of_one_has_no_query() -> None:
    labels = torch.tensor([0, 1, 0])
    found = crossing.before_class(unit(AXES[[0, 1, 2]]), unit(AXES[[0, 1, 2]]), labels)
    assert found.tolist() == [1, 1]  # image 1 is nearer to both than the other of their class, and no query itself


def test_equal_similarities_count_as_wrong() -> None:
    same = torch.ones(4, 2)
    assert crossing.before_class(unit(same), unit(same), LABELS).tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("block", [1, 3, 100])
def test_it_is_a_plain_loop_in_any_block(block: int) -> None:
    random = np.random.default_rng(0)
    queries, gallery = (unit(torch.from_numpy(random.normal(size=(20, 5)))) for _ in range(2))
    labels = torch.from_numpy(random.integers(0, 4, 20))
    expected = []
    for i in range(20):
        similar = (queries[i].double() * gallery.double()).sum(dim=1)
        own = [float(similar[j]) for j in range(20) if j != i and labels[j] == labels[i]]
        if own:
            expected.append(sum(float(similar[j]) >= max(own) for j in range(20) if labels[j] != labels[i]))
    assert crossing.before_class(queries, gallery, labels, block).tolist() == expected


# The node


def given(step: int = 0, chosen: Any = "all", **changes: Any) -> Params:
    raw = params(step).model_dump(mode="json", exclude_none=True)
    raw["evaluate"]["compatibility"] = chosen
    return Params.model_validate({**raw, **changes})


def run(folder: Path, settings: Params) -> dict[str, Any]:
    notes: list[str] = []
    compatibility.run(
        folder, settings, lambda what, _done, _total, note="": notes.append(note) if what == "note:" else None
    )
    found: dict[str, Any] = json.loads((folder / METRICS).read_text())
    return found | {"notes": notes}


def hand_on(folder: Path) -> None:
    shutil.rmtree(folder / PAST, ignore_errors=True)
    shutil.copytree(folder / GALLERIES, folder / PAST)


def turn(folder: Path, path: str = "data/step/deployed.safetensors") -> None:
    """Another basis of the joint space for the deployed model."""
    weights = checkpoints.load(folder / path)
    q = torch.from_numpy(ortho_group.rvs(16, random_state=0))
    checkpoints.save(folder / path, folding.folded(weights, folding.of_folder(folder / "data/history/model"), q))


def test_step_zero_has_its_own_gallery_alone(folder: Path) -> None:
    found = run(folder, given())
    assert found["drop"] is None
    assert (found["pairs"], found["compatible"]) == (0, None)
    assert {name: list(row) for name, row in found["recall@1"].items()} == {"seen": ["0"], "kept": ["0"]}
    assert set(checkpoints.load(folder / GALLERIES / "0000.safetensors")) == {"seen", "kept"}


def test_an_unchanged_model_is_compatible_and_another_basis_is_not(folder: Path) -> None:
    zero = run(folder, given())
    hand_on(folder)
    same = run(folder, given(1))
    assert (same["drop"], same["pairs"], same["compatible"]) == (0, 1, 100)
    assert same["recall@1"] == {name: {"0": row["0"], "1": row["0"]} for name, row in zero["recall@1"].items()}
    hand_on(folder)
    turn(folder)
    other = run(folder, given(2))
    own = np.mean([row["0"] for row in zero["recall@1"].values()])
    for step in ("0", "1"):
        cross = np.mean([row[step] for row in other["recall@1"].values()])
        assert other["drops"][step] == pytest.approx(own - cross)
    assert other["drop"] == max(other["drops"].values()) > 0
    # Rotated features find in their own gallery what they found before.
    assert {name: row["2"] for name, row in other["recall@1"].items()} == {
        name: row["0"] for name, row in zero["recall@1"].items()
    }
    assert (other["pairs"], other["compatible"]) == (3, 33.3333)
    assert json.loads((folder / GALLERIES / PAIRS).read_text()) == {
        "0": {}, "1": {"0": True}, "2": {"0": False, "1": False}
    }  # fmt: skip


def test_states_before_the_one_that_is_named_do_not_count(folder: Path) -> None:
    run(folder, given())
    hand_on(folder)
    turn(folder)
    found = run(folder, given(1, deploy={"compatible_with": 1}))
    assert (found["from"], found["drop"], found["pairs"]) == (1, None, 0)
    assert set(found["recall@1"]["seen"]) == {"0", "1"}


def test_equal_inputs_give_equal_bytes(folder: Path) -> None:
    made = []
    for _ in range(2):
        run(folder, given())
        made.append(
            [(folder / METRICS).read_bytes(), *(p.read_bytes() for p in sorted((folder / GALLERIES).iterdir()))]
        )
    assert made[0] == made[1]


def test_a_set_of_other_images_is_not_compared(folder: Path) -> None:
    run(folder, given())
    hand_on(folder)
    dataset(folder / "data/step/evaluation/seen", 8, noise=9)
    found = run(folder, given(1))
    assert set(found["recall@1"]["seen"]) == {"1"}
    assert set(found["recall@1"]["kept"]) == {"0", "1"}
    assert found["drop"] == 0


def test_captions_search_for_images_where_there_are_no_classes(folder: Path) -> None:
    random = np.random.default_rng(0)
    samples = [
        Sample(f"{i}", random.integers(0, 255, (16, 16, 3)).astype(np.uint8), f"a {word} square")
        for i, word in enumerate(("red", "green", "blue", "small", "large"))
    ]
    write(folder / "data/step/evaluation/seen", Card("seen", 16), samples, 5)
    first = run(folder, given(0, ["seen"]))
    data = Dataset(folder / "data/step/evaluation/seen")
    assert (data.labels < 0).all()
    assert first["recall@5"] == {"seen": {"0": 100.0}}
    hand_on(folder)
    assert run(folder, given(1, ["seen"]))["recall@1"]["seen"] == {
        "0": first["recall@1"]["seen"]["0"], "1": first["recall@1"]["seen"]["0"]
    }  # fmt: skip


def test_a_set_with_one_image_a_class_is_left_out_and_said(folder: Path) -> None:
    dataset(folder / "data/step/evaluation/kept", 2, ("blue", "yellow"), noise=2)
    found = run(folder, given())
    assert found["left_out"] == {"kept": "none of its classes has two images"}
    assert found["notes"] == ["compatibility: kept is not measured: none of its classes has two images"]
    assert set(found["recall@1"]) == {"seen"}


def test_a_damaged_gallery_is_one_line(folder: Path) -> None:
    run(folder, given())
    hand_on(folder)
    checkpoints.save(folder / PAST / "0000.safetensors", {"seen": torch.zeros(1)})
    with pytest.raises(UserError, match=r"0000.safetensors: not a gallery of a state; `chronomerge doctor` says more"):
        run(folder, given(1))


def test_an_unknown_set_is_refused() -> None:
    with pytest.raises(ValueError, match="compatibility: no evaluation set is called sen; there are seen, kept"):
        given(0, ["sen"])


# The gate


def test_a_gate_holds_a_state_whose_queries_find_less() -> None:
    for drop, promoted in ((1.5, True), (2.5, False), (None, True)):
        verdict = gate.judge(["compatibility_drop <= 2%"], {"compatibility": {"drop": drop}}, None)
        assert verdict.promoted == promoted
        [outcome] = verdict.conditions
        assert outcome.value == (None if drop is None else drop / 100)


def test_a_gate_needs_what_it_looks_at() -> None:
    required = {"require": ["compatibility_drop <= 2%"]}
    with pytest.raises(ValueError, match="compatibility is not measured; add compatibility: all to evaluate"):
        given(0, [], gate=required)
    with pytest.raises(ValueError, match="compatibility is not measured; add compatibility: all to evaluate"):
        given(0, [], pointers={"champion": required})
    assert given(0, "all", gate=required).gate
