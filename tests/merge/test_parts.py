"""Settings by part of the model: what a pattern names, which of several rules, and what each part is merged with."""

from __future__ import annotations

import json
import re
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from flows.cli.app import app
from flows.cli.merge import parse_parts
from tasks.errors import UserError
from tasks.merge import available, create, merge, protocol
from tasks.merge.sequential import Accumulator
from tasks.params import Time
from tests.merge.models import Model, base, close, experts, same
from tests.merge.test_sequential import sequence

VISUAL = [name for name in base() if name.startswith("visual.")]


def merged(name: str, settings: dict[str, Any], count: int = 2, **arguments: Any) -> Model:
    tensors = merge(name, experts(count), base(), settings=settings, **arguments).tensors
    assert tensors is not None
    return tensors


def chosen(found: Model, names: list[str]) -> Model:
    return {name: found[name] for name in names}


OWN: dict[str, tuple[str, float, dict[str, Any]]] = {
    "ties": ("density", 0.6, {}),
    "breadcrumbs": ("gamma", 0.2, {}),
    "dare_linear": ("density", 0.3, {}),
    "della": ("epsilon", 0.05, {}),
    "linear": ("weight", 0.2, {"weight": 0.7}),
    "slerp": ("t", 0.2, {"t": 0.7}),
    "karcher": ("weight", 0.2, {}),
    "magmax": ("scale", 0.3, {}),
    "consensus": ("k", 1, {}),
    "sce": ("density", 0.3, {}),
    "pcb": ("density", 0.5, {"scope": "tensor"}),
    "tsv": ("scale", 0.5, {}),
    "iso_c": ("scale", 0.5, {}),
    "task_arithmetic": ("scale", 0.9, {}),
}


@pytest.mark.parametrize("name", sorted(OWN))
def test_each_part_is_what_its_settings_give_alone(name: str) -> None:
    key, value, shared = OWN[name]
    result = merged(name, {**shared, "parts": {"visual": {key: value}}}, seed=3)
    others = [n for n in base() if n not in VISUAL]
    assert same(chosen(result, VISUAL), chosen(merged(name, {**shared, key: value}, seed=3), VISUAL))
    assert same(chosen(result, others), chosen(merged(name, shared, seed=3), others))
    assert not same(result, merged(name, shared, seed=3))


def test_every_setting_that_a_part_may_have_is_a_setting() -> None:
    for technique in available().values():
        assert set(technique.by_part()) <= technique.model_fields.keys()
        if issubclass(technique, Accumulator) and technique.plan is Accumulator.plan:
            assert "scale" not in technique.model_fields or "scale" in technique.by_part()


def test_the_pattern_with_most_characters_rules_setting_by_setting() -> None:
    parts = {"*.mlp.*": {"scale": 0.8, "density": 0.9}, "visual": {"density": 0.5}, "v*": {"scale": 0.1}}
    both = "visual.transformer.resblocks.0.mlp.weight"
    for given in (parts, dict(reversed(parts.items()))):
        result = merged("ties", {"parts": given})
        for name, settings in (
            (both, {"scale": 0.8, "density": 0.5}),
            ("transformer.resblocks.1.mlp.weight", {"scale": 0.8, "density": 0.9}),
            ("visual.ln_post.bias", {"scale": 0.1, "density": 0.5}),
            ("text_projection", {}),
        ):
            assert same(chosen(result, [name]), chosen(merged("ties", settings), [name])), name


def test_two_that_are_as_specific_and_differ_are_refused() -> None:
    parts = {"*.mlp.*": {"density": 0.3}, "*.0.ml*": {"density": 0.4}}
    with pytest.raises(UserError, match=r"parts '\*\.mlp\.\*' and '\*\.0\.ml\*' both set density of 'transformer"):
        merged("ties", {"parts": parts})
    merged("ties", {"parts": {"*.mlp.*": {"density": 0.3}, "*.0.ml*": {"density": 0.3}}})


def test_towers_and_what_lies_below_a_name() -> None:
    scaled = merged("task_arithmetic", {"parts": {"vision": {"scale": 0}, "transformer.resblocks": {"scale": 0}}})
    kept = {name for name, zero in base().items() if np.array_equal(scaled[name], zero)}
    assert kept == {*VISUAL, "transformer.resblocks.0.mlp.weight", "transformer.resblocks.1.mlp.weight"}


def test_a_gradient_goes_over_the_layers_of_each_tower() -> None:
    shape = (3, 2)
    names = [*(f"visual.transformer.resblocks.{i}.w" for i in range(5)), "transformer.resblocks.0.w", "ln.w"]
    zero, one = ({n: np.full(shape, v, np.float32) for n in names} for v in (0.0, 1.0))
    settings = {"scale": 7, "parts": {"*": {"scale": [0, 1, 5]}}}
    result = merge("task_arithmetic", [one], zero, settings=settings).tensors
    assert result is not None
    assert [float(result[n][0, 0]) for n in names] == [0, 0.5, 1, 3, 5, 5, 0]  # one layer: its end; no layer: its start


