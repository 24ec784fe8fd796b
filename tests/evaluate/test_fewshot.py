"""The node ``heads`` on a small project: support from arrivals alone, running state, scores, files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.errors import UserError
from tasks.evaluate import fewshot, headfile, headstate, support
from tasks.evaluate.fewshot import HEADS, METRICS, RUNNING
from tasks.evaluate.node import METRICS as ZERO_SHOT
from tasks.evaluate.node import evaluate
from tasks.evaluate.support import Moments, Support
from tasks.model import checkpoints
from tasks.model.datasets import Dataset
from tasks.params import Params
from tests.train.project import COLOURS, dataset, params

COLOUR = tuple(COLOURS)
EVERY = [
    "zeroshot",
    {"name": "gda", "shots": [1, 2, "all"]},
    {"name": "prototype", "shots": [2, "all"]},
    {"name": "tip", "shots": [2]},
    {"name": "knn", "shots": [2]},
    {"name": "linear", "shots": [2]},
]


def with_heads(step: int, *entries: Any, **changes: Any) -> Params:
    given = params(step).model_dump(mode="json", exclude_none=True)
    given["evaluate"]["heads"] = list(entries)
    if step:
        given["arrival"] = {"name": "first" if step == 1 else "second", "update": ["folder:x"]}
    return Params.model_validate({**given, **changes})


def run(folder: Path, given: Params) -> dict[str, Any]:
    notes: list[str] = []
    fewshot.run(folder, given, lambda what, _done, _total, note="": notes.append(note) if what == "note:" else None)
    found: dict[str, Any] = json.loads((folder / METRICS).read_text())
    return found | {"notes": notes}


def advance(folder: Path, name: str, colours: tuple[str, ...], *, heads: bool = True) -> None:
    """The next step of the project: what arrived joins the pools, and the given colours arrive."""
    history, arrival = folder / "data/history", folder / "data/step/arrival"
    lineage = history / "weights/lineage.json"
    number = json.loads(lineage.read_text())["step"] + 1
    lineage.write_text(json.dumps({"step": number}))
    before = "pretraining" if number == 1 else "first"
    if not (history / "weights/base.safetensors").exists():
        shutil.copyfile(folder / "data/step/deployed.safetensors", history / "weights/base.safetensors")
    pools = json.loads((history / "pools/pools.json").read_text())
    shutil.move(arrival, history / "pools" / before)
    (history / "pools/pools.json").write_text(json.dumps([*pools, before]))
    shutil.rmtree(history / "heads", ignore_errors=True)
    if heads:
        shutil.copytree(folder / HEADS, history / "heads")
    dataset(arrival, 24, colours, noise=10 + number)
    (arrival / "dataset.json").write_text((arrival / "dataset.json").read_text().replace('"arrival"', f'"{name}"'))
    weights = checkpoints.load(history / "weights/base.safetensors")
    noise = torch.Generator().manual_seed(number)
    moved = {key: t + 0.05 * torch.randn(t.shape, generator=noise) if t.dim() > 1 else t for key, t in weights.items()}
    for path in ("expert", "deployed"):
        checkpoints.save(folder / f"data/step/{path}.safetensors", moved)


def test_every_head_scores_every_set_and_leaves_its_file(folder: Path) -> None:
    found = run(folder, with_heads(0, *EVERY))
    assert list(found)[:-1] == ["zeroshot", "gda", "prototype", "tip", "knn", "linear"]
    evaluate(folder, params(0))
    zero_shot = json.loads((folder / ZERO_SHOT).read_text())
    assert found["zeroshot"]["top1"] == {"0": zero_shot["top1"]}
    assert found["zeroshot"]["A_KA"] == {"0": zero_shot["A_KA"]}
    assert list(found["gda"]["top1"]) == ["1", "2", "all"]
    assert found["prototype"]["top1"]["all"]["seen"] > 90  # colours are easy, and their sets are other drawings
    for name in ("gda", "prototype", "tip", "knn", "linear"):
        note, _, _ = headfile.read(folder / HEADS / f"{name}.safetensors")
        assert note.classes == ("blue", "green", "red", "yellow")
    assert not (folder / HEADS / "zeroshot.safetensors").exists()


def test_equal_inputs_give_equal_bytes(folder: Path) -> None:
    given = with_heads(0, *EVERY)
    run(folder, given)
    before = {path: path.read_bytes() for path in sorted((folder / HEADS).rglob("*")) if path.is_file()}
    scores = (folder / METRICS).read_bytes()
    run(folder, given)
    assert {path: path.read_bytes() for path in sorted((folder / HEADS).rglob("*")) if path.is_file()} == before
    assert (folder / METRICS).read_bytes() == scores


def test_the_file_scores_what_the_metrics_say(folder: Path) -> None:
    found = run(folder, with_heads(0, {"name": "gda", "shots": [8]}))
    file = checkpoints.load(folder / HEADS / "gda.safetensors")
    space = fewshot.FeatureSpace(folder / "data/history/model", [folder / "data/step/deployed.safetensors"], 64)
    data = Dataset(folder / "data/step/evaluation/seen")
    logits = space.images(data, lambda _: None) @ file["weight"].T + file["bias"]
    note, _, _ = headfile.read(folder / HEADS / "gda.safetensors")
    names = [note.classes[i] for i in logits.argmax(dim=1).tolist()]
    right = np.mean([name == data.card.classes[label] for name, label in zip(names, data.labels, strict=True)])
    assert found["gda"]["top1"]["8"]["seen"] == pytest.approx(100 * right)


def test_support_is_drawn_from_arrivals_and_fewer_shots_are_part_of_more(folder: Path) -> None:
    data = Dataset(folder / "data/step/arrival")
    two, four = support.draw([data], 2, 0), support.draw([data], 4, 0)
    assert two.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert set(two.rows.tolist()) < set(four.rows.tolist())
    assert set(support.draw([data], 4, 1).rows.tolist()) != set(four.rows.tolist())
    assert [data.card.classes[data.labels[row]] for row in two.rows] == [two.classes[i] for i in two.labels]
    again = support.draw([data, data], 4, 0)
    assert again.rows.tolist() == four.rows.tolist()  # an image that arrives twice is one sample


@pytest.mark.parametrize("arrives", [("red", "green"), ("green", "violet")])
def test_the_running_state_is_the_one_of_all_arrivals_at_once(
    arrives: tuple[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class comes back, or is new; only the new arrival is encoded."""
    monkeypatch.setitem(COLOURS, "violet", (180, 40, 200))
    given = with_heads(1, {"name": "gda", "shots": [1, 3, "all"]})
    run(folder, with_heads(0, {"name": "gda", "shots": [1, 3, "all"]}))
    advance(folder, "first", arrives)
    encoded = counting(monkeypatch)
    one_by_one = run(folder, given)
    assert encoded == [24, 6]  # all of the arrival, and three shots of its two classes; no test set, no earlier arrival
    running = headfile.read(folder / HEADS / "gda.safetensors")[1]
    state = checkpoints.load(folder / RUNNING / "state-base.safetensors")
    shutil.rmtree(folder / "data/history/heads")
    at_once = run(folder, given)
    assert {key: one_by_one[key] for key in ("gda", "notes")} == {key: at_once[key] for key in ("gda", "notes")}
    rebuilt = headfile.read(folder / HEADS / "gda.safetensors")[1]
    assert isinstance(running, Moments)
    assert isinstance(rebuilt, Moments)
    assert torch.equal(running.counts, rebuilt.counts)
    torch.testing.assert_close(running.sums, rebuilt.sums, rtol=0, atol=1e-5)
    torch.testing.assert_close(running.gram, rebuilt.gram, rtol=0, atol=1e-5)
    other = checkpoints.load(folder / RUNNING / "state-base.safetensors")
    assert torch.equal(state["ranks"], other["ranks"])
    torch.testing.assert_close(state["features"], other["features"], rtol=0, atol=1e-6)


