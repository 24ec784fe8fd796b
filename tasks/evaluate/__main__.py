"""``python -m tasks.evaluate``; as ``part SET…``, some of the test sets, for a worker."""

import sys
from functools import partial

from tasks.console import main
from tasks.evaluate import parts
from tasks.evaluate.node import evaluate

if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            main(evaluate)
        case ["part", *names]:
            main(partial(parts.run, names))
        case _:
            sys.exit("usage: python -m tasks.evaluate [part SET…]")
