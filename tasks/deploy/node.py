"""The node ``deploy`` on a project folder, as ``dvc.yaml`` declares it: merge, then rotate if asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.merge import node as merging
from tasks.params import Params
from tasks.progress import Progress, silent

if TYPE_CHECKING:
    import torch

    from tasks.deploy.probe import Probe

MODEL = Path("data/history/model")
DEPLOYED = Path("data/step/deployed.safetensors")
REFERENCE = Path("data/history/reference")
"""The deployed weights of the state that ``deploy.compatible_with`` names, and that state's tag; else there is none."""
NOTE = Path("data/step/running/compatible.json")
TEXTS = 64
"""Captions of the probe whose similarities to its images are compared before and after."""
MOST = 1e-5
"""A similarity that changes by more is no rounding: then the model is not what `folding` takes it for."""


def deploy(project: Path, params: Params, progress: Progress = silent) -> None:
    """As `tasks.merge.node.deploy`; with a reference, the deployed copy is then rotated into its space.

    With ``time.deploy: routed`` there is no one model from step 1 on, and `tasks.deploy.routed` writes its folder.

    The running model stays as it was merged: task vectors keep one base. ``data/step/running/compatible.json`` says
    what was done.

    Raises:
        UserError: as `tasks.merge.node.deploy`; or there is no image to fit a rotation on, or nowhere to fold it into.
    """
    merging.deploy(project, params, progress)
    if params.routes:
        from tasks.deploy import routed

        routed.deploy(project, params, progress)
    elif (project / REFERENCE).exists():
        note = _rotate(project, params, progress)
        (project / NOTE).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


def _rotate(project: Path, params: Params, progress: Progress) -> dict[str, Any]:
    from tasks.deploy import folding, probe, rotation
    from tasks.errors import UserError
    from tasks.model import checkpoints, models

    assert params.deploy
    towers = folding.of_folder(project / MODEL)
    models.configure(params.threads)
    arrived = params.arrival.name if params.arrival else "pretraining"
    drawn = probe.drawn(project, params.deploy.probe, params.seed, arrived)
    path = project / REFERENCE / "deployed.safetensors"
    old, _ = _features(project, checkpoints.load(path), path, drawn, lambda n: progress("probe", n, 2 * len(drawn)))
    weights = checkpoints.load(project / DEPLOYED)
    new, before = _features(
        project, weights, project / DEPLOYED, drawn, lambda n: progress("probe", len(drawn) + n, 2 * len(drawn))
    )
    turn, directions = rotation.rotation(new, old)
    turned = folding.folded(weights, towers, turn)
    _, after = _features(project, turned, project / DEPLOYED, drawn.first(TEXTS), lambda _: None)
    change = float((after - before).abs().max())
    if not change <= MOST:
        raise UserError(
            f"deploy.compatible_with: a rotation in both projections changes similarities of this model by"
            f" {change:.1g}; leave deploy.compatible_with out, and report the model"
        )
    checkpoints.save(project / DEPLOYED, turned)
    if directions < new.shape[1]:
        progress(
            "note:", 1, 1,
            f"compatibility: {len(drawn)} images decide {directions} of {new.shape[1]} directions; the others stay as"
            " they are",
        )  # fmt: skip
    return {
        "state": json.loads((project / REFERENCE / "reference.json").read_text(encoding="utf-8"))["state"],
        "images": len(drawn),
        "directions": directions,
        "cosine_before": round(float((new.double() * old).sum(dim=1).mean()), 6),
        "cosine": round(float(((new.double() @ turn) * old).sum(dim=1).mean()), 6),
        "similarity_change": change,
    }


def _features(
    project: Path, weights: dict[str, torch.Tensor], source: Path, drawn: Probe, on_done: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the probe's images, float32 (N, D); and the similarities of its first images and captions, float32 (n, n)."""
    from tasks.model import models

    model = models.build(project / MODEL)
    models.load_weights(model, weights, source)
    model.to(models.device()).eval()
    images = drawn.features(model, models.preprocess(project / MODEL), on_done)
    texts = drawn.texts(model, models.tokenizer(project / MODEL), TEXTS)
    return images, images[: len(texts)] @ texts.T
