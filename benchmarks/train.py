"""Training speed, side by side with open_clip's own training script.

    .venv/bin/python benchmarks/train.py [--model demo] [--model b32] [--steps 30] [--threads 2] [--peer DIR]

One model, the same images and captions, batch size and thread count, float32. open_clip's script (`open_clip_train`)
reads them as image files from a table, as it does; ours from a prepared data set. Both are timed from one optimizer
step to the next: samples/s is the batch size over the median, after the first five. On a machine that does other work
too, look at `--threads 1` and the samples per second of processor time (of the process itself: a data worker's is not
in it). For ours also the share of a step outside forward, backward and optimizer. Then zero-shot evaluation: images
classified, and classes made a classifier of, the best of six turns each.

The script imports `webdataset` and `braceexpand` whatever it reads; `--peer` names a folder that has them
(`pip install --no-deps --target DIR webdataset braceexpand`).
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
SIZE = 32
WARM = 5
MODELS: dict[str, dict[str, Any]] = {
    "demo": json.loads((ROOT / "icons-clip.json").read_text(encoding="utf-8")),
    # ViT-B/32's widths, heads, text tower and context; small images, few layers.
    "b32": {
        "embed_dim": 512,
        "vision_cfg": {"image_size": SIZE, "patch_size": 8, "width": 768, "layers": 2},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 2},
    },
}
ADJECTIVES = (
    "red",
    "green",
    "small",
    "large",
    "happy",
    "smiling",
    "folded",
    "waving",
    "broken",
    "heavy",
    "old",
    "round",
)
NOUNS = ("face", "hand", "apple", "train", "flag", "guitar", "umbrella", "clock", "turtle", "mountain", "rocket", "key")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=MODELS, help="by default all")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer", type=Path, help="a folder with webdataset and braceexpand")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        print(json.dumps(PARTS[given.part](given)))
        return
    with tempfile.TemporaryDirectory() as folder:
        given.folder = Path(folder)
        for name in given.model or MODELS:
            measure(given, name)


def measure(given: argparse.Namespace, name: str) -> None:
    home = given.folder / name
    draw(home, MODELS[name], given.batch * 8)
    outputs = {}
    for part in ("ours", "peer0", "peer1", "evaluate"):
        call = [sys.executable, __file__, "--part", part, "--folder", str(home), "--steps", str(given.steps)]
        call += ["--batch", str(given.batch), "--threads", str(given.threads)]
        path = os.pathsep.join([str(ROOT), *([str(given.peer)] if given.peer else [])])
        environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads), "PYTHONPATH": path}
        done = subprocess.run(call, capture_output=True, text=True, env=environment, check=False, encoding="utf-8")
        if done.returncode:
            sys.exit(f"{part}: {done.stderr[-3000:]}")
        outputs[part] = json.loads(done.stdout.splitlines()[-1])
    ours, alone, helped, evaluated = (outputs[part] for part in ("ours", "peer0", "peer1", "evaluate"))
    peer = max(alone["rate"], helped["rate"])
    print(f"{name}: batch {given.batch}, {given.threads} threads, float32, {SIZE} px")
    print(f"  training    chronomerge {ours['rate']:8.0f} samples/s, {ours['cpu']:8.0f} a processor second;", end=" ")
    print(f"outside forward, backward and optimizer {100 * ours['outside']:.1f} %")
    print(f"              open_clip   {alone['rate']:8.0f} samples/s, {alone['cpu']:8.0f} a processor second;", end=" ")
    print(f"with a data worker {helped['rate']:.0f} samples/s")
    print(f"              {ours['rate'] / peer:.2f} ×, by processor time {ours['cpu'] / alone['cpu']:.2f} ×")
    for what, peers in (("images", ("peer0", "peer1")), ("classes", ("peer",))):
        rate, cpu = (evaluated[f"{what} ours {unit}"] for unit in ("rate", "cpu"))
        best, peer_cpu = max(evaluated[f"{what} {p} rate"] for p in peers), evaluated[f"{what} {peers[0]} cpu"]
        print(f"  evaluation  chronomerge {rate:8.0f} {what}/s, {cpu:8.0f} a processor second")
        print(f"              open_clip   {best:8.0f} {what}/s, {peer_cpu:8.0f} a processor second")
        print(f"              {rate / best:.2f} ×, by processor time {cpu / peer_cpu:.2f} ×")


def draw(home: Path, config: dict[str, Any], count: int) -> None:
    """The same random blots as image files with a table, and as a prepared data set."""
    from PIL import Image

    from tasks.model import models
    from tasks.model.datasets import Card, Sample, write
    from tasks.params import Base

    random = np.random.default_rng(0)
    images = home / "images"
    images.mkdir(parents=True)
    classes = [f"{a} {n}" for a in ADJECTIVES for n in NOUNS]
    samples, rows = [], []
    for i in range(count):
        label = i % len(classes)
        blot = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((SIZE, SIZE))
        caption = f"a drawing of a {classes[label]}, number {i}."
        blot.save(images / f"{i}.png")
        rows.append((str(images / f"{i}.png"), caption))
        samples.append(Sample(str(i), np.asarray(blot), caption, label))
    write(home / "prepared", Card("blots", SIZE, tuple(classes)), samples, count)
    with (home / "table.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("filepath", "title"), *rows])
    (home / "peer.json").write_text(json.dumps(config), encoding="utf-8")
    models.resolve(Base(model=str(home / "peer.json"), pretrained="x.safetensors"), home, home / "model")


def ours(given: argparse.Namespace) -> dict[str, float]:
    """Our loop, as the train node puts it together."""
    import torch

    from tasks.model import models
    from tasks.model.datasets import Dataset
    from tasks.train import loop, mixture
    from tasks.train.node import Captions, batches
    from tasks.train.pools import Pool
    from tasks.train.recipe import Recipe
    from tasks.train.saved import Saved
    from tasks.train.vocabulary import Vocabulary

    models.configure(given.threads)
    torch.manual_seed(0)
    home = given.folder
    pool = Pool("update", [Dataset(home / "prepared")])
    model = models.build(home / "model")
    captions = Captions([pool.captions], models.tokenizer(home / "model"))
    vocabulary = Vocabulary(model, captions.tokens)
    captions.tokens = vocabulary.renumber(captions.tokens)
    order = mixture.Order([mixture.Shuffled(len(pool), 0)], [given.batch])
    recipe = Recipe(given.steps, given.batch, 1e-3, 0.2, 0.1, 1.0)
    training = loop.Training(model, recipe, models.preprocess(home / "model"), 0)
    inside: list[float] = []
    with stepped() as ends, counted(
        (loop, "features"), (loop, "contrastive_loss"), (torch.Tensor, "backward"), (torch.optim.AdamW, "step"),
        (torch.optim.AdamW, "zero_grad"), (torch.nn.utils, "clip_grad_norm_"),
    ) as spent:  # fmt: skip
        loop.fit(
            training,
            batches(0, 1, [pool], order, captions),
            Saved(home / "saved"),
            1e9,
            lambda *_: inside.append(spent[0]),
        )
    wall = np.diff([wall for wall, _ in ends])[WARM:].sum()
    return rates(ends, given.batch) | {"outside": float(1 - (inside[-1] - inside[WARM]) / wall)}


@contextmanager
def stepped() -> Iterator[list[tuple[float, float]]]:
    """Wall clock and processor time, in seconds, at the end of every optimizer step while the block lasts."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    ends: list[tuple[float, float]] = []
    hook = register_optimizer_step_post_hook(lambda *_: ends.append((time.perf_counter(), time.process_time())))
    yield ends
    hook.remove()


