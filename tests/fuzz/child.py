"""The process that reads hostile inputs: ``python -m tests.fuzz.child ROOT KIND FIRST COUNT``.

ROOT holds ``project``, ``valid`` and ``secret``. A line ``start N`` comes before each input, and ``bad N WHY``
where one of them breaks a rule; the parent watches time and memory.
"""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks import inbox
from tasks.arrive import known
from tasks.convert import convert
from tasks.errors import UserError
from tasks.text import printable
from tests.fuzz import inputs

LONGEST = 1000
"""Characters of a message: 500 of input, and what is said of it."""
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
        if event in ("subprocess.Popen", "os.system", "os.exec", "socket.connect") and args[0] != "git":
            self.seen.append(f"{event} {args[0]!r}")
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


def faults(messages: list[str]) -> Iterator[str]:
    """What is wrong with messages that people read."""
    for message in messages:
        if len(message) > LONGEST:
            yield f"a message of {len(message)} characters: {message[:200]!r}"
        if printable(message) != message:
            yield f"a message with control characters: {message[:300]!r}"


def look(root: Path, folder: Path) -> Iterator[str]:
    """Let a drop and a good one beside it arrive."""
    found = inbox.scan(root / "project", str(folder.parent), dry_run=True)
    lists = (found.taken, found.refused, found.waiting, found.changed, found.known)
    drops = {one.name: one for kind in lists for one in kind}
    if "good" not in {one.name for one in found.taken}:
        yield f"the next drop is not taken: {drops.get('good')}"
    if "bad" not in drops:
        yield "the drop is in no list"
        return
    bad = drops["bad"]
    verdict = bad.verdict
    messages = [bad.why, *(verdict.problems + verdict.notes if verdict else ())]
    yield from faults(messages)
    yield from (message for message in messages if "cannot be taken: " in message)


def converted(root: Path, folder: Path) -> Iterator[str]:
    """Convert a folder."""
    base = root / "valid/model" if (folder / "adapter_config.json").exists() else None
    for to in ("open_clip", "transformers"):
        out = folder.parent / to
        try:
            convert(folder, to, out, base=base)  # type: ignore[arg-type]
        except UserError as error:
            yield from faults([str(error)])
            if out.exists():
                yield f"{to}: something is left of what was refused"


def main(root: Path, kind: str, first: int, count: int) -> None:
    trespass = Trespass(root)
    known.test_images = lambda *_: {}  # the project's own, which have nothing to do with a drop
    work = root / f"work-{kind}"
    for number in range(first, first + count):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        inputs.make(kind, number, work / "bad", root / "valid")
        if kind not in inputs.CONVERTED:
            (work / "good/cat").mkdir(parents=True)
            (work / "good/cat/0.png").write_bytes(inputs.png(7))
            (work / "good/READY").touch()
        print("start", number, flush=True)
        try:
            with trespass.watching() as seen:
                wrong = list((converted if kind in inputs.CONVERTED else look)(root, work / "bad"))
            wrong += seen
        except Exception:
            wrong = [traceback.format_exc()]
        for why in wrong:
            print("bad", number, repr(why), flush=True)
    print("end", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
