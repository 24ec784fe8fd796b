"""The nodes ``initialize`` and ``train`` on a project folder, as ``dvc.yaml`` declares them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch

from tasks import checkpoints, models, nodes, randomness
from tasks.datasets import Dataset
from tasks.errors import UserError
from tasks.params import Params, require_parts
from tasks.progress import Progress, silent
from tasks.train import augment, mixture
from tasks.train.launch import launch
from tasks.train.loop import Batch, Point, Training, fit
from tasks.train.pools import Pool
from tasks.train.recipe import Recipe
from tasks.train.saved import Saved
from tasks.train.vocabulary import Vocabulary
from tasks.train.world import ALONE, World

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

    Trains on the mixture of update, buffer and pretraining pools, from where a killed run of the same key stopped.
    Nothing is trained where the arrival is an expert of its own, or at step 0 where the base comes with its weights:
    then the expert is what was given.

    Raises:
        UserError: damaged inputs, an expert of another architecture, or a loss that is not finite.
    """
    given = _given(project, params)
    if given is not None:
        _copy(given, project / EXPERT)
        _report(project / TRAINING, [], {"trained": False, "steps": 0, "samples": 0})
        progress("train", 1, 1)
        return
    processes = _processes(params)
    if processes > 1:
        launch(project, params, processes, _threads(params, processes), progress)
    else:
        train_expert(project, params, ALONE, progress)


def train_expert(project: Path, params: Params, world: World, progress: Progress) -> None:
    """One process's part in `train`; the first of them writes what was made."""
    models.configure(_threads(params, world.size))
    step, seed = params.step or 0, params.seed
    recipe = recipe_of(params)
    pools, shares = _pools(project, params)
    model = models.build(project / MODEL)
    models.load_weights(model, checkpoints.load(project / INIT), project / INIT)
    model.to(models.device())
    order = mixture.Order(
        [_draws(pool, params) for pool in pools],
        mixture.counts(shares, [len(pool) for pool in pools], recipe.batch_size),
    )
    captions = Captions([pool.captions for pool in pools], models.tokenizer(project / MODEL))
    vocabulary = Vocabulary(model, captions.tokens) if Vocabulary.serves(model) else None
    if vocabulary:
        captions.tokens = vocabulary.renumber(captions.tokens)
    # torch's global generator serves only modules that drop at random; none is left to chance.
    with torch.random.fork_rng(devices=[]):
        dropout = randomness.derive(seed, step, "dropout")
        training = Training(model, recipe, models.preprocess(project / MODEL), dropout, world)
        saved = Saved(nodes.unfinished(project, "train"))
        fit(training, batches(seed, step, pools, order, captions, world), saved, params.save_every, progress)
    if world.rank:
        return
    drawn = {pool.name: count * recipe.steps for pool, count in zip(pools, order.per_batch, strict=True)}
    summary = {"trained": True, "steps": recipe.steps, "samples": recipe.steps * recipe.batch_size, "drawn": drawn}
    facts = {"recipe": asdict(recipe), "skipped": training.skipped, "loss": training.curve[-1].loss}
    _report(project / TRAINING, training.curve, summary | facts)
    weights = model.state_dict()
    if vocabulary:
        vocabulary.restore(weights, training.decay)
    checkpoints.save(project / EXPERT, weights)


def recipe_of(params: Params) -> Recipe:
    """The recipe of a step: ``base.train`` sets the size of the base's training, ``train`` everything else."""
    train, step = params.train, params.step or 0
    size = params.base.train if step == 0 and params.base.train else train
    same = {
        f.name: getattr(train, f.name) for f in fields(Recipe) if f.name not in ("steps", "batch_size", "lr", "earlier")
    }
    return Recipe(steps=size.steps, batch_size=size.batch_size, lr=size.lr, earlier=max(step - 1, 0), **same)


class Captions:
    """Every caption of the pools, tokenized once."""

    def __init__(self, of_pools: Sequence[Sequence[str]], tokenize: models.Tokenizer):
        texts = sorted({caption for captions in of_pools for caption in captions})
        # Captions are equal if they read the same to the model: case and what lies beyond its context do not count.
        self.tokens, same = torch.unique(tokenize(texts), dim=0, return_inverse=True)
        """int64, one row for each caption that reads differently."""
        index_of = dict(zip(texts, same.tolist(), strict=True))
        self.of_pools = [np.array([index_of[c] for c in captions], dtype=np.int64) for captions in of_pools]
        """For each pool the row of each sample's caption, int64."""


def batches(
    seed: int, step: int, pools: Sequence[Pool], order: mixture.Order, captions: Captions, world: World = ALONE
) -> Callable[[int], Batch]:
    """The function from a batch's index to this process's part of it."""

    def batch(index: int) -> Batch:
        rows = order.rows(index)
        caption = torch.from_numpy(np.concatenate([of[r] for of, r in zip(captions.of_pools, rows, strict=True)]))
        mine = world.part(len(caption))
        starts = np.cumsum([0, *map(len, rows)])
        own = [r[max(mine.start - s, 0) : max(mine.stop - s, 0)] for r, s in zip(rows, starts[:-1], strict=True)]
        return Batch(
            images=np.concatenate([pool.images(r) for pool, r in zip(pools, own, strict=True) if len(r)]),
            crops=augment.draw_crops(len(caption), randomness.generator(seed, step, "crop", index))[mine],
            tokens=captions.tokens[caption[mine]],
            captions=caption,
            ids=lambda: [name for pool, r in zip(pools, rows, strict=True) if len(r) for name in pool.ids(r)],
        )

    return batch


def _processes(params: Params) -> int:
    """As many as the params say, or one for each GPU."""
    if params.train.processes:
        return params.train.processes
    gpus = max(torch.cuda.device_count(), 1)
    try:
        require_parts(recipe_of(params).batch_size, gpus, params.train.accumulate)
    except ValueError as error:
        raise UserError(f"train.{error} (one for each GPU here); set train.processes or the batch size") from None
    return gpus


def _threads(params: Params, processes: int) -> int:
    """Of each process."""
    return max((params.threads or len(os.sched_getaffinity(0))) // processes, 1)


def _draws(pool: Pool, params: Params) -> mixture.Draws:
    """How a pool is gone through; the buffer as ``train.buffer`` says, the others sample by sample."""
    purpose = (params.seed, params.step or 0, "order", pool.name)
    by = params.train.buffer.uniform_by
    if pool.name == "buffer" and by != "sample":
        return mixture.Balanced(pool.groups(by), *purpose)
    return mixture.Shuffled(len(pool), *purpose)


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
    shares, size, folder = params.train.mixture, params.train.buffer.size, project / POOLS
    known = folder / "pretraining"
    pretraining = [Dataset(known)] if shares.pretraining and known.exists() else []
    names = [n for n in _names(folder / "pools.json") if n != "pretraining"] if shares.buffer else []
    earlier = [Dataset(folder / name) for name in names]
    keep = mixture.reservoir(params.seed, names, [len(data) for data in earlier], size) if size else None
    return (
        [Pool("pretraining", pretraining), update, Pool("buffer", earlier, keep)],
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
