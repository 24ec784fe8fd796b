"""Waits before another try: settings of whoever operates a machine, in seconds, from the environment."""

from __future__ import annotations

import math
import os

from tasks.errors import UserError

RUN = "CHRONOMERGE_RETRY_SECONDS"
"""Before each further try of a scheduled run, where a store or a network may recover."""
RECORD = "CHRONOMERGE_RECORD_RETRY_SECONDS"
"""Before each further try to record a state."""
ASK = "CHRONOMERGE_ASK_AGAIN_SECONDS"
"""Before `serve` asks again for a run that has not come; then twice as long each time."""

DEFAULTS = {RUN: (60.0, 300.0, 900.0, 3600.0), RECORD: (1.0, 5.0, 15.0), ASK: (60.0,)}


def seconds(name: str) -> list[float]:
    """The waits of that name, comma-separated in the environment (``60,300``), else their default.

    Raises:
        UserError: they are not numbers of seconds; names the variable.
    """
    text = os.environ.get(name)
    if text is None:
        return list(DEFAULTS[name])
    try:
        waits = [float(one) for one in text.split(",")]
    except ValueError:
        waits = []
    if not waits or not all(0 <= wait < math.inf for wait in waits):
        raise UserError(f"{name}={text!r} is not a list of seconds; expected for example 60,300,900")
    return waits
