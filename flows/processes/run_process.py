"""The process of one run that a schedule or the Python API starts: progress and outcome as JSON lines on stdout.

Each try has a process of its own, which runs the code and params that the project has at that time.
"""

from __future__ import annotations

import argparse
import os
import traceback
from pathlib import Path

from flows.processes import messages
from tasks import processes, progress
from tasks.errors import may_pass


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--until", type=int)
    options.add_argument("--no-wait", action="store_true")
    options.add_argument("--withdraw", metavar="ARRIVAL")
    options.add_argument("--retrain", action="store_true")
    given = options.parse_args()
    processes.end_with(os.getppid(), every=0.5)
    processes.clean_up_on_sigterm()
    answers = messages.answers()
    progress.listen(messages.ProgressSender(answers))
    from flows.run import run
    from flows.withdraw import withdraw

    project, wait, tags = Path.cwd(), not given.no_wait, []
    try:
        if given.withdraw is not None:
            plan, made = withdraw(project, given.withdraw, retrain=given.retrain, wait=wait)
            tags = [(made or plan.back_to).tag]
        messages.send(answers, tags=[*tags, *run(project, given.until, wait=wait)])
    except Exception as error:
        traceback.print_exc()
        messages.send(answers, error=" ".join(str(error).split()) or type(error).__name__, may_pass=may_pass(error))


if __name__ == "__main__":
    main()
