"""What a grid costs beside its nodes' own work, and what its cells share.

    .venv/bin/python benchmarks/grid.py DIR --parallel N

DIR is a project whose `chronomerge grid --parallel N` has finished. Takes the newest run of it that ended by itself, as
the embedded Prefect server recorded it, and splits its cell workers' wall time into the nodes' own work (as the
manifests of the states recorded meanwhile say, each run of a node once), fetching, recording, and the rest: Prefect,
hashing, worktrees, and cell workers that wait for each other's nodes.
"""

from __future__ import annotations

import argparse
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

from tasks.grid import cells, plan
from tasks.params import load
from tasks.report import records, tidy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("--parallel", type=int, required=True, help="of that grid")
    given = parser.parse_args()
    measure(given.project, given.parallel)


def measure(project: Path, parallel: int) -> None:
    path = project / "params.yaml"
    grid = load(path).grid
    if grid is None:
        raise SystemExit(f"{path} has no grid")
    database = sqlite3.connect(project / ".chronomerge" / "prefect" / "prefect.db")
    start, end = database.execute(
        "select start_time, end_time from flow_run where name like 'grid %' and end_time is not null "
        "order by end_time desc"
    ).fetchone()
    begun, ended = (datetime.fromisoformat(one).replace(tzinfo=UTC) for one in (start, end))
    wall = (ended - begun).total_seconds()
    planned, _ = cells.usable(cells.expand(path.read_text(encoding="utf-8"), grid, project))
    lineages = records.read(project, cells.recorded(project, planned))
    meanwhile = {
        record.state.tag
        for lineage in lineages.values()
        for record in lineage
        if begun <= datetime.fromisoformat(record.manifest.recorded.at) <= ended
    }
    table = tidy.table(lineages, {})
    values = table[table["tag"].isin(meanwhile)].set_index(["tag", "metric"])["value"]
    work, runs = {}, {}
    for node in sorted(name for name in values.index.unique(1) if name.startswith("seconds:")):
        seconds, reused = values.xs(node, level=1), values.xs(node.replace("seconds", "reused"), level=1)
        work[node], runs[node] = float(seconds[reused == 0].sum()), int((reused == 0).sum())
    kind = "substr(name, 1, instr(name || '-', '-') - 1)"
    tasks = dict(
        database.execute(
            f"select {kind}, sum(julianday(end_time) - julianday(start_time)) * 86400 from task_run "
            "where start_time >= ? and end_time <= ? group by 1",
            (start, end),
        )
    )
    whole, own = parallel * wall, sum(work.values())
    rows = {
        **{f"node {node.partition(':')[2]} ({runs[node]} runs)": seconds for node, seconds in work.items()},
        "all nodes": own,
        "fetch": tasks["fetch"],
        "record (DVC, S3, git)": tasks["record"],
        "the rest, including waits of cell workers for each other": whole - own - tasks["fetch"] - tasks["record"],
        f"{parallel} cell workers for {wall:.0f} s": whole,
    }
    for name, seconds in rows.items():
        print(f"{name:38} {seconds:9.1f} s {seconds / whole:7.1%}")
    beside = (whole - own) / len(meanwhile)
    print(f"\n{len(meanwhile)} states; beside the nodes' own work {beside:.2f} cell worker seconds a state")
    every = table[table["metric"] == "reused:train"]
    separate = plan.plan(planned, set())
    trained = int((every["value"] == 0).sum())
    print(f"trainings of the whole grid: {trained}; of timelines by themselves: {separate.separate('train')}")


if __name__ == "__main__":
    main()
