"""A real project in a temporary folder: this code in a git repository of its own, small drawings, a small model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageDraw
from ruamel.yaml import YAML

from tasks.storage.dvc_config import Remote
from tests import forks, session

Process = subprocess.Popen[bytes] | forks.Forked

ROOT = Path(__file__).parents[1]
SPAWNED = ("arrive", "report", "verify")
"""Commands that are once a process from nothing: among them import all there is."""
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("square", "circle")

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "head_width": 8, "layers": 1},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}

PARAMS: dict[str, Any] = {
    "timeline": "tiny",
    "threads": 1,
    "base": {
        "model": "tiny.json",
        "pretrained": "train",
        "train": {"steps": 8, "batch_size": 16, "lr": 1e-3},
        "pretraining": ["images:drawings/base#train"],
    },
    "stream": [
        {"name": "first", "update": ["images:drawings/first#train"]},
        {"name": "second", "update": ["images:drawings/second#train"]},
    ],
    "train": {"steps": 6, "batch_size": 12},
    "evaluate": {
        "adaptation": [
            {"name": "first", "test": ["images:drawings/first#test"]},
            {"name": "second", "test": ["images:drawings/second#test"]},
        ],
        "retention": [{"name": "base", "test": ["images:drawings/base#test"]}],
    },
}


def make(folder: Path, **changes: Any) -> Path:
    """A project with params ``PARAMS``, whole top-level keys replaced by ``changes``, in one commit."""
    make_code(folder)
    (folder / "tiny.json").write_text(json.dumps(MODEL))
    write_params(folder, **changes)
    draw(folder / "drawings")
    (folder / ".gitignore").open("a").write("/drawings/\n/elsewhere/\n")
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "a project")
    return folder


def make_code(folder: Path) -> None:
    """Put this code into a folder."""
    files = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for name in files:
        ours = name.startswith(("tasks/", "flows/", "chronomerge/", ".dvc", ".gitignore", "dvc.yaml"))
        if ours and (ROOT / name).exists():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())


def write_params(folder: Path, **changes: Any) -> None:
    YAML(typ="safe").dump({**PARAMS, **changes}, folder / "params.yaml")


def draw(folder: Path) -> None:
    """Three pools of coloured shapes, each split into train and test; no two drawings are the same."""
    random = np.random.default_rng(0)
    for pool, colours in (("base", COLOURS[:2]), ("first", COLOURS[2:4]), ("second", COLOURS[4:])):
        for colour in colours:
            for shape in SHAPES:
                places = [int(place) for place in random.permutation(36)]
                for split, count in (("train", 12), ("test", 4)):
                    home = folder / pool / split / f"{colour} {shape}"
                    home.mkdir(parents=True)
                    for i in range(count):
                        _drawing(colour, shape, places.pop()).save(home / f"{i}.png")


def _drawing(colour: str, shape: str, place: int) -> Image.Image:
    image = Image.new("RGB", (20, 20), "white")
    x, y = 1 + place % 6, 1 + place // 6
    pen = ImageDraw.Draw(image)
    (pen.rectangle if shape == "square" else pen.ellipse)((x, y, x + 11, y + 11), fill=colour)
    return image


def copy(project: Path, to: Path) -> Path:
    """A project as another is, with a store and processes of its own."""

    def sockets(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if (Path(folder) / name).is_socket()]

    shutil.copytree(project, to, symlinks=True, ignore=sockets)
    git(to, "worktree", "prune")
    return to


def git(folder: Path, *args: str) -> str:
    return subprocess.run(["git", *args], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def program(name: str) -> str:
    """A program of this environment."""
    return str(Path(sys.executable).parent / name)


def chronomerge(folder: Path, *args: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line with the project's own code."""
    return _done(args, check, lambda output, errors: _started(folder, args, environment, output, errors, waited=True))


