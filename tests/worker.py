"""A worker of a test session: ``python -m tests.worker -u -c CODE`` runs the code that execnet starts a worker with."""

import sys

if __name__ == "__main__":
    exec(sys.argv[-1])
