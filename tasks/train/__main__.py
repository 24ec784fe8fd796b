"""``python -m tasks.train [initialize]``."""

import sys

from tasks.console import main
from tasks.train.node import initialize, train

if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["initialize"]):
        sys.exit("usage: python -m tasks.train [initialize]")
    main(initialize if sys.argv[1:] else train)
