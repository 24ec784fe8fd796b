"""DVC's child process of the program, with a fault at one boundary."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from crashing import boundaries
from crashing.child import REQUEST, Call, strike
from tasks.storage import dvc_process

if __name__ == "__main__":
    asked = Call(**json.loads(os.environ.pop(REQUEST)))
    assert asked.boundary
    parent = os.getppid()
    boundaries.install(boundaries.BY_NAME[asked.boundary], lambda: strike(asked, parent))
    dvc_process.main()
