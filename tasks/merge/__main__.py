"""``python -m tasks.merge deploy``: the node, in the current directory."""

import sys

from tasks.console import main
from tasks.merge.node import deploy

if __name__ == "__main__":
    if sys.argv[1:] != ["deploy"]:
        sys.exit("usage: python -m tasks.merge deploy")
    main(deploy)