def module(folder: Path, name: str, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a module of these tests in a project, with the project's own code."""
    return _module(folder, ROOT, (name, *args), environment)


def script(folder: Path, text: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script of a user's in a project, with the project's own code."""
    home = folder / ".git" / "scripts"  # no file of the working tree
    home.mkdir(exist_ok=True)
    (home / "script.py").write_text(text)
    return _module(folder, home, ("script",), environment)


def _module(
    folder: Path, home: Path, call: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    complete = {**os.environ, **environment, "PYTHONPATH": str(home)}

    def started(output: IO[bytes], errors: IO[bytes]) -> Process:
        with Path(os.devnull).open("rb") as nothing:
            streams = [stream.fileno() for stream in (nothing, output, errors)]
            return forks.server().start(folder, complete, streams, *call, forking=True)

    return _done(call, True, started)


def _done(
    args: Sequence[str], check: bool, started: Callable[[IO[bytes], IO[bytes]], Process]
) -> subprocess.CompletedProcess[str]:
    """Wait for a process, which is given files for what it prints."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = started(output, errors)
        try:
            status = process.wait(600)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read().decode())
    done = subprocess.CompletedProcess(args, status, *texts)
    assert not check or status == 0, done.stdout + done.stderr
    return done


def share(clone: Path, remote: Remote) -> None:
    """Set up the store ``shared``, as on a machine of its own: with its own copy of the credentials."""
    options = remote.options
    chronomerge(
        clone, "remote", "setup", remote.url, "--name", "shared", "--endpoint-url", options["endpointurl"],
        "--region", "us-east-1",
        AWS_ACCESS_KEY_ID=options["access_key_id"], AWS_SECRET_ACCESS_KEY=options["secret_access_key"],
    )  # fmt: skip


def start(folder: Path, *args: str, **environment: str) -> Process:
    """Start the command line in a process group of its own, so that it can be killed."""
    with Path(os.devnull).open("wb") as nowhere:
        return _started(folder, args, environment, nowhere, nowhere)


def _started(
    folder: Path,
    args: Sequence[str],
    environment: Mapping[str, str],
    output: IO[bytes],
    errors: IO[bytes],
    *,
    waited: bool = False,
) -> Process:
    """A process from nothing for the first use of a command of `SPAWNED` in a test session, and for what Python itself
    reads in its environment; else a fork of one that has imported everything."""
    fresh = any(name.startswith(("PYTHON", "LC_", "LANG")) for name in environment)
    fresh = fresh or bool(forks.FOLDER and args[0] in SPAWNED and session.first(forks.FOLDER, args[0]))
    complete = {**os.environ, **environment}
    if forks.FOLDER and not fresh:
        with Path(os.devnull).open("rb") as nothing:
            streams = [stream.fileno() for stream in (nothing, output, errors)]
            return forks.server().start(folder, complete, streams, "flows", *args, forking=waited)
    return subprocess.Popen(
        [sys.executable, "-m", "flows", *args],
        cwd=folder, env=complete, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, start_new_session=True,
    )  # fmt: skip


def report_page(folder: Path, to: Path) -> str:
    """The text of the page that `chronomerge report` writes."""
    chronomerge(folder, "report", "--to", str(to))
    return (to / "index.html").read_text()


def kill(process: Process) -> None:
    """SIGKILL the program alone, as the kernel would: its helpers must notice by themselves."""
    process.send_signal(signal.SIGKILL)
    process.wait()


def made_again(folder: Path, step: str) -> list[str]:
    """Verify a state, byte for byte; the nodes that made it again."""
    found = json.loads(chronomerge(folder, "verify", step, "--json").stdout)[0]
    assert found["same"], found
    return [node["node"] for node in found["nodes"]]


def deployed(folder: Path, timeline: str = "tiny") -> dict[str, str]:
    """Tag → hash of the deployed weights."""
    rows = json.loads(chronomerge(folder, "states", "--json", "--timeline", timeline).stdout)
    return {row["tag"]: row["deployed"] for row in rows}


def tags(folder: Path) -> Sequence[str]:
    """Those of states."""
    return git(folder, "tag", "--list", "state/*").splitlines()
