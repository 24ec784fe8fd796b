"""The laboratory: projects to crash on small file systems, and a fork server that starts the program in no time."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

from crashing import child
from crashing.child import Call
from tasks.record import manifest
from tests import project as projects
from tests.project import git

SIZE = "384m"
"""Of a sandbox's file system."""

PATIENCE = 180
"""Seconds after which a process counts as hung."""

ENVIRONMENT = {
    "DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "1", "GIT_CONFIG_NOSYSTEM": "1", "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1", "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
}  # fmt: skip


class BrokenError(Exception):
    """Something that must hold does not; the message says what."""


def prepare_environment(work: Path) -> None:
    """Nothing of the user's git and DVC settings, for us and all whom we start."""
    settings = work / "gitconfig"
    settings.write_text(
        "[user]\n\tname = Crash\n\temail = crash@localhost\n"
        "[advice]\n\tdetachedHead = false\n[safe]\n\tdirectory = *\n",
        encoding="utf-8",
    )
    os.environ.update(ENVIRONMENT, GIT_CONFIG_GLOBAL=str(settings), DVC_GLOBAL_CONFIG_DIR=str(work / "dvc"))


class ProgramForks:
    """Starts the program by a fork of a process that has imported all third-party parts."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["crashing.preload", "crashing.child"])
        os.environ["PYTHONPATH"] = os.pathsep.join(map(str, Path(__file__).parents[1:3]))  # else it finds neither
        forkserver.ensure_running()
        del os.environ["PYTHONPATH"]

    def start(self, request: Call) -> BaseProcess:
        process = self._context.Process(target=child.run, args=(request,))
        process.start()
        return process


@dataclass
class Run:
    """A started program."""

    process: BaseProcess
    notes: Path

    def await_note(self, name: str, seconds: float = PATIENCE) -> bool:
        """Whether the program left a note (``reached``, ``waiting``) before it ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if (self.notes / name).exists():
                return True
            if not self.process.is_alive():
                return (self.notes / name).exists()
            time.sleep(0.01)
        raise BrokenError(f"neither {name} nor ended after {seconds:.0f} s")

    def go(self) -> None:
        (self.notes / "go").touch()

    def end(self, seconds: float = PATIENCE) -> int:
        """Its exit status, negative for a signal."""
        self.process.join(seconds)
        status = self.process.exitcode
        if status is None:
            self.process.kill()
            self.process.join()
            raise BrokenError(f"still running after {seconds:.0f} s: {self.errors()}")
        return status

    def errors(self) -> str:
        """What it said, briefly."""
        return (self.notes / "err").read_text(errors="replace", encoding="utf-8").strip()[-600:]

    def complained(self) -> bool:
        """Whether it ended with a Python traceback."""
        return "Traceback" in (self.notes / "err").read_text(errors="replace", encoding="utf-8")


@dataclass(frozen=True)
class Sandbox:
    """A small file system of its own with one project in it; one case at a time."""

    folder: Path
    fork_server: ProgramForks
    prefect: Mapping[str, str]
    programs: list[BaseProcess] = field(default_factory=list)
    """Those that were started."""

    @property
    def project(self) -> Path:
        return self.folder / "project"

    def clear(self) -> None:
        """Nothing of an earlier case is left, processes included: one that failed leaves programs that wait."""
        for program in self.programs:
            program.kill()
            program.join()
        self.programs.clear()
        strays = self.strays()
        for process in strays:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(strays, timeout=10)  # until then they may make files
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def restore(self, template: Path) -> None:
        """Put a copy of a project here."""
        self.clear()
        subprocess.run(["cp", "-a", *template.iterdir(), self.folder], check=True)
        (self.project / ".chronomerge/store/server.json").unlink(missing_ok=True)  # sandboxes have ports of their own
        if (self.folder / "shared.git").exists():
            git(self.project, "remote", "set-url", "origin", str(self.folder / "shared.git"))

    def start(self, *arguments: str, boundary: str | None = None, fault: str | None = None) -> Run:
        notes = self.folder.parent / f"{self.folder.name}-notes" / str(time.monotonic_ns())
        notes.mkdir(parents=True)
        environment = {**self.prefect, child.MARK: str(self.folder)}
        process = self.fork_server.start(Call(str(self.project), arguments, str(notes), environment, boundary, fault))
        self.programs.append(process)
        return Run(process, notes)

    def strays(self) -> list[psutil.Process]:
        """Processes that the programs of this sandbox have started, and that still run.

        And a store that we have started to look into it: it works in our folder, with our environment.
        """
        running = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                ours = process.environ().get(child.MARK) == str(self.folder) or any(
                    f"={self.project}/" in argument for argument in process.cmdline()
                )
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    running.append(process)
        return running

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """The disk has not one free block."""
        filler = self.folder / "filler"
        free = os.statvfs(self.folder)
        with filler.open("wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
            file.seek(0, os.SEEK_END)
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(free.f_frsize))
        try:
            yield
        finally:
            filler.unlink()


