"""The node ``deploy``: the running and the deployed model of one time step (TIME, arXiv 2412.06712, section 3)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.merge import engine
from tasks.merge.combined import combine
from tasks.merge.protocol import check, for_all
from tasks.merge.report import Report
from tasks.merge.sequential import Accumulator
from tasks.merge.technique import Technique, create
from tasks.params import Params
from tasks.progress import Progress, silent
from tasks.storage import atomic

_WEIGHTS = Path("data/history/weights")
_STEP = Path("data/step")
_STATISTICS = Path("statistics/expert.safetensors")
_EMA_STATISTICS = "ema.stats.safetensors"


def deploy(project: Path, params: Params, progress: Progress = silent) -> None:
    """Merge as ``params.time`` says, from ``data/history/weights`` and ``data/step/expert.safetensors``.

    Leaves ``data/step/deployed.safetensors`` and ``data/step/running``: ``running.json`` (what it holds), with
    ``ema.safetensors`` where the protocol uses the running model, and ``all`` (a running state) where all experts are
    deployed by a technique with a sequential form.

    Raises:
        UserError: an input is missing, unreadable, not finite or of another architecture, or the settings cannot work.
    """
    step = params.step
    if step is None:
        raise UserError("params.yaml has no step; run this node through chronomerge, or from a recorded state")
    technique = create(params.time.technique.name, params.time.technique.settings)
    expert = project / _STEP / "expert.safetensors"
    if not expert.is_file():
        raise UserError(f"{expert}: no such checkpoint; the train node writes it")
    number = _number(project / _WEIGHTS / "lineage.json")
    check(params.time, number)
    running = project / _STEP / "running"
    if running.exists():
        shutil.rmtree(running)
    running.mkdir(parents=True)
    deployed = project / _STEP / "deployed.safetensors"

    held: dict[str, Any] = {"step": step, "experts": number}
    if params.time.uses_ema:
        held["ema"] = _ema(project, params, number, technique, expert, running, progress)
    if step == 0 or params.time.deploy == "ft":
        _copy(expert, deployed)
    elif params.time.deploy == "ema":
        _copy(running / "ema.safetensors", deployed)
    else:
        held["all"] = _all(project, params, number, for_all(technique), expert, running / "all", deployed, progress)
    _write_json(running / "running.json", held)


def _ema(
    project: Path, params: Params, number: int, technique: Technique, expert: Path, running: Path, progress: Progress
) -> dict[str, Any]:
    """EMA_t = f([θ_t, EMA_{t-1}]): the new expert first. It starts at θ_0 or, with first-expert, at θ_1.

    A technique that looks at data also hands on the statistics of the running model. The base has none, so that there
    the recursion starts at θ_1.
    """
    start, out = params.time.ema_start, running / "ema.safetensors"
    measured = project / _STEP / _STATISTICS if technique.statistics and number else None
    if measured is not None and number == 1:
        _copy(_measured(measured), running / _EMA_STATISTICS)
    if number == 0 or (number == 1 and (start == "first-expert" or measured is not None)):
        _copy(expert, out)
        return {"start": start, "merges": 0}
    base = _needed(project / _WEIGHTS / "base.safetensors")
    before = _needed(project / _WEIGHTS / "running" / "ema.safetensors")
    statistics = None
    if measured is not None:
        statistics = [_measured(measured), _needed(project / _WEIGHTS / "running" / _EMA_STATISTICS)]
        combine(statistics[0], statistics[1], running / _EMA_STATISTICS)
    report = engine.merge(
        technique, [expert, before], base, out, statistics=statistics, seed=params.seed, threads=params.threads,
        progress=progress,
    ).report  # fmt: skip
    merges = number - (start == "first-expert" or measured is not None)
    return {"start": start, "merges": merges, "report": _noted(report, project, progress)}


def _all(
    project: Path, params: Params, number: int, technique: Technique, expert: Path, state: Path, out: Path,
    progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    base = _needed(project / _WEIGHTS / "base.safetensors")
    if isinstance(technique, Accumulator) and technique.sequential:
        previous = project / _WEIGHTS / "running" / "all" if number > 1 else None
        statistics = _measured(project / _STEP / _STATISTICS) if technique.statistics else None
        report = engine.advance(
            technique, expert, base, previous, state, out, statistics=statistics, seed=params.seed,
            threads=params.threads, progress=progress,
        )  # fmt: skip
        if report.experts != number:
            raise UserError(f"{previous}: holds {report.experts - 1} experts, and expert {number} needs {number - 1}")
        return {"report": _noted(report, project, progress)}
    earlier = [_needed(project / _WEIGHTS / "experts" / f"{t:04}.safetensors") for t in range(1, number)]
    report = engine.merge(
        technique, [*earlier, expert], base, out, seed=params.seed, threads=params.threads, progress=progress
    ).report
    return {"report": _noted(report, project, progress)}


def _noted(report: Report, project: Path, progress: Progress) -> dict[str, Any]:
    """The report as JSON, with paths from the project's folder, wherever that is; its notes are shown."""
    for text in report.notes:
        progress("note:", 1, 1, f"merging: {text}")

    def inside(text: str) -> str:
        return text.replace(f"{project}/", "") if project.is_absolute() else text

    content = report.as_json()
    if report.measured:
        content["measured"] = [{**one, "file": inside(one["file"])} for one in report.measured]
    if report.notes:
        content["notes"] = [inside(text) for text in report.notes]
    return content


def _measured(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: no such statistics file; the measure node writes it")
    return path


def _number(lineage: Path) -> int:
    """Which expert the step's is, counted from 1; 0 for the base. Arrivals that were skipped do not count."""
    try:
        return int(json.loads(lineage.read_text())["step"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{lineage}: does not say how many experts came before ({error})") from None


def _needed(path: Path) -> Path:
    if not path.is_file():
        raise UserError(
            f"{path}: no such checkpoint; the earlier state is incomplete, so restore it or run `chronomerge doctor`"
        )
    return path


def _copy(source: Path, target: Path) -> None:
    with atomic.made(target) as part:
        shutil.copyfile(source, part)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
