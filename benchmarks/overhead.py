"""What a run costs beside its nodes' own work: Prefect, DVC, git, S3, imports.

    .venv/bin/python benchmarks/overhead.py [--until STEP] [--keep DIR]

Clones the project into a temporary folder, runs its timeline there with `chronomerge run`, and splits the wall time:
nodes (as the manifests say), fetching, recording, the rest inside the flow (Prefect, hashing, worktrees), and the rest
outside it (imports, servers). Prints a table and, at the end, the share of everything but the nodes.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--until", type=int, help="the last step to run")
    parser.add_argument("--keep", type=Path, help="a folder to run in and leave behind")
    given = parser.parse_args()
    if given.keep:
        measure(given.keep, given.until)
    else:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder) / "project", given.until)


def measure(folder: Path, until: int | None) -> None:
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    program = [sys.executable, "-m", "flows"]
    run = ["run", *(["--until", str(until)] if until is not None else [])]
    started = time.monotonic()
    subprocess.run([*program, *run], cwd=folder, check=True)
    wall = time.monotonic() - started
    rows = json.loads(
        subprocess.run([*program, "states", "--json"], cwd=folder, check=True, capture_output=True).stdout
    )
    nodes: dict[str, float] = {}
    for row in rows:
        for node, seconds in row["seconds"].items():
            nodes[node] = nodes.get(node, 0) + seconds
    database = sqlite3.connect(folder / ".chronomerge" / "prefect" / "prefect.db")
    spent = dict(
        database.execute(
            "select substr(name, 1, instr(name || '-', '-') - 1), "
            "sum(julianday(end_time) - julianday(start_time)) * 86400 "
            "from task_run where end_time is not null group by 1"
        )
    )
    (flow,) = database.execute(
        "select sum(julianday(end_time) - julianday(start_time)) * 86400 from flow_run where name like '%to step%'"
    ).fetchone()
    work = sum(nodes.values())
    table = {
        **{f"node {name}": seconds for name, seconds in nodes.items()},
        "all nodes": work,
        "fetch": spent["fetch"],
        "record (DVC, S3, git)": spent["record"],
        "Prefect, hashing, worktrees": flow - work - spent["fetch"] - spent["record"],
        "start and end (imports, servers)": wall - flow,
        "wall": wall,
    }
    for name, seconds in table.items():
        print(f"{name:34} {seconds:8.1f} s {seconds / wall:7.1%}")
    print(f"\n{len(rows)} states; outside the nodes' own work: {1 - work / wall:.1%} of {wall:.0f} s")
    for command in (run, ["states"], ["status"]):
        started = time.monotonic()
        subprocess.run([*program, *command], cwd=folder, check=True, capture_output=True)
        print(f"chronomerge {command[0]:8} with nothing pending: {time.monotonic() - started:.1f} s")
    started = time.monotonic()
    subprocess.run(
        [*program, "restore", "0", "--to", str(folder / ".chronomerge" / "restored")], cwd=folder, check=True
    )
    print(f"chronomerge restore 0: {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