@contextlib.contextmanager
def sandboxes(work: Path, count: int, fork_server: ProgramForks, prefect: Mapping[str, str]) -> Iterator[list[Sandbox]]:
    """Sandboxes on file systems in memory, where we may mount them."""
    made = []
    with contextlib.ExitStack() as stack:
        for number in range(count):
            folder = work / f"sandbox-{number}"
            folder.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "chronomerge-crash", folder], check=True)
            stack.callback(subprocess.run, ["umount", "--lazy", folder], check=False)
            made.append(Sandbox(folder, fork_server, prefect))
            stack.callback(made[-1].clear)
        yield made


def begin(sandbox: Sandbox, template: Path, until: int | None, *, shared: bool = False, **changes: Any) -> None:
    """Make a project in a sandbox, run it up to a step, and keep it as a template."""
    sandbox.clear()
    store = {"store": {"git": "origin"}} if shared else {}
    project = projects.make(sandbox.project, **changes, **store)
    if shared:
        git(sandbox.folder, "init", "--quiet", "--bare", "shared.git")
        git(project, "remote", "add", "origin", str(sandbox.folder / "shared.git"))
        git(project, "push", "--quiet", "origin", "HEAD:main")
    (project / "notes.txt").write_text("staged\n", encoding="utf-8")
    git(project, "add", "notes.txt")
    (project / "notes.txt").write_text("not staged\n", encoding="utf-8")
    (project / "mine.bin").write_bytes(b"untracked")
    if until is not None:
        run = sandbox.start("run", "--until", str(until))
        if run.end():
            raise BrokenError(f"the undisturbed run failed: {run.errors()}")
    deadline = time.monotonic() + 20
    while sandbox.strays() and time.monotonic() < deadline:
        time.sleep(0.1)
    template.mkdir()
    subprocess.run(["cp", "-a", *sandbox.folder.iterdir(), template], check=True)


def recorded(project: Path, timeline: str = "tiny") -> dict[str, Any]:
    """Everything that must be the same in all runs, by tag: hashes of inputs and outputs, metrics, ``dvc.lock``."""
    states = {}
    for tag in git(project, "tag", "--list", f"state/{timeline}/*").splitlines():
        content = manifest.read(git(project, "show", f"{tag}:manifest.json"), tag)
        states[tag] = {
            "inputs": {path: entry.as_dict() for path, entry in content.inputs.items()},
            "outputs": {path: entry.as_dict() for path, entry in content.outputs.items()},
            "metrics": git(project, "show", f"{tag}:metrics.json"),
            "lock": git(project, "show", f"{tag}:dvc.lock"),
            "params": git(project, "show", f"{tag}:params.yaml"),
        }
    return states


def in_parallel(sandboxes: list[Sandbox], work: list[Callable[[Sandbox], None]]) -> None:
    """Do pieces of work, one a sandbox at a time."""
    from concurrent.futures import ThreadPoolExecutor
    from queue import Queue

    free: Queue[Sandbox] = Queue()
    for sandbox in sandboxes:
        free.put(sandbox)

    def do(piece: Callable[[Sandbox], None]) -> None:
        sandbox = free.get()
        try:
            piece(sandbox)
        finally:
            free.put(sandbox)

    with ThreadPoolExecutor(len(sandboxes)) as pool:
        try:
            for done in [pool.submit(do, piece) for piece in work]:
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)