def test_base_features_never_change_and_deployed_ones_do(folder: Path) -> None:
    entries = [
        {"name": "prototype", "label": "frozen"},
        {"name": "prototype", "label": "moving", "features": "deployed"},
    ]
    run(folder, with_heads(0, *entries))
    advance(folder, "first", ("red", "green"))
    run(folder, with_heads(1, *entries))
    frozen = headfile.read(folder / HEADS / "frozen.safetensors")[1]
    moving = headfile.read(folder / HEADS / "moving.safetensors")[1]
    assert isinstance(frozen, Moments)
    assert isinstance(moving, Moments)
    assert torch.equal(frozen.counts, moving.counts)  # recomputed from every arrival
    assert not torch.allclose(frozen.sums, moving.sums, atol=1e-3)
    assert frozen.counts.tolist() == [8, 20, 20, 8]


def test_aper_stands_base_beside_first_expert_from_the_first_step_on(folder: Path) -> None:
    entry = {"name": "prototype", "features": "base+first"}
    found = run(folder, with_heads(0, entry))
    assert found["prototype"]["left_out"] == {"*": "there is no first expert yet"}
    widths = []
    for step in (1, 2, 3):
        advance(folder, "first" if step == 1 else "second", ("red", "green"))
        found = run(folder, with_heads(min(step, 2), entry))
        note, data, _ = headfile.read(folder / HEADS / "prototype.safetensors")
        assert isinstance(data, Moments)
        widths.append((data.sums.shape[1], note.weights))
        assert data.sums.square().sum() > 0
        if step == 2:
            break
    assert [width for width, _ in widths] == [32, 32]
    assert widths[0][1] == widths[1][1]  # the first step's expert, still
    halves = data.sums[:, :16], data.sums[:, 16:]
    assert halves[0].norm() == pytest.approx(halves[1].norm(), rel=0.5)


