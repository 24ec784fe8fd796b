"""The nodes ``initialize`` and ``train`` on a project folder, as ``dvc.yaml`` declares them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch

from tasks import checkpoints, models, randomness
from tasks.datasets import Dataset
from tasks.errors import UserError
from tasks.params import Params
from tasks.progress import Progress, silent
from tasks.train import augment, mixture
from tasks.train.loop import Batch, Point, Recipe, fit
from tasks.train.pools import Pool

MODEL = Path("data/history/model")
WEIGHTS = Path("data/history/weights")
POOLS = Path("data/history/pools")
ARRIVAL = Path("data/step/arrival")
INIT = Path("data/step/init.safetensors")
EXPERT = Path("data/step/expert.safetensors")
TRAINING = Path("data/step/training")


def initialize(project: Path, params: Params, progress: Progress = silent) -> None:
    """Write ``data/step/init.safetensors``: the weights that the step's expert starts from (TIME, stage 1).

    ``zs`` the base, ``ft`` the previous expert, ``ema`` the running model (the base, while there is none). At step 0
    the base itself: its weights as given, or random ones that depend on the seed alone.

    Raises:
        UserError: the weights are missing, damaged, or not those of the timeline's model.
    """
    source = _start(project / WEIGHTS, params)
    if source is None:
        checkpoints.save(project / INIT, random_weights(project / MODEL, params.seed))
    else:
        _copy(source, project / INIT)
    progress("initialize", 1, 1)


def random_weights(model: Path, seed: int) -> checkpoints.Weights:
    """Untrained weights of a model folder, as open_clip draws them, a pure function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.derive(seed, "init") % 2**63)
        return models.build(model).state_dict()


def train(project: Path, params: Params, progress: Progress = silent) -> None:
    """Write ``data/step/expert.safetensors`` and ``data/step/training``: the expert, and how it was made.

    Trains on the mixture of update, buffer and pretraining pools. Nothing is trained where the arrival is an expert
    of its own, or at step 0 where the base comes with its weights: then the expert is what was given.

    Raises:
        UserError: damaged inputs, an expert of another architecture, or a loss that is not finite.
    """
    given = _given(project, params)
    if given is not None:
        _copy(given, project / EXPERT)
        _report(project / TRAINING, [], {"trained": False, "steps": 0, "samples": 0})
        progress("train", 1, 1)
        return
    models.configure(params.threads)
    recipe = recipe_of(params)
    pools, shares = _pools(project, params)
    preprocess = models.preprocess(project / MODEL)
    model = models.build(project / MODEL)
    models.load_weights(model, checkpoints.load(project / INIT), project / INIT)
    order = mixture.Order(
        params.seed,
        params.step or 0,
        [pool.name for pool in pools],
        [len(pool) for pool in pools],
        mixture.counts(shares, [len(pool) for pool in pools], recipe.batch_size),
    )
    batch = batches(params.seed, params.step or 0, pools, order, models.tokenizer(project / MODEL))
    # torch's global generator serves only modules that drop at random; none is left to chance.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.derive(params.seed, params.step or 0, "dropout") % 2**63)
        curve = fit(model.to(models.device()), recipe, batch, preprocess, progress)
    drawn = {pool.name: count * recipe.steps for pool, count in zip(pools, order.per_batch, strict=True)}
    summary = {"trained": True, "steps": recipe.steps, "samples": recipe.steps * recipe.batch_size, "drawn": drawn}
    _report(project / TRAINING, curve, summary | {"recipe": asdict(recipe), "loss": curve[-1].loss})
    checkpoints.save(project / EXPERT, model.state_dict())


def recipe_of(params: Params) -> Recipe:
    """The recipe of a step: ``base.train`` sets the size of the base's training, ``train`` everything else."""
    size = params.base.train if params.step == 0 and params.base.train else params.train
    train = params.train
    return Recipe(size.steps, size.batch_size, size.lr, train.weight_decay, train.warmup, train.clip)


def batches(
    seed: int, step: int, pools: Sequence[Pool], order: mixture.Order, tokenize: models.Tokenizer
) -> Callable[[int], Batch]:
    """The function from a batch's index to the batch; every caption is tokenized once, here."""
    captions = [pool.captions for pool in pools]
    texts = sorted({caption for of_pool in captions for caption in of_pool})
    # Captions are equal if they read the same to the model: case and what lies beyond its context do not count.
    tokens, same = torch.unique(tokenize(texts), dim=0, return_inverse=True)
    index_of = dict(zip(texts, same.tolist(), strict=True))
    caption_of = [np.array([index_of[caption] for caption in of_pool], dtype=np.int64) for of_pool in captions]

    def batch(index: int) -> Batch:
        rows = order.rows(index)
        drawn = [(pool, r) for pool, r in zip(pools, rows, strict=True) if len(r)]
        caption = torch.from_numpy(np.concatenate([of_pool[r] for of_pool, r in zip(caption_of, rows, strict=True)]))
        return Batch(
            images=np.concatenate([pool.images(r) for pool, r in drawn]),
            crops=augment.draw_crops(len(caption), randomness.generator(seed, step, "crop", index)),
            tokens=tokens[caption],
            captions=caption,
            ids=lambda: [name for pool, r in drawn for name in pool.ids(r)],
        )

    return batch


def _start(weights: Path, params: Params) -> Path | None:
    """The file a step starts from; None for random weights."""
    base = weights / "base.safetensors"
    if params.step == 0:
        return base if base.exists() else None
    if params.time.init == "ft":
        return weights / "expert.safetensors"
    running = weights / "running" / "ema.safetensors"
    return running if params.time.init == "ema" and running.exists() else base


def _given(project: Path, params: Params) -> Path | None:
    """Weights that make training needless; None where an expert is to be trained."""
    if params.step == 0 and params.base.train is None:
        return project / INIT
    arrived = project / ARRIVAL / "expert.safetensors"
    return arrived if arrived.exists() else None


def _pools(project: Path, params: Params) -> tuple[list[Pool], list[float]]:
    """The pools of a step and their shares; the base sees what arrives, alone."""
    update = Pool("update", [Dataset(project / ARRIVAL)])
    if params.step == 0:
        return [update], [1.0]
    shares = params.train.mixture
    folder = project / POOLS
    pretraining = [Dataset(folder / "pretraining")] if (folder / "pretraining").exists() else []
    earlier = [Dataset(folder / name) for name in _names(folder / "pools.json") if name != "pretraining"]
    return (
        [Pool("pretraining", pretraining), update, Pool("buffer", earlier)],
        [shares.pretraining, shares.update, shares.buffer],
    )


def _names(path: Path) -> list[str]:
    try:
        names: list[str] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no readable list of pools ({error})") from None
    return names


def _copy(source: Path, target: Path) -> None:
    """Copy a checkpoint under a temporary name, then rename.

    Raises:
        UserError: it is missing or not a complete safetensors file.
    """
    checkpoints.shapes(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, temporary)
    temporary.replace(target)


def _report(folder: Path, curve: Sequence[Point], summary: dict[str, object]) -> None:
    """``curve.csv`` and ``training.json``: facts that a rerun repeats, so no wall times."""
    shutil.rmtree(folder, ignore_errors=True)  # in a restored state its files are links into the cache
    folder.mkdir(parents=True)
    names = [field.name for field in fields(Point)]
    lines = [",".join(names), *(",".join(f"{value:.6g}" for value in asdict(point).values()) for point in curve)]
    (folder / "curve.csv").write_text("\n".join(lines) + "\n")
    (folder / "training.json").write_text(json.dumps(summary, indent=1) + "\n")
