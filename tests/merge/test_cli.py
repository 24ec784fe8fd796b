"""The verbs ``merge`` and ``techniques``, and mergekit's configurations."""

from __future__ import annotations

import json
import math
import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from flows.cli import merge as cli_merge
from tasks.errors import UserError
from tasks.merge import merge, mergekit
from tests.merge.models import base, experts, same, statistics_of

app = typer.Typer()
app.command()(cli_merge.merge)
app.command()(cli_merge.techniques)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=True)
    if result.exception is not None:
        raise result.exception
    return result.stdout


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_file(base(), tmp_path / "base.safetensors")
    for name, model in zip("ab", experts(2), strict=True):
        save_file(model, tmp_path / f"{name}.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


MODELS = ("--base", "base.safetensors", "--expert", "a.safetensors", "--expert", "b.safetensors")


def test_merge_with_settings(folder: Path) -> None:
    said = run(
        "merge", "-t", "ties", *MODELS, "--set", "density=0.3", "--set", "lines.alpha=0.4", "-o", "m.safetensors"
    )
    assert "merged 2 models with ties: 9 tensors" in said
    expected = merge("ties", experts(2), base(), settings={"density": 0.3, "lines": {"alpha": 0.4}}).tensors
    assert expected is not None
    assert same(load_file(folder / "m.safetensors"), expected)


def test_weights_come_with_the_files(folder: Path) -> None:
    run("merge", "-t", "linear", "-e", "a.safetensors:1", "-e", "b.safetensors:3", "-o", "m.safetensors")
    expected = merge("linear", experts(2), weights=[1, 3]).tensors
    assert expected is not None
    assert same(load_file(folder / "m.safetensors"), expected)
    with pytest.raises(UserError, match=r"give a\.safetensors one as well"):
        run("merge", "-t", "linear", "-e", "a.safetensors", "-e", "b.safetensors:3", "-o", "m.safetensors")


def test_a_dry_run_as_json(folder: Path) -> None:
    report = json.loads(run("merge", "-t", "dare_ties", *MODELS, "--dry-run", "--json"))
    assert (report["technique"], report["merged"], report["experts"]) == ("dare_ties", 9, 2)
    assert not (folder / "m.safetensors").exists()


@pytest.mark.usefixtures("folder")
def test_what_is_missing_is_said() -> None:
    with pytest.raises(UserError, match="say where the merged model goes"):
        run("merge", "-t", "ties", *MODELS)
    with pytest.raises(UserError, match="say what to merge"):
        run("merge", "-o", "m.safetensors")
    with pytest.raises(UserError, match="unknown device 'gpu'"):
        run("merge", "-t", "ties", *MODELS, "--device", "gpu", "-o", "m.safetensors")
    with pytest.raises(UserError, match="--set takes KEY=VALUE, got 'density'"):
        run("merge", "-t", "ties", *MODELS, "--set", "density", "-o", "m.safetensors")


def test_techniques_are_listed_with_settings_needs_and_source() -> None:
    rows = {row["name"]: row for row in json.loads(run("techniques", "--json"))}
    assert rows["ties"]["settings"]["density"] == 0.2
    assert "the base" in rows["ties"]["needs"]
    assert rows["slerp"]["needs"][0] == "exactly 2 models"
    assert "2306.01708" in rows["ties"]["source"]
    assert "density=0.2" in run("techniques")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-o", "m.bin"), r"--out m\.bin: give a \.safetensors file"),
        (("-o", "."), r"\.: exists; choose a new folder"),
        (("-o", "folder.safetensors"), r"folder\.safetensors: is a folder; name a file in it"),
        (("-o", "m.safetensors", "--shard-size", "0"), "--shard-size is in gigabytes and more than 0, got 0"),
        (("-o", "m.safetensors", "--shard-size", "nan"), "--shard-size is .* got nan"),
        (("-o", "m.safetensors", "-e", "weights.pt"), r"weights\.pt has unknown names \(w\)"),
        (("-o", "m.safetensors", "-e", "a.safetensors:nan"), "weights for some experts only"),
        (("-o", "m.safetensors", "-e", "a.safetensors:0.5x"), "the weight '0.5x' is not a number"),
        (("-o", "a.safetensors/m.safetensors"), r"a\.safetensors is a file, not a folder; choose another place"),
    ],
)
def test_what_a_newcomer_may_get_wrong(arguments: tuple[str, ...], message: str, folder: Path) -> None:
    import torch

    (folder / "folder.safetensors").mkdir()
    torch.save({"w": torch.zeros(2)}, folder / "weights.pt")
    before = sorted(folder.iterdir())
    with pytest.raises(UserError, match=message):
        run("merge", "-t", "ties", *MODELS, *arguments)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("code", "reason"), [("import no_such_module", "ModuleNotFoundError: No module"), ("def f(:", "SyntaxError")]
)
def test_a_technique_that_cannot_be_imported(code: str, reason: str, folder: Path) -> None:
    (folder / "mine.py").write_text(code)
    with pytest.raises(UserError, match=rf"technique 'mine\.py:Mine': mine\.py cannot be imported \({reason}"):
        run("merge", "-t", "mine.py:Mine", *MODELS, "-o", "m.safetensors")


