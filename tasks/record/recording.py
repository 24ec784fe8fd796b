"""Recording: from finished nodes in a worktree to a temporal state that nothing can halve.

The order is the protocol's: the cache has every output already; then the remote has them and is asked whether it
does; then git gets tree and commit; then other machines agree, through a git remote or the store; then one transaction
moves branch and tag. A crash before that transaction leaves the previous state, a crash after it the new one, and the
same call again finishes or does nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tasks.cache import Cache, Entry
from tasks.nodes import Reference
from tasks.params import Params
from tasks.record import claim, config, layout, manifest, plots, states
from tasks.record.dvc import Dvc
from tasks.record.states import State
from tasks.record.worktree import Code, Worktree


def record(
    project: Path,
    worktree: Worktree,
    code: Code,
    inputs: Mapping[str, Entry],
    references: Sequence[Reference],
    cache: Cache,
    dvc: Dvc,
) -> State:
    """Record a step whose nodes have finished, and return its state.

    Raises:
        RemoteError: the remote did not take everything; nothing is recorded, and the same call may be tried again.
        UserError: another writer was first.
    """
    params = worktree.params
    assert params.step is not None
    previous = states.last(project, params.timeline)
    training = json.loads((worktree.folder / layout.TRAINING / "training.json").read_text())
    content = manifest.build(params, previous, code, inputs, references, training, cache)
    (worktree.folder / "manifest.json").write_text(manifest.text(content))
    plots.write(project, worktree.folder, previous, params.step, content["arrival"])
    outputs = {path: entry for reference in references for path, entry in reference.outs.items()}
    made = {**inputs, **outputs}
    dvc(
        "record",
        worktree.folder,
        tracked=list(layout.INPUTS),
        hashes=cache.files(made),
        objects=sorted(cache.md5s(made.values())),
        known=sorted(cache.md5s(previous.entries.values())) if previous else [],
    )
    remote = config.remote(project, params.store.remote)
    return states.commit(
        worktree.folder,
        project,
        params.timeline,
        params.step,
        previous,
        code.commit,
        _message(params, worktree.folder),
        params.store.git,
        claim.agreement(params.store, remote),
    )


def _message(params: Params, folder: Path) -> str:
    metrics = json.loads((folder / "metrics.json").read_text())
    arrived = params.arrival.name if params.arrival else "base"
    return (
        f"state {params.timeline} {params.step:04d}: {arrived}\n\n"
        f"init {params.time.init}, deploy {params.time.deploy}, technique {params.time.technique.name}\n"
        f"A_KA {metrics['A_KA']:.2f}, A_ZS {metrics['A_ZS']:.2f}, "
        f"geometric mean {metrics['geometric_mean']:.2f}\n"
    )
