"""mergekit's YAML configurations, as arguments of `tasks.merge.merge`: for techniques and settings that both have."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import layout, yaml
from tasks.errors import UserError
from tasks.merge.conditions import by_tensor, is_plain, require, value_at
from tasks.merge.parts import layers_of
from tasks.merge.technique import available
from tasks.model.inputs import open_model
from tasks.text import shortened


@dataclass(frozen=True)
class Configuration:
    """A merge as a configuration file describes it; paths are taken from the file's folder."""

    technique: str
    settings: dict[str, Any]
    experts: list[Path]
    base: Path | None
    weights: list[float] | None
    part_weights: dict[str, list[float]]
    """Of the tensors whose weights differ from these, by name."""
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
        {"scale": 1.0, "normalize": True, "density": 1.0, "epsilon": 0.3},
        random=True,
    ),
    "della_linear": _Method(
        {**_SPARSE, "epsilon": "epsilon"},
        {"scale": 1.0, "normalize": False, "density": 1.0, "epsilon": 0.3},
        random=True,
    ),
    "model_stock": _Method({}, {}, weighted=False),
    "sce": _Method({"select_topk": "density"}, {"density": 1.0, "floor": 1e-6}, weighted=False),
}
_WITHOUT_EFFECT = {"int8_mask"}
_SHARED = {"lambda", "normalize", "int8_mask", "t", "max_iter", "tol", "select_topk"}
"""Parameters that mergekit reads under the merge's own parameters alone."""
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
    shared = _mapping(path, "parameters", raw.get("parameters"))
    _require_parameters(path, name, method, shared, inputs)
    folder = path.parent
    for model in inputs:
        if not layout.is_there(folder / model["model"]):
            raise UserError(
                f"{path}: there is no model {shortened(str(folder / model['model']), 300)}; a model is a file or a "
                "folder, and none is downloaded"
            )
    given = [*((m.get("parameters") or {}) for m in inputs), shared]
    first = folder / (base if base is not None else inputs[0]["model"])
    names = _names(first) if any(not is_plain(v) for own in given for v in own.values()) else [""]
    places = layers_of(names)

    def settled(tensor: str) -> tuple[tuple[str, Any], ...]:
        return tuple(sorted(_settings(path, method, given, tensor, places[tensor]).items()))

    def weighed(tensor: str) -> tuple[float, ...] | None:
        return _weights(path, method, inputs, given, tensor, places[tensor])

    common, others = by_tensor(names, settled)
    weights, part_weights = by_tensor(names, weighed)
    settings = dict(common)
    if others:
        settings["parts"] = {
            tensor: {key: value for key, value in own if value != settings.get(key)} for tensor, own in others.items()
        }
    densities = [dict(own)["density"] for own in (common, *others.values())] if method.random else [1.0]
    warnings = (f"{name} draws at random: the draws are ours, and kept entries are divided by density",)
    return Configuration(
        technique=name,
        settings=settings,
        experts=[folder / m["model"] for m in inputs],
        base=folder / base if base is not None and name != "slerp" else None,
        weights=list(weights) if weights is not None else None,
        part_weights={tensor: list(own) for tensor, own in part_weights.items() if own is not None},
        dtype=_dtype(path, raw),
        warnings=warnings if min(densities) < 1 else (),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, ValueError) as error:
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


def _require_parameters(
    path: Path, name: str, method: _Method, shared: Mapping[str, Any], inputs: list[dict[str, Any]]
) -> None:
    """Refuse parameters that are unknown, misplaced or no numbers, and gradients and filters where none can be."""
    accepted = set(method.parameters) | ({"weight"} if method.weighted else set()) | _WITHOUT_EFFECT
    by_part = available()[name].by_part()
    for i, place in enumerate((shared, *((m.get("parameters") or {}) for m in inputs))):
        for key, value in place.items():
            if not isinstance(key, str) or key not in accepted:
                raise UserError(
                    f"{path}: parameter {key!s:.60} is not supported; there are {', '.join(sorted(accepted))}"
                )
            if i and key in _SHARED:
                raise UserError(
                    f"{path}: parameter {key} is one for all models, and mergekit ignores it beside a model; "
                    "give it under the parameters of the merge"
                )
            if key in _SWITCHES:
                if is_plain(value) and value in (True, False):
                    continue
                raise UserError(f"{path}: parameter {key} is {value!r:.60}; give true or false")
            require(path, key, value)
            if not is_plain(value) and key != "weight" and method.parameters[key] not in by_part:
                raise UserError(f"{path}: parameter {key} is {value!r:.60}; it is one for all tensors, give a number")


def _names(model: Path) -> list[str]:
    """The tensors of a model, from its header."""
    with ExitStack() as stack:
        return sorted(open_model(model, "the model", stack, None).entries)


def _settings(
    path: Path, method: _Method, given: list[dict[str, Any]], tensor: str, place: float
) -> dict[str, Any]:  # fmt: skip
    """Our settings for one tensor."""
    settings = dict(method.defaults)
    *models, shared = given
    for key, ours in method.parameters.items():
        values = [_of(model, shared, key, tensor, place) for model in models]
        if any(value != values[0] for value in values):
            raise UserError(f"{path}: {key} differs between models; give one for all")
        if values[0] is not None:
            settings[ours] = values[0]
            if key == "epsilon":
                settings[ours] = 2 * values[0]  # theirs is to each side, ours the whole width
    if "epsilon" in settings and settings["density"] == 1:
        settings["epsilon"] = 0.0
    return settings


def _weights(
    path: Path, method: _Method, inputs: list[dict[str, Any]], given: list[dict[str, Any]], tensor: str, place: float
) -> tuple[float, ...] | None:
    if not method.weighted:
        return None
    *models, shared = given
    weights = []
    for model, own in zip(inputs, models, strict=True):
        weight = _of(own, shared, "weight", tensor, place)
        if weight is None:
            where = f" for {tensor}" if tensor else ""
            raise UserError(f"{path}: the model {model['model']} has no weight{where}, which mergekit asks for")
        weights.append(float(weight))
    return tuple(weights)


def _of(own: Mapping[str, Any], shared: Mapping[str, Any], key: str, tensor: str, place: float) -> Any:
    """A model's own value, or else the one of all, or None."""
    value = value_at(own.get(key), tensor, place)
    return value_at(shared.get(key), tensor, place) if value is None else value
