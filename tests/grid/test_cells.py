"""What a grid's cells are: TIME's eight protocols, each a timeline whose params are those of a run by itself."""

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tasks.errors import UserError
from tasks.grid import cells
from tasks.grid.cells import Planned
from tasks.params import Grid, parse
from tests.project import PARAMS, ROOT

HERE = Path("project")
NO_REFERENCES: dict[str, Any] = {"references": []}


def text(**changes: Any) -> str:
    from io import StringIO

    buffer = StringIO()
    YAML(typ="safe").dump({**PARAMS, **changes}, buffer)
    return buffer.getvalue()


def expand(params: str | None = None, **grid: Any) -> dict[str, Planned]:
    found = cells.expand(params or text(), Grid.model_validate({**NO_REFERENCES, **grid}), HERE)
    assert len({one.cell.timeline for one in found}) == len(found)
    return {one.cell.timeline: one for one in found}


def test_the_eight_protocols() -> None:
    found = expand()
    assert {one.cell.protocol for one in found.values()} == {
        "zs+ema", "zs+all", "ft+ft", "ft+ema", "ft+all", "ema+ft", "ema+ema", "ema+all"
    }  # fmt: skip
    assert len(found) == 8


def test_a_cell_has_the_params_of_a_timeline_by_itself() -> None:
    found = expand(technique=[{"name": "ties", "density": 0.3, "label": "sparse"}], seed=[3])
    one = found["tiny-zs-all-sparse-s3"]
    alone = parse(
        text(
            timeline="tiny-zs-all-sparse-s3", seed=3,
            time={"init": "zs", "deploy": "all", "technique": {"name": "ties", "density": 0.3}},
        ),
        HERE,
    )  # fmt: skip
    assert one.params == alone
    assert (one.cell.technique, one.cell.seed, one.cell.variant, one.cell.reference) == ("sparse", 3, "", "")


def test_a_technique_of_ones_own_is_in_cells_of_params_in_braces(tmp_path: Path) -> None:
    """A colon in braces wants quotes, wherever the technique is named: in time, in the grid, in a variant."""
    own = tmp_path / "own.py"
    own.write_text("from tasks.merge.techniques.linear import Linear\n\n\nclass Mine(Linear):\n    name = 'mine'\n")
    technique = {"name": f"{own}:Mine", "weight": 0.25}
    flow = text() + f'time: {{init: ema, technique: {{name: "{own}:Mine", weight: 0.25}}}}\n'
    for found in (
        expand(flow),
        expand(text() + "time: {init: ema, technique: {name: linear}}\n", technique=[technique]),
        expand(text() + "time: {init: ema}\n", variants={"own": {"time": {"technique": technique}}}),
    ):
        names = {one.params.time.technique.name for one in found.values()}
        assert f"{own}:Mine" in names


def test_a_protocol_that_merges_nothing_is_one_cell_for_all_techniques() -> None:
    found = expand(technique=["linear", "ties", "slerp"])
    assert [name for name in found if "-ft-ft" in name] == ["tiny-ft-ft-s0"]
    assert found["tiny-ft-ft-s0"].cell.technique == ""
    assert len(found) == 7 * 3 + 1


def test_comments_of_the_file_stay() -> None:
    found = expand("# mine\n" + text() + "# the end\n", init=["zs"], deploy=["all"])
    assert all(one.text.startswith("# mine\n") for one in found.values())


def test_the_grid_itself_is_not_of_a_cell() -> None:
    found = expand(text(grid={"init": ["zs"]}))
    assert all(one.params.grid is None for one in found.values())


def test_variants_replace_keys_and_keep_the_others() -> None:
    found = expand(
        variants={"given": {}, "long": {"train": {"steps": 12}}, "turned": {"stream": PARAMS["stream"][::-1]}},
        init=["ft"], deploy=["ft"],
    )  # fmt: skip
    assert list(found) == ["tiny-given-ft-ft-s0", "tiny-long-ft-ft-s0", "tiny-turned-ft-ft-s0"]
    given, long, turned = (one.params for one in found.values())
    assert (given.train.steps, long.train.steps, long.train.batch_size) == (6, 12, 12)
    assert [arrival.name for arrival in turned.stream] == ["second", "first"]
    assert found["tiny-long-ft-ft-s0"].cell.variant == "long"


