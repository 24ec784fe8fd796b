"""How a state was made, as files: its params, its manifest, and its last merge in the manner of mergekit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks import choice, layout, yaml
from tasks.errors import UserError
from tasks.merge.technique import Technique
from tasks.params import TechniqueChoice
from tasks.publish import public
from tasks.record import State, start_of

FOLDER = "recipe"


def write(state: State, into: Path) -> None:
    """Write ``params.yaml``, ``manifest.json`` and ``merge.yaml`` into a new folder."""
    into.mkdir()
    (into / "params.yaml").write_text(yaml.dump(public.params(state.params)), encoding="utf-8")
    (into / "manifest.json").write_text(
        json.dumps(public.manifest(state.manifest.as_dict()), indent=1) + "\n", encoding="utf-8"
    )
    (into / "merge.yaml").write_text(yaml.dump(last_merge(state)), encoding="utf-8")


def last_merge(state: State) -> dict[str, Any]:
    """The merge that made a state's deployed model; models are files of states, with their md5."""
    time, previous = state.settings.time, start_of(state)
    expert = _model(state, state.expert)
    if previous is None:
        return {"merge_method": "passthrough", "models": [expert]}
    past = [state]
    while (before := start_of(past[-1])) is not None:
        past.append(before)
    base, experts = past[-1], past[-2::-1]
    recipe: dict[str, Any] = {"merge_method": public.shortened(time.technique.name)}
    settings = public.plain(settings_of(time.technique))
    if time.deploy == "ft" or (time.deploy == "ema" and len(experts) == 1 and time.ema_start == "first-expert"):
        return {"merge_method": "passthrough", "models": [expert]}
    if time.deploy == "ema":
        running = _model(previous, layout.DEPLOYED if previous == base else f"{layout.RUNNING}/ema.safetensors")
        models = [expert, running]
        if isinstance(share := settings.pop("weight", None), int | float):
            for model, weight in zip(models, (share, 1 - share), strict=True):
                model["parameters"] = {"weight": weight}
    else:
        models = [_model(one, one.expert) for one in experts]
        settings.pop("weight", None)
    recipe |= {"base_model": _model(base, base.expert)["model"], "models": models, "dtype": "float32"}
    return {**recipe, **({"parameters": settings} if settings else {}), "seed": state.settings.seed}


def settings_of(technique: TechniqueChoice) -> dict[str, Any]:
    """What decides the result: the settings that were given, and the technique's defaults where it is one of ours."""
    if ":" in technique.name:
        return dict(technique.settings)
    try:
        made = choice.create(Technique, technique)  # type: ignore[type-abstract]
    except UserError:  # of a state that was recorded when it had other settings
        return dict(technique.settings)
    return made.model_dump(mode="json", exclude_none=True)


def _model(state: State, path: str) -> dict[str, Any]:
    entry = state.entries.get(path) or state.entries.get(path.rpartition("/")[0])
    return {"model": f"{state.tag}:{path}", **({"md5": entry.md5} if entry else {})}
