"""The nodes ``initialize`` and ``train`` on a project folder, as ``dvc.yaml`` declares them."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import torch

from tasks import nodes, randomness
from tasks.choice import Choice
from tasks.errors import UserError
from tasks.model import checkpoints, codec, coded, models
from tasks.model.codecs.lossless import Lossless
from tasks.model.datasets import Dataset
from tasks.model.factors import Factors
from tasks.model.holdout import held_out
from tasks.params import BaseTraining, Budget, Params, Train, require_parts
from tasks.progress import Progress, silent
from tasks.storage import atomic
from tasks.train import augment, budget, importance, memory, mixture, require_enough
from tasks.train import regularizer as regularizers
from tasks.train.launch import launch
from tasks.train.loop import Batch, Point, Training, fit
from tasks.train.measure import peak
from tasks.train.method import Method, chosen
from tasks.train.methods.full import Full
from tasks.train.pools import Pool
from tasks.train.recipe import Recipe
from tasks.train.regularizer import Regularizer
from tasks.train.saved import Saved
from tasks.train.vocabulary import NAME, Vocabulary
from tasks.train.world import ALONE, World

MODEL = Path("data/history/model")
WEIGHTS = Path("data/history/weights")
POOLS = Path("data/history/pools")
ARRIVAL = Path("data/step/arrival")
BASE = WEIGHTS / "base.safetensors"
INIT = Path("data/step/init.safetensors")
EXPERT = Path("data/step/expert.safetensors")
CODED_INIT, CODED_EXPERT = INIT.with_suffix(coded.SUFFIX), EXPERT.with_suffix(coded.SUFFIX)
TRAINING = Path("data/step/training")
PAST_IMPORTANCE = Path("data/history/regularizer")
IMPORTANCE = Path("data/step/regularizer")


def initialize(project: Path, params: Params, progress: Progress = silent) -> None:
    """Write ``data/step/init.safetensors``: the weights that the step's expert starts from (TIME, stage 1).

    With a codec and ``ft`` it is ``init.weights``, the last expert's file as it was stored.

    ``zs`` the base, ``ft`` the previous expert, ``ema`` the running model (the base, while there is none). At step 0
    the base itself: its weights as given, or random ones that depend on the seed alone.

    Raises:
        UserError: the weights are missing, damaged, or not those of the timeline's model.
    """
    source, target = _start(project / WEIGHTS, params), project / _init_of(params)
    if source is None:
        checkpoints.save(target, random_weights(project / MODEL, params.seed))
    else:
        _copy(source, target)
    progress("initialize", 1, 1)


def random_weights(model: Path, seed: int) -> checkpoints.Weights:
    """Untrained weights of a model folder, as open_clip draws them, a pure function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.derive(seed, "init") % 2**63)
        return models.build(model).state_dict()


def train(project: Path, params: Params, progress: Progress = silent) -> None:
    """Write ``data/step/expert.safetensors`` and ``data/step/training``: the expert, and a report on its training.

    With a codec the expert is ``expert.weights``.

    With a regularizer also ``data/step/regularizer``: its importances and anchors for the next step.

    Trains on the mixture of update, buffer and pretraining pools, and resumes a killed run of the same key. Trains
    nothing if the arrival is an expert, or at step 0 if the base has weights: then the expert is the given one.

    Raises:
        UserError: damaged inputs, an expert of another architecture, or a loss that is not finite.
    """
    if _give(project, params, progress):
        importance.pass_on(project / PAST_IMPORTANCE, project / IMPORTANCE)
        _report(project / TRAINING, [], {"trained": False, "steps": 0, "samples": 0})
        progress("train", 1, 1)
        return
    count = sum(map(len, _pools(project, params)[0]))
    require_enough(_size_key(params), _size(params).batch_size, count, params.step or 0)
    processes = _processes(params)
    if processes > 1:
        _within_budget(project, params)  # computed once, for all processes
        launch(project, params, processes, _threads(params, processes), progress)
    else:
        train_expert(project, params, ALONE, progress)


