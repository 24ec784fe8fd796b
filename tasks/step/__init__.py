"""One time step: what it is given (`inputs`), and how its nodes run or are taken from an earlier run (`execute`).

`workspace` is what both work on: the step's worktree, the states that it goes on from, store and cache.
"""

from tasks.step.execute import Executed, execute
from tasks.step.inputs import Inputs, place_arrival, place_evaluation, place_history
from tasks.step.workspace import Step, StoppedError, opened

__all__ = [
    "Executed",
    "Inputs",
    "Step",
    "StoppedError",
    "execute",
    "opened",
    "place_arrival",
    "place_evaluation",
    "place_history",
]
