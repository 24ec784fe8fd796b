"""The tokenizer of a model, as files that travel with it.

open_clip has one of its own, which ships with the package. A model whose ``text_cfg`` has an ``hf_tokenizer_name``
needs files of the Hugging Face hub: `fetch` saves them once in the model folder, so no state needs the hub again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import UserError
from tasks.model.torchvision_shim import ensure as ensure_torchvision

if TYPE_CHECKING:
    from open_clip.tokenizer import HFTokenizer

    from tasks.model.models import Tokenizer

FOLDER = "tokenizer"
"""In a model folder: the files, where the tokenizer is none of open_clip's own."""
FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "vocab.txt",
    "added_tokens.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
)  # fmt: skip
"""What transformers' tokenizers are saved as; no other file is ever taken from a folder."""
CLIP_WORDS = 49408
"""Entries of the vocabulary of OpenAI's CLIP, which open_clip ships."""


def load(folder: Path, text: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a model folder, whose ``text_cfg`` is ``text``.

    Raises:
        UserError: the files cannot be read, or cannot be had from the hub; or they want code of their own to run.
    """
    ensure_torchvision()
    import open_clip

    if not text.get("hf_tokenizer_name"):
        simple: Tokenizer = open_clip.SimpleTokenizer(
            context_length=text["context_length"], **(text.get("tokenizer_kwargs") or {})
        )
        return simple
    kept = folder / FOLDER
    hugging_face: Tokenizer = _hugging_face(str(kept) if kept.is_dir() else text["hf_tokenizer_name"], text)
    return hugging_face


def fetch(folder: Path, text: Mapping[str, Any], project: Path, beside: Path | None = None) -> None:
    """Save the files of the tokenizer that ``text`` names into the model folder; nothing where it is open_clip's own.

    They are those ``beside`` the model's configuration, if it is in a folder that has some (as open_clip has it for
    ``local-dir:``). Else the name is a folder (relative paths start at ``project``), or a repository of the hub.

    Raises:
        UserError: as `load`.
    """
    name = text.get("hf_tokenizer_name")
    if not name:
        return
    local = beside if beside and any((beside / file).is_file() for file in FILES) else project / name
    made = folder / f".{FOLDER}"
    _hugging_face(str(local) if local.is_dir() else name, text).tokenizer.save_pretrained(made)
    (folder / FOLDER).mkdir()
    if not copy(made, folder / FOLDER):
        raise UserError(f"the model's tokenizer {name!r} has none of the files {', '.join(FILES[:2])}, …")
    shutil.rmtree(made)


def _hugging_face(name: str, text: Mapping[str, Any]) -> HFTokenizer:
    ensure_torchvision()
    # A repository can name code of its own; it never runs, whatever the configuration asks for.
    settings = {**(text.get("tokenizer_kwargs") or {}), "trust_remote_code": False}
    try:
        from open_clip.tokenizer import HFTokenizer

        return HFTokenizer(
            name, context_length=text["context_length"], tokenizer_mode=text.get("tokenizer_mode"), **settings
        )
    except ImportError as error:
        raise UserError(
            f"the model's tokenizer {name!r} needs a package that is not installed ({error}); pip install transformers"
        ) from None
    except Exception as error:  # damaged files make its parsers raise errors of any type
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"the model's tokenizer {name!r} cannot be had: {reason}") from None


def copy(source: Path, target: Path) -> list[str]:
    """Copy the tokenizer's files from one folder to another; returns their names.

    Raises:
        UserError: one is a link that leads out of the folder: somebody else's model must not take files of yours along.
    """
    names = [name for name in FILES if (source / name).is_file()]
    for name in names:
        require_own(source, name)
        shutil.copyfile(source / name, target / name)
    return names


def require_own(folder: Path, name: str) -> None:
    """Refuse a file of a model's folder that is a link out of it.

    In the hub's cache, a file of ``snapshots/COMMIT`` is a link to one in ``blobs`` beside ``snapshots``.

    Raises:
        UserError: it is such a link.
    """
    home, file = folder.resolve(), (folder / name).resolve()
    stored = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if not file.is_relative_to(home) and file.parent != stored:
        raise UserError(f"{folder / name}: is a link to {file}, outside its folder; put the file itself there")


def write_clip(target: Path, context_length: int) -> None:
    """The files of transformers' ``CLIPTokenizer`` for CLIP's vocabulary."""
    ensure_torchvision()
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
