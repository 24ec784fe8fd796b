"""What `deploy.compatible_with` needs, checked before any work: a state that can be, images, and a model that folds."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tasks.errors import UserError
from tasks.params import Params
from tasks.units import counted


def check(params: Params, project: Path, *, base: bool) -> None:
    """Check the settings of ``deploy`` against the stream and, where the base is still to be made, against its model.

    Raises:
        UserError: there is nothing that a rotation could be fitted on, or nowhere it could be folded into.
    """
    _check_routed(params)
    if params.deploy is None or params.deploy.compatible_with is None:
        return
    reference = params.deploy.reference_step
    if reference > len(params.stream):
        raise UserError(
            f"deploy.compatible_with: {params.deploy.compatible_with}: the stream has "
            f"{counted(len(params.stream), 'arrival')}, so the last step is {len(params.stream)}"
        )
    images = bool(params.base.pretraining)
    for step, arrival in enumerate(params.stream, start=1):
        images = images or bool(arrival.update)
        if step > reference and not images and not arrival.measure:
            raise UserError(
                f"deploy.compatible_with: step {step}, {arrival.name!r}, has no image to fit the rotation on:"
                " nothing up to it brings any; give it some in stream: measure, or name base.pretraining"
            )
    if base:
        from tasks.deploy import folding  # imports torch
        from tasks.model import models

        with tempfile.TemporaryDirectory() as folder:
            models.resolve(params.base, project, Path(folder))
            folding.of_folder(Path(folder))


def _check_routed(params: Params) -> None:
    """Refuse what a routed deployment cannot do, and settings of one where there is none.

    Raises:
        UserError: names the key, and the way out.
    """
    given = params.deploy
    if params.time.deploy != "routed":
        for key in ("deltas", "max_deltas"):
            if given and getattr(given, key) is not None:
                raise UserError(
                    f"deploy.{key} is for routed deployments; set time: {{deploy: routed}}, or leave it out"
                )
        return
    if given and given.compatible_with is not None:
        raise UserError(
            "deploy.compatible_with: with time.deploy: routed each image is embedded by its own expert, so that no"
            " rotation serves them all; leave one of the two out"
        )
    if params.fit is not None:
        raise UserError("fit: time.deploy: routed merges nothing, so there is nothing to fit; take ema or all")
    if params.evaluate.compatibility:
        raise UserError(
            "evaluate.compatibility: with time.deploy: routed each image is embedded by its own expert, so that there"
            " is no one gallery; leave it out"
        )
    for head in params.evaluate.heads:
        if head.settings.get("features") in ("deployed", "aligned"):
            raise UserError(
                f"evaluate.heads: {head.shown}: features: {head.settings['features']} need one deployed model, and"
                " time.deploy: routed has one an expert; take features: base"
            )
    if given and given.deltas is not None:
        from tasks.model.codec import chosen

        if chosen(given.deltas).factors:
            raise UserError(
                f"deploy.deltas: {given.deltas.name} codes what a training leaves; set store.experts to it and leave"
                " deploy.deltas out: deltas are then stored so too"
            )
    for step, arrival in enumerate(params.stream, start=1):
        if not arrival.update and not arrival.measure:
            raise UserError(
                f"time.deploy: routed: step {step}, {arrival.name!r}, has no image to route by; give it some in stream:"
                " measure"
            )