def test_trimming_over_a_tower_is_apart_where_densities_differ() -> None:
    """And only there: a scale of its own leaves a tensor among those it is ranked with."""
    zero = {"visual.a": np.zeros(4, np.float32), "visual.b": np.zeros(4, np.float32)}
    one = {"visual.a": np.float32([1, 2, 3, 4]), "visual.b": np.float32([5, 6, 7, 8])}

    def run(parts: dict[str, Any]) -> list[list[float]]:
        settings = {"scope": "tower", "density": 0.5, "parts": parts}
        found = merge("ties", [one], zero, settings=settings).tensors
        assert found is not None
        return [found["visual.a"].tolist(), found["visual.b"].tolist()]

    assert run({"visual.b": {"scale": 2}}) == [[0, 0, 0, 0], [10, 12, 14, 16]]
    assert run({"visual.b": {"density": 0.25}}) == [[0, 0, 3, 4], [0, 0, 0, 8]]


def test_weights_of_the_models_in_a_part() -> None:
    models = experts(3)
    result = merge("linear", models, weights=[1, 2, 5], part_weights={"visual": [1, 0, 0]}).tensors
    expected = merge("linear", models, weights=[1, 2, 5]).tensors
    assert result is not None
    assert expected is not None
    close(result, {n: models[0][n] if n in VISUAL else expected[n] for n in expected})
    with pytest.raises(UserError, match="2 weights for 3 models"):
        merge("linear", models, part_weights={"visual": [1, 2]})
    with pytest.raises(UserError, match="magmax does not weigh its models"):
        merge("magmax", models, base(), part_weights={"visual": [1, 2, 3]})
    with pytest.raises(UserError, match="given both by weight of a part and with the models"):
        merge("linear", models, weights=[1, 1, 1], settings={"parts": {"visual": {"weight": 0.5}}})


@pytest.mark.parametrize("name", ["ties", "iso_c", "opcm"])
def test_one_by_one_gives_the_bits_of_all_together(name: str, tmp_path: Path) -> None:
    key = "alpha" if name == "opcm" else "scale"
    settings = {"parts": {"visual": {key: 0.2}, "*.1.*": {key: [0.3, 0.4]}}}
    together = merge(name, experts(3), base(), settings=settings, seed=7).tensors
    assert together is not None
    assert same(sequence(tmp_path, name, settings, experts(3), slice_entries=50), together)


