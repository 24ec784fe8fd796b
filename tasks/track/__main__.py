"""The process that talks to a tracker: a job on its standard input; the last line of its output says what failed."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

from tasks.params import Named
from tasks.text import one_line, redacted
from tasks.track.tracker import Told, of


def main() -> int:
    job = json.load(sys.stdin)
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print, at the very end too, is for the log
    tracker = of(Named.model_validate(job["tracker"]))
    try:
        tracker.send(
            job["timeline"], job["params"], [Told.model_validate(one) for one in job["states"]], Path(job["folder"])
        )
    except Exception as error:  # whatever the libraries raise
        traceback.print_exc()
        print(redacted(one_line(f"{type(error).__name__}: {error}"))[:300], file=answer, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