def train_expert(project: Path, params: Params, world: World, progress: Progress) -> None:
    """The part of one process in `train`; rank 0 writes the outputs.

    Raises:
        UserError: as `train`, or there is too little memory.
    """
    with memory.named(_size_key(params)):
        _train_expert(project, params, world, progress)


def _train_expert(project: Path, params: Params, world: World, progress: Progress) -> None:
    models.configure(_threads(params, world.size))
    step, seed = params.step or 0, params.seed
    method, regularizer = method_of(params), regularizer_of(params)
    recipe, spent = _within_budget(project, params)
    pools, shares = _pools(project, params)
    model = models.build(project / MODEL)
    models.load_weights(model, coded.load(project / _init_of(params), project / BASE), project / _init_of(params))
    model.to(models.device())
    order = mixture.Order(
        [_draws(pool, params) for pool in pools],
        mixture.counts(shares, [len(pool) for pool in pools], recipe.batch_size),
    )
    captions = Captions([pool.captions for pool in pools], models.tokenizer(project / MODEL))
    # A regularizer also pulls on the rows of tokens that do not occur.
    vocabulary = Vocabulary(model, captions.tokens) if Vocabulary.serves(model) and not regularizer else None
    if vocabulary:
        captions.tokens = vocabulary.renumber(captions.tokens)
    method.start(model, functools.partial(randomness.generator, seed, step, "method"))
    pull = None
    if regularizer:
        pull = regularizer.begin(model, importance.read(project / PAST_IMPORTANCE, regularizer.name))
    # Only dropout uses torch's global generator; `Training` seeds it for each part of a batch.
    with torch.random.fork_rng(devices=[]):
        dropout = randomness.derive(seed, step, "dropout")
        training = Training(model, recipe, models.preprocess(project / MODEL), dropout, world, pull)
        saved = Saved(nodes.unfinished(project, "train"))
        batch = batches(seed, step, pools, order, captions, world)
        fit(training, batch, saved, params.save_every, progress)

        def beyond(number: int) -> None:
            training.gradients(batch(recipe.steps + number))
            training.scaler.update()

        importances = pull.finish(beyond, recipe.batch_size) if pull else None
    if world.rank:
        return
    importance.write(project / IMPORTANCE, regularizer.name if regularizer else None, importances)
    drawn = {pool.name: count * recipe.steps for pool, count in zip(pools, order.per_batch, strict=True)}
    summary = {"trained": True, "steps": recipe.steps, "samples": recipe.steps * recipe.batch_size, "drawn": drawn}
    how = {"method": _described(method), "regularizer": _described(regularizer), "recipe": asdict(recipe)}
    facts = {"skipped": training.skipped, "loss": training.curve[-1].loss}
    _report(project / TRAINING, training.curve, summary | spent | how | facts)
    factors = method.factors(model)
    method.finish(model)
    weights = model.state_dict()
    if vocabulary:
        vocabulary.restore(weights, training.decay if model.get_parameter(NAME).requires_grad else 1.0)
    _save(project, params, weights, factors, progress)


def _save(
    project: Path, params: Params, weights: checkpoints.Weights, factors: Mapping[str, Factors], progress: Progress
) -> None:
    """Write the expert, coded where the params name a codec."""
    if not params.codes_expert:
        checkpoints.save(project / EXPERT, weights)
        return
    target = project / CODED_EXPERT
    with atomic.private_folder(target.with_name(".expert.uncoded")) as folder:
        checkpoints.save(folder / EXPERT.name, weights)
        chosen = codec.chosen(params.store.experts)
        given = factors if chosen.factors else None
        coded.encode(chosen, folder / EXPERT.name, project / BASE, target, progress, given)


def _init_of(params: Params) -> Path:
    return CODED_INIT if params.codes_start else INIT


def recipe_of(params: Params, steps: int) -> Recipe:
    """The recipe of a step: ``base.train`` sets the size of the base's training, ``train`` everything else."""
    train, step = params.train, params.step or 0
    size = _size(params)
    same = {
        f.name: getattr(train, f.name) for f in fields(Recipe) if f.name not in ("steps", "batch_size", "lr", "earlier")
    }
    return Recipe(steps=steps, batch_size=size.batch_size, lr=size.lr, earlier=max(step - 1, 0), **same)


