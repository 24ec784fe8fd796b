"""Taking an arrival out: a new line that starts before it, and later experts as they were recorded.

Running states are made anew from the kept experts and statistics, one after another. So what a technique deploys has
the bits that it would have had without the arrival, for every technique; only the later experts may descend from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import layout
from tasks.errors import UserError
from tasks.params import Arrival, Params
from tasks.record import timelines
from tasks.record.manifest import RecordedWithdrawal
from tasks.record.state import State


@dataclass(frozen=True)
class WithdrawalPlan:
    """What a withdrawal does."""

    withdrawal: RecordedWithdrawal
    back_to: State
    """The state before the arrival."""
    stream: tuple[Arrival, ...]
    """That of params.yaml afterwards: without the arrival, and later ones from their states."""
    retrained: tuple[str, ...]
    """Later arrivals whose experts are trained again."""


def plan(project: Path, params: Params, arrival: str, *, retrain: bool) -> WithdrawalPlan:
    """How an arrival of the project's timeline is taken out.

    Args:
        retrain: train later experts again that descend from it, instead of keeping them; also where it was taken out
            before without that.

    Raises:
        UserError: it is no recorded arrival, the only one, or taken out already.
    """
    lineage = timelines.lineage(project, params.timeline)
    recorded = {state.manifest.arrival: state for state in lineage[1:]}
    if arrival not in recorded:
        return _again(lineage, params, arrival, retrain=retrain)
    state = recorded[arrival]
    if len(recorded) == 1:
        raise UserError(
            f"{arrival!r} is the only expert of timeline {params.timeline!r}; `chronomerge rollback 0` goes back to "
            "the base"
        )
    later = {one.manifest.arrival: one for one in lineage[state.step + 1 :]}
    kept = [
        one.model_copy(update={"from_state": one.from_state or later[one.name].tag}) if one.name in later else one
        for one in params.stream
        if one.name != arrival
    ]
    withdrawal = RecordedWithdrawal(arrival=arrival, state=state.tag)
    return _planned(project, params, withdrawal, lineage[state.step - 1], kept, retrain=retrain)


def _again(lineage: Sequence[State], params: Params, arrival: str, *, retrain: bool) -> WithdrawalPlan:
    """Where it is not recorded: the rest of an earlier withdrawal, or an error."""
    names = [state.manifest.arrival or "" for state in lineage[1:]]
    before = next((s for s in lineage for one in s.manifest.withdrawals if one.arrival == arrival), None)
    if before is None:
        pending = any(one.name == arrival for one in params.stream)
        way_out = (
            "it is not recorded yet, so take it out of params.yaml"
            if pending
            else f"recorded are {', '.join(names) or 'none'}"
        )
        raise UserError(f"timeline {params.timeline!r} has no arrival {arrival!r} to withdraw; {way_out}")
    withdrawal = next(one for one in before.manifest.withdrawals if one.arrival == arrival)
    if retrain:
        made = _planned(before.project, params, withdrawal, before, params.stream, retrain=True)
        if made.retrained:
            return made
    pending_steps = len(params.stream) - lineage[-1].step
    if pending_steps > 0:
        way_out = "`chronomerge run` records the pending steps"
    else:
        way_out = "and no expert descends from it any more" if retrain else "there is nothing left to do"
    raise UserError(f"{arrival!r} was withdrawn already ({before.tag}); {way_out}")


def _planned(
    project: Path,
    params: Params,
    withdrawal: RecordedWithdrawal,
    back_to: State,
    stream: Sequence[Arrival],
    *,
    retrain: bool,
) -> WithdrawalPlan:
    bare = RecordedWithdrawal(arrival=withdrawal.arrival, state=withdrawal.state)
    if not retrain:
        return WithdrawalPlan(bare, back_to, tuple(stream), ())
    descends = _descends(project, params, bare, stream[back_to.step :], ())
    recorded = _still_in(project, params, bare)
    again = tuple(one.name for one in stream if (one.from_state and one.name in descends) or one.name in recorded)
    fresh = [one.model_copy(update={"from_state": None}) if one.name in again else one for one in stream]
    return WithdrawalPlan(bare, back_to, tuple(fresh), again)


def _still_in(project: Path, params: Params, withdrawal: RecordedWithdrawal) -> tuple[str, ...]:
    """The arrivals whose experts descend from it as the newest state has it: none before it was taken out.

    A withdrawal with ``retrain`` that was killed before its line started has left no ``from_state`` of these.
    """
    newest, wanted = timelines.last(project, params.timeline), (withdrawal.arrival, withdrawal.state)
    recorded = newest.manifest.withdrawals if newest else ()
    return next((one.still_in for one in recorded if (one.arrival, one.state) == wanted), ())


def noted(start: State | None, params: Params) -> dict[str, Any]:
    """For a manifest: what was taken out before a step, and which experts up to it still descend from that.

    ``start`` is the state that the step starts from.
    """
    if start is None or not start.manifest.withdrawals:
        return {}
    arrived = [params.arrival] if params.arrival else []
    return {
        "withdrawals": [
            {**one.as_dict(), "still_in": _descends(start.project, params, one, arrived, one.still_in)}
            for one in start.manifest.withdrawals
        ]
    }


def _descends(
    project: Path, params: Params, withdrawal: RecordedWithdrawal, stream: Sequence[Arrival], known: Sequence[str]
) -> list[str]:
    """The arrivals whose experts descend from one that was taken out: those ``known`` before, and of ``stream``.

    An expert does if it was trained after it, from the expert or the running model before it, with a buffer that had
    its data, or with a regularizer; and so does one that is trained from a model with such an expert in it.
    """
    withdrawn = _content(timelines.find(project, params.timeline, withdrawal.state))
    containing = list(known)
    for one in stream:
        if one.expert is not None:
            continue  # trained elsewhere
        if one.from_state is None:
            if containing and (params.time.init != "zs" or params.train.regularizer):
                containing.append(one.name)
            continue
        state = timelines.find(project, params.timeline, one.from_state)
        made_with = state.settings
        carries = made_with.time.init != "zs" or made_with.train.mixture.buffer or made_with.train.regularizer
        if carries and withdrawn in _before(state):
            containing.append(one.name)
    return containing


def _before(state: State) -> set[tuple[str | None, str]]:
    """What arrived in the states that a state goes back to, without those that were held and skipped."""
    arrivals: set[tuple[str | None, str]] = set()
    earlier = timelines.start_of(state)
    while earlier is not None:
        arrivals.add(_content(earlier))
        earlier = timelines.start_of(earlier)
    return arrivals


def _content(state: State) -> tuple[str | None, str]:
    """An arrival by name and files: the same where it was recorded again, another where only the name is."""
    first = state
    while (arrival := first.settings.arrival) and arrival.from_state:
        first = timelines.find(state.project, state.timeline, arrival.from_state)
    return state.manifest.arrival, first.entries[layout.RAW_ARRIVAL].md5
