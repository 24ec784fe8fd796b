"""A node's key changes with everything its outputs depend on, and with nothing else."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tasks import __main__ as command
from tasks import layout, nodes
from tasks.errors import UserError
from tasks.params import Params
from tasks.storage.cache import hash_of
from tests.project import PARAMS, ROOT

SHARED = ("tasks/storage/cache.py", "tasks/console.py", "tasks/errors.py", "tasks/layout.py", "tasks/nodes.py",
          "tasks/references.py", "tasks/params.py", "tasks/progress.py", "tasks/text.py", "tasks/units.py",
          "tasks/yaml.py", "tasks/storage/atomic.py", "tasks/environment.py", "tasks/processes.py",
          "tasks/__init__.py")  # fmt: skip
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
    assert list(declared) == [
        "prepare", "prepare-evaluation", "initialize", "train", "measure", "fit", "deploy", "evaluate", "heads",
        "compatibility",
    ]  # fmt: skip
    made: set[str] = set()
    for node in declared.values():
        for dep in node.deps:
            if dep.startswith("data/step/"):
                assert dep in made, f"{node.name} reads {dep} before it is made"
        made |= set(node.outs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages:\n  train:\n    deps: [a]\n", r"stages\.train\.cmd: Field required"),
        ("stages:\n  train: {cmd: x, deps: a}\n", r"stages\.train\.deps: "),
        ("stages:\n  train: {cmd: x, outs: [1]}\n", r"stages\.train\.outs\.0"),
        ("stages: [train]\n", "stages: "),
        ("- train\n", "the top level: "),
        ("", "the top level: "),
        ("stages: [\n", "not a YAML file"),
        ("[" * 5000, "not a YAML file"),
        (b"stages: \xff\n", "not a text file"),
    ],
)
def test_a_foreign_pipeline_is_one_sentence(tmp_path: Path, text: str | bytes, message: str) -> None:
    (tmp_path / "dvc.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=rf"dvc\.yaml: .*{message}"):
        nodes.declared(tmp_path)


def test_a_stage_without_deps_reads_nothing(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {other: {cmd: touch a, outs: [{a: {cache: false}}], metrics: [b]}}\n")
    assert nodes.declared(tmp_path)["other"].outputs == ("a", "b")
    assert nodes.declared(tmp_path)["other"].deps == ()


def test_a_step_without_heads_has_no_such_stage_and_the_others_as_they_are() -> None:
    shipped = (ROOT / "dvc.yaml").read_text()
    without = nodes.without_unused(shipped, {"evaluate": {}})
    both = nodes.parse(shipped, "dvc.yaml"), nodes.parse(without, "dvc.yaml")
    assert both[0].keys() - both[1].keys() == {"fit", "heads", "compatibility"}
    assert all(both[0][name] == node for name, node in both[1].items() if name != "deploy")
    assert set(both[0]["deploy"].deps) - set(both[1]["deploy"].deps) == {"data/step/fit"}
    removed = [line for line in shipped.splitlines() if line not in without.splitlines()]
    assert [line for line in removed if line.endswith(":") and line.startswith("  ") and line[2] != " "] == [
        "  fit:", "  heads:", "  compatibility:"
    ]  # fmt: skip
    assert without.endswith(shipped[shipped.index("# `dvc plots show`") :])
    every = {"evaluate": {"heads": [{"name": "gda"}], "compatibility": "all"}, "fit": {"name": "paint"}}
    assert nodes.without_unused(shipped, every) == shipped
    assert nodes.without_unused(without, {"evaluate": {}}) == without


def of_step(**changes: Any) -> Params:
    """Params as the flow writes them into a state."""
    arrival = {"name": "first", "update": ["images:drawings/first#train"]}
    return Params.model_validate({**PARAMS, "step": 1, "arrival": arrival, **changes})


CODED = {"store": {"experts": "lossless"}}


@pytest.mark.parametrize(
    "changes", [{}, {"store": {"experts": "full"}}, {**CODED, "step": 0}], ids=["default", "full", "base"]
)
def test_a_step_that_codes_nothing_has_the_pipeline_as_it_is(changes: dict[str, Any]) -> None:
    shipped = (ROOT / "dvc.yaml").read_text()
    assert nodes.with_codec(shipped, of_step(**changes)) == shipped


def test_an_expert_that_arrives_as_a_file_is_stored_once_as_it_came() -> None:
    shipped = (ROOT / "dvc.yaml").read_text()
    arrival = {"name": "vendor", "expert": "vendor.safetensors"}
    assert nodes.with_codec(shipped, of_step(**CODED, arrival=arrival)) == shipped


@pytest.mark.parametrize("init", ["zs", "ema", "ft"])
def test_a_coded_expert_takes_the_place_of_the_other_and_who_reads_it_has_the_base(init: str) -> None:
    shipped = (ROOT / "dvc.yaml").read_text()
    params = of_step(**CODED, time={"init": init, "deploy": "ema"})
    plain, coded = nodes.parse(shipped, "before"), nodes.parse(nodes.with_codec(shipped, params), "after")
    assert coded["train"].outs[0] == layout.CODED_EXPERT
    assert coded["train"].params == (*plain["train"].params, nodes.CODEC)
    start = layout.CODED_INIT if init == "ft" else layout.INIT
    assert coded["initialize"].outs == (start,)
    assert start in coded["train"].deps
    for name, node in coded.items():
        reads = {layout.CODED_EXPERT, layout.CODED_INIT} & {*node.deps}
        above = {layout.BASE, "data/history/weights", layout.HISTORY}
        assert name in {"train", "measure", "fit", "deploy", "evaluate", "heads"} or not reads
        assert not reads or above & {*node.deps}
        assert layout.EXPERT not in {*node.deps, *node.outs}
        if not reads and name not in {"train", "initialize"}:
            assert node == plain[name]


@pytest.mark.parametrize("store", [{}, CODED], ids=["full", "coded"])
def test_routes_take_the_place_of_the_deployed_model_and_who_reads_them_has_the_base(store: dict[str, Any]) -> None:
    shipped = (ROOT / "dvc.yaml").read_text()
    params = of_step(**store, time={"init": "zs", "deploy": "routed"})
    plain = nodes.parse(nodes.with_codec(shipped, params), "before")
    routed = nodes.parse(nodes.with_routes(nodes.with_codec(shipped, params), params), "after")
    assert routed["deploy"].outs == (layout.ROUTED, layout.RUNNING)
    assert routed["deploy"].params == (*plain["deploy"].params, nodes.CODEC)
    for name, node in routed.items():
        assert layout.DEPLOYED not in {*node.deps, *node.outs}
        reads = layout.ROUTED in node.deps
        assert reads == (layout.DEPLOYED in plain[name].deps)
        assert not reads or [node.deps.count(layout.BASE), node.deps.count(layout.HISTORY)] in ([1, 0], [0, 1])
        assert reads or name == "deploy" or node == plain[name]
    at_base = of_step(step=0, time={"init": "zs", "deploy": "routed"})
    assert nodes.with_routes(shipped, at_base) == shipped


def test_params_without_heads_say_nothing_of_them() -> None:
    plain = Params.model_validate(PARAMS)
    assert "heads" not in plain.model_dump()["evaluate"]
    some = Params.model_validate({**PARAMS, "evaluate": {**PARAMS["evaluate"], "heads": ["gda"]}})
    assert some.model_dump(mode="json")["evaluate"]["heads"] == [{"name": "gda", "label": None}]


def test_every_module_a_node_imports_is_a_dependency_of_it() -> None:
    """Otherwise a change of code would be answered with what the old code made."""
    packages = {"prepare": "prepare", "prepare-evaluation": "prepare", "initialize": "train", "train": "train",
                "measure": "measure", "fit": "fit", "deploy": "merge", "evaluate": "evaluate",
                "heads": "evaluate"}  # fmt: skip
    of_heads = {"fewshot", "head", "headfile", "headstate", "spaces", "support", "heads"}
    for name, package in packages.items():
        declared = nodes.declared(ROOT)[name]
        home = ROOT / "tasks" / package
        files = [
            path
            for path in home.rglob("*.py")
            if name == "heads" or path.relative_to(home).parts[0].removesuffix(".py") not in of_heads
        ]
        needed = imported(files)
        missing = {m for m in needed if m not in declared.deps and m not in SHARED}
        assert not missing, f"dvc.yaml: {name} also depends on {sorted(missing)}"


def imported(files: list[Path]) -> set[str]:
    """The shared modules (files directly under tasks/) that some files import, and those that these import."""
    import re

    found: set[str] = set()
    open_files = list(files)
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


def test_the_table_has_every_stage_of_dvc_yaml_and_its_code_can_be_imported() -> None:
    declared = nodes.declared(ROOT)
    assert list(nodes.NODES) == list(declared)
    for name, implementation in nodes.NODES.items():
        assert declared[name].cmd == f"python -m tasks {name}"
        assert callable(implementation.load())
        assert (implementation.load_split() is None) == (not implementation.split)


@pytest.mark.parametrize("arguments", [[], ["nosuch"], ["train", "more"], ["train", "part", "x"]])
def test_a_wrong_call_of_a_node_names_the_nodes(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"usage: python -m tasks NODE .*prepare, prepare-evaluation, initialize"):
        command.run(arguments)
