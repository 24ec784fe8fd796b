"""Which statistics the technique of a timeline needs, and whether its arrivals have data for them; without torch."""

from __future__ import annotations

from tasks.errors import UserError
from tasks.merge import create
from tasks.params import Params


def needed(params: Params) -> tuple[str, ...]:
    """The statistics that a timeline's technique needs; none where no models are merged."""
    if params.time.deploy == "ft" and not params.time.uses_ema:
        return ()
    return create(params.time.technique.name, params.time.technique.settings).statistics


def check(params: Params) -> None:
    """Refuse, before any work, experts that arrive as files without data where the technique needs some.

    Raises:
        UserError: names the arrival, and the way out.
    """
    if needed(params):
        for arrival in params.stream:
            if arrival.expert is not None and not arrival.measure:
                raise UserError(no_data(arrival.name, params.time.technique.name))


def no_data(arrival: str, technique: str) -> str:
    """What is said of an expert that arrives as a file without data."""
    return (
        f"arrival {arrival!r} is an expert without data, and {technique} needs data that is like its own; name some "
        f"under measure: (stream: {{name: {arrival}, expert: …, measure: [SOURCE]}})"
    )
