"""What a grid costs beside its nodes' own work, and what its cells share.

    .venv/bin/python benchmarks/grid.py DIR --lanes N

DIR is a project whose `chronomerge grid --lanes N` has finished. Splits the lanes' wall time (as the embedded Prefect
server has noted it) into the nodes' own work (as the manifests say, each run of a node once), fetching, recording, and
the rest: Prefect, hashing, worktrees, and lanes that wait for each other's nodes.
"""

from __future__ import annotations

import argparse
import sqlite3
from pathlib import Path

from tasks.grid import cells, plan
from tasks.params import load
from tasks.report import records, tidy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("--lanes", type=int, required=True, help="of that grid")
    given = parser.parse_args()
    measure(given.project, given.lanes)


def measure(project: Path, lanes: int) -> None:
    path = project / "params.yaml"
    grid = load(path).grid
    if grid is None:
        raise SystemExit(f"{path} has no grid")
    planned, _ = cells.usable(cells.expand(path.read_text(), grid, project))
    there = cells.recorded(project, planned)
    table = tidy.table(records.read(project, there), {})
    values = table.set_index(["tag", "metric"])["value"]
    nodes = {metric.partition(":")[2] for metric in table["metric"].unique() if metric.startswith("seconds:")}
    work, runs = {}, {}
    for node in sorted(nodes):
        seconds, reused = values.xs(f"seconds:{node}", level=1), values.xs(f"reused:{node}", level=1)
        work[node], runs[node] = float(seconds[reused == 0].sum()), int((reused == 0).sum())

    database = sqlite3.connect(project / ".chronomerge" / "prefect" / "prefect.db")
    took = "sum(julianday(end_time) - julianday(start_time)) * 86400"
    (wall,) = database.execute(f"select {took} from flow_run where name like 'grid %'").fetchone()
    kind = "substr(name, 1, instr(name || '-', '-') - 1)"
    tasks = dict(database.execute(f"select {kind}, {took} from task_run where end_time is not null group by 1"))
    whole, own = lanes * wall, sum(work.values())
    rows = {
        **{f"node {node} ({runs[node]} runs)": seconds for node, seconds in work.items()},
        "all nodes": own,
        "fetch": tasks["fetch"],
        "record (DVC, S3, git)": tasks["record"],
        "the rest, waits among lanes too": whole - own - tasks["fetch"] - tasks["record"],
        f"{lanes} lanes for {wall:.0f} s": whole,
    }
    for name, seconds in rows.items():
        print(f"{name:38} {seconds:9.1f} s {seconds / whole:7.1%}")
    states = table["tag"].nunique()
    separate = plan.plan(planned, set())
    beside = (whole - own) / states
    print(f"\n{len(there)} cells, {states} states; beside the nodes' own work {beside:.2f} lane seconds a state")
    print(f"trainings run: {runs['train']}, of timelines by themselves: {separate.separate('train')}")


if __name__ == "__main__":
    main()
