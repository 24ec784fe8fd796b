"""One tensor under several names stays one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tasks.merge import available, merge
from tests.merge.models import Model, base, experts, seen

EMBEDDING, HEAD = "token_embedding.weight", "lm_head.weight"


def tied(model: Model) -> Model:
    return {**model, HEAD: model[EMBEDDING]}


@pytest.mark.parametrize("technique", sorted(available()))
def test_tensors_that_are_one_in_all_models_are_one_in_the_output(technique: str) -> None:
    models = [tied(e) for e in experts(2)]
    outcome = merge(technique, models, tied(base()), **seen(technique, models))
    assert outcome.tensors is not None
    assert outcome.tensors[EMBEDDING].tobytes() == outcome.tensors[HEAD].tobytes()
    assert outcome.report.tied == {EMBEDDING: HEAD}
    assert outcome.report.merged == len(base())
    untied = merge(technique, experts(2), base(), **seen(technique, experts(2))).tensors
    assert untied is not None
    if technique not in ("dare_linear", "dare_ties", "della", "della_linear"):  # they draw by name
        assert outcome.tensors[EMBEDDING].tobytes() == untied[EMBEDDING].tobytes()


def test_a_name_that_one_expert_lacks_follows_the_other_name() -> None:
    models = [tied(e) for e in experts(3)]
    del models[1][HEAD]
    outcome = merge("ties", models, tied(base()))
    assert outcome.tensors is not None
    assert outcome.tensors[EMBEDDING].tobytes() == outcome.tensors[HEAD].tobytes()
    assert not outcome.report.kept
    assert outcome.report.summary() == [f"note: merged once and stored under each name: {EMBEDDING} = {HEAD}"]
    del models[2][EMBEDDING]  # neither name is in all models
    report = merge("ties", models, tied(base())).report
    assert report.kept == {HEAD: "missing from expert 2", EMBEDDING: "missing from expert 3"}


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_a_decoder_without_its_head_is_no_wrapped_model(wrapper: str, tmp_path: Path) -> None:
    def decoder(seed: int, *, head: bool) -> Model:
        embedding = np.random.default_rng(seed).standard_normal((40, 8)).astype("f4")
        names = {"model.embed_tokens.weight": embedding, "model.layers.0.mlp.up_proj.weight": embedding[:8] + 1}
        return {**names, **({"lm_head.weight": embedding.copy()} if head else {})}

    save_file(decoder(1, head=True), tmp_path / "base.safetensors")
    save_file({wrapper + name: value for name, value in decoder(2, head=False).items()}, tmp_path / "one.safetensors")
    report = merge("linear", [tmp_path / "base.safetensors", tmp_path / "one.safetensors"], None, tmp_path / "m").report
    merged = load_file(tmp_path / "m")
    assert (report.kept, report.merged) == ({}, 2)
    assert merged.keys() == decoder(1, head=True).keys()
    np.testing.assert_array_equal(merged["lm_head.weight"], merged["model.embed_tokens.weight"])
    mean = (decoder(1, head=True)["lm_head.weight"] + decoder(2, head=True)["lm_head.weight"]) / 2
    np.testing.assert_allclose(merged["lm_head.weight"], mean, rtol=1e-6, atol=1e-6)


def test_tensors_that_are_one_in_some_models_only_are_named() -> None:
    models = [tied(e) for e in experts(2)]
    models[1][HEAD] = models[1][HEAD] + 1
    outcome = merge("task_arithmetic", models, tied(base()))
    assert outcome.tensors is not None
    assert outcome.report.notes == [
        f"{HEAD} and {EMBEDDING} are one tensor in the base and two in expert 2; each was merged by itself"
    ]
    assert not np.array_equal(outcome.tensors[HEAD], outcome.tensors[EMBEDDING])


def test_constant_tensors_are_not_taken_for_tied_ones() -> None:
    zero = {"a.bias": np.zeros(64, "f4"), "b.bias": np.zeros(64, "f4"), "w": np.ones((4, 4), "f4")}
    one = {"a.bias": np.arange(64, dtype="f4"), "b.bias": np.ones(64, "f4"), "w": np.ones((4, 4), "f4")}
    report = merge("ties", [one], zero).report
    assert (report.tied, report.notes, report.merged) == ({}, [], 3)


def test_tensors_that_differ_outside_of_the_sample_are_two() -> None:
    random = np.random.default_rng(0)
    first = random.standard_normal(10_000).astype("f4")
    second = first.copy()
    second[-1] += 1
    assert merge("linear", [{"a": first, "b": second}] * 2).report.tied == {}
    assert merge("linear", [{"a": first, "b": first.copy()}] * 2).report.tied == {"b": "a"}


def test_three_names_of_one_tensor(tmp_path: Path) -> None:
    model = {**tied(base()), "text.embedding": base()[EMBEDDING]}
    save_file(model, tmp_path / "m.safetensors")
    path = tmp_path / "m.safetensors"
    report = merge("dare_ties", [path, path], path, tmp_path / "out.safetensors", dtype="float16").report
    assert report.tied == {"text.embedding": HEAD, EMBEDDING: HEAD}
    result = load_file(tmp_path / "out.safetensors")
    assert result.keys() == model.keys()
    assert len({result[n].tobytes() for n in (EMBEDDING, HEAD, "text.embedding")}) == 1
