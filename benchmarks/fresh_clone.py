"""Restore every recorded state of a project in a fresh clone, from the remote alone, and compare every hash.

    .venv/bin/python benchmarks/fresh_clone.py PROJECT [--timeline demo]

The clone has git's objects and reaches the store; its DVC cache is empty. For each state: what the state says of each
input and output, the metrics, and what `dvc.lock` says, against the bytes in the restored folder. Ends with status 1 if
anything differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from tasks.record import restoration, timelines
from tasks.storage import embedded, store
from tasks.storage.cache import hash_of
from tasks.storage.git import git


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("--timeline", default="demo")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        sys.exit(1 if compare(given.project.resolve(), given.timeline, Path(name)) else 0)


def compare(project: Path, timeline: str, folder: Path) -> int:
    """Restore and compare; returns how many files or folders differ."""
    clone = folder / "clone"
    git(folder, "clone", "--quiet", str(project), "clone")
    recorded = timelines.states(clone, timeline)
    if not recorded:
        raise SystemExit(f"{project} has no state of timeline {timeline!r}")
    remote_name = recorded[-1].params["store"]["remote"]
    if remote_name == "embedded":
        embedded.share(clone, project)
    differing = paths = 0
    with store.open_store(clone, remote_name) as remote:
        for state in recorded:
            started = time.monotonic()
            restored = restoration.restore_into(clone, state, folder / f"{state.step:04d}", remote)
            seconds = time.monotonic() - started
            wanted = {path: entry.md5 for path, entry in state.entries.items()}
            told = state.manifest.contents
            wanted |= {path: entry.md5 for path, entry in told.items()}
            wrong = [path for path, md5 in wanted.items() if hash_of(restored.folder / path).md5 != md5]
            if dirty := git(restored.folder, "status", "--porcelain"):
                wrong.append(f"git: {dirty}")
            differing += len(wrong)
            paths += len(wanted)
            print(
                f"{state.tag}: {len(wanted)} paths, {restored.fetched / 1e6:.1f} MB fetched in {seconds:.1f} s, "
                + (f"DIFFER: {', '.join(wrong)}" if wrong else "every hash as recorded"),
                flush=True,
            )
    print(f"\n{len(recorded)} states, {paths} paths, {differing} differ")
    return differing


if __name__ == "__main__":
    main()
