"""The process of a lane: one JSON request a line on stdin, JSON news and answers, a line each, on stdout.

torch, open_clip and Prefect are imported once, and then cell after cell runs here as a timeline by itself would.
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
    progress.listen(messages.Teller(answers))
    from flows.run import run_cell
    from tasks.model import models
    from tasks.record import Code

    models.preload()
    messages.tell(answers, ready=True)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            job |= {"project": Path(job["project"]), "code": Code(**job["code"])}
            tags = run_cell(**job)
            messages.tell(answers, tags=tags)
        except ReadableError as error:
            messages.tell(answers, error=str(error))
        except Exception as error:  # a defect, in the log as a whole; other cells go on
            traceback.print_exc()
            messages.tell(answers, error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