def method_of(params: Params) -> Method:
    """The training method of a step; the base is trained in full.

    Raises:
        UserError: unknown method or setting.
    """
    return Full() if params.step == 0 else chosen(params.train.method)


def regularizer_of(params: Params) -> Regularizer | None:
    """The regularizer of a step, which also collects importances for the next one; at the base too.

    Raises:
        UserError: unknown regularizer or setting.
    """
    return regularizers.chosen(params.train.regularizer) if params.train.regularizer else None


def _size(params: Params) -> BaseTraining | Train:
    """The section of the params with the batch size, learning rate and budget of a step."""
    return params.base.train if params.step == 0 and params.base.train else params.train


def _size_key(params: Params) -> str:
    """The key of `_size` in params.yaml."""
    return "base.train" if params.step == 0 and params.base.train else "train"


def _within_budget(project: Path, params: Params) -> tuple[Recipe, dict[str, object]]:
    """The recipe with the steps that the budget buys; and for the report, the given and the spent budget.

    Raises:
        UserError: the budget does not buy one step.
    """
    method, regularizer, size = method_of(params), regularizer_of(params), _size(params)
    given = size.given if isinstance(size, Train) else Budget(steps=size.steps)
    recipe, extra = recipe_of(params, 1), regularizer.extra if regularizer else 0

    def price() -> budget.Price:
        folder = project / MODEL
        if not torch.cuda.is_available():
            return budget.price(folder, method, regularizer, recipe.batch_size)
        device: dict[str, object] = {
            "device": torch.cuda.get_device_name(),
            "precision": recipe.precision,
            "checkpointing": recipe.checkpointing,
            "accumulate": recipe.accumulate,
        }
        measure = functools.partial(peak, folder, recipe)
        return budget.price(folder, method, regularizer, recipe.batch_size, measure, device)

    steps = budget.steps(given, recipe.batch_size, price, extra)
    spent: dict[str, object] = {"steps": steps, "samples": steps * recipe.batch_size}
    if given.mafs is not None:
        each = price()
        flops = each.flops * (steps + extra)
        spent |= {"flops": flops, "memory": each.memory, "measured": each.measured, "mafs": flops * each.memory}
    return replace(recipe, steps=steps), {"given": given.model_dump(exclude_none=True), "spent": spent}


def _described(choice: Choice | None) -> dict[str, object] | None:
    return {"name": choice.name, **choice.model_dump(mode="json")} if choice else None


class Captions:
    """Every caption of the pools, tokenized once."""

    def __init__(self, of_pools: Sequence[Sequence[str]], tokenize: models.Tokenizer):
        texts = sorted({caption for captions in of_pools for caption in captions})
        # Captions are equal if their tokens are: case and text beyond the context do not count.
        self.tokens, same = torch.unique(tokenize(texts), dim=0, return_inverse=True)
        """int64, one row for each caption with other tokens."""
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
        draws = augment.draw(len(caption), randomness.generator(seed, step, "crop", index))
        views = []
        for pool, own, start in zip(pools, rows, starts[:-1], strict=True):
            low, high = max(mine.start, start), min(mine.stop, start + len(own))
            if low < high:
                views.append(pool.views(own[low - start : high - start], draws[low:high]))
        return Batch(
            images=np.concatenate([images for images, _ in views]),
            crops=np.concatenate([boxes for _, boxes in views]),
            tokens=captions.tokens[caption[mine]],
            captions=caption,
            ids=lambda: [name for pool, r in zip(pools, rows, strict=True) if len(r) for name in pool.ids(r)],
        )

    return batch


def _processes(params: Params) -> int:
    """The processes of the params, or one for each GPU."""
    if params.train.processes:
        return params.train.processes
    gpus = max(torch.cuda.device_count(), 1)
    try:
        require_parts(_size(params).batch_size, gpus, params.train.accumulate)
    except ValueError as error:
        raise UserError(f"train.{error} (one for each GPU); set train.processes or the batch size") from None
    return gpus


