"""Temporal states: recorded atomically, found in git, restored from the cache or an S3-compatible store.

This is the API; the modules behind it are imported when a name is first used.

| subject | names |
|---|---|
| find | `State`, `Manifest`, `states`, `lineage`, `timeline_names`, `every`, `find`, `last`, `deployed`, `start_of` |
| deliver | `fetch_model`, `Form`, `Delivered`, `StateObjects`, `open_source`, `gather_model` |
| bring back | `restore`, `restore_into`, `Restored`, `fetch`, `missing`, `leave` |
| check | `verify`, `chosen`, `worth_running`, `Verification`, `NodeCheck`, `check_stored`, `Integrity`, `compare` |
| refer | `reference` |
| withdraw | `plan_withdrawal`, `WithdrawalPlan` |
| decide | `rollback`, `promote`, `hold`, `DecisionOutcome`, `decided`, `Decision`, `is_promoted`, `next_start` |
| point | `pointers_of`, `pointed` |
| maintain | `doctor`, `Diagnosis`, `Finding`, `Visit`, `prune`, `SweepPlan`, `let_go` |
| share | `synchronize` |
| record | `record`, `Code`, `code_of`, `with_params`, `params_of`, `Worktree`, `worktree_for_step`, `next_history` |
"""

# ruff: noqa: F401
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.record.decisions import Decision, decided
    from tasks.record.delivery import Delivered, Form, StateObjects, fetch_model, pointed
    from tasks.record.delivery import gather as gather_model
    from tasks.record.delivery import opened as open_source
    from tasks.record.diagnosis import Diagnosis, Finding, Visit, doctor
    from tasks.record.difference import Difference, compare
    from tasks.record.garbage import SweepPlan
    from tasks.record.history import READS as HISTORY_READS
    from tasks.record.history import Seed
    from tasks.record.history import after as next_history
    from tasks.record.history import first as first_history
    from tasks.record.integrity import DamagedObject, Holding, Integrity, check_stored
    from tasks.record.leaving import leave
    from tasks.record.manifest import Manifest, RecordedOrigin
    from tasks.record.manifest import read as read_manifest
    from tasks.record.names import short_tag
    from tasks.record.pointers import all_of as pointers_of
    from tasks.record.project_code import Code, code_of, params_of, require_same_code, with_params
    from tasks.record.promotion import DecisionOutcome, hold, next_start, promote
    from tasks.record.pruning import prune
    from tasks.record.recording import record
    from tasks.record.restoration import Restored, fetch, require_elsewhere, restore, restore_into
    from tasks.record.retention import let_go
    from tasks.record.rollbacks import rollback
    from tasks.record.sharing import synchronize
    from tasks.record.state import State, compatibility_of, heads_of, metrics_of
    from tasks.record.stores import missing
    from tasks.record.timelines import (
        deployed,
        every,
        find,
        is_promoted,
        last,
        lineage,
        lineage_of,
        reference,
        start_of,
        states,
        timeline_names,
    )
    from tasks.record.verification import NodeCheck, Verification, chosen, verify, worth_running
    from tasks.record.withdrawals import WithdrawalPlan
    from tasks.record.withdrawals import plan as plan_withdrawal
    from tasks.record.worktrees import Worktree, clean_up, require_not_checked_out
    from tasks.record.worktrees import for_step as worktree_for_step
    from tasks.record.worktrees import of_state as worktree_of_state

_HOMES = {
    "project_code": ("Code", "code_of", "params_of", "require_same_code", "with_params"),
    "decisions": ("Decision", "decided"),
    "delivery": (
        "Delivered", "Form", "StateObjects", "fetch_model", "pointed", "gather_model=gather", "open_source=opened",
    ),
    "diagnosis": ("Diagnosis", "Finding", "Visit", "doctor"),
    "difference": ("Difference", "compare"),
    "garbage": ("SweepPlan",),
    "history": ("HISTORY_READS=READS", "Seed", "next_history=after", "first_history=first"),
    "integrity": ("DamagedObject", "Holding", "Integrity", "check_stored"),
    "leaving": ("leave",),
    "manifest": ("Manifest", "RecordedOrigin", "read_manifest=read"),
    "names": ("short_tag",),
    "pointers": ("pointers_of=all_of",),
    "promotion": ("DecisionOutcome", "hold", "next_start", "promote"),
    "pruning": ("prune",),
    "recording": ("record",),
    "restoration": ("Restored", "fetch", "require_elsewhere", "restore", "restore_into"),
    "retention": ("let_go",),
    "rollbacks": ("rollback",),
    "withdrawals": ("WithdrawalPlan", "plan_withdrawal=plan"),
    "sharing": ("synchronize",),
    "state": ("State", "compatibility_of", "heads_of", "metrics_of"),
    "stores": ("missing",),
    "timelines": (
        "deployed", "every", "find", "is_promoted", "last", "lineage", "lineage_of", "reference", "start_of",
        "states",        "timeline_names",
    ),
    "verification": ("NodeCheck", "Verification", "chosen", "verify", "worth_running"),
    "worktrees": (
        "Worktree", "clean_up", "require_not_checked_out", "worktree_for_step=for_step", "worktree_of_state=of_state",
    ),
}  # fmt: skip
"""Module → the names that it gives; ``name=attribute`` where it calls them otherwise."""

_NAMES = {
    name: (module, attribute or name)
    for module, given in _HOMES.items()
    for name, _, attribute in (each.partition("=") for each in given)
}
__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _NAMES[name]
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