@pytest.mark.parametrize("name", ["ties", "sce", "pcb"])
def test_neither_slices_nor_threads_change_a_bit(name: str) -> None:
    settings = {"scope": "tower", "parts": {"visual.conv1": {"density": 0.4}, "text": {"density": [0.2, 0.8]}}}
    sliced = merged(name, settings, 3, slice_entries=37, threads=2)
    assert same(sliced, merged(name, settings, 3, threads=1))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"visul": {"density": 0.5}}, r"part 'visul' matches no tensor; near it are .*visual"),
        ({"*.mlpp.*": {"density": 0.5}}, r"part '\*\.mlpp\.\*' matches no tensor; near it are .*\*\.mlp\.\*"),
        ({"q": {"density": 0.5}}, "part 'q' matches no tensor; near it are .*logit_scale"),
        ({"visual": {"scope": "tower"}}, "visual: 'scope' is not set by part; a part may set .*density"),
        ({"visual": {"name": "linear"}}, "visual: 'name' is not set by part"),
        ({"visual": {"lines": 1}}, "visual: 'lines' is not set by part"),
        ({"visual": {"denisty": 0.5}}, "visual: 'denisty' is not set by part; a part may set weight, scale, density"),
        ({"visual": {"density": "much"}}, "parts got 'much'; input should be a valid number"),
        ({"visual": 0.5}, "parts got 0.5; input should be a valid dictionary"),
        ({"visual": {}}, "visual sets nothing"),
        ({"visual": {"density": []}}, "parts.visual.density is an empty list"),
        ({"visual": {"density": [0.5, 1.5]}}, "parts.visual.density is 1.5; input should be less than or equal to 1"),
        ({"visual": {"density": float("nan")}}, "finite number"),
    ],
)
def test_what_no_part_can_be(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        merged("ties", {"parts": parts})


def test_a_technique_without_settings_by_part_says_so() -> None:
    with pytest.raises(UserError, match="visual: 'scale' is not set by part; its parts have no settings"):
        create("model_stock", {"parts": {"visual": {"scale": 1}}})


def test_the_report_counts_the_tensors_of_a_part_and_says_what_has_no_effect() -> None:
    ids = {"text.ids": np.arange(3)}
    models = [{**m, **ids} for m in experts(2)]
    parts = {"visual": {"scale": 0.5}, "text.ids": {"scale": 2}, "text.i*": {"scale": 2}}
    report = merge("ties", models, {**base(), **ids}, settings={"parts": parts}).report
    assert f"part 'visual' is {len(VISUAL)} of 9 merged tensors" in report.notes
    assert "part 'text.i*' has no effect: its tensors are not merged (text.ids)" in report.notes
    assert report.settings["parts"] == parts
    assert "parts" not in merge("ties", experts(2), base()).report.settings


def test_a_tied_tensor_is_named_by_each_of_its_names(tmp_path: Path) -> None:
    def tied(model: Model) -> Model:
        return {**model, "lm_head.weight": model["token_embedding.weight"]}

    found = merge(
        "task_arithmetic",
        [tied(m) for m in experts(2)],
        tied(base()),
        settings={"parts": {"lm_head": {"scale": 0}}},
    ).tensors
    assert found is not None
    assert np.array_equal(found["token_embedding.weight"], base()["token_embedding.weight"])
    save_file(found, tmp_path / "m.safetensors")
    assert len(load_file(tmp_path / "m.safetensors")) == 10


def time(technique: dict[str, Any], **own: Any) -> Time:
    return Time.model_validate({"init": "zs", "deploy": "ema", "technique": technique, **own})


def test_a_recursion_that_diverges_in_one_part_is_refused() -> None:
    fine = {"name": "task_arithmetic", "scale": 0.5, "weight": 0.5}
    whole = protocol.check(time(fine), 5)
    assert protocol.check(time({**fine, "parts": {"visual": {"scale": 0.5}}}), 5)[: len(whole)] == whole
    with pytest.raises(UserError, match=r"parts.visual: task_arithmetic: in an EMA recursion scale 3 multiplies"):
        protocol.check(time({**fine, "parts": {"visual": {"scale": [0.5, 3]}}}), 5)
    random = {"name": "dare_linear", "weight": 0.5, "density": 1, "parts": {"text": {"density": 0.5}}}
    warnings = [warning.partition(": in an EMA")[0] for warning in protocol.check(time(random), 5)]
    assert warnings == ["parts.text: dare_linear"]


def test_deploying_all_leaves_the_weight_of_two_out_of_every_part() -> None:
    parts = {"visual": {"weight": 0.2}, "text": {"weight": 0.1, "scale": 2}}
    technique = protocol.for_all(create("ties", {"weight": 0.5, "parts": parts}))
    assert technique.model_dump()["parts"] == {"text": {"scale": 2}}
    assert protocol.for_all(create("ties", {"parts": {"visual": {"weight": 0.2}}})).parts is None


def test_the_command_line_takes_parts(tmp_path: Path) -> None:
    save_file(base(), tmp_path / "base.safetensors")
    for name, model in zip("ab", experts(2), strict=True):
        save_file(model, tmp_path / f"{name}.safetensors")
    models = ["-b", "base.safetensors", "-e", "a.safetensors", "-e", "b.safetensors", "-o", "m.safetensors"]

    def run(*arguments: str) -> Model:
        result = CliRunner().invoke(app, ["merge", "-t", "ties", *models, *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return load_file("m.safetensors")

    with chdir(tmp_path):
        found = run(
            "--part", "visual:density=0.5", "--part", "*.mlp.*:scale=[0.2,0.8]", "--part", "text:weights=[1,3]"
        )  # fmt: skip
        settings = {"parts": {"visual": {"density": 0.5}, "*.mlp.*": {"scale": [0.2, 0.8]}}}
        assert same(found, merged("ties", settings, part_weights={"text": [1, 3]}))
        whole = json.dumps({"visual": {"density": 0.5}})
        assert same(run("--set", f"parts={whole}"), run("--part", "visual:density=0.5"))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["visual=0.5"], "--part takes PATTERN:KEY=VALUE, such as visual:density=0.5; got 'visual=0.5'"),
        (["visual:density"], "--part takes PATTERN:KEY=VALUE"),
        (["visual:density=much"], "--part visual:density: 'much' is no number, nor a list of numbers"),
        (["visual:density=true"], "'true' is no number"),
        (["visual:density=[0.5,[1]]"], "is no number, nor a list of numbers"),
        (["visual:density=0.5", "visual:density=0.6"], "--part visual:density is given twice"),
    ],
)
def test_what_the_command_line_does_not_take(pairs: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        parse_parts(pairs)
