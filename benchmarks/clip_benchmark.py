"""Scores of the same model on the same sets: this project's, and those of the CLIP_benchmark program.

    python3 -m venv clipbench && clipbench/bin/pip install clip-benchmark requests 'numpy<2.3'
    .venv/bin/python benchmarks/clip_benchmark.py --python clipbench/bin/python [--keep FOLDER]

Miniature sets in CLIP_benchmark's WebDataset layout (one prompt, an ensemble, two classes of one name, pairs of images
and captions) and a tiny CLIP that is trained for a few seconds, as a folder that open_clip loads. Both programs run as
they are: here ``clip-benchmark:FOLDER#test``, the nodes that prepare and evaluate; there ``clip_benchmark eval``,
without mixed precision. Status 1 where a score differs in metrics.json's four decimals.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tasks.evaluate.node import evaluate  # noqa: E402
from tasks.model import models, torchvision_shim  # noqa: E402
from tasks.params import Params  # noqa: E402
from tasks.prepare import fetch_evaluation, node  # noqa: E402

COLOURS = {
    "red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 60, 220), "yellow": (225, 215, 50),
    "purple": (150, 50, 190), "orange": (240, 140, 30),
}  # fmt: skip
SHAPES = ("square", "circle")
THINGS = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
ONE = ("a photo of a {c}.",)
ENSEMBLE = (
    "a photo of a {c}.", "a blurry photo of a {c}.", "a low contrast photo of a {c}.", "a bad photo of a {c}.",
    "a good photo of a {c}.", "a photo of a small {c}.", "a photo of a big {c}.", "a drawing of the {c}.",
)  # fmt: skip
MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 16, "layers": 2},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}
PREPROCESS = {
    "mean": [0.481, 0.458, 0.408], "std": [0.269, 0.261, 0.276], "interpolation": "bicubic", "resize_mode": "shortest",
}  # fmt: skip
CLASSES = {"top1": "acc1", "top5": "acc5", "mean_per_class_recall": "mean_per_class_recall"}
DIRECTIONS = {"image_to_text": "text_retrieval_recall", "text_to_image": "image_retrieval_recall"}
"""Our names of scores → theirs."""
TOLERANCE = 5.1e-5
"""Percent: metrics.json has four decimals."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="of an environment that has clip-benchmark")
    parser.add_argument("--count", type=int, default=240, help="samples of a set")
    parser.add_argument("--steps", type=int, default=150, help="steps that the model is trained")
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = given.keep or Path(scratch)
        sets = made(home / "sets", given.count)
        trained(home / "model", given.steps)
        mine = ours(home / "project", home / "sets", home / "model", list(sets))
        theirs = {name: program(given.python, home, name, task) for name, task in sets.items()}
    wrong = 0
    print(f"{'set':12} {'score':24} {'chronomerge':>12} {'CLIP_benchmark':>15} {'difference':>11}")
    for name in sets:
        for score, value in theirs[name].items():
            if score not in mine[name]:
                raise SystemExit(f"{name}: CLIP_benchmark has {score}, and it is not among {', '.join(mine[name])}")
            difference = abs(mine[name][score] - value)
            wrong += difference > TOLERANCE
            print(f"{name:12} {score:24} {mine[name][score]:12.6f} {value:15.6f} {difference:11.1e}")
    return 1 if wrong else 0


