"""mergekit's YAML configurations, as arguments of `tasks.merge.merge`: for techniques and settings that both have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import UserError


@dataclass(frozen=True)
class Configuration:
    """A merge as a configuration file describes it; paths are taken from the file's folder."""

    technique: str
    settings: dict[str, Any]
    experts: list[Path]
    base: Path | None
    weights: list[float] | None
    dtype: str | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Method:
    """One of mergekit's methods: its parameters → our settings; defaults that differ from ours."""

    parameters: Mapping[str, str]
    defaults: Mapping[str, Any]
    weighted: bool = True
    task_vectors: bool = True
    random: bool = False


_SUM = {"lambda": "scale", "normalize": "normalize"}
_SPARSE = {**_SUM, "density": "density"}
_METHODS = {
    "linear": _Method({"normalize": "normalize"}, {}, task_vectors=False),
    "slerp": _Method({"t": "t"}, {}, weighted=False, task_vectors=False),
    "karcher": _Method(
        {"max_iter": "iterations", "tol": "tolerance"},
        {"iterations": 10, "tolerance": 1e-5},
        weighted=False,
        task_vectors=False,
    ),
    "task_arithmetic": _Method(_SUM, {"scale": 1.0, "normalize": False}),
    "ties": _Method(_SPARSE, {"scale": 1.0, "normalize": True, "density": 1.0}),
    "dare_linear": _Method(_SPARSE, {"scale": 1.0, "normalize": False, "density": 1.0}, random=True),
    "dare_ties": _Method(_SPARSE, {"scale": 1.0, "normalize": False, "density": 1.0}, random=True),
    "breadcrumbs": _Method(
        {**_SPARSE, "gamma": "gamma"}, {"scale": 1.0, "normalize": False, "density": 1.0, "gamma": 0.01}
    ),
    "breadcrumbs_ties": _Method(
        {**_SPARSE, "gamma": "gamma"}, {"scale": 1.0, "normalize": False, "density": 1.0, "gamma": 0.01}
    ),
    "della": _Method(
        {**_SPARSE, "epsilon": "epsilon"},
        {"scale": 1.0, "normalize": True, "density": 1.0, "epsilon": 0.15},
        random=True,
    ),
    "della_linear": _Method(
        {**_SPARSE, "epsilon": "epsilon"},
        {"scale": 1.0, "normalize": False, "density": 1.0, "epsilon": 0.15},
        random=True,
    ),
    "model_stock": _Method({}, {}, weighted=False),
    "sce": _Method({"select_topk": "density"}, {"density": 1.0, "floor": 1e-6}, weighted=False),
}
_WITHOUT_EFFECT = {"int8_mask"}
_SWITCHES = {"normalize", "int8_mask"}
_KEYS = {"merge_method", "base_model", "models", "parameters", "dtype", "out_dtype"}


def load(path: Path) -> Configuration:
    """Read a configuration.

    Raises:
        UserError: it is no such file, or asks for what has no counterpart; names the key.
    """
    raw = _read(path)
    _require_keys(path, "", raw, _KEYS)
    name = raw.get("merge_method")
    if not isinstance(name, str) or name not in _METHODS:
        raise UserError(f"{path}: merge_method {name!r:.60} is not supported; there are {', '.join(sorted(_METHODS))}")
    method = _METHODS[name]
    base = raw.get("base_model")
    if base is not None and not _is_path(base):
        raise UserError(f"{path}: base_model {base!r:.60} should be the path of a model")
    models = _models(path, raw.get("models"))
    inputs = [m for m in models if not (method.task_vectors and m["model"] == base)]
    if name == "slerp":
        if base is None:
            raise UserError(f"{path}: slerp needs base_model, the model at t = 0")
        inputs = [{"model": base}, *(m for m in models if m["model"] != base)]
    if not inputs:
        raise UserError(f"{path}: models names no model besides base_model; add one")
    settings = dict(method.defaults)
    shared = _mapping(path, "parameters", raw.get("parameters"))
    given = _settings(path, method, shared, inputs)
    if "epsilon" in given:
        given["epsilon"] = float(given["epsilon"])
    settings.update(given)
    if "epsilon" in settings:
        settings["epsilon"] *= 2  # theirs is to each side, ours the whole width
        if settings["density"] == 1:
            settings["epsilon"] = 0.0
    folder = path.parent
    for model in inputs:
        if not (folder / model["model"]).exists():
            raise UserError(
                f"{path}: there is no model {folder / model['model']}; a model is a file or a folder, and none is "
                "downloaded"
            )
    warnings = (f"{name} draws at random: the draws are ours, and kept entries are divided by density",)
    return Configuration(
        technique=name,
        settings=settings,
        experts=[folder / m["model"] for m in inputs],
        base=folder / base if base is not None and name != "slerp" else None,
        weights=_weights(path, method, shared, inputs),
        dtype=_dtype(path, raw),
        warnings=warnings if method.random and settings["density"] < 1 else (),
    )