def rates(ends: list[tuple[float, float]], batch: int) -> dict[str, float]:
    """Samples a second, by the wall clock and by processor time."""
    wall, cpu = (np.median(np.diff(clock)[WARM:]) for clock in zip(*ends, strict=True))
    return {"rate": batch / float(wall), "cpu": batch / float(cpu)}


@contextmanager
def counted(*named: tuple[Any, str]) -> Iterator[list[float]]:
    """The seconds spent in some functions while the block lasts; one call may be within another."""
    spent, depth = [0.0], [0]

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **settings: Any) -> Any:
            depth[0] += 1
            started = time.perf_counter()
            try:
                return function(*args, **settings)
            finally:
                depth[0] -= 1
                if not depth[0]:
                    spent[0] += time.perf_counter() - started

        return call

    before = [(home, name, getattr(home, name)) for home, name in named]
    for home, name, function in before:
        setattr(home, name, timed(function))
    try:
        yield spent
    finally:
        for home, name, function in before:
            setattr(home, name, function)


def peer(given: argparse.Namespace, workers: int) -> dict[str, float]:
    """open_clip's script on the same files."""
    from tasks.model import torchvision_shim

    torchvision_shim.ensure()
    import open_clip
    import torch
    from open_clip_train.main import main as script

    torch.set_num_threads(given.threads)
    home = given.folder
    open_clip.add_model_config(home / "peer.json")
    epochs = -(-given.steps // 8)  # the data are eight batches
    arguments = [
        "--model", "peer", "--train-data", str(home / "table.csv"), "--csv-separator", ",", "--batch-size",
        str(given.batch), "--epochs", str(epochs), "--lr", "1e-3", "--beta2", "0.98", "--eps", "1e-6", "--wd", "0.2",
        "--warmup", "3", "--grad-clip-norm", "1.0", "--workers", str(workers), "--precision", "fp32", "--device",
        "cpu", "--logs", str(home / "logs"), "--name", f"run{workers}", "--save-frequency", "0",
        "--aug-cfg", "scale=(0.9,1.0)", "--seed", "0",
    ]  # fmt: skip
    with stepped() as ends:
        script(arguments)
    return rates(ends, given.batch)


def evaluate(given: argparse.Namespace) -> dict[str, float]:
    """Zero-shot classification of all images, the classifier given, model and images as in training; and the
    classifier of their classes. Each is the best of six."""
    from argparse import Namespace

    from tasks.model import torchvision_shim

    torchvision_shim.ensure()
    import open_clip
    import torch
    from open_clip_train import zero_shot
    from torchvision.datasets import ImageFolder  # type: ignore[import-not-found,unused-ignore]

    from tasks.evaluate import zeroshot
    from tasks.evaluate.memory import keeping_memory
    from tasks.model import models
    from tasks.model.datasets import Dataset

    models.configure(given.threads)
    home = given.folder
    model = models.build(home / "model").eval()
    how = models.preprocess(home / "model")
    data = Dataset(home / "prepared")
    classifier = torch.nn.functional.normalize(
        torch.randn(len(data.card.classes), MODELS[home.name]["embed_dim"]), dim=1
    )
    folder = home / "classes"
    for i, label in enumerate(data.labels):
        (folder / f"{label:03d}").mkdir(parents=True, exist_ok=True)
        (folder / f"{label:03d}" / f"{i}.png").write_bytes((home / "images" / f"{i}.png").read_bytes())
    zero_shot.accuracy = _top  # its own converts an array of one element to a float, which NumPy no longer does
    transform = open_clip.image_transform(SIZE, is_train=False, mean=how.mean, std=how.std)
    args = Namespace(device="cpu", precision="fp32", batch_size=256)
    tokenize = models.tokenizer(home / "model")

    def theirs(workers: int) -> None:
        loader = torch.utils.data.DataLoader(ImageFolder(str(folder), transform), batch_size=256, num_workers=workers)
        zero_shot.run(model, classifier.T, loader, args)

    @keeping_memory()
    def own() -> None:
        zeroshot.predict(model, data.images, np.arange(len(data)), classifier, how, 256, lambda _done: None)

    def own_classes() -> None:
        texts = zeroshot.prompts("blots", data.card.classes, [data.card.prompt])
        zeroshot.classifier(model, zeroshot.tokens("blots", texts, tokenize), 256)

    def their_classes() -> None:
        prompt = [lambda name: data.card.prompt.replace("{}", name)]
        open_clip.build_zero_shot_classifier(model, tokenize, data.card.classes, prompt, None)  # at once, as ours

    images, classes = len(data), len(data.card.classes)
    sides: dict[str, tuple[Callable[[], None], int]] = {
        "images ours": (own, images),
        "images peer0": (functools.partial(theirs, 0), images),
        "images peer1": (functools.partial(theirs, 1), images),
        "classes ours": (own_classes, classes),
        "classes peer": (their_classes, classes),
    }
    best = dict.fromkeys((f"{name} {unit}" for name in sides for unit in ("rate", "cpu")), 0.0)
    for _ in range(6):  # in turn, because other work on the machine comes and goes
        for name, (run, count) in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            best[f"{name} rate"] = max(best[f"{name} rate"], count / wall)
            best[f"{name} cpu"] = max(best[f"{name} cpu"], count / cpu)
    return best


def _top(output: Any, target: Any, topk: Sequence[int]) -> list[float]:
    hits = output.topk(max(topk), 1).indices == target[:, None]
    return [float(hits[:, :k].sum()) for k in topk]


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {
    "ours": ours,
    "peer0": functools.partial(peer, workers=0),
    "peer1": functools.partial(peer, workers=1),
    "evaluate": evaluate,
}

if __name__ == "__main__":
    main()
