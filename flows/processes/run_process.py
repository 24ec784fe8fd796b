"""The process of one run that somebody else started: progress and outcome as JSON lines on stdout.

A process of its own for each try: it runs the project's code and params as they are at that moment.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from pathlib import Path

from flows.processes import messages
from tasks import processes, progress
from tasks.errors import may_pass


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--until", type=int)
    options.add_argument("--no-wait", action="store_true")
    given = options.parse_args()
    processes.end_with(os.getppid(), every=0.5)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what is open gets closed
    answers = messages.answers()
    progress.listen(messages.Teller(answers))
    from flows.run import run

    try:
        messages.tell(answers, tags=run(Path.cwd(), given.until, wait=not given.no_wait))
    except Exception as error:
        traceback.print_exc()
        messages.tell(answers, error=" ".join(str(error).split()) or type(error).__name__, may_pass=may_pass(error))


if __name__ == "__main__":
    main()
