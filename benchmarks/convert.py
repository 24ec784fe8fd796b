"""Converting a model, side by side with transformers' own loading and saving.

    .venv/bin/python benchmarks/convert.py [--model ViT-B-32] [--model ViT-L-14] [--repeat 3] [--home DIR]

Random weights in transformers' float32 folder. Each turn is a process of its own, in turns; what is timed starts after
the imports. ``ours``: `tasks.convert.convert` to open_clip's folder, and back to transformers'. ``transformers``:
``CLIPModel.from_pretrained`` and ``save_pretrained`` of the same folder, which changes nothing in it. Seconds are the
best of the turns, memory is the largest resident set in the turn less what it was after the imports.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIGURATIONS = {
    "tiny": {"width": 64, "layers": 1, "heads": 1, "patch": 16, "text": 64, "text_heads": 1, "embed": 32},
    "ViT-B-32": {"width": 768, "layers": 12, "heads": 12, "patch": 32, "text": 512, "text_heads": 8, "embed": 512},
    "ViT-L-14": {"width": 1024, "layers": 24, "heads": 16, "patch": 14, "text": 768, "text_heads": 12, "embed": 768},
}

MAKE = """
import json, sys
from transformers import CLIPConfig, CLIPModel
c, out = json.loads(sys.argv[1]), sys.argv[2]
vision = dict(hidden_size=c["width"], intermediate_size=4 * c["width"], num_hidden_layers=c["layers"],
              num_attention_heads=c["heads"], patch_size=c["patch"], projection_dim=c["embed"])
text = dict(hidden_size=c["text"], intermediate_size=4 * c["text"], num_hidden_layers=min(c["layers"], 12),
            num_attention_heads=c["text_heads"], projection_dim=c["embed"])
CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=c["embed"])).save_pretrained(out)
"""
TIMED = """
import json, os, resource, sys, time
from pathlib import Path
source, out = Path(sys.argv[1]), Path(sys.argv[2])
{imports}
def high_water():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024
Path("/proc/self/clear_refs").write_text("5")
before, start = high_water(), time.perf_counter()
{work}
print(json.dumps(dict(seconds=time.perf_counter() - start, megabytes=high_water() - before)))
"""
OURS = (
    "from tasks.convert import convert\nfrom tasks.model import models\nmodels.preload()",
    "convert(source, {to!r}, out)",
)
TURNS = {
    "ours, to open_clip": (OURS[0], OURS[1].format(to="open_clip")),
    "ours, to transformers": (OURS[0], OURS[1].format(to="transformers")),
    "transformers, load and save": (
        "from transformers import CLIPModel",
        "CLIPModel.from_pretrained(source).save_pretrained(out)",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=sorted(CONFIGURATIONS))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--home", type=Path, help="where the models lie meanwhile")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.home) as home:
        for model in given.model or ["ViT-B-32", "ViT-L-14"]:
            _measure(model, Path(home), given.repeat)


def _measure(model: str, home: Path, repeat: int) -> None:
    source, out = home / "source", home / "out"
    subprocess.run([sys.executable, "-c", MAKE, json.dumps(CONFIGURATIONS[model]), source], check=True)
    size = (source / "model.safetensors").stat().st_size
    print(f"{model}: {size / 1e6:,.0f} MB")
    best: dict[str, dict[str, float]] = {}
    for _ in range(repeat):
        for name, (imports, work) in TURNS.items():
            program = TIMED.format(imports=imports, work=work)
            done = subprocess.run(
                [sys.executable, "-c", program, source, out],
                cwd=ROOT,
                check=True,
                capture_output=True,
                text=True,
                encoding="utf-8",
            )
            shutil.rmtree(out)
            figures = json.loads(done.stdout.splitlines()[-1])
            known = best.setdefault(name, figures)
            best[name] = {key: min(value, known[key]) for key, value in figures.items()}
    for name, figures in best.items():
        rate = size / 1e6 / figures["seconds"]
        print(f"  {name:<28} {figures['seconds']:6.2f} s  {rate:7.0f} MB/s  {figures['megabytes']:8.0f} MB of memory")
    shutil.rmtree(source)


if __name__ == "__main__":
    main()
