"""A Hugging Face tokenizer made on the spot."""

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ("[PAD]", "[UNK]", "a", "photo", "of", "red", "green", "blue", "yellow", "square", "circle", ".", "</s>")
"""The last is the end of a text, and has the largest id."""


def save(folder: Path) -> Path:
    """Save a tokenizer of whole words."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", len(WORDS) - 1)]
    )  # fmt: skip
    PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", eos_token="</s>"
    ).save_pretrained(folder)
    return folder
