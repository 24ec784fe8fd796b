"""What makes a report's numbers again: commands, code, versions and machines."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tasks.record import Manifest, deployed, pointers_of
from tasks.report.records import Records

DRAWS = ("pandas", "altair", "vl-convert-python")
"""What computes tables and figures; the nodes' own libraries are in the manifests."""


@dataclass(frozen=True)
class Command:
    """One command line, and what it does."""

    line: str
    does: str


@dataclass(frozen=True)
class Provenance:
    """Where the numbers of a report come from."""

    commands: tuple[Command, ...]
    code: tuple[str, ...]
    """The commits that the states ran; with a note where there were changes beside them."""
    versions: Mapping[str, str]
    """Library → version; several where the states differ."""
    devices: tuple[str, ...]
    pointers: tuple[str, ...] = ()
    """Where pointers are: ``champion of demo: state/demo/0003``."""


def of(records: Records, example: str, made_by: str, drawn_by: str) -> Provenance:
    """The provenance of some cells.

    ``example`` is the timeline whose newest state the commands name, ``made_by`` the command line that records what is
    shown, and ``drawn_by`` the one that draws the report.
    """
    manifests = [record.manifest for lineage in records.values() for record in lineage]
    lineage = next(lineage for cell, lineage in records.items() if cell.timeline == example)
    base, newest = lineage[0].state, lineage[-1].state
    commands = (
        Command(made_by, "runs what is missing of these timelines; what is recorded is not run again"),
        Command(f"git checkout {newest.tag} && dvc checkout", "code, params, data and weights of one state"),
        Command("dvc repro --force", "there: makes the same bytes again"),
        Command(f"chronomerge verify {newest.tag}", "the same in a worktree of its own, every hash compared"),
        Command(f"dvc metrics diff {base.tag} {newest.tag}", "metrics of the base and of that state"),
        Command(drawn_by, "this page"),
    )
    versions = {name: _joined(each.versions.get(name, "none") for each in manifests) for name in manifests[-1].versions}
    drawn = {name: importlib.metadata.version(name) for name in DRAWS}
    return Provenance(commands, _code(manifests), {**versions, **drawn}, _devices(manifests), _pointers(records))


def _pointers(records: Records) -> tuple[str, ...]:
    pointing = []
    for lineage in records.values():
        project, timeline = lineage[0].state.project, lineage[0].state.timeline
        there = {"deployed": deployed(project, timeline), **pointers_of(project, timeline)}
        pointing += [f"{name} of {timeline}: {state.tag}" for name, state in there.items() if state]
    return tuple(pointing)


def _code(manifests: Iterable[Manifest]) -> tuple[str, ...]:
    commits = {
        each.code.commit[:12] + (" with changes, which the states hold" if each.code.dirty else "")
        for each in manifests
    }
    return tuple(sorted(commits))


def _devices(manifests: Iterable[Manifest]) -> tuple[str, ...]:
    devices = {f"{each.name}, {each.threads} threads" for one in manifests for each in one.device.values()}
    return tuple(sorted(devices))


def _joined(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))