def test_multitask_has_all_data_and_the_budget_of_all_steps() -> None:
    found = expand(references=["multitask"], init=["ft"], deploy=["ft"])["tiny-multitask-s0"]
    assert found.cell.reference == "multitask"
    assert [arrival.update for arrival in found.params.stream] == [
        ["images:drawings/first#train", "images:drawings/second#train"]
    ]
    assert found.params.train.given.steps == 12
    mixture = found.params.train.mixture
    assert (mixture.pretraining, mixture.update, mixture.buffer) == (0.33, pytest.approx(0.67), 0)


def test_multitask_cannot_train_on_an_expert() -> None:
    stream = [*PARAMS["stream"], {"name": "bought", "expert": "bought.safetensors"}]
    with pytest.raises(UserError, match=r"arrival 'bought' is an expert .* leave multitask out"):
        expand(text(stream=stream), references=["multitask"])


def test_no_replay_trains_on_what_arrives_alone() -> None:
    found = expand(references=["no-replay"])["tiny-no-replay-s0"]
    mixture = found.params.train.mixture
    assert (mixture.pretraining, mixture.update, mixture.buffer) == (0, 1, 0)
    assert found.cell.protocol == "ft+ft"


def test_what_cannot_be_merged_is_left_out_with_its_reason() -> None:
    found = expand(technique=["slerp", "linear"], init=["zs"])
    fit, left_out = cells.usable(found.values())
    assert [one.cell.timeline for one in fit] == [
        "tiny-zs-ema-slerp-s0",
        "tiny-zs-ema-linear-s0",
        "tiny-zs-all-linear-s0",
    ]
    assert list(left_out) == ["tiny-zs-all-slerp-s0"]
    assert "slerp" in left_out["tiny-zs-all-slerp-s0"]


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({"technique": ["ties", {"name": "ties", "density": 0.5}]}, "give one of them a label"),
        ({"seed": [1, 1]}, r"duplicate seed '1' in grid\.seed\[1\]; remove one"),
        ({"init": []}, "init"),
        ({"deploy": ["zs"]}, "deploy"),
        ({"variants": {"a b": {}}}, "variants"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(grid: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Grid.model_validate(grid)


def test_a_variant_that_makes_no_sense_is_named() -> None:
    with pytest.raises(UserError, match=r"variant long.*train\.stepz"):
        expand(variants={"long": {"train": {"stepz": 12}}})


def test_a_grid_has_no_gate() -> None:
    found = expand(text(gate={"require": ["A_KA > 50%"], "held": "skip"}))
    assert all(one.params.gate is None for one in found.values())


def test_a_grid_needs_a_stream() -> None:
    with pytest.raises(UserError, match="needs a stream"):
        expand(text(stream=[]))


def test_a_technique_that_there_is_not_is_no_cell_to_leave_out() -> None:
    with pytest.raises(UserError, match="technique: there is no 'nothing'"):
        cells.usable(expand(technique=["linear", "nothing"]).values())


def test_a_grid_of_which_no_cell_can_run_is_refused() -> None:
    with pytest.raises(UserError, match="no cell of this grid can run: slerp"):
        cells.usable(expand(technique=["slerp"], init=["zs"], deploy=["all"]).values())


def test_the_guide_names_a_cell_of_its_own_example() -> None:
    guide = (ROOT / "docs" / "guides" / "grid.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    example = Grid.model_validate(YAML(typ="safe").load(block)["grid"])
    params = re.sub(r"\ngrid:.*", "\n", (ROOT / "params.yaml").read_text(), flags=re.DOTALL)
    names = {one.cell.timeline for one in cells.expand(params, example, ROOT)}
    plain = {one.cell.timeline for one in cells.expand(params, example.model_copy(update={"variants": {}}), ROOT)}
    named = re.findall(r"`(demo-[\w-]+-s\d)`", guide)
    assert named
    assert set(named) <= names | plain
