"""The node ``deploy``: the running and the deployed model of one time step (TIME, arXiv 2412.06712, section 3)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.merge import fitted
from tasks.merge.protocol import check, for_all
from tasks.merge.step import EMA, StepMerge, copy
from tasks.params import Params
from tasks.progress import Progress, silent

_STEP = Path("data/step")
_FIT = Path("data/step/fit")


def deploy(project: Path, params: Params, progress: Progress = silent) -> None:
    """Merge as ``params.time`` says, from ``data/history/weights`` and ``data/step/expert.safetensors``.

    Leaves ``data/step/deployed.safetensors`` and ``data/step/running``: ``running.json`` (what it holds), with
    ``ema.safetensors`` where the protocol uses the running model, and ``all`` (a running state) where all experts are
    deployed by a technique with a sequential form. Where ``params.fit`` is set, what is deployed is merged with the
    coefficients in ``data/step/fit``.

    Raises:
        UserError: an input is missing, unreadable, not finite or of another architecture, or the settings cannot work.
    """
    step = params.step
    if step is None:
        raise UserError("params.yaml has no step; run this node through chronomerge, or from a recorded state")
    merge = StepMerge.of(project, params, progress)
    check(params.time, merge.number)
    fit = fitted.read(project / _FIT) if params.fit else None
    chosen = fit.create() if fit else merge.technique
    running = project / _STEP / "running"
    if running.exists():
        shutil.rmtree(running)
    running.mkdir(parents=True)
    deployed = project / _STEP / "deployed.safetensors"

    held: dict[str, Any] = {"step": step, "experts": merge.number}
    of_ema = fit if params.time.deploy == "ema" else None
    if of_ema and of_ema.models:
        held["ema"] = merge.weighted(of_ema, running / EMA)
    elif params.time.uses_ema:
        held["ema"] = merge.running(chosen if of_ema else merge.technique, running)
    if step == 0 or params.time.deploy == "ft":
        merge.copy_expert(deployed)
    elif params.time.deploy == "ema":
        copy(running / EMA, deployed)
    elif params.routes:
        pass  # each expert by itself: `tasks.deploy.routed`
    elif fit and fit.models:
        held["all"] = merge.weighted(fit, deployed)
    else:
        held["all"] = merge.all(for_all(chosen), running / "all", deployed)
    _write_json(running / "running.json", held)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