def test_aper_set_too_late_is_refused(folder: Path) -> None:
    run(folder, with_heads(0, "prototype"))
    advance(folder, "first", ("red",))
    advance(folder, "second", ("green",), heads=False)
    (folder / "data/history/weights/lineage.json").write_text('{"step": 3}')
    with pytest.raises(UserError, match="needs the first expert, and earlier steps did not hand it on"):
        run(folder, with_heads(2, {"name": "prototype", "features": "base+first"}))


def test_a_class_that_is_taken_out_was_never_there(folder: Path) -> None:
    entry: dict[str, Any] = {"name": "gda", "shots": [3, "all"], "without": ["red", "unheard"]}
    found = run(folder, with_heads(0, entry))
    assert found["gda"]["left_out"] == {"seen": "1 of its 4 classes have no support, 'red' for one"}
    assert "kept" in found["gda"]["top1"]["all"]
    assert found["gda"]["A_KA"] == {}
    taken = headfile.read(folder / HEADS / "gda.safetensors")[1]
    shutil.rmtree(folder / "data/step/arrival")
    dataset(folder / "data/step/arrival", 32, COLOUR)
    whole = Dataset(folder / "data/step/arrival")
    kept = support.of_classes(support.every([whole]), ("blue", "green", "yellow"))
    space = fewshot.FeatureSpace(folder / "data/history/model", [folder / "data/step/deployed.safetensors"], 64)
    never = support.moments(kept.classes, space.chosen([whole], kept, lambda _: None), torch.from_numpy(kept.labels))
    assert isinstance(taken, Moments)
    assert taken.classes == never.classes
    torch.testing.assert_close(taken.sums, never.sums, rtol=0, atol=1e-5)
    torch.testing.assert_close(taken.gram, never.gram, rtol=0, atol=1e-5)


def test_what_is_left_out_is_said(folder: Path) -> None:
    dataset(folder / "data/step/arrival", 7, COLOUR)
    found = run(folder, with_heads(0, {"name": "tip", "shots": [1, 2, 16]}))
    assert found["tip"]["fewer"] == {"2": 1}
    assert found["tip"]["left_out"] == {"16": "no class has more than 2 samples"}
    assert list(found["tip"]["top1"]) == ["1", "2"]
    assert found["notes"] == [
        "head tip on base features: 2 shots: 1 of 4 classes have fewer, and give all",
        "head tip on base features: 16 shots: no class has more than 2 samples",
    ]


def test_a_class_without_support_leaves_its_sets_out(folder: Path) -> None:
    dataset(folder / "data/step/arrival", 8, ("blue", "yellow"))
    found = run(folder, with_heads(0, "knn"))
    assert found["knn"]["left_out"]["seen"] == "2 of its 4 classes have no support, 'red' for one"
    assert list(found["knn"]["top1"]["16"]) == ["kept"]
    assert "head knn on base features: seen is not scored: 2 of its 4 classes" in found["notes"][-1]


def test_one_class_alone_is_refused(folder: Path) -> None:
    dataset(folder / "data/step/arrival", 8, ("blue",))
    with pytest.raises(UserError, match="head knn: only 'blue' has labelled samples; a head needs two classes"):
        run(folder, with_heads(0, "knn"))


def test_a_state_of_other_settings_is_made_anew(folder: Path) -> None:
    run(folder, with_heads(0, {"name": "tip", "shots": [2]}))
    advance(folder, "first", ("red", "green"))
    run(folder, with_heads(1, {"name": "tip", "shots": [12]}))
    data = headfile.read(folder / HEADS / "tip.safetensors")[1]
    assert isinstance(data, Support)
    assert data.counts().tolist() == [8, 12, 12, 8]


def test_damaged_state_is_named(folder: Path) -> None:
    run(folder, with_heads(0, "prototype"))
    advance(folder, "first", ("red", "green"))
    path = folder / "data/history/heads/running/state-base.safetensors"
    tensors = checkpoints.load(path)
    checkpoints.save(path, tensors, {"state": "{}"})
    with pytest.raises(UserError, match=r"state-base.safetensors: damaged"):
        run(folder, with_heads(1, "prototype"))
    checkpoints.save(path, tensors, {})
    with pytest.raises(UserError, match="not the state of heads"):
        run(folder, with_heads(1, "prototype"))
    path.write_bytes(b"x")
    with pytest.raises(UserError, match="a text file, not a safetensors file"):
        run(folder, with_heads(1, "prototype"))


