"""Which statistics the technique of a timeline needs, and whether its arrivals have data for them; without torch."""

from __future__ import annotations

from tasks.choice import find
from tasks.errors import UserError
from tasks.merge import Technique, create
from tasks.params import Params


def needed(params: Params) -> tuple[str, ...]:
    """The statistics that a timeline's technique needs; none where no models are merged."""
    if params.time.deploy in ("ft", "routed") and not params.time.uses_ema:
        return ()
    return create(params.time.technique.name, params.time.technique.settings).statistics


def check(params: Params) -> None:
    """Refuse, before any work, experts that arrive as files without data where the technique needs some.

    Raises:
        UserError: names the arrival, and the way out.
    """
    if needed(params):
        for arrival in params.stream:
            if arrival.expert is not None and not arrival.measure and not stand_in(params):
                raise UserError(no_data(arrival.name, params.time.technique.name))


def stand_in(params: Params) -> float:
    """What an expert without data weighs in every entry, or every input: what the base does, if it weighs anything."""
    technique = create(params.time.technique.name, params.time.technique.settings)
    return float(getattr(technique, technique.base_weight)) if technique.base_weight else 0.0


def no_data(arrival: str, technique: str) -> str:
    """What is said of an expert that arrives as a file without data, where nothing can stand in for it."""
    setting = find(Technique, technique).base_weight  # type: ignore[type-abstract]
    return (
        f"arrival {arrival!r} is an expert without data, and {technique} needs data that is like its own; name some "
        f"under measure: (stream: {{name: {arrival}, expert: …, measure: [SOURCE]}})"
        + (f", or give {technique} a {setting}, which then stands in for them" if setting else "")
    )
