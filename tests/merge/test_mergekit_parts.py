"""mergekit's gradients and filters: its own results on a tiny Llama, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.errors import UserError
from tasks.merge import merge, mergekit
from tests.merge import llama

KNOWN = json.loads(llama.KNOWN.read_text())


def merged(folder: Path, config: dict[str, Any]) -> tuple[mergekit.Configuration, dict[str, np.ndarray]]:
    if not (folder / "base").exists():
        llama.write(folder)
    (folder / "config.yml").write_text(json.dumps(config))
    read = mergekit.load(folder / "config.yml")
    tensors = merge(
        read.technique,
        read.experts,
        read.base,
        settings=read.settings,
        weights=read.weights,
        part_weights=read.part_weights,
    ).tensors
    assert tensors is not None
    return read, tensors


@pytest.mark.parametrize("name", sorted(llama.MERGES))
def test_gradients_and_filters_give_what_mergekit_gives(name: str, tmp_path: Path) -> None:
    _, tensors = merged(tmp_path, llama.MERGES[name])
    assert tensors.keys() == KNOWN[name].keys()
    for tensor, first in KNOWN[name].items():
        np.testing.assert_allclose(tensors[tensor].reshape(-1)[:4], first, rtol=1e-5, atol=2e-6, err_msg=tensor)


def test_the_middle_of_a_gradient_lies_on_its_lines(tmp_path: Path) -> None:
    read, _ = merged(tmp_path, llama.MERGES["linear"])
    every = {name: read.part_weights.get(name, read.weights) for name in llama.shapes()}
    gate = [every[f"model.layers.{i}.mlp.gate_proj.weight"] for i in range(4)]
    np.testing.assert_allclose(
        gate, [[0.2, 0.8], [0.2 + 0.7 / 3, 0.8 - 0.7 * 2 / 3], [0.9 - 0.7 / 3, 1 / 6], [0.9, 0.3]]
    )
    assert every["lm_head.weight"] == [0.2, 0.8]
    np.testing.assert_allclose(every["model.layers.2.mlp.down_proj.weight"], [0.9 - 0.7 / 3, 2])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"density": []}, r"parameter density is \[\]; give a number, a list of numbers over the layers, or a list of"),
        ({"density": [0.2, "0.4"]}, r"parameter density is \[0.2, '0.4'\]; give a number"),
        ({"density": [0.2, float("inf")]}, r"parameter density is .*; give a finite number"),
        ({"density": [{"filter": "mlp"}]}, "parameter density has {'filter': 'mlp'}; a filter is {filter: TEXT, value"),
        ({"density": [{"filter": 3, "value": 1}]}, "parameter density has the filter 3; give a part of a name"),
        ({"density": [{"filter": "mlp", "value": {"a": 1}}]}, "parameter density is {'a': 1}; give a number"),
        ({"density": [0.5, {"value": 1}]}, "parameter density is .*; give a number"),
        ({"normalize": [True, False]}, r"parameter normalize is \[True, False\]; give true or false"),
        ({"weight": [{"filter": "mlp", "value": 1}]}, "the model ./a has no weight for lm_head.weight"),
    ],
)
def test_what_is_no_gradient_or_filter(parameters: dict[str, Any], message: str, tmp_path: Path) -> None:
    llama.write(tmp_path)
    config = {"merge_method": "ties", "base_model": "./base", "models": [{"model": "./a"}, {"model": "./b"}]}
    (tmp_path / "config.yml").write_text(
        json.dumps({**config, "parameters": {"weight": 1, **parameters}}).replace("Infinity", ".inf")
    )
    with pytest.raises(UserError, match=message):
        mergekit.load(tmp_path / "config.yml")


def test_a_density_of_one_model_alone_is_refused_for_the_tensors_it_is_for(tmp_path: Path) -> None:
    own = {"weight": 1, "density": [{"filter": "mlp", "value": 0.5}]}
    config = {"merge_method": "ties", "base_model": "./base", "models": [{"model": "./a", "parameters": own}]}
    merged(tmp_path, config)
    config["models"] = [{"model": "./a", "parameters": own}, {"model": "./b", "parameters": {"weight": 1}}]
    with pytest.raises(UserError, match="density differs between models"):
        merged(tmp_path, config)


def test_what_mergekit_ignores_beside_a_model_is_refused(tmp_path: Path) -> None:
    models = [{"model": "./a", "parameters": {"weight": 1, "lambda": 0.5}}]
    with pytest.raises(UserError, match="lambda is one for all models, and mergekit ignores it beside a model"):
        merged(tmp_path, {"merge_method": "ties", "base_model": "./base", "models": models})


def test_what_is_one_for_all_tensors_has_no_gradient(tmp_path: Path) -> None:
    config = {"merge_method": "karcher", "models": [{"model": "./a"}, {"model": "./b"}]}
    with pytest.raises(UserError, match=r"max_iter is \[5, 10\]; it is one for all tensors, give a number"):
        merged(tmp_path, {**config, "parameters": {"max_iter": [5, 10]}})