def _read(path: Path) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        raw = YAML(typ="safe").load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (YAMLError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path}: not a YAML file: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected keys such as merge_method and models at the top level")
    return raw


def _require_keys(path: Path, where: str, raw: Mapping[Any, Any], known: set[str]) -> None:
    for key in raw:
        if not isinstance(key, str) or key not in known:
            raise UserError(f"{path}: {where}{key!s:.60} is not supported; it may have {', '.join(sorted(known))}")


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value


def _models(path: Path, models: Any) -> list[dict[str, Any]]:
    if not isinstance(models, list) or not all(isinstance(m, dict) and _is_path(m.get("model")) for m in models):
        raise UserError(f"{path}: models should be a list of mappings with the key model, the path of a model")
    for i, model in enumerate(models):
        _require_keys(path, f"models[{i}].", model, {"model", "parameters"})
        _mapping(path, f"models[{i}].parameters", model.get("parameters"))
    return models


def _mapping(path: Path, where: str, value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{path}: {where} should map names to numbers, got {value!r:.60}")
    return value or {}


def _dtype(path: Path, raw: Mapping[str, Any]) -> str | None:
    for key in ("out_dtype", "dtype"):
        value = raw.get(key)
        if value is not None and not isinstance(value, str):
            raise UserError(f"{path}: {key} {value!r:.60} should be a name, such as float32")
        if value:
            return str(value)
    return None


def _settings(path: Path, method: _Method, shared: Mapping[str, Any], inputs: list[dict[str, Any]]) -> dict[str, Any]:
    accepted = set(method.parameters) | ({"weight"} if method.weighted else set()) | _WITHOUT_EFFECT
    settings: dict[str, Any] = {}
    for place in (shared, *((m.get("parameters") or {}) for m in inputs)):
        for key, value in place.items():
            if not isinstance(key, str) or key not in accepted:
                raise UserError(
                    f"{path}: parameter {key!s:.60} is not supported; there are {', '.join(sorted(accepted))}"
                )
            _require_number(path, key, value)
    for key, ours in method.parameters.items():
        values = [v for v in (_of(m, key, shared) for m in inputs) if v is not None]
        if any(v != values[0] for v in values) or len(values) not in (0, len(inputs)):
            raise UserError(f"{path}: {key} differs between models; give one for all")
        if values:
            settings[ours] = values[0]
    return settings


def _weights(
    path: Path, method: _Method, shared: Mapping[str, Any], inputs: list[dict[str, Any]]
) -> list[float] | None:
    if not method.weighted:
        return None
    values = [_of(m, "weight", shared) for m in inputs]
    if None in values:
        missing = inputs[values.index(None)]["model"]
        raise UserError(f"{path}: the model {missing} has no weight, which mergekit asks for")
    return [float(v) for v in values if v is not None]


def _of(model: dict[str, Any], key: str, shared: Mapping[str, Any]) -> Any:
    return (model.get("parameters") or {}).get(key, shared.get(key))


def _require_number(path: Path, key: str, value: Any) -> None:
    """Switches take true or false (or 1 or 0, as in mergekit), all else takes a finite number."""
    if key in _SWITCHES:
        if value not in (True, False):
            raise UserError(f"{path}: parameter {key} is {value!r:.60}; give true or false")
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(
            f"{path}: parameter {key} is {value!r:.60}; gradients and filters are not supported, give a number"
        )
    if not math.isfinite(value):
        raise UserError(f"{path}: parameter {key} is {value!r:.60}; give a finite number")