def test_two_states_of_halves_are_the_state_of_all(folder: Path) -> None:
    data = Dataset(folder / "data/step/arrival")
    space = fewshot.FeatureSpace(folder / "data/history/model", [folder / "data/step/deployed.safetensors"], 64)
    spec = headstate.Spec(weights=(), seed=0, shots=3, moments=True, pools=())
    dataset(folder / "a", 9, ("red", "blue"), noise=4)
    other = Dataset(folder / "a")

    def collect(*sets: Dataset) -> headstate.HeadState:
        found = headstate.collect(sets, spec, space, lambda _: None)
        assert found
        return found

    both, one, two = collect(data, other), collect(data), collect(other)
    for joined in (headstate.added(one, two, spec), headstate.added(two, one, spec)):
        assert joined
        assert joined.support
        assert both.support
        assert torch.equal(joined.support.ranks, both.support.ranks)
        assert torch.equal(joined.support.labels, both.support.labels)
        assert joined.moments
        assert both.moments
        assert torch.equal(joined.moments.counts, both.moments.counts)
        torch.testing.assert_close(joined.moments.gram, both.moments.gram, rtol=0, atol=1e-5)


def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with the number of images of each pass through image towers from now on."""
    encoded: list[int] = []
    original = fewshot.FeatureSpace._images
    monkeypatch.setattr(
        fewshot.FeatureSpace,
        "_images",
        lambda self, d, where, *a: encoded.append(len(where)) or original(self, d, where, *a),
    )
    return encoded


def test_a_frozen_space_encodes_an_image_once_for_all_heads_and_a_changed_set_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries: list[Any] = ["prototype", "gda", {"name": "zeroshot", "features": "base"}]
    encoded = counting(monkeypatch)
    run(folder, with_heads(0, *entries))
    assert encoded == [8, 6, 32]
    advance(folder, "first", ("red", "green"))
    dataset(folder / "data/step/evaluation/kept", 6, ("blue", "yellow"), noise=9)
    encoded.clear()
    run(folder, with_heads(1, *entries))
    assert encoded == [6, 24]


def test_an_aligned_state_is_carried_over_and_only_the_arrival_is_encoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"name": "gda", "features": "aligned", "shots": [2, "all"]}
    run(folder, with_heads(0, entry))
    before = checkpoints.load(folder / RUNNING / "state-aligned.safetensors")
    reference = folder / fewshot.REFERENCE
    reference.parent.mkdir()
    shutil.copyfile(folder / "data/step/deployed.safetensors", reference)
    advance(folder, "first", ("red", "green"))
    encoded = counting(monkeypatch)
    run(folder, with_heads(1, entry))
    assert encoded == [8, 6, 24, 4]  # both test sets, for they are encoded by the new model; then the arrival alone
    after = checkpoints.load(folder / RUNNING / "state-aligned.safetensors")
    assert after["counts"].tolist() == [8, 20, 20, 8]
    for row in (0, 3):  # blue and yellow did not arrive: their sums are still those of the first model
        assert torch.equal(after["sums"][row], before["sums"][row])
    note, data, _ = headfile.read(folder / HEADS / "gda.safetensors")
    assert (note.space, int(counted(data))) == ("aligned", 56)


def counted(data: Moments | Support) -> torch.Tensor:
    assert isinstance(data, Moments)
    return data.counts.sum()


def test_an_aligned_state_begins_with_the_state_that_is_named(folder: Path) -> None:
    """Before it, each step's deployed model has a space of its own, and the state is made anew."""
    entry = {"name": "prototype", "features": "aligned"}
    run(folder, with_heads(0, entry))
    advance(folder, "first", ("red", "green"))
    run(folder, with_heads(1, entry))
    anew = headfile.read(folder / HEADS / "prototype.safetensors")[1]
    run(folder, with_heads(1, {**entry, "features": "deployed"}))
    deployed = headfile.read(folder / HEADS / "prototype.safetensors")[1]
    assert isinstance(anew, Moments)
    assert isinstance(deployed, Moments)
    assert torch.equal(anew.sums, deployed.sums)


def test_a_test_set_of_one_class_is_left_out_and_said(folder: Path) -> None:
    dataset(folder / "data/step/evaluation/kept", 4, ("blue",), noise=2)
    found = run(folder, with_heads(0, "knn", "zeroshot"))
    why = "it has one class, 'blue': there is nothing to tell apart"
    assert found["knn"]["left_out"]["kept"] == found["zeroshot"]["left_out"]["kept"] == why
    assert f"head knn on base features: kept is not scored: {why}" in found["notes"]
