"""On the path of a process, this lets no pickle name a class or function: unpickling a foreign one fails."""

import sys


def _refuse(event: str, args: tuple[object, ...]) -> None:
    if event == "pickle.find_class":
        raise RuntimeError(f"something unpickles {args}")


sys.addaudithook(_refuse)
