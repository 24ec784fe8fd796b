"""Tokenizer files: those that a model's folder has, or CLIP's own, out of open_clip's vocabulary."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "vocab.txt",
    "added_tokens.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
)  # fmt: skip
CLIP_WORDS = 49408
"""Entries of the vocabulary of OpenAI's CLIP, which open_clip ships."""


def copy(source: Path, target: Path) -> list[str]:
    """Copy the tokenizer's files from one folder to another; returns their names."""
    names = [name for name in _FILES if (source / name).is_file()]
    for name in names:
        shutil.copyfile(source / name, target / name)
    return names


def write_clip(target: Path, context_length: int) -> None:
    """The files of transformers' ``CLIPTokenizer`` for CLIP's vocabulary."""
    from tasks.model.torchvision_shim import ensure

    ensure()
    from open_clip.tokenizer import SimpleTokenizer

    simple = SimpleTokenizer()
    merges = sorted(simple.bpe_ranks, key=lambda pair: simple.bpe_ranks[pair])
    start, end = "<|startoftext|>", "<|endoftext|>"
    # open_clip's names of the two; transformers calls them the same.
    words = {
        word.replace("<start_of_text>", start).replace("<end_of_text>", end): i for word, i in simple.encoder.items()
    }
    (target / "vocab.json").write_text(json.dumps(words, ensure_ascii=False))
    (target / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    settings = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": context_length, "do_lower_case": True,
        "bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end, "errors": "replace",
    }  # fmt: skip
    (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")
