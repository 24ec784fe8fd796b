"""docs/tutorial.md, read and done: its params, its commands, its Python."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests import project

PAGE = (project.ROOT / "docs/tutorial.md").read_text()


@pytest.mark.long
def test_every_command_of_the_tutorial_runs(tmp_path: Path) -> None:
    folder = project.make(tmp_path / "clone")
    (folder / "tiny.json").rename(folder / "icons-clip.json")
    for drawn, name in (("base", "known"), ("first", "spring"), ("second", "summer")):
        shutil.copytree(folder / "drawings" / drawn, folder / "data/photos" / name)
    for number, file in enumerate(sorted((folder / "data/photos").rglob("*.png"))):
        image = Image.open(file)
        image.paste((number % 256, number // 4, 255 - number % 256), (0, 0, 6, 6))  # no two images are the same
        image.save(file)
    blocks = re.findall(r"^```([^\n]*)\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    (params,) = (block for kind, block in blocks if kind == "yaml")
    (folder / "params.yaml").write_text(re.sub(r"steps: \d+", "steps: 4", params))
    commands = [
        line for kind, block in blocks if not kind for line in block.splitlines() if line.startswith("chronomerge ")
    ]
    assert len(commands) >= 9
    for command in commands:
        words = shlex.split(command, comments=True)[1:]
        project.chronomerge(folder, *words)
    (script,) = (block for kind, block in blocks if kind == "python")
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True)
