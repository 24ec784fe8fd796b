"""The folder of a routed deployment, ``data/step/routed``: every expert's delta from the base, and the router.

Twin-Merging (Lu et al. 2024, arXiv 2406.15479) with the base as its shared model: θ(x) = θ_0 + C(θ_t − θ_0), t the
route of x. The base itself is ``data/history/weights/base.safetensors``. A step adds its own expert and its own
prototypes to what the step before left.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from tasks.deploy import probe
from tasks.errors import UserError
from tasks.merge import merge
from tasks.model import checkpoints, coded, models, router
from tasks.model.codec import Codec, chosen
from tasks.model.codecs.lossless import Lossless
from tasks.model.datasets import Dataset
from tasks.model.router import Route, Router
from tasks.params import Params
from tasks.progress import Progress, silent
from tasks.storage import atomic
from tasks.storage.cache import sha256_of

MODEL = Path("data/history/model")
BASE = Path("data/history/weights/base.safetensors")
LINEAGE = Path("data/history/weights/lineage.json")
PAST = Path("data/history/routed")
EXPERT = Path("data/step/expert")
"""Without the ending, which says whether it is coded."""
ROUTED = Path("data/step/routed")
NOTE = Path("data/step/running/routed.json")
Features = Callable[[Dataset], torch.Tensor]
"""All images of a data set → their features, of unit length: float32, shape (N, D)."""


def deploy(project: Path, params: Params, progress: Progress = silent) -> None:
    """Write ``data/step/routed``, and a note on its routes beside the running model.

    Raises:
        UserError: no image to route by; a file is missing or damaged; or the expert cannot be coded so.
    """
    assert params.arrival
    models.configure(params.threads)
    base = project / BASE
    (project / ROUTED).parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=(project / ROUTED).parent) as scratch,
        atomic.made_folder(project / ROUTED) as part,
    ):
        known, features = _start(project, params, progress)
        for one in known.routes:
            if one.file:
                shutil.copyfile(project / PAST / one.file, part / one.file)
        name = params.arrival.name
        route = Route(name=name, file=f"{name}{coded.SUFFIX}", arrivals=(name,), images=0)
        data = _arrived(project, name)
        known = _joined(known, route, data, features(data))
        _write_delta(project, params, part / f"{name}{coded.SUFFIX}", Path(scratch), progress)
        most = params.deploy.max_deltas if params.deploy else None
        while most and len(known.experts) > most:
            known = _fold(known, part, base, params, Path(scratch), progress)
        router.save(part / router.FILE, known)
        note = {
            "routes": {one.name: {"arrivals": list(one.arrivals), "images": one.images} for one in known.routes},
            "bytes": sum(path.stat().st_size for path in part.iterdir()),
        }
    (project / NOTE).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


def _start(project: Path, params: Params, progress: Progress) -> tuple[Router, Features]:
    """What the step before left; at the first expert, a router of the pretraining pool. And what computes features."""
    base = project / BASE
    model = models.build(project / MODEL)
    models.load_weights(model, checkpoints.load(base), base)
    model.to(models.device()).eval()
    how = models.preprocess(project / MODEL)

    def features(data: Dataset) -> torch.Tensor:
        every = probe.Probe({data.card.name: data}, len(data), params.seed)
        return every.features(model, how, lambda done: progress("routing", done, len(data), data.card.name))

    path = project / PAST / router.FILE
    if path.exists():
        known = router.load(path)
        if known.base != (digest := sha256_of(base)):
            raise UserError(f"{path}: is a router of another base (sha256 {known.base[:12]}…, here {digest[:12]}…)")
        return known, features
    number = int(json.loads((project / LINEAGE).read_text(encoding="utf-8"))["step"])
    if number > 1:
        raise UserError(f"{path}: no such router; the earlier state is incomplete, run `chronomerge doctor`")
    known = router.empty(sha256_of(base))
    pool = project / probe.POOLS / "pretraining"
    if (pool / "dataset.json").exists():
        data = Dataset(pool)
        known = _joined(
            known, Route(name=router.BASE, file=None, arrivals=(), images=0), data, features(data)
        )  # fmt: skip
    return known, features


def _joined(known: Router, route: Route, data: Dataset, features: torch.Tensor) -> Router:
    return router.joined(known, route, data.card.classes, features, torch.from_numpy(data.labels.astype("int64")))


def _arrived(project: Path, name: str) -> Dataset:
    """The images of the arrival: its own, or those that the user names beside an expert."""
    for folder in (project / probe.ARRIVAL, project / probe.ARRIVAL / probe.BESIDE_EXPERT):
        if (folder / "dataset.json").exists():
            return Dataset(folder)
    raise UserError(f"deploy: routed: arrival {name!r} has no image to route by; give it some in stream: measure")


def codec_of(params: Params) -> Codec:
    """The codec of deltas that are made anew: factors are those of a training, and a merge has none."""
    named = params.deploy.deltas if params.deploy and params.deploy.deltas else params.store.experts
    codec = chosen(named)
    return Lossless() if codec.factors else codec


def _write_delta(project: Path, params: Params, to: Path, scratch: Path, progress: Progress) -> None:
    expert = coded.stored(project / EXPERT)
    if params.deploy is None or params.deploy.deltas is None:
        shutil.copyfile(expert, to)
        return
    plain = scratch / "expert.safetensors"
    coded.as_safetensors(expert, project / BASE, plain)
    _code(params, plain, project / BASE, to, progress)
    plain.unlink()


def _code(params: Params, plain: Path, base: Path, to: Path, progress: Progress) -> None:
    codec = codec_of(params)
    if codec.codes:
        coded.encode(codec, plain, base, to, progress)
    else:
        shutil.copyfile(plain, to)


def _fold(known: Router, folder: Path, base: Path, params: Params, scratch: Path, progress: Progress) -> Router:
    """Fold the least used expert into the nearest: Σ f θ / Σ f over both, f the images that were routed to each."""
    least, into = router.to_fold(known)
    names = [folder / str(known.routes[number].file) for number in (into, least)]
    used = [float(known.routes[number].images) for number in (into, least)]
    made = scratch / "folded.safetensors"
    weights = used if sum(used) else [1.0, 1.0]
    merge("linear", names, base, made, weights=weights, threads=params.threads, progress=progress)
    for path in names:
        path.unlink()
    _code(params, made, base, names[0], progress)
    made.unlink()
    a, b = (known.routes[number].name for number in (least, into))
    progress("note:", 1, 1, f"deploy: routed: {a} is folded into {b}: {used[1]:.0f} of the images went to it")
    return router.folded(known, least, into, names[0].name)
