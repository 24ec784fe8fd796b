"""A routed deployment beside the merged model on a server: bytes, memory and latency.

    .venv/bin/python benchmarks/routed.py [--model ViT-B-32] [--experts 8] [--images 64] [--batches 4] [--threads 1]
        [--codecs full lossless ternary signs] [--resident 1 8]

Weights are random, experts 1e-3 from the base; images are noise, and an image's route is drawn, each equally likely. A
way to serve runs in a process of its own, whose largest resident memory is given, less that of the process once it has
imported everything. ``merged`` embeds the images with one model. ``routed`` embeds them with the base, then each with
its own expert, one batch a route, of which ``resident`` stay in memory; the others are decoded when they are needed.
Classes' prompts are not embedded: they are embedded once an expert, and their features kept, either way.
"""

from __future__ import annotations

import argparse
import multiprocessing
import multiprocessing.connection
import tempfile
import time
from functools import lru_cache
from pathlib import Path

import torch

from tasks.model import checkpoints, coded, models
from tasks.model.codec import chosen
from tasks.params import Base, Named

CHANGE = 1e-3


def make(folder: Path, options: argparse.Namespace) -> None:
    """The base, the experts in full, and each codec's files."""
    models.resolve(Base(model=options.model, pretrained="train", train={"steps": 1}, pretraining=["x"]), folder, folder)
    torch.manual_seed(0)
    base = models.build(folder).state_dict()
    checkpoints.save(folder / "base.safetensors", base)
    for number in range(options.experts):
        expert = {
            name: tensor + CHANGE * torch.randn_like(tensor) if tensor.is_floating_point() else tensor
            for name, tensor in base.items()
        }
        plain = folder / "full" / f"{number}.weights"
        checkpoints.save(plain, expert)
        for name in options.codecs:
            if (codec := chosen(Named(name=name))).codes:
                coded.encode(codec, plain, folder / "base.safetensors", folder / name / plain.name)


def loaded(folder: Path, path: Path) -> torch.nn.Module:
    model = models.build(folder)
    models.load_weights(model, coded.load(path, folder / "base.safetensors"), path)
    return model.eval()


@torch.inference_mode()
def serve(
    folder: Path, codec: str | None, resident: int, options: argparse.Namespace,
    result: multiprocessing.connection.Connection,
) -> None:  # fmt: skip
    """Embed batches; sends the seconds of the first batch, of the mean of the others, and megabytes."""
    torch.set_num_threads(options.threads)
    models.preload()
    before = largest()
    base = loaded(folder, folder / "base.safetensors")
    expert = lru_cache(maxsize=resident)(lambda number: loaded(folder, folder / str(codec) / f"{number}.weights"))
    size, random = models.preprocess(folder).image_size, torch.Generator().manual_seed(1)
    seconds = []
    for _ in range(options.batches):
        images = torch.randn(options.images, 3, size, size, generator=random)
        went = torch.randint(options.experts, (options.images,), generator=random)
        start = time.perf_counter()
        base.encode_image(images, normalize=True)
        if codec is not None:
            for number in went.unique().tolist():
                expert(number).encode_image(images[went == number], normalize=True)
        seconds.append(time.perf_counter() - start)
    result.send((seconds[0], sum(seconds[1:]) / max(1, len(seconds) - 1), largest() - before))


def largest() -> float:
    """Megabytes of this program's largest resident memory; getrusage would count its parent's."""
    [line] = [
        line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:")
    ]
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32", help="a name of open_clip, or a JSON file")
    for name, default in (("experts", 8), ("images", 64), ("batches", 4), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--codecs", nargs="+", default=["full", "lossless", "ternary", "signs"])
    parser.add_argument("--resident", nargs="+", type=int, default=[1, 8])
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    print(
        f"{options.model}, {options.experts} experts, {options.images} images a batch, {options.threads} threads\n"
        f"{'':22} {'MB on disk':>11} {'MB of memory':>13} {'first batch s':>14} {'others s':>9}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make(folder, options)
        disk = (folder / "base.safetensors").stat().st_size
        ways = [("merged", None, 1), *((f"{c}, {r} resident", c, r) for c in options.codecs for r in options.resident)]
        for shown, codec, resident in ways:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=serve, args=(folder, codec, resident, options, sender))
            process.start()
            sender.close()
            first, others, memory = receiver.recv()
            process.join()
            deltas = sum(path.stat().st_size for path in (folder / codec).iterdir()) if codec else 0
            row = f"{(disk + deltas) / 1e6:11.0f} {memory:13.0f} {first:14.2f} {others:9.2f}"
            print(f"{shown:22} {row}", flush=True)


if __name__ == "__main__":
    main()
