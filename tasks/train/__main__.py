"""``python -m tasks.train [initialize]``; as ``worker FILE`` under torchrun, one process of `tasks.train.launch`."""

import sys
from pathlib import Path

from tasks import nodes
from tasks.console import main
from tasks.model import models
from tasks.train import launch
from tasks.train.node import initialize, train

if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            main(nodes.as_command("train", train, lambda params: models.device_facts(params.threads)))
        case ["initialize"]:
            main(initialize)
        case ["worker", file]:
            launch.worker(Path(file))
        case _:
            sys.exit("usage: python -m tasks.train [initialize]")
