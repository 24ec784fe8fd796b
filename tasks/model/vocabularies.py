"""The words that a tokenizer's files know: read without transformers, and compared with those of OpenAI's CLIP.

Formats: ``tokenizer.json`` of the library tokenizers; ``vocab.json`` and ``merges.txt`` (byte-pair encodings),
``vocab.txt`` (WordPiece), with ``added_tokens.json`` and ``tokenizer_config.json`` of transformers.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.model.light_imports import prepare as prepare_imports

START, END = "<|startoftext|>", "<|endoftext|>"
"""transformers' names of the two tokens that CLIP puts around a text."""
CLIP_END = 49407
"""The number of the second."""
_NUMBER = re.compile("[0-9]{1,9}")
"""Of a token; 'digits' of other scripts, and thousands of them, are none that `int` takes."""
_CLASSES = (None, "CLIPTokenizer", "CLIPTokenizerFast")
_NORMALIZERS = [
    {"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}, {"type": "Lowercase"},
]  # fmt: skip
_WORD = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_SPLITS = [
    {"type": "Split", "pattern": {"Regex": words}, "behavior": "Removed", "invert": True}
    for words in (_WORD, rf"<\|startoftext\|>|<\|endoftext\|>|{_WORD}")
]


@functools.cache
def clip() -> tuple[Mapping[str, int], tuple[str, ...]]:
    """Token → number, and the merges in their order (``left right``), of the tokenizer that open_clip ships."""
    prepare_imports()
    from open_clip.tokenizer import SimpleTokenizer

    simple = SimpleTokenizer()
    names = {"<start_of_text>": START, "<end_of_text>": END}
    merges = sorted(simple.bpe_ranks, key=lambda pair: simple.bpe_ranks[pair])
    return {names.get(word, word): i for word, i in simple.encoder.items()}, tuple(f"{a} {b}" for a, b in merges)


def is_source(name: str) -> bool:
    """Whether a tokenizer's file has words; the others only say how they are used."""
    return name not in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")


def of(folder: Path) -> dict[str, int] | None:
    """Token → number of the tokenizer in a folder; None where its files are of a form that only transformers reads.

    Raises:
        UserError: a file cannot be read.
    """
    if (folder / "tokenizer.json").is_file():
        content = read(folder / "tokenizer.json")
        words = _section(content, "model").get("vocab")
        if isinstance(words, list):  # SentencePiece's unigrams: pairs of token and score
            words = {str(pair[0]): i for i, pair in enumerate(words) if isinstance(pair, list) and pair}
        added = content.get("added_tokens")
        tokens = [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []
        return _numbers({**_mapping(words), **{str(t.get("content")): t.get("id") for t in tokens}})
    if (folder / "vocab.json").is_file():
        return _numbers({**read(folder / "vocab.json"), **_added(folder)})
    if (folder / "vocab.txt").is_file():
        lines = _text(folder / "vocab.txt").splitlines()
        return _numbers({**{line: i for i, line in enumerate(lines)}, **_added(folder)})
    return None


def is_clip(folder: Path) -> bool:
    """Whether the tokenizer in a folder is OpenAI's CLIP's, so that open_clip's own gives the same tokens.

    Words, merges, and how texts are normalized and split must be equal; what is not known counts as another tokenizer.

    Raises:
        UserError: a file cannot be read.
    """
    settings = read(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    if settings.get("tokenizer_class") not in _CLASSES or settings.get("auto_map"):
        return False
    if settings.get("do_lower_case", True) is not True:
        return False
    words, merges = clip()
    if of(folder) != words:
        return False
    if not (folder / "tokenizer.json").is_file():
        if not (folder / "merges.txt").is_file():
            return False
        lines = _text(folder / "merges.txt").splitlines()
        return tuple(line for line in lines if line and not line.startswith("#version")) == merges
    content = read(folder / "tokenizer.json")
    model = _section(content, "model")
    pairs = model.get("merges")
    given = tuple(" ".join(map(str, p)) if isinstance(p, list) else p for p in pairs) if isinstance(pairs, list) else ()
    return model.get("end_of_word_suffix") == "</w>" and given == merges and _processes_as_clip(content)


def _processes_as_clip(content: Mapping[str, Any]) -> bool:
    around = _section(content, "post_processor")
    if (around.get("type"), around.get("cls")) != ("RobertaProcessing", [START, CLIP_END - 1]):
        return False
    if _section(content, "normalizer").get("normalizers") != _NORMALIZERS:
        return False
    steps = _section(content, "pre_tokenizer").get("pretokenizers")
    if not isinstance(steps, list) or len(steps) != 2 or steps[0] not in _SPLITS:
        return False
    pieces = _mapping(steps[1])
    return (pieces.get("type"), pieces.get("add_prefix_space")) == ("ByteLevel", False)


def _added(folder: Path) -> dict[str, Any]:
    added = read(folder / "added_tokens.json") if (folder / "added_tokens.json").is_file() else {}
    if (folder / "tokenizer_config.json").is_file():
        tokens = _section(read(folder / "tokenizer_config.json"), "added_tokens_decoder")
        numbers = {n: _mapping(token).get("content") for n, token in tokens.items() if _NUMBER.fullmatch(n)}
        added |= {str(word): int(number) for number, word in numbers.items()}
    return added


def _numbers(words: Mapping[str, Any]) -> dict[str, int]:
    return {word: number for word, number in words.items() if isinstance(number, int)}


def _section(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return _mapping(content.get(key))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def read(path: Path) -> dict[str, Any]:
    """A JSON file of a tokenizer.

    Raises:
        UserError: it cannot be read.
    """
    try:
        content = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable tokenizer ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a tokenizer's file, which is a JSON object")
    return content


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable tokenizer ({' '.join(str(error).split())[:200]})") from None
