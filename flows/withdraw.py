"""Taking an arrival out of a timeline: params.yaml, then a new line; `flows.run` records the steps after it."""

from __future__ import annotations

from pathlib import Path

from flows.run import check
from tasks import record
from tasks.arrive import rewritten
from tasks.params import load, parse
from tasks.record import State, WithdrawalPlan
from tasks.storage import atomic


def withdraw(
    project: Path, arrival: str, *, retrain: bool = False, wait: bool = False
) -> tuple[WithdrawalPlan, State | None]:
    """Take an arrival out of the project's timeline: the next step starts from the state before it.

    params.yaml changes first, so that no run brings the arrival back; killed after that, the same call goes on. Returns
    what was planned and the state that the new line starts with, None where it starts there already.

    Raises:
        UserError: it is no recorded arrival, the only one, or taken out already; or the rest of the stream cannot run.
    """
    path = project / "params.yaml"
    params = load(path)
    plan = record.plan_withdrawal(project, params, arrival, retrain=retrain)
    text = path.read_text(encoding="utf-8")
    after = rewritten(text, plan.stream, path)
    check(parse(after, path), project, base=False)
    if after != text:
        atomic.write(path.resolve(), after)
    _, made = record.rollback(project, params.timeline, plan.back_to.tag, wait=wait, withdrawal=plan.withdrawal)
    return plan, made
