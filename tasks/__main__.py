"""``python -m tasks NODE``: a node of the time step in the current directory, as ``dvc.yaml`` calls it.

``python -m tasks NODE part NAME…`` does one part of a node that several workers share.
"""

import functools
import sys

from tasks import nodes
from tasks.console import main
from tasks.model import models


def run(arguments: list[str]) -> None:
    match arguments:
        case [name] if name in nodes.NODES:
            main(nodes.in_place(name, lambda params: models.device_facts(params.threads)))
        case [name, "part", *names] if name in nodes.NODES and (split := nodes.NODES[name].load_split()):
            main(functools.partial(split.run, names))
        case _:
            sys.exit(f"usage: python -m tasks NODE [part NAME…], where NODE is one of {', '.join(nodes.NODES)}")


if __name__ == "__main__":
    run(sys.argv[1:])
