"""The engine: files in and out, dtypes, odd tensors, refusals, and nothing half-written."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tracemalloc
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

from tasks.errors import UserError
from tasks.merge import merge
from tests.merge.models import Model, base, experts, same


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, list[Path]]:
    save_file(base(), tmp_path / "base.safetensors")
    paths = []
    for i, model in enumerate(experts(3)):
        paths.append(tmp_path / f"{i}.safetensors")
        save_file(model, paths[-1])
    return tmp_path / "base.safetensors", paths


def in_memory(technique: str, **arguments: Any) -> Model:
    tensors = merge(technique, experts(3), base(), **arguments).tensors
    assert tensors is not None
    return tensors


def test_files_and_dictionaries_give_the_same_bits(files: tuple[Path, list[Path]], tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "out.safetensors"
    assert merge("ties", files[1], files[0], out).tensors is None
    assert same(load_file(out), in_memory("ties"))


def test_the_same_inputs_give_the_same_file(files: tuple[Path, list[Path]], tmp_path: Path) -> None:
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    merge("dare_ties", files[1], files[0], a, threads=1)
    script = "import sys; from tasks.merge import merge; merge('dare_ties', sys.argv[3:], sys.argv[2], sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, str(b), str(files[0]), *map(str, files[1])], check=True)
    assert a.read_bytes() == b.read_bytes()


def test_a_merge_needs_neither_torch_nor_prefect(files: tuple[Path, list[Path]], tmp_path: Path) -> None:
    script = (
        "import sys; from tasks.merge import merge; merge('ties', sys.argv[3:], sys.argv[2], sys.argv[1]);"
        "heavy = {'torch', 'prefect', 'dvc', 'open_clip', 'peft'} & sys.modules.keys(); assert not heavy, heavy"
    )
    arguments = [str(tmp_path / "out.safetensors"), str(files[0]), *map(str, files[1])]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True)


def shard(model: Model, folder: Path) -> None:
    folder.mkdir()
    names = sorted(model)
    parts = {"x.safetensors": names[::2], "y.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({n: model[n] for n in part}, folder / file)
    index = {"weight_map": {n: file for file, part in parts.items() for n in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_in_and_out(tmp_path: Path) -> None:
    folders = [tmp_path / str(i) for i in range(3)]
    for folder, model in zip(folders, experts(3), strict=True):
        shard(model, folder)
    out = tmp_path / "out" / "model.safetensors.index.json"
    merge("dare_linear", [folders[0], *folders[1:]], base(), out, shard_bytes=2000)
    weight_map = json.loads(out.read_text())["weight_map"]
    assert len(set(weight_map.values())) > 2
    together = {name: load_file(out.parent / file)[name] for name, file in weight_map.items()}
    assert same(together, in_memory("dare_linear"))  # content hashes do not see the shards
    again = merge("linear", [out.parent]).tensors
    assert again is not None
    assert same(again, together)


def test_a_broken_index_is_refused(tmp_path: Path) -> None:
    shard(base(), tmp_path / "m")
    index = tmp_path / "m" / "model.safetensors.index.json"
    raw = json.loads(index.read_text())
    raw["weight_map"]["nowhere"] = "x.safetensors"
    index.write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"puts 'nowhere' into x\.safetensors, which lacks it"):
        merge("linear", [index])
    raw["weight_map"] = {"a": "../../etc/passwd"}
    index.write_text(json.dumps(raw))
    with pytest.raises(UserError, match="outside its folder"):
        merge("linear", [index])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_and_out_with_float32_between(dtype: torch.dtype, tmp_path: Path) -> None:
    models = [{k: torch.from_numpy(np.atleast_1d(v)).to(dtype) for k, v in m.items()} for m in (base(), *experts(2))]
    for i, model in enumerate(models):
        save_torch(model, tmp_path / f"{i}.safetensors")
    merge("linear", [tmp_path / "1.safetensors", tmp_path / "2.safetensors"], out=tmp_path / "out.safetensors")
    result = load_torch(tmp_path / "out.safetensors")
    for name, tensor in result.items():
        mean = ((models[1][name].float() + models[2][name].float()) / 2).to(dtype)
        assert tensor.dtype == dtype
        assert torch.equal(tensor, mean)
    given = merge("linear", models[1:]).tensors
    assert given is not None
    assert all(torch.equal(given[name], result[name]) for name in result)


def test_the_output_may_have_another_dtype() -> None:
    result = merge("linear", experts(2), dtype="bfloat16").tensors
    assert result is not None
    exact = merge("linear", experts(2)).tensors
    assert exact is not None
    for name, bits in result.items():
        assert np.array_equal(bits, torch.from_numpy(exact[name]).to(torch.bfloat16).view(torch.uint16).numpy())
    with pytest.raises(UserError, match="unknown dtype 'int8'; there are float32"):
        merge("linear", experts(2), dtype="int8")


def test_what_overflows_the_output_is_refused() -> None:
    big = {"w": np.full(3, 60000, np.float16)}
    with pytest.raises(UserError, match="the merged tensor 'w' overflows F16"):
        merge("linear", [big, big], settings={"normalize": False})


def test_odd_tensors_follow_the_rule() -> None:
    def odd(seed: int) -> Model:
        extra: Model = {
            "position_ids": np.arange(seed, seed + 4),
            "mask": np.array([True, seed > 0]),
            "empty": np.zeros((0, 4), np.float32),
        }
        return {**(base() if seed == 0 else experts(1, first=seed)[0]), **extra}

    zero, one, two = odd(0), odd(1), odd(2)
    one["logit_scale"] = one["logit_scale"].reshape(1)  # the same scalar, as other versions write it
    two["text_projection"] = two["text_projection"][:4]
    del two["visual.ln_post.bias"]
    two["classifier"] = np.ones(3, np.float32)
    with pytest.raises(UserError, match=r"expert 2: tensor 'text_projection' has shape .*--on-mismatch base"):
        merge("task_arithmetic", [one, two], zero)
    outcome = merge("task_arithmetic", [one, two], zero, on_mismatch="base")
    report, result = outcome.report, outcome.tensors
    assert result is not None
    assert result.keys() == zero.keys()
    assert report.kept == {
        "position_ids": "I64 is not merged and differs in expert 1",
        "mask": "BOOL is not merged and differs in expert 1",
        "empty": "empty",
        "text_projection": "shape [4, 5] in expert 2, [8, 5] in the reference",
        "visual.ln_post.bias": "missing from expert 2",
    }
    assert report.dropped == {"classifier": "expert 2"}
    for name in report.kept:
        assert result[name].tobytes() == zero[name].tobytes()
    assert result["logit_scale"].shape == ()
    assert result["logit_scale"] != zero["logit_scale"]
    assert report.merged == len(zero) - len(report.kept)


def test_models_with_nothing_in_common_are_refused() -> None:
    with pytest.raises(UserError, match=r"none of its tensors can be merged .*missing from expert 1"):
        merge("ties", [{"a": np.ones(2, np.float32)}], {"b": np.ones(2, np.float32)})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("technique", ["linear", "ties", "pcb", "opcm", "dare_ties"])
def test_a_weight_that_is_not_finite_is_refused_by_name(bad: float, technique: str, tmp_path: Path) -> None:
    save_file(base(), tmp_path / "base.safetensors")
    broken = experts(1)[0]
    broken["token_embedding.weight"][17, 3] = bad
    save_file(broken, tmp_path / "broken.safetensors")
    with pytest.raises(UserError, match=r"broken\.safetensors: tensor 'token_embedding\.weight' holds NaN or infinity"):
        merge(technique, [tmp_path / "broken.safetensors"], tmp_path / "base.safetensors", tmp_path / "out.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base.safetensors", "broken.safetensors"]


def test_a_failed_merge_leaves_what_was_there(files: tuple[Path, list[Path]], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_text("the model of yesterday")
    bad = experts(1)[0]
    bad["text_projection"][0] = np.nan
    save_file(bad, tmp_path / "bad.safetensors")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match="NaN"):
        merge("model_stock", [*files[1], tmp_path / "bad.safetensors"], files[0], out)
    assert out.read_text() == "the model of yesterday"
    assert sorted(tmp_path.iterdir()) == before


def test_a_killed_merge_leaves_what_was_there_and_the_next_one_finishes(
    files: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    out = tmp_path / "out" / "model.safetensors"
    out.parent.mkdir()
    out.write_text("the model of yesterday")
    script = (
        "import os, sys; from tasks.merge import merge\n"
        "def die(what, done, total, note=''):\n    if done > total / 2: os._exit(137)\n"
        "merge('ties', sys.argv[3:], sys.argv[2], sys.argv[1], progress=die)"
    )
    arguments = [str(out), str(files[0]), *map(str, files[1])]
    assert subprocess.run([sys.executable, "-c", script, *arguments], check=False).returncode == 137
    assert out.read_text() == "the model of yesterday"
    merge("ties", files[1], files[0], out)
    assert same(load_file(out), in_memory("ties"))
    assert list(out.parent.iterdir()) == [out]


def test_a_merge_may_replace_one_of_its_inputs(files: tuple[Path, list[Path]]) -> None:
    expected = in_memory("linear")
    merge("linear", files[1], files[0], files[1][0])
    assert same(load_file(files[1][0]), expected)


@pytest.mark.parametrize("length", [0, 5, 100, 2000])
def test_truncated_files_are_refused(length: int, files: tuple[Path, list[Path]], tmp_path: Path) -> None:
    path = files[1][0]
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=r"0\.safetensors: not a readable safetensors file, perhaps truncated"):
        merge("linear", files[1], out=tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    "header",
    [b"[]", b"{", b'{"a": 3}', b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
     b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}'],
)  # fmt: skip
def test_headers_that_lie_are_refused(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(UserError, match="not a readable safetensors file"):
        merge("linear", [path])


def test_wrong_uses_fail_before_any_work(tmp_path: Path) -> None:
    missing = [tmp_path / "not there.safetensors"] * 3
    with pytest.raises(UserError, match="slerp merges exactly 2 models, got 3"):
        merge("slerp", missing)
    with pytest.raises(UserError, match="ties merges task vectors, and so needs the base"):
        merge("ties", missing)
    with pytest.raises(UserError, match="magmax does not weigh its models"):
        merge("magmax", missing, tmp_path / "base", weights=[1, 2, 3])
    with pytest.raises(UserError, match="2 weights for 3 models"):
        merge("linear", missing, weights=[1, 2])
    with pytest.raises(UserError, match="share of the first of two models, got 3"):
        merge("linear", missing, settings={"weight": 0.5})
    with pytest.raises(UserError, match=r"not there\.safetensors: no such checkpoint"):
        merge("linear", missing)


def test_a_dry_run_reports_and_writes_nothing(files: tuple[Path, list[Path]], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    report = merge("ties", files[1], files[0], out, dry_run=True).report
    assert not out.exists()
    assert report == merge("ties", files[1], files[0], out).report


def test_progress_reaches_its_total(files: tuple[Path, list[Path]], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    merge(
        "ties",
        files[1],
        files[0],
        tmp_path / "out.safetensors",
        progress=lambda _what, done, total, _note="": seen.append((done, total)),
    )
    assert seen[-1][0] == seen[-1][1] == sum(v.size for v in base().values())
    assert seen == sorted(seen)


OUTSIDE = '''
from typing import ClassVar
from tasks.merge import Accumulator

class Largest(Accumulator):
    """theta_0 + scale times the largest task vector entry, sign and all."""
    name: ClassVar[str] = "largest"
    source: ClassVar[str] = "this test"
    state: ClassVar[tuple[str, ...]] = ("most",)
    scale: float = 1.0

    def update(self, state, x, expert):
        state["most"][...] = x if expert.total == 1 else x.clip(state["most"])

    def finalise(self, state, summary):
        return state["most"] * self.scale
'''


def test_a_technique_from_outside_in_under_twenty_lines(
    files: tuple[Path, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.merge import check, has_sequential_form
    from tasks.params import Time

    assert len(OUTSIDE.strip().splitlines()) < 20
    (tmp_path / "mine.py").write_text(OUTSIDE)
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "flows", "merge", "--technique", "mine.py:Largest", "--set", "scale=0.5"]
    for path in files[1]:
        command += ["--expert", str(path)]
    root = Path(__file__).parents[2]
    subprocess.run(
        [*command, "--base", str(files[0]), "--out", "out.safetensors"], check=True, env={"PYTHONPATH": str(root)}
    )
    result, zero = load_file(tmp_path / "out.safetensors"), base()
    for name in zero:
        most = np.max([m[name] - zero[name] for m in experts(3)], axis=0)
        np.testing.assert_allclose(result[name], zero[name] + 0.5 * most, atol=1e-6)
    time = Time.model_validate({"deploy": "all", "technique": {"name": "mine.py:Largest", "scale": 0.5}})
    assert check(time, 5) == []
    assert has_sequential_form(time.technique.name, time.technique.settings)
    with pytest.raises(UserError, match=r"mine\.py defines no technique Smallest"):
        merge("mine.py:Smallest", files[1], files[0])


@pytest.mark.parametrize("technique", ["ties", "consensus", "sce", "karcher", "model_stock", "dare_ties"])
def test_memory_does_not_grow_with_the_number_of_experts(technique: str) -> None:
    random, shape = np.random.default_rng(0), (1 << 18,)
    zero, one = ({"w": random.standard_normal(shape, np.float32)} for _ in range(2))

    def peak(count: int) -> int:
        tracemalloc.start()
        merge(technique, [one] * count, zero, settings={"density": 0.5} if technique == "sce" else {}, threads=1)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(32) < 1.1 * peak(8)


def test_modules_import_one_another_in_one_direction() -> None:
    folder = Path(__file__).parents[2] / "tasks" / "merge"
    imports: dict[str, set[str]] = {}
    for path in folder.rglob("*.py"):
        if path.name.startswith("__"):
            continue
        module = ".".join(["tasks.merge", *path.relative_to(folder).with_suffix("").parts])
        found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        names = {f"{node.module}.{name.name}" for node in found for name in node.names} | {str(n.module) for n in found}
        imports[module] = {name for name in names if name.startswith("tasks.merge.")}
    order = list(TopologicalSorter(imports).static_order())  # a CycleError names the modules of a circle
    assert order.index("tasks.merge.stream") < order.index("tasks.merge.engine")


def test_linear_algebra_gets_its_threads_back() -> None:
    """Two merges at once, leaving in the order they came."""
    import ctypes

    from numpy.linalg import _umath_linalg

    from tasks.merge.threads import one_thread

    get = ctypes.CDLL(_umath_linalg.__file__).scipy_openblas_get_num_threads64_
    before = get()
    first, second = one_thread(), one_thread()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert get() == 1
    second.__exit__(None, None, None)
    assert get() == before
