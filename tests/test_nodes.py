"""A node's key changes with everything its outputs depend on, and with nothing else."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tasks import nodes
from tasks.nodes import Reference
from tasks.params import Params
from tasks.progress import Progress
from tasks.storage.cache import Cache, hash_of
from tests.project import PARAMS, ROOT

SHARED = ("tasks/storage/cache.py", "tasks/console.py", "tasks/errors.py", "tasks/nodes.py", "tasks/orchestration.py",
          "tasks/params.py", "tasks/progress.py", "tasks/storage/atomic.py", "tasks/__init__.py")  # fmt: skip
"""Modules that carry a node's work but do not decide its outputs."""


MACHINE: dict[str, str | int] = {"name": "cpu", "threads": 2}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    YAML(typ="safe").dump({**PARAMS, "step": 1}, tmp_path / "params.yaml")
    for node in nodes.declared(tmp_path).values():
        for dep in node.deps:
            path = tmp_path / dep
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_text(dep)
    return tmp_path


def key(project: Path, name: str) -> str:
    return nodes.key_of(nodes.declared(project)[name], project, lambda path: hash_of(project / path).md5, MACHINE)


def test_the_key_follows_dependencies_params_and_nothing_else(project: Path) -> None:
    before = key(project, "train")
    (project / "data/raw/arrival").write_text("not a dependency of train")
    YAML(typ="safe").dump({**PARAMS, "step": 1, "store": {"remote": "elsewhere"}}, project / "params.yaml")
    assert key(project, "train") == before
    YAML(typ="safe").dump({**PARAMS, "step": 2}, project / "params.yaml")
    assert key(project, "train") != before
    YAML(typ="safe").dump({**PARAMS, "step": 1}, project / "params.yaml")
    assert key(project, "train") == before
    (project / "data/step/init.safetensors").write_text("other weights")
    assert key(project, "train") != before


def test_a_base_is_shared_by_timelines_that_train_experts_in_another_way(project: Path) -> None:
    def at(step: int, **train: object) -> str:
        changed = {**PARAMS["train"], **train}
        YAML(typ="safe").dump({**PARAMS, "step": step, "train": changed}, project / "params.yaml")
        return key(project, "train")

    others: list[dict[str, object]] = [{"steps": 7}, {"lr": 1e-5}, {"method": "lora"}, {"mixture": {"update": 1}}]
    for other in others:
        assert at(0, **other) == at(0)
        assert at(1, **other) != at(1)
    assert at(0, loss="siglip") != at(0)  # the base is trained with it, too


def test_the_chain_is_the_time_step() -> None:
    declared = nodes.declared(ROOT)
    assert list(declared) == ["prepare", "prepare-evaluation", "initialize", "train", "deploy", "evaluate"]
    made: set[str] = set()
    for node in declared.values():
        for dep in node.deps:
            if dep.startswith("data/step/"):
                assert dep in made, f"{node.name} reads {dep} before it is made"
        made |= set(node.outs)


def test_every_module_a_node_imports_is_a_dependency_of_it() -> None:
    """Otherwise a change of code would be answered with what the old code made."""
    packages = {"prepare": "prepare", "prepare-evaluation": "prepare", "initialize": "train", "train": "train",
                "deploy": "merge", "evaluate": "evaluate"}  # fmt: skip
    for name, package in packages.items():
        declared = nodes.declared(ROOT)[name]
        needed = imported(ROOT / "tasks" / package)
        missing = {m for m in needed if m not in declared.deps and m not in SHARED}
        assert not missing, f"dvc.yaml: {name} also depends on {sorted(missing)}"


def imported(package: Path) -> set[str]:
    """The shared modules (files directly under tasks/) that a package imports, and those that these import."""
    import re

    found: set[str] = set()
    open_files = [path for path in package.rglob("*.py") if path.name not in ("task.py",)]
    while open_files:
        text = open_files.pop().read_text()
        names = re.findall(r"from tasks\.(\w+) import", text)
        for line in re.findall(r"from tasks import ([\w, ]+)", text):
            names += [name.strip() for name in line.split(",")]
        for name in names:
            module = f"tasks/{name}.py"
            if (ROOT / module).exists() and module not in found | set(SHARED):
                found.add(module)
                open_files.append(ROOT / module)
    return found


def test_a_run_starts_clean_and_puts_what_it_made_into_the_cache(tmp_path: Path) -> None:
    node = nodes.Node("n", "cmd", (), (), ("out",), ("metrics.json",))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "left-over").write_text("from before")
    cache = Cache(tmp_path / "cache")

    def work(project: Path, _params: Params, _progress: Progress) -> None:
        (project / "out").mkdir()
        (project / "out" / "a").write_text("a")
        (project / "metrics.json").write_text("{}")

    reference = nodes.run(node, "key", work, tmp_path, Params.model_validate(PARAMS), cache, MACHINE)
    assert Reference.from_dict(reference.as_dict()) == reference
    assert nodes.intact(reference, cache)
    nodes.place(reference, tmp_path / "elsewhere", cache)
    assert [p.name for p in (tmp_path / "elsewhere" / "out").iterdir()] == ["a"]
    cache.path(hash_of(tmp_path / "metrics.json").md5).unlink()
    assert not nodes.intact(reference, cache)


def test_unfinished_work_is_found_again_under_its_key_alone_and_goes_when_it_is_done(tmp_path: Path) -> None:
    node = nodes.Node("n", "cmd", (), (), ("out",))
    cache, params = Cache(tmp_path / "cache"), Params.model_validate(PARAMS)
    found: list[str] = []

    def work(project: Path, _params: Params, _progress: Progress) -> None:
        kept = nodes.unfinished(project, "n") / "half"
        found.append(kept.read_text() if kept.exists() else "")
        kept.write_text("half done")
        if len(found) < 4:
            raise KeyboardInterrupt
        (project / "out").write_text("made")

    for key in ("a", "a", "b"):
        with pytest.raises(KeyboardInterrupt):
            nodes.run(node, key, work, tmp_path, params, cache, MACHINE)
    nodes.run(node, "b", work, tmp_path, params, cache, MACHINE)
    assert found == ["", "half done", "", "half done"]
    assert not nodes.unfinished(tmp_path, "n").exists()
