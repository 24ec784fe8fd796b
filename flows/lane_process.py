"""The process of a lane: one JSON request a line on stdin, JSON news and answers, a line each, on stdout.

torch, open_clip and Prefect are imported once, and then cell after cell runs here as a timeline by itself would.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

from tasks import lifeline, progress
from tasks.errors import ReadableError

EVERY = 0.2
"""Seconds between two news of the same work."""


def main() -> None:
    lifeline.end_with(os.getppid(), every=0.5)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes with our log, never among the answers
    progress.listen(_Teller(answers))
    from flows.run import run_cell
    from tasks import models
    from tasks.record.worktree import Code

    models.preload()
    _tell(answers, ready=True)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            tags = run_cell(
                Path(job["project"]), Code(**job["code"]), job["remote"], wait=job["wait"], scheduler=job["scheduler"]
            )
            _tell(answers, tags=tags)
        except ReadableError as error:
            _tell(answers, error=str(error))
        except Exception as error:  # a defect, in the log as a whole; other cells go on
            traceback.print_exc()
            _tell(answers, error=f"{type(error).__name__}: {error}")


class _Teller:
    """Hands progress on, not more often than anybody can read."""

    def __init__(self, answers: TextIO):
        self._answers = answers
        self._last = ("", 0.0)

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if what != self._last[0] or now - self._last[1] >= EVERY:
            self._last = (what, now)
            _tell(self._answers, what=what, done=done, total=total, note=note)


def _tell(answers: TextIO, **news: Any) -> None:
    print(json.dumps(news), file=answers, flush=True)


if __name__ == "__main__":
    main()