DOCUMENT = Path(__file__).parents[2] / "docs/guides/merging.md"


def test_the_documents_commands_run(folder: Path) -> None:
    blocks = re.findall(r"```(\w*)\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    (own,) = (code for kind, code in blocks if kind == "python" and "class" in code)
    (folder / "mine.py").write_text(own)
    for name, expert in zip("ab", experts(2), strict=True):
        one = statistics_of(expert)
        facts = {"samples": "10", "estimator": '"expected"', "pool": '"random"'}
        save_file(dict(one.arrays), folder / f"{name}.stats.safetensors", metadata=facts)
    models = [{"model": f"{name}.safetensors", "parameters": {"weight": 1}} for name in "ab"]
    config = {"merge_method": "ties", "base_model": "base.safetensors", "models": models}
    (folder / "mergekit.yml").write_text(json.dumps(config))
    text = "\n".join(code for kind, code in blocks if not kind).replace("\\\n", " ")
    commands = [shlex.split(line, comments=True)[1:] for line in text.splitlines() if line.startswith("chronomerge ")]
    assert len(commands) == 11
    for command in commands:  # tests/measure tries what measures
        if "--device" not in command and command[0] != "measure":
            run(*command)
    scripts = [code for kind, code in blocks if kind == "python" and "class" not in code and "def " not in code]
    assert len(scripts) == 2
    a, b = experts(2)
    for script in scripts:
        exec(script, {"a": a, "b": b})


CONFIGURATIONS: list[tuple[dict[str, Any], str, dict[str, Any], list[float] | None]] = [
    ({"merge_method": "ties", "parameters": {"weight": 1, "density": 0.5, "lambda": 0.7}},
     "ties", {"density": 0.5, "scale": 0.7}, [1, 1]),
    ({"merge_method": "task_arithmetic", "parameters": {"weight": 0.4}}, "task_arithmetic", {"scale": 1}, [0.4, 0.4]),
    ({"merge_method": "breadcrumbs", "parameters": {"weight": 1, "density": 0.8, "gamma": 0.05}},
     "breadcrumbs", {"density": 0.8, "gamma": 0.05, "scale": 1}, [1, 1]),
    ({"merge_method": "linear", "parameters": {"weight": 2}}, "linear", {}, [2, 2]),
    ({"merge_method": "sce", "parameters": {"select_topk": 0.5}}, "sce", {"density": 0.5, "floor": 1e-6}, None),
    ({"merge_method": "model_stock"}, "model_stock", {}, None),
    ({"merge_method": "karcher", "parameters": {"max_iter": 5}}, "karcher", {"iterations": 5}, None),
]  # fmt: skip


@pytest.mark.parametrize(("config", "technique", "chosen", "weights"), CONFIGURATIONS)
def test_mergekit_configurations(
    config: dict[str, Any], technique: str, chosen: dict[str, Any], weights: list[float] | None, folder: Path
) -> None:
    models = [{"model": "a.safetensors"}, {"model": "b.safetensors"}]
    needs_base = technique not in ("linear", "karcher")
    written = {**config, "models": models, **({"base_model": "base.safetensors"} if needs_base else {})}
    (folder / "config.yml").write_text(json.dumps(written))
    run("merge", "--config", "config.yml", "-o", "m.safetensors")
    expected = merge(technique, experts(2), base() if needs_base else None, settings=chosen, weights=weights).tensors
    assert expected is not None
    assert same(load_file(folder / "m.safetensors"), expected)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
        max_leaves=4,
    ),
    st.sampled_from(["merge_method", "base_model", "models", "parameters", "dtype", "model", "weight", "inner"]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_configuration_is_a_traceback(folder: Path, value: Any, at: str) -> None:
    config: dict[str, Any] = {"merge_method": "ties", "base_model": "base.safetensors", "parameters": {"weight": 1}}
    config["models"] = [{"model": "a.safetensors"}]
    inner = {"model": config["models"][0], "weight": config["parameters"], "inner": config["models"][0]}
    inner.get(at, config)[{"inner": "parameters"}.get(at, at)] = value
    (folder / "config.yml").write_text(json.dumps(config))
    with suppress(UserError):
        mergekit.load(folder / "config.yml")


@pytest.mark.parametrize(
    "content", [b"", b"- 1", b"a: [", b"\xff\xfe", b"a: &a [*a]", b"? [1]\n: 2", b"a: 1\na: 2", b"\t", b"!!python/x 1"]
)
def test_what_is_no_configuration_is_refused(content: bytes, folder: Path) -> None:
    (folder / "config.yml").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.yml: "):
        mergekit.load(folder / "config.yml")
    with pytest.raises(UserError, match="cannot be read"):
        mergekit.load(folder)


def test_slerp_goes_from_mergekits_base_model(folder: Path) -> None:
    config = {
        "merge_method": "slerp",
        "base_model": "b.safetensors",
        "models": [{"model": "a.safetensors"}, {"model": "b.safetensors"}],
        "parameters": {"t": 0.2},
    }
    (folder / "config.yml").write_text(json.dumps(config))
    read = mergekit.load(folder / "config.yml")
    assert [path.name for path in read.experts] == ["b.safetensors", "a.safetensors"]
    assert read.settings == {"t": 0.2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merge_method": "passthrough"}, "merge_method 'passthrough' is not supported; there are .*ties"),
        ({"tokenizer_source": "base"}, "tokenizer_source is not supported"),
        ({"parameters": {"weight": 1, "rescale": True}}, "parameter rescale is not supported"),
        ({"parameters": {}}, "has no weight, which mergekit asks for"),
        ({"models": "a"}, "models should be a list"),
        ({"models": [{"model": "org/model"}]}, "there is no model .*org/model; a model is a file or a folder"),
        ({"models": [{"model": "m" * 5000}]}, r"there is no model .*m … \(\d+ characters in all\); a model is a file"),
        ({"merge_method": ["ties"]}, r"merge_method \['ties'\] is not supported"),
        ({"merge_method": {"a": 1}}, "merge_method .* is not supported"),
        ({"parameters": [1]}, r"parameters should map names to numbers, got \[1\]"),
        ({"parameters": 3}, "parameters should map names to numbers, got 3"),
        ({"parameters": {"weight": True}}, "parameter weight is True.* give a number"),
        ({"parameters": {"weight": "1"}}, "parameter weight is '1'.* give a number"),
        ({"parameters": {"weight": math.inf}}, "parameter weight is inf; give a finite number"),
        ({"parameters": {"weight": None}}, "parameter weight is None.* give a number"),
        ({"parameters": {"weight": 1, "normalize": 0.5}}, "parameter normalize is 0.5; give true or false"),
        ({"models": [{"model": 3}]}, "models should be a list of mappings with the key model"),
        ({"models": [{"model": None}]}, "models should be a list of mappings with the key model"),
        ({"models": []}, "models names no model besides base_model"),
        ({"models": [{"model": "base.safetensors"}]}, "models names no model besides base_model"),
        ({"models": [{"model": "a.safetensors", "parameters": [1]}]}, r"models\[0\]\.parameters should map"),
        ({"models": [{"model": "a.safetensors", "weight": 1}]}, r"models\[0\]\.weight is not supported"),
        ({"base_model": ["base.safetensors"]}, "base_model .* should be the path of a model"),
        ({"dtype": 32}, "dtype 32 should be a name"),
        ({"dtype": ["float16"]}, "dtype .* should be a name"),
    ],
)
def test_configurations_that_have_no_counterpart(change: dict[str, Any], message: str, folder: Path) -> None:
    config = {
        "merge_method": "ties",
        "base_model": "base.safetensors",
        "models": [{"model": "a.safetensors"}],
        "parameters": {"weight": 1},
    }
    (folder / "config.yml").write_text(json.dumps({**config, **change}).replace("Infinity", ".inf"))
    with pytest.raises(UserError, match=message):
        mergekit.load(folder / "config.yml")
