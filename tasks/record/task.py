"""The Prefect task that records a state."""

from __future__ import annotations

from collections.abc import Callable

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks import waits
from tasks.orchestration import can_pass

WAITS = waits.seconds(waits.RECORD)


@task(
    name="record",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=len(WAITS),
    retry_delay_seconds=WAITS,
    retry_condition_fn=can_pass,
)
def record(recording: Callable[[], str]) -> str:
    """Run one recording; returns the state's tag. Nothing is cached: git alone knows what is recorded."""
    return recording()
