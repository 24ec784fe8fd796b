"""Crash the real program everywhere, and see whether anything is lost.

    .venv/bin/python benchmarks/crash.py [--seed N] [--cases N] [--only WORD …] [--results FILE] [--parallel N]
    .venv/bin/python benchmarks/crash.py --random 100 [--seed N]

Without ``--random``: the matrix. Every boundary (`crashing.boundaries`) × fault (SIGKILL, SIGTERM, an exception, a
full disk, and where DVC is at work, its own SIGKILL) × one writer or two (a second waits for the timeline, a third
does not); ``--cases`` takes a sample of it, chosen by the seed. After each fault: no half-recorded state, the branch
at its last tag, the user's files, index and branch as they were. Then the waiting writer, or the same command again,
must end with the bytes of an undisturbed run; the S3 store is asked for every object that a tag refers to; nothing is
left behind. With ``--results``, finished cases are kept in a file, and the same command goes on after them.

With ``--random``: that many SIGKILLs at random moments, uniform over what is left to do of a timeline of six small
steps, half of them to the program alone, half to it and all its children at once, store included; same checks.

Needs to mount file systems (root) for a disk that can be full. Ends with status 1 if any case failed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from crashing import boundaries, checks, lab
from crashing.boundaries import Boundary
from crashing.checks import Users
from crashing.lab import BrokenError, ProgramForks, Run, Sandbox

from flows.prefect import server as prefect_server
from tests import project as projects

FAULTS = ("SIGKILL", "SIGTERM", "exception", "full disk")
DVC_FAULT = "SIGKILL of DVC"
STREAM = projects.PARAMS["stream"]
SIX_STEPS = {
    "stream": [
        {"name": f"{pool}-{turn}", "update": [f"images:drawings/{pool}#train"]}
        for turn in (1, 2, 3)
        for pool in ("first", "second")
    ][:5],
}
"""With the base, six steps."""
OPTIONAL_NODES = {
    "fit": {"name": "paint", "setting": "weight"},
    "train": {**projects.PARAMS["train"], "holdout": 0.1},
    "evaluate": {**projects.PARAMS["evaluate"], "heads": ["gda"], "compatibility": "all"},
}


@dataclass(frozen=True)
class Case:
    """One cell of the matrix."""

    boundary: Boundary
    fault: str
    writers: int

    @property
    def name(self) -> str:
        return f"{self.boundary.name} | {self.fault} | {self.writers}"


def matrix() -> list[Case]:
    """All cells that have a meaning."""
    return [
        Case(boundary, fault, writers)
        for boundary in boundaries.BOUNDARIES
        for fault in (*FAULTS, *([DVC_FAULT] if boundary.where == "dvc" else []))
        for writers in ((1, 2) if boundary.held else (1,))
    ]


@dataclass
class Bench:
    """The templates, what an undisturbed run records, and the file systems to work on."""

    work: Path
    sandboxes: list[Sandbox]
    expected: dict[str, Any] = field(default_factory=dict)

    def template(self, name: str) -> Path:
        return self.work / f"template-{name}"


@contextlib.contextmanager
def laboratory(parallel: int) -> Iterator[Bench]:
    # What was killed last may still be at its files while they are removed.
    with tempfile.TemporaryDirectory(prefix="chronomerge-crash-", ignore_cleanup_errors=True) as name:
        work = Path(name)
        lab.prepare_environment(work)
        with prefect_server.serving(work / "prefect") as server:
            server.wait()
            address = {name: os.environ[name] for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING")}
            address["PREFECT_HOME"] = str(work / "home")
            with lab.sandboxes(work, parallel, ProgramForks(), address) as made:
                yield Bench(work, made)


def one_case(case: Case, bench: Bench, sandbox: Sandbox) -> None:
    """Run one case.

    Raises:
        BrokenError: something does not hold.
    """
    sandbox.restore(bench.template(case.boundary.project))
    users = Users.of(sandbox.project)
    first = sandbox.start("run", boundary=case.boundary.name, fault=case.fault)
    if not first.await_note("reached"):
        raise BrokenError(f"the boundary was not reached: status {first.end()}, {first.errors()}")
    expected = bench.expected[case.boundary.project]
    waiting = _second_writers(sandbox, first, expected) if case.writers == 2 else None
    with sandbox.full() if case.fault == "full disk" else contextlib.nullcontext():
        first.go()
        status = first.end()
    _ended_well(case, status, first)
    checks.whole(sandbox.project, users)
    if waiting:
        if not waiting.await_note("reached"):
            raise BrokenError(f"the waiting writer never had its turn: {waiting.errors()}")
        waiting.go()
    else:
        waiting = sandbox.start("run")
    if status := waiting.end():
        raise BrokenError(f"the run after the crash ended with status {status}: {waiting.errors()}")
    _all_there(sandbox, users, expected)


def _second_writers(sandbox: Sandbox, first: Run, expected: Mapping[str, Any]) -> Run | None:
    """One that waits for the timeline, and one that does not and has to name its holder.

    Where all is recorded already, there is nothing to wait for: they say so and end.
    """
    waiting = sandbox.start("run", "--wait", boundary="lock taken", fault="none")
    if not waiting.await_note("waiting"):
        if waiting.end() == 0 and lab.recorded(sandbox.project).keys() == expected.keys():
            return None
        raise BrokenError(f"the second writer did not wait: status {waiting.end()}, {waiting.errors()}")
    told = sandbox.start("run")
    status, holder = told.end(), f"is being written by process {first.process.pid} on"
    if status != 2 or holder not in " ".join(told.errors().split()):
        raise BrokenError(f"the third writer ended with {status}, not naming the holder: {told.errors()}")
    return waiting


def _ended_well(case: Case, status: int, run: Run) -> None:
    """A fault shows in the status; what is only a full disk is said in a sentence."""
    if case.fault == "SIGKILL" and status != -9:
        raise BrokenError(f"status {status} after a SIGKILL")
    if case.fault == "full disk" and (status not in (0, 2) or run.complained()):
        raise BrokenError(f"a full disk ended with status {status}: {run.errors()}")


def _all_there(sandbox: Sandbox, users: Users, expected: Mapping[str, Any]) -> None:
    """The end that every case must have."""
    checks.whole(sandbox.project, users)
    checks.same_as(sandbox.project, expected)
    checks.remote_holds_all(sandbox.project)
    checks.intact(sandbox.project)
    checks.nothing_left(sandbox)


def run_matrix(cases: list[Case], results: Path | None, parallel: int) -> int:
    """Run cases and print what became of them; returns how many failed."""
    done: dict[str, str] = {}
    if results and results.exists():
        done = dict(json.loads(line) for line in results.read_text(encoding="utf-8").splitlines())
    todo = [case for case in cases if case.name not in done]
    started = time.monotonic()
    with laboratory(parallel) as bench:
        _templates(bench, {case.boundary.project for case in todo})
        print(f"{len(todo)} cases to run; templates took {time.monotonic() - started:.0f} s", flush=True)

        def do(case: Case, sandbox: Sandbox) -> None:
            began = time.monotonic()
            try:
                one_case(case, bench, sandbox)
                done[case.name] = ""
            except BrokenError as error:
                done[case.name] = str(error)
            except Exception:  # a harness that fails is a case that failed
                done[case.name] = traceback.format_exc()
            if results:
                with results.open("a", encoding="utf-8") as file:
                    print(json.dumps([case.name, done[case.name]]), file=file)
            print(f"{time.monotonic() - began:5.1f} s  {case.name}  {done[case.name][-600:] or 'ok'}", flush=True)

        lab.in_parallel(bench.sandboxes, [functools.partial(do, case) for case in todo])
    _print_table(cases, done)
    failed = sum(bool(done[case.name]) for case in cases)
    print(f"\n{len(cases)} cases, {failed} failures, {time.monotonic() - started:.0f} s")
    return failed


def _templates(bench: Bench, kinds: set[str]) -> None:
    """Make the projects that cases start from, and learn what undisturbed runs record."""
    stream = STREAM[:1]

    def make(kind: str, sandbox: Sandbox) -> None:
        changes: dict[str, Any] = {"stream": [] if kind == "empty" else stream}
        changes |= OPTIONAL_NODES if kind == "optional" else {}
        lab.begin(sandbox, bench.template(kind), None if kind == "empty" else 0, shared=kind == "shared", **changes)
        _finish(sandbox)
        bench.expected[kind] = lab.recorded(sandbox.project)

    lab.in_parallel(bench.sandboxes, [functools.partial(make, kind) for kind in sorted(kinds)])


def _finish(sandbox: Sandbox) -> None:
    run = sandbox.start("run")
    if run.end():
        raise BrokenError(f"the undisturbed run failed: {run.errors()}")


def _print_table(cases: list[Case], done: Mapping[str, str]) -> None:
    """Boundary × fault; a cell says passed/run."""
    faults = (*FAULTS, DVC_FAULT)
    width = max(len(case.boundary.name) for case in cases)
    print("\n" + " " * width + "".join(f"{fault:>16}" for fault in faults))
    seen = {case.boundary for case in cases}
    for boundary in (boundary for boundary in boundaries.BOUNDARIES if boundary in seen):
        cells = []
        for fault in faults:
            here = [done[case.name] for case in cases if (case.boundary, case.fault) == (boundary, fault)]
            cells.append(f"{sum(not text for text in here)}/{len(here)}" if here else "")
        print(f"{boundary.name:{width}}" + "".join(f"{cell:>16}" for cell in cells))


@dataclass
class Kills:
    """How far the random kills are."""

    wanted: int
    done: int = 0
    timelines: int = 0
    failures: list[str] = field(default_factory=list)


def run_random(wanted: int, seed: int, parallel: int) -> int:
    """Kill at random moments; returns how many failures there were."""
    started = time.monotonic()
    with laboratory(parallel) as bench:
        sandbox = bench.sandboxes[0]
        lab.begin(sandbox, bench.template("empty"), None, **SIX_STEPS)
        began = time.monotonic()
        _finish(sandbox)
        seconds = time.monotonic() - began
        bench.expected["six"] = lab.recorded(sandbox.project)
        steps = len(bench.expected["six"])
        print(f"undisturbed: {steps} states in {seconds:.1f} s", flush=True)
        counts = [Kills(wanted // parallel + (number < wanted % parallel)) for number in range(parallel)]

        def do(number: int, sandbox: Sandbox) -> None:
            moments = random.Random(f"{seed}/{number}")
            while counts[number].done < counts[number].wanted:
                try:
                    _one_timeline(bench, sandbox, moments, seconds / steps, counts[number])
                except BrokenError as error:
                    counts[number].failures.append(str(error))
                    print(f"FAILED: {error}", flush=True)

        lab.in_parallel(bench.sandboxes, [functools.partial(do, number) for number in range(parallel)])
    failures = [text for count in counts for text in count.failures]
    print(
        f"\n{sum(count.done for count in counts)} SIGKILLs (seed {seed}) over "
        f"{sum(count.timelines for count in counts)} finished timelines of {steps} states, {len(failures)} failures, "
        f"{time.monotonic() - started:.0f} s"
    )
    return len(failures)


def _one_timeline(bench: Bench, sandbox: Sandbox, moments: random.Random, step_seconds: float, kills: Kills) -> None:
    """A timeline from nothing to its end, killed again and again."""
    sandbox.restore(bench.template("empty"))
    users = Users.of(sandbox.project)
    expected = bench.expected["six"]
    while True:
        left = len(expected) - len(lab.recorded(sandbox.project))
        run = sandbox.start("run")
        if kills.done < kills.wanted:
            run.process.join(moments.uniform(0, (left + 1) * step_seconds))
        else:
            run.process.join(lab.PATIENCE)
        if not run.process.is_alive():
            if status := run.end():
                raise BrokenError(f"a run that was not killed ended with status {status}: {run.errors()}")
            _all_there(sandbox, users, expected)
            kills.timelines += 1
            return
        everything = moments.random() < 0.5
        run.process.kill()
        if everything:
            for process in sandbox.strays():
                with contextlib.suppress(Exception):
                    process.kill()
        run.end()
        kills.done += 1
        states = len(lab.recorded(sandbox.project))
        print(f"kill {kills.done:3}: {states} states, {'with all its children' if everything else 'alone'}", flush=True)
        checks.whole(sandbox.project, users)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="chooses the sample and the order, and the random moments")
    parser.add_argument("--cases", type=int, help="so many cells of the matrix; by default all")
    parser.add_argument("--only", nargs="+", default=[], help="cells whose name has one of these words in it")
    parser.add_argument("--results", type=Path, help="a file that keeps finished cases")
    parser.add_argument("--random", type=int, metavar="KILLS", help="SIGKILLs at random moments instead of the matrix")
    parser.add_argument("--parallel", type=int, default=2, help="cases or timelines side by side")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that file systems are unmounted
    if given.random:
        sys.exit(1 if run_random(given.random, given.seed, given.parallel) else 0)
    cases = [case for case in matrix() if not given.only or any(word in case.name for word in given.only)]
    random.Random(given.seed).shuffle(cases)  # a run that is cut short has been everywhere, too
    sys.exit(1 if run_matrix(cases[: given.cases], given.results, given.parallel) else 0)


if __name__ == "__main__":
    main()
