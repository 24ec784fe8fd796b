"""States that cost nothing: in real git, with files that say only which step they are."""

import json
from collections.abc import Mapping
from pathlib import Path

from tasks import layout
from tasks.record import commits, worktrees
from tasks.record.state import State
from tasks.storage.git import git
from tests import manifests


def record(
    project: Path,
    step: int,
    previous: State | None,
    remote: str | None = None,
    note: str = "",
    *,
    promoted: bool = True,
    pointers: Mapping[str, bool] | None = None,
) -> State:
    """Commit a state of timeline ``x`` after another; gates have promoted or held it, and moved ``pointers`` or not."""
    tree = project.parent / f"{project.name}-tree"
    git(project, "worktree", "add", "--quiet", "--detach", str(tree))
    manifest = manifests.content(
        step=step, previous=previous.tag if previous else None, note=note, gate={"promoted": promoted},
        pointers={name: {"promoted": moved} for name, moved in (pointers or {}).items()},
    )  # fmt: skip
    try:
        for name in layout.RECORDED:
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(f"{step} {note}\n")
        (tree / "manifest.json").write_text(json.dumps(manifest))
        return commits.commit(
            tree,
            project,
            "x",
            step,
            previous,
            git(project, "rev-parse", "HEAD"),
            f"state {step}",
            remote,
            promoted=promoted,
            pointers=[name for name, moved in (pointers or {}).items() if moved],
        )
    finally:
        worktrees.remove(project, tree)
