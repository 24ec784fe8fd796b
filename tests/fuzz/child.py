"""The process that reads hostile inputs: ``python -m tests.fuzz.child ROOT KIND FIRST COUNT``.

ROOT holds ``project``, ``valid`` and ``secret``. A line ``start N`` comes before each input, and ``bad N WHY``
where one of them breaks a rule; the parent watches time and memory.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.arrive import known
from tests.fuzz import inputs, readers

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Trespass:
    """Hears of every file that Python opens, changes or removes: nothing secret is read, nothing outside is written."""

    def __init__(self, root: Path):
        self.root, self.secret, self.seen, self.active = str(root), str(root / "secret"), [], False
        sys.addaudithook(self.hear)

    seen: list[str]

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.active:
            return
        # git reads the states of the project.
        if event in ("subprocess.Popen", "os.system", "os.exec") and args[0] != "git":
            self.seen.append(f"{event} {args[0]!r}")
        # The tests' hub is on loopback.
        if event == "socket.connect" and args[1][0] != "127.0.0.1":
            self.seen.append(f"{event} {args[1]!r}")
        if event != "open" or not isinstance(args[0], str | bytes):
            return
        path = os.path.realpath(os.fsdecode(args[0])) if Path(os.fsdecode(args[0])).is_absolute() else ""
        writes = isinstance(args[2], int) and args[2] & _WRITES
        if path.startswith(self.secret) or (path and writes and not path.startswith((self.root, "/dev/null", "/proc"))):
            self.seen.append(f"opens {path}")

    @contextmanager
    def watching(self) -> Iterator[list[str]]:
        self.seen, self.active = [], True
        try:
            yield self.seen
        finally:
            self.active = False


def main(root: Path, kind: str, first: int, count: int) -> None:
    trespass = Trespass(root)
    known.test_images = lambda *_: {}  # the project's own, which have nothing to do with a drop
    work = root / f"work-{kind}"
    tempfile.tempdir = tempfile.mkdtemp(dir=root)  # so that what is written elsewhere is seen
    for number in range(first, first + count):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        inputs.make(kind, number, work / "bad", root / "valid")
        if kind in inputs.DROPS:
            (work / "good/cat").mkdir(parents=True)
            (work / "good/cat/0.png").write_bytes(inputs.png(7))
            (work / "good/READY").touch()
        print("start", number, flush=True)
        try:
            with trespass.watching() as seen:
                wrong = list(readers.READERS.get(kind, readers.look)(root, work / "bad"))
            wrong += seen
        except Exception:
            wrong = [traceback.format_exc()]
        for why in wrong:
            print("bad", number, repr(why), flush=True)
    print("end", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
