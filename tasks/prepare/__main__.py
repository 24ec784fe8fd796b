"""``python -m tasks.prepare arrival|evaluation``."""

import sys

from tasks.console import main
from tasks.prepare.node import prepare_arrival, prepare_evaluation

NODES = {"arrival": prepare_arrival, "evaluation": prepare_evaluation}

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in NODES:
        sys.exit("usage: python -m tasks.prepare arrival|evaluation")
    main(NODES[sys.argv[1]])
