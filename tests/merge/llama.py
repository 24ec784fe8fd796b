"""A tiny Llama by transformers' names, merges of it by gradients and filters, and what mergekit makes of them.

``python -m tests.merge.llama MERGEKIT``, with the Python of an environment that has mergekit, merges with it, compares
with ours, and writes what the tests compare with, `KNOWN`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

Model = dict[str, np.ndarray]
KNOWN = Path(__file__).with_name("llama_merged_by_mergekit.json")
LAYERS, WIDTH, INNER, WORDS = 4, 8, 12, 16
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": INNER,
    "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": WORDS,
    "torch_dtype": "float32", "tie_word_embeddings": False, "max_position_embeddings": 16,
}  # fmt: skip


def shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (WORDS, WIDTH), "model.norm.weight": (WIDTH,), "lm_head.weight": (WORDS, WIDTH)
    }  # fmt: skip
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        found |= {f"{layer}.self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkvo"}
        found |= {f"{layer}.mlp.{name}_proj.weight": (INNER, WIDTH) for name in ("gate", "up")}
        found[f"{layer}.mlp.down_proj.weight"] = (WIDTH, INNER)
        found |= {f"{layer}.{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
    return found


def llama(seed: int) -> Model:
    """The base for seed 0, an expert of it for others; float32."""
    base, own = np.random.default_rng(0), np.random.default_rng([1, seed])
    return {
        name: np.asarray(base.standard_normal(shape) + bool(seed) * own.standard_normal(shape), np.float32)
        for name, shape in sorted(shapes().items())
    }


def write(folder: Path) -> None:
    """The folders base, a and b."""
    for seed, name in enumerate(("base", "a", "b")):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(CONFIG))
        save_file(llama(seed), folder / name / "model.safetensors", {"format": "pt"})


def _of(value: Any) -> dict[str, Any]:
    return {"models": [{"model": m, "parameters": p} for m, p in zip(("./a", "./b"), value, strict=True)]}


MERGES: dict[str, dict[str, Any]] = {
    "slerp": {
        "merge_method": "slerp", "base_model": "./a", "models": [{"model": "./a"}, {"model": "./b"}],
        "parameters": {"t": [
            {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
            {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
            {"value": 0.5},
        ]},
    },
    "linear": {
        "merge_method": "linear",
        **_of([{"weight": [0.2, 0.9]}, {"weight": [{"filter": "down_proj", "value": 2}, {"value": [0.8, 0.1, 0.3]}]}]),
    },
    "ties": {
        "merge_method": "ties", "base_model": "./base", "models": [{"model": "./a"}, {"model": "./b"}],
        "parameters": {
            "weight": [{"filter": "mlp", "value": 0.5}, {"filter": "*", "value": 1}],
            "density": [{"filter": "layers.1", "value": 0.3}, {"filter": "self_attn", "value": [1, 0.25]},
                        {"value": 0.5}],
            "lambda": [0.5, 1.5],
        },
    },
    "task_arithmetic": {
        "merge_method": "task_arithmetic", "base_model": "./base",
        **_of([{"weight": [1, 0]}, {"weight": {"filter": "mlp", "value": [0, 1]}}]),
        "parameters": {"weight": 0.25, "lambda": [{"filter": "norm", "value": 0.1}]},
    },
    "breadcrumbs": {
        "merge_method": "breadcrumbs", "base_model": "./base", "models": [{"model": "./a"}, {"model": "./b"}],
        "parameters": {"weight": 1, "density": [0.9, 0.5], "gamma": [{"filter": "mlp", "value": 0.1}]},
    },
    "sce": {
        "merge_method": "sce", "base_model": "./base", "models": [{"model": "./a"}, {"model": "./b"}],
        "parameters": {"select_topk": [{"filter": "q_proj", "value": [0.2, 0.8]}, {"value": 1}]},
    },
}  # fmt: skip
"""Configurations, paths as `write` makes them."""


def main(mergekit: str) -> None:
    from tasks.merge import merge
    from tasks.merge.mergekit import load

    known = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(folder)
        for name, config in MERGES.items():
            (folder / "config.yml").write_text(json.dumps({**config, "dtype": "float32"}))
            code = "from mergekit.scripts.run_yaml import main; main()"
            subprocess.run(
                [mergekit, "-c", code, "config.yml", "merged", "--no-copy-tokenizer"],
                cwd=folder,
                check=True,
                stdout=sys.stderr,
            )
            theirs = load_file(folder / "merged" / "model.safetensors")
            read = load(folder / "config.yml")
            ours = merge(
                read.technique, read.experts, read.base, settings=read.settings, weights=read.weights,
                part_weights=read.part_weights,
            ).tensors  # fmt: skip
            assert ours is not None
            apart = max(float(np.abs(ours[n] - theirs[n]).max()) for n in theirs)
            print(f"{name}: at most {apart:.1e} apart")
            known[name] = {n: [round(float(v), 6) for v in x.reshape(-1)[:4]] for n, x in sorted(theirs.items())}
    KNOWN.write_text(json.dumps(known, indent=0).replace("\n", "").replace("}, ", "},\n") + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
