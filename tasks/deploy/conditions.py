"""What `deploy.compatible_with` needs, checked before any work: a state that can be, images, and a model that folds."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tasks.errors import UserError
from tasks.params import Params


def check(params: Params, project: Path, *, base: bool) -> None:
    """Check the settings of ``deploy`` against the stream and, where the base is still to be made, against its model.

    Raises:
        UserError: there is nothing that a rotation could be fitted on, or nowhere it could be folded into.
    """
    if params.deploy is None or params.deploy.compatible_with is None:
        return
    reference = params.deploy.reference_step
    if reference > len(params.stream):
        raise UserError(
            f"deploy.compatible_with: {params.deploy.compatible_with}: the stream has {len(params.stream)} arrivals, so"
            f" the last step is {len(params.stream)}"
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
