"""The process of a cell worker: JSON requests on stdin, JSON messages and answers on stdout, one a line.

It imports torch, open_clip and Prefect once, and then runs each cell as `chronomerge run` would run its timeline.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

from flows.processes import messages
from tasks import processes, progress
from tasks.errors import ReadableError


def main() -> None:
    processes.end_with(os.getppid(), every=0.5)
    answers = messages.answers()
    progress.listen(messages.ProgressSender(answers))
    from flows.run import run_cell
    from tasks.model import models
    from tasks.record import Code

    models.preload()
    messages.send(answers, ready=True)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            job |= {"project": Path(job["project"]), "code": Code(**job["code"])}
            tags = run_cell(**job)
            messages.send(answers, tags=tags)
        except ReadableError as error:
            messages.send(answers, error=str(error))
        except Exception as error:  # a defect: its traceback is in the log, and the other cells continue
            traceback.print_exc()
            messages.send(answers, error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
