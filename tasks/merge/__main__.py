"""``python -m tasks.merge deploy``: the node, in the current directory."""

from __future__ import annotations

import sys
from pathlib import Path

from tasks import params
from tasks.errors import UserError
from tasks.merge.node import deploy


def main(arguments: list[str]) -> int:
    """Run the node; 0 where it went well, 2 for what the user can mend."""
    if arguments != ["deploy"]:
        print("usage: python -m tasks.merge deploy", file=sys.stderr)
        return 2
    try:
        project = Path.cwd()
        deploy(project, params.load(project / "params.yaml"), _show)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _show(what: str, done: int, total: int, note: str = "") -> None:
    """One line on a terminal, rewritten; none where there is no terminal: a merge takes seconds."""
    if sys.stderr.isatty():
        print(f"\r{what} {done / max(total, 1):4.0%} {note}", end="\n" if done == total else "", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