def _threads(params: Params, processes: int) -> int:
    """The threads of each process."""
    return max((params.threads or len(os.sched_getaffinity(0))) // processes, 1)


def _draws(pool: Pool, params: Params) -> mixture.Draws:
    """The order of a pool: the buffer by ``train.buffer``, the others by sample."""
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
        return coded.stored(weights / "expert")
    running = weights / "running" / "ema.safetensors"
    return running if params.time.init == "ema" and running.exists() else base


def _give(project: Path, params: Params, progress: Progress) -> bool:
    """Write the expert if nothing is to be trained: the base has weights, or one arrives. Else return False.

    Raises:
        UserError: the arriving expert does not fit the model.
    """
    arrived = coded.stored(project / ARRIVAL / "expert")
    if params.step == 0 and params.base.train is None:
        _copy(project / INIT, project / EXPERT)
    elif not arrived.exists():
        return False
    elif not params.codes_expert:
        _adopt(arrived, project / (BASE if params.codes_start else INIT), project / EXPERT)
    elif coded.is_coded(arrived):
        _copy(arrived, project / CODED_EXPERT)
    else:  # of a state that stores it in full: it stays what it is, whichever codec new experts have
        coded.encode(Lossless(), arrived, project / BASE, project / CODED_EXPERT, progress)
    return True


def _adopt(arrived: Path, like: Path, target: Path) -> None:
    """Write an expert trained elsewhere with the names, shapes and dtypes of other weights of the timeline.

    A scalar may have shape () or (1,): it gets the shape of the other.

    Raises:
        UserError: a tensor is missing, extra, of another shape, or not finite; the message names it and the file.
    """
    checkpoints.check_compatible(arrived, like)  # reads only the headers, before any load
    ours = checkpoints.load(like)
    weights = models.conform(checkpoints.load(arrived), ours, str(arrived))
    checkpoints.save(target, {name: tensor.to(ours[name].dtype) for name, tensor in weights.items()})


def _pools(project: Path, params: Params) -> tuple[list[Pool], list[float]]:
    """The pools of a step, without what is held out, and their shares; the base trains only on the arrival."""
    update = _trained_on("update", [Dataset(project / ARRIVAL)], params)
    if params.step == 0:
        return [update], [1.0]
    shares, size, folder = params.train.mixture, params.train.buffer.size, project / POOLS
    known = folder / "pretraining"
    pretraining = [Dataset(known)] if shares.pretraining and known.exists() else []
    names = [n for n in _names(folder / "pools.json") if n != "pretraining"] if shares.buffer else []
    earlier = [Dataset(folder / name) for name in names]
    keep = mixture.reservoir(params.seed, names, [len(data) for data in earlier], size) if size else None
    return (
        [_trained_on("pretraining", pretraining, params), update, _trained_on("buffer", earlier, params, keep)],
        [shares.pretraining, shares.update, shares.buffer],
    )


def _trained_on(name: str, parts: Sequence[Dataset], params: Params, keep: np.ndarray | None = None) -> Pool:
    """A pool of the rows that are not held out; of ``keep`` alone, where it is given."""
    if not params.train.holdout or not parts:
        return Pool(name, parts, keep)
    held = np.concatenate([held_out(part.images, params.train.holdout, params.seed) for part in parts])
    rows = np.flatnonzero(~held)
    return Pool(name, parts, rows if keep is None else np.intersect1d(rows, keep))


def _names(path: Path) -> list[str]:
    try:
        names: list[str] = json.loads(path.read_text(encoding="utf-8"))
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
    with atomic.made(target) as part:
        shutil.copyfile(source, part)


def _report(folder: Path, curve: Sequence[Point], summary: dict[str, object]) -> None:
    """Write ``curve.csv`` and ``training.json``: values that a rerun repeats, so no wall times."""
    shutil.rmtree(folder, ignore_errors=True)  # in a restored state its files are links into the cache
    folder.mkdir(parents=True)
    names = [field.name for field in fields(Point)]
    lines = [",".join(names), *(",".join(f"{value:.6g}" for value in asdict(point).values()) for point in curve)]
    (folder / "curve.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "training.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
