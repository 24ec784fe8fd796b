"""Many tasks at once on a Prefect server with SQLite and on one with PostgreSQL.

    .venv/bin/python benchmarks/servers.py [--tasks 100] [--repeat 3]

Starts the server that `chronomerge run` starts, once with each database, and runs a flow there whose tasks do nothing,
all of them at once, in a process of its own. Prints how long each flow took, from its submission to its end. PostgreSQL
is started for this, from Debian's package.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from flows.prefect import server as prefect_server
from tests import postgres

VARIABLE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--flow", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.flow:
        flow(given.tasks)
        return
    programs = postgres.programs()
    if not programs:
        sys.exit("no PostgreSQL here (Debian: apt-get install postgresql)")
    for name, database in (("SQLite", nullcontext(None)), ("PostgreSQL", postgres.serving(programs))):
        with database as address, tempfile.TemporaryDirectory() as folder:
            os.environ.pop(VARIABLE, None)
            if address:
                os.environ[VARIABLE] = address
            with prefect_server.serving(Path(folder)) as server:
                server.wait()
                call = [sys.executable, __file__, "--flow", "--tasks", str(given.tasks)]
                runs = [
                    subprocess.run(call, capture_output=True, text=True, check=True, encoding="utf-8")
                    for _ in range(given.repeat)
                ]
        took = ", ".join(f"{float(run.stdout):.1f} s" for run in runs)
        print(f"{name:10} {given.tasks} tasks: {took}", flush=True)


def flow(count: int) -> None:
    """Run the tasks, and print their seconds."""
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE
    from prefect.futures import wait
    from prefect.task_runners import ThreadPoolTaskRunner

    @task(cache_policy=NO_CACHE, persist_result=False)
    def nothing() -> None:
        pass

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=count), persist_result=False)  # type: ignore[arg-type]
    def everything() -> None:
        wait([nothing.submit() for _ in range(count)])

    started = time.monotonic()
    everything()
    print(time.monotonic() - started)


if __name__ == "__main__":
    main()
