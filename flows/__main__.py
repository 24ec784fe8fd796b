"""``python -m flows`` is ``chronomerge``, with the code of the current folder."""

from flows.cli.app import main

main()
