"""The card of a repository, ``README.md``: what its front matter says (https://huggingface.co/docs/hub/model-cards)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.text import one_line, shortened

CARD = "README.md"
"""Of a repository: its front matter has the licence, and the names of a data set's columns and classes."""
CARD_BYTES = 4 << 20
"""Size of the largest card that is read."""


def front_matter(card: Path) -> dict[str, Any]:
    """The YAML at the head of a repository's card; empty where there is none that can be read."""
    from huggingface_hub import metadata_load

    try:
        content = (metadata_load(card) if card.stat().st_size <= CARD_BYTES else None) or {}
    except (OSError, ValueError, RecursionError):
        return {}
    except Exception as error:  # of the YAML library
        if type(error).__module__.split(".")[0] != "yaml":
            raise
        return {}
    return {str(key): value for key, value in content.items()}


def licence(card: Mapping[str, Any]) -> str:
    """The licence that a card names: its identifiers, and its own name and address where it is of no known kind."""
    given = [card.get("license"), card.get("license_name"), card.get("license_link")]
    texts = [text for one in given for text in texts_of(one) if text != "other" or not card.get("license_name")]
    return shortened(", ".join(dict.fromkeys(texts)), 300) if texts else ""


def texts_of(value: Any) -> Iterator[str]:
    """The texts in a value of a front matter, which may be one or a list, each on one line."""
    for one in value if isinstance(value, Sequence) and not isinstance(value, str) else [value]:
        if isinstance(one, str) and one.strip():
            yield one_line(one)
