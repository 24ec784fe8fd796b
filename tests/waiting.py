"""Waiting in tests: as long as a loaded machine may need, and not a moment longer."""

import time
from collections.abc import Callable
from typing import Any

import pytest


def until(
    condition: Callable[[], Any], explain: Callable[[], str] = str, *, seconds: float = 240, every: float = 0.05
) -> Any:
    """What ``condition`` returns, once that is true; ``explain`` is what to read where it stays false."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not so after {seconds:.0f} s: {condition.__qualname__}\n{explain()}")
        time.sleep(every)
    return value
