"""``python -m tasks.workers.child PARENT MODULE [ARGUMENT…]``: a module as ``python -m`` runs it, but not for longer
than the process ``PARENT`` lives: a worker that is killed leaves no training behind."""

from __future__ import annotations

import runpy
import sys

from tasks import lifeline

if __name__ == "__main__":
    parent, module, *arguments = sys.argv[1:]
    lifeline.end_with(int(parent), every=0.5)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
