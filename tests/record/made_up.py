"""Small made-up states, recorded by the real thing without training anything."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from tasks import layout
from tasks.record import project_code, recording, timelines, worktrees
from tasks.record.state import State
from tasks.references import Reference
from tasks.storage import dvc_config
from tasks.storage.cache import Cache
from tasks.storage.dvc import Dvc
from tasks.storage.dvc_config import Remote
from tasks.storage.git import git
from tests.project import PARAMS

OUTPUTS = (layout.ARRIVAL, layout.EXPERT, layout.TRAINING, layout.DEPLOYED)
STAGE = {"stages": {"make": {"cmd": "true", "outs": list(OUTPUTS)}}}


def project(folder: Path, remote: Remote, shared: str | None = None) -> Path:
    """A repository that DVC accepts, with one stage and one commit; its store is ``remote``, ``shared`` its git
    remote."""
    (folder / ".dvc").mkdir(parents=True)
    (folder / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    (folder / ".dvc" / ".gitignore").write_text("/config.local*\n/cache\n/tmp\n")
    (folder / ".gitignore").write_text("/.chronomerge/\n/data/**\n!/data/**/\n!/data/**/*.dvc\n")
    YAML(typ="safe").dump(STAGE, folder / "dvc.yaml")
    store = {"remote": remote.name, "git": shared}
    YAML(typ="safe").dump({**PARAMS, "timeline": "x", "store": store}, folder / "params.yaml")
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "code")
    dvc_config.write_remote(folder, remote)
    return folder


def record(
    project: Path, remote: Remote, dvc: Dvc, expert: int = 5000, instead: Mapping[str, bytes] | None = None
) -> State:
    """Record the next step of timeline ``x``: seeded bytes (``expert`` of them in the largest file), the
    test sets and the first weights as ever, and ``instead`` of those (or beside them) what is given by path."""
    code = project_code.code_of(project)
    params = project_code.params_of(project, code)
    previous = timelines.last(project, "x")
    step = previous.step + 1 if previous else 0
    cache = Cache(dvc_config.cache_dir(project))
    arrival = params.stream[step - 1] if step and instead else None
    with worktrees.for_step(project, code, remote, step, arrival) as tree:
        content: dict[str, Any] = {
            f"{layout.RAW_ARRIVAL}/a.bin": noise(step, 1, 5000),
            f"{layout.RAW_EVALUATION}/b.bin": noise(0, 2, 5000),
            f"{layout.RAW_EVALUATION}/c.bin": noise(0, 3, 10),
            f"{layout.HISTORY}/weights/base.safetensors": noise(0, 4, 5000),
            f"{layout.HISTORY}/lineage.json": b"%d" % step,
            f"{layout.ARRIVAL}/d.bin": noise(step, 5, 5000),
            layout.EXPERT: noise(step, 6, expert),
            f"{layout.TRAINING}/training.json": json.dumps({"steps": step}).encode(),
            layout.DEPLOYED: noise(step, 7, 5000),
            **(instead or {}),
        }
        for path, data in content.items():
            (tree.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (tree.folder / path).write_bytes(data)
        (tree.folder / "metrics.json").write_text(
            json.dumps({"A_KA": 1.0, "A_ZS": 2.0, "geometric_mean": 1.4, "top1": {}})
        )
        inputs = {path: cache.put(tree.folder / path) for path in layout.INPUTS}
        made = Reference("make", "", {path: cache.put(tree.folder / path) for path in OUTPUTS}, 0.0, {})
        assert params.timeline == "x"
        return recording.record(project, tree, code, previous, inputs, [made], cache, dvc, time.monotonic())


def noise(step: int, what: int, size: int) -> bytes:
    """Bytes that do not compress, the same for the same arguments."""
    return np.random.default_rng([step, what]).bytes(size)
