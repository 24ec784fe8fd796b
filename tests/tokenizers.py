"""Hugging Face tokenizers made on the spot."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

WORDS = ("[PAD]", "[UNK]", "a", "photo", "of", "red", "green", "blue", "yellow", "square", "circle", ".", "</s>")
"""The last is the end of a text, and has the largest id."""
REORDERED = ("[PAD]", "[UNK]", "purple", "</s>", *WORDS[2:-1])
"""The end of a text does not have the largest id."""


def save(folder: Path, words: Sequence[str] = WORDS) -> Path:
    """Save a tokenizer of whole words."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", words.index("</s>"))]
    )  # fmt: skip
    PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", eos_token="</s>"
    ).save_pretrained(folder)
    return folder


def save_pieces(folder: Path, end: int = 4) -> Path:
    """Save a tokenizer of CLIP's kind with pieces of its own; the end of a text is ``end``, and fills texts up too."""
    pieces = ["r", "e", "d", "a", "re", "d</w>", "red</w>", "a</w>", "<s>"]
    pieces.insert(end, "<e>")
    CLIPTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=[("r", "e"), ("re", "d</w>")], bos_token="<s>",
        eos_token="<e>", unk_token="<e>", pad_token="<e>",
    ).save_pretrained(folder)  # fmt: skip
    return folder
