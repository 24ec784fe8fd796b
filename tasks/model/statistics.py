"""The statistics file: what an expert's own data says about its weights, for techniques that see data.

A safetensors file, which any tool can make. NAME is a tensor's name in the model.

``fisher/NAME``
    The diagonal of the Fisher information, of the tensor's shape: the mean over samples of the squared gradient of
    log p. Floats, not negative.
``gram/NAME``
    Σ x xᵀ over all inputs x (tokens, patches) of the linear map whose weight is NAME: uncentred, in × in and symmetric;
    or its diagonal alone, of length in. A weight is (out, in, …), its dimensions after the first taken together; one
    that is stored as (in, out) is recognised by its shape or its name, or is listed under ``rows``.

Metadata, each value as JSON:

``samples``
    How many samples were measured, more than 0.
``estimator``
    How, e.g. ``"expected"``.
``pool``
    On what data: text, or a list of it.
``rows`` (optional)
    A list of the weights that are stored as (in, out).
``experts`` (optional)
    How many experts the measured model stands for, where it is a merge; by default 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.errors import UserError

KINDS = ("fisher", "gram")
PRIOR = "prior"
"""The estimator of a file that nothing was measured for: every entry, or every input, weighs what the base weighs."""
_MAKE = "`chronomerge measure` makes one"


@dataclass(frozen=True)
class Facts:
    """What the metadata of a statistics file says."""

    samples: int
    estimator: str
    pool: Any
    """A text, or other plain JSON."""
    rows: tuple[str, ...] = ()
    """Weights that are stored as (in, out)."""
    experts: int = 1

    def as_metadata(self) -> dict[str, str]:
        """As the file holds them."""
        optional: dict[str, Any] = {}
        if self.rows:
            optional["rows"] = list(self.rows)
        if self.experts != 1:
            optional["experts"] = self.experts
        facts = {"samples": self.samples, "estimator": self.estimator, "pool": self.pool, **optional}
        return {key: json.dumps(value, ensure_ascii=False, sort_keys=True) for key, value in facts.items()}

    def as_json(self) -> dict[str, Any]:
        """For a report or a manifest."""
        return {"samples": self.samples, "estimator": self.estimator, "pool": self.pool, "experts": self.experts}


def facts_of(metadata: Mapping[str, str] | None, file: str) -> Facts:
    """What the metadata of a statistics file says; ``file`` is what messages call it.

    Raises:
        UserError: a value is missing, or is not what it should be; names file, key and value.
    """
    facts = {key: _plain(text) for key, text in (metadata or {}).items()}
    missing = [key for key in ("samples", "estimator", "pool") if key not in facts]
    if missing:
        raise UserError(
            f"{file}: not a statistics file: its metadata lacks {' and '.join(map(repr, missing))}; {_MAKE}"
        )
    for key in ("samples", "experts"):
        value = facts.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f"{file}: the metadata {key!r} should be a whole number, got {value!r:.80}")
        if value < 1:
            raise UserError(f"{file}: was measured on {value} {key}; measure it on at least one")
    if not isinstance(facts["estimator"], str) or not facts["estimator"]:
        raise UserError(f"{file}: the metadata 'estimator' should be a name, got {facts['estimator']!r:.80}")
    rows = facts.get("rows", [])
    if not isinstance(rows, list) or not all(isinstance(name, str) for name in rows):
        raise UserError(f"{file}: the metadata 'rows' should be a list of tensor names, got {rows!r:.80}")
    return Facts(facts["samples"], facts["estimator"], facts["pool"], tuple(rows), facts.get("experts", 1))


def _plain(text: str) -> Any:
    """JSON where it is; a plain text is itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