def drawing(thing: str, random: np.random.Generator) -> Image.Image:
    """A noisy drawing of a thing, of a size of its own."""
    colour, shape = thing.split()
    width, height = (int(side) for side in random.integers(36, 64, 2))
    pixels = random.integers(150, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    side = int(random.integers(14, 30))
    x, y = int(random.integers(0, width - side)), int(random.integers(0, height - side))
    shade = tuple(int(c) for c in np.clip(np.array(COLOURS[colour]) + random.integers(-60, 60, 3), 0, 255))
    pen = ImageDraw.Draw(image)
    (pen.rectangle if shape == "square" else pen.ellipse)((x, y, x + side, y + side), fill=shade)
    return image


def made(home: Path, count: int) -> dict[str, str]:
    """The sets, in CLIP_benchmark's layout; name → task."""
    random = np.random.default_rng(0)
    things = [THINGS[int(number)] for number in random.integers(0, len(THINGS), count)]
    images = [drawing(thing, random) for thing in things]
    labels = [THINGS.index(thing) for thing in things]
    write(home / "one", images, [str(label) for label in labels], "cls", THINGS, ONE)
    write(home / "ensemble", images, [str(label) for label in labels], "cls", THINGS, ENSEMBLE)
    same = [*THINGS[:-1], THINGS[0]]
    write(home / "twice", images, [str(label) for label in labels], "cls", same, ENSEMBLE)
    captions = [f"a photo of a {thing}, number {n}.\na {thing} on paper {n}" for n, thing in enumerate(things)]
    write(home / "pairs", images, captions, "txt", (), ())
    classification = dict.fromkeys(("one", "ensemble", "twice"), "zeroshot_classification")
    return {**classification, "pairs": "zeroshot_retrieval"}


def write(
    folder: Path,
    images: Sequence[Image.Image],
    texts: Sequence[str],
    kind: str,
    classes: Sequence[str],
    templates: Sequence[str],
) -> None:
    (folder / "test").mkdir(parents=True)
    half = len(images) // 2
    for shard, rows in enumerate((range(half), range(half, len(images)))):
        with tarfile.open(folder / f"test/{shard}.tar", "w") as tar:
            for row in rows:
                buffer = io.BytesIO()
                images[row].save(buffer, "PNG")
                for end, content in (("png", buffer.getvalue()), (kind, texts[row].encode())):
                    member = tarfile.TarInfo(f"s{row:07d}.{end}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    (folder / "test/nshards.txt").write_text("2\n", encoding="utf-8")
    if kind == "txt":
        (folder / "dataset_type.txt").write_text("retrieval\n", encoding="utf-8")
        return
    (folder / "classnames.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n", encoding="utf-8")


def trained(folder: Path, steps: int) -> None:
    """A tiny CLIP that has seen such drawings, as a folder that open_clip loads."""
    torchvision_shim.ensure()
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    random = np.random.default_rng(1)
    model: Any = open_clip.CLIP(**MODEL)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    tokenize = open_clip.SimpleTokenizer()
    mean, std = (np.array(PREPROCESS[key], np.float32) for key in ("mean", "std"))
    for _ in range(steps):
        things = [THINGS[int(number)] for number in random.permutation(len(THINGS))]
        pixels = [np.asarray(drawing(thing, random).resize((32, 32)), np.float32) / 255 for thing in things]
        batch = torch.from_numpy(((np.stack(pixels) - mean) / std).transpose(0, 3, 1, 2))
        image, text, scale = model(batch, tokenize([f"a photo of a {thing}." for thing in things]))
        logits, target = scale * image @ text.T, torch.arange(len(things))
        loss = torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.T, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder.mkdir(parents=True)
    config = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, folder / "open_clip_model.safetensors")


def ours(project: Path, sets: Path, model: Path, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """What this project's nodes measure."""
    params = Params.model_validate({
        "timeline": "compared", "base": {"model": f"local-dir:{model}"}, "stream": [], "train": {"steps": 1},
        "evaluate": {
            "adaptation": [{"name": name, "test": [f"clip-benchmark:{sets / name}#test"]} for name in names],
            "retention": [{"name": "last", "test": [f"clip-benchmark:{sets / names[0]}#test"]}],
        },
    })  # fmt: skip
    history, step = project / "data/history/model", project / "data/step"
    history.parent.mkdir(parents=True)
    step.mkdir(parents=True)
    models.resolve(params.base, project, history)
    models.fetch_tokenizer(params.base, project, history)
    shutil.copyfile(model / "open_clip_model.safetensors", step / "deployed.safetensors")
    fetch_evaluation(params, project / "data/raw/evaluation", project / "downloads", project=project)
    node.prepare_evaluation(project, params)
    evaluate(project, params)
    metrics = json.loads((project / "metrics.json").read_text(encoding="utf-8"))
    scores: dict[str, dict[str, float]] = {name: {} for name in names}
    for key, theirs in CLASSES.items():
        for name in metrics["top1"].keys() & scores.keys():
            scores[name][theirs] = metrics[key][name]
    for name, recall in metrics["recall"].items():
        for direction, theirs in DIRECTIONS.items():
            scores[name] |= {f"{theirs}@{k}": value for k, value in recall[direction].items()}
    return scores


def program(python: str, home: Path, name: str, task: str) -> dict[str, float]:
    """What CLIP_benchmark's own program measures, in percent."""
    out = home / f"{name}.json"
    command = [
        python, "-m", "clip_benchmark.cli", "eval", "--dataset", f"wds/{name}", "--dataset_root",
        str(home / "sets/{dataset}"), "--model", f"local-dir:{home / 'model'}", "--pretrained", "none", "--task", task,
        "--no_amp", "--num_workers", "0", "--batch_size", "64", "--recall_k", "1", "5", "10", "--output", str(out),
    ]  # fmt: skip
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=home, check=False, encoding="utf-8"
    )
    if done.returncode or not out.exists():
        raise SystemExit(f"clip_benchmark: {name}: {done.stdout[-500:]}{done.stderr[-1500:]}")
    return {
        key: 100 * value
        for key, value in json.loads(out.read_text(encoding="utf-8"))["metrics"].items()
        if value is not None
    }


if __name__ == "__main__":
    sys.exit(main())
