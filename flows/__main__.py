"""``python -m flows`` is ``chronomerge``, with the code of the current folder."""

from flows.cli import main

main()
