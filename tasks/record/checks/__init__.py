"""The checks of `chronomerge doctor`, in the order in which they are made; see `tasks.record.diagnosis`."""

from __future__ import annotations

from tasks.record.checks import contents, leftovers, records
from tasks.record.diagnosis import Check

CHECKS: tuple[Check, ...] = (
    leftovers.embedded_store,  # before anything opens the store
    leftovers.lock_notes,
    leftovers.worktrees,
    leftovers.half_restored,
    leftovers.notes_of_deleted_folders,
    leftovers.temporary_files,
    leftovers.dvc_locks,
    records.damaged,
    records.branches,
    records.pointers,
    records.not_pushed,
    contents.store_reachable,
    contents.uploads,
    contents.cache,
    contents.remote,
)
