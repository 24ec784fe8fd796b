"""What a step is handed on where earlier states were skipped: as though their arrivals had never come."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from tasks import layout
from tasks.record import history
from tasks.record.state import State
from tasks.storage.cache import Cache, Entry


def made(cache: Cache, scratch: Path, files: dict[str, str]) -> Entry:
    for path, text in files.items():
        (scratch / path).parent.mkdir(parents=True, exist_ok=True)
        (scratch / path).write_text(text)
    return cache.put(scratch)


def state(cache: Cache, folder: Path, step: int, past: Entry) -> State:
    entries = {layout.HISTORY: past}
    for name in (layout.RUNNING, layout.REGULARIZER):
        entries[name] = made(cache, folder / name, {"it.json": f"{name} of {step}"})
    entries[layout.ARRIVAL] = made(cache, folder / layout.ARRIVAL, {"dataset.json": f"arrival {step}"})
    (folder / "expert").write_text(f"expert {step}")
    entries[layout.EXPERT] = cache.put(folder / "expert")
    return cast(
        State,
        SimpleNamespace(
            entries=entries,
            expert=layout.EXPERT,
            step=step,
            tag=f"{step}",
            params={"arrival": {"name": f"arrival-{step}"}},
        ),
    )


def test_skipped_arrivals_have_never_been(tmp_path: Path) -> None:
    """Steps 0, 1 (held), 2 (held), 3, 4: what 5 is handed on is base, 3 and 4."""
    cache = Cache(tmp_path / "cache")
    model = made(cache, tmp_path / "model", {"model.json": "{}"})
    (tmp_path / "lineage.json").write_text('{"step": 0}')
    (tmp_path / "pools.json").write_text("[]")
    first = cache.compose({
        "model": model,
        "weights/lineage.json": cache.put(tmp_path / "lineage.json"),
        "pools/pools.json": cache.put(tmp_path / "pools.json"),
    })  # fmt: skip

    def after(one: State) -> Entry:
        return history.after(one, cache, tmp_path / "scratch", all_experts=True)

    def text(entry: Entry, path: str) -> Any:
        part = cache.part(entry, path)
        assert part, path
        return cache.path(part.md5).read_text()

    base = state(cache, tmp_path / "0", 0, first)
    one = state(cache, tmp_path / "1", 1, after(base))
    two = state(cache, tmp_path / "2", 2, after(base))
    assert two.entries[layout.HISTORY] == one.entries[layout.HISTORY]
    three = state(cache, tmp_path / "3", 3, after(base))
    four = state(cache, tmp_path / "4", 4, after(three))
    handed = after(four)
    assert json.loads(text(handed, "weights/lineage.json")) == {"step": 3}
    assert json.loads(text(handed, "pools/pools.json")) == ["pretraining", "arrival-3", "arrival-4"]
    assert text(handed, "weights/base.safetensors") == "expert 0"
    experts = {path: text(handed, path) for path in cache.members(handed) if "experts/" in path}
    assert experts == {
        "weights/experts/0001.safetensors": "expert 3", "weights/experts/0002.safetensors": "expert 4",
    }  # fmt: skip
