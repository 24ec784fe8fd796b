"""A timeline whose deployed models stay comparable, for real: recorded, verified, judged, delivered, continued."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from flows.run import check
from tasks import layout
from tasks.errors import UserError
from tasks.evaluate import headfile
from tasks.params import load
from tasks.record import timelines
from tasks.storage import dvc_config
from tasks.storage.cache import Cache
from tasks.storage.git import show
from tests import project as projects
from tests.project import chronomerge

EVALUATE = {
    **projects.PARAMS["evaluate"],
    "compatibility": "all",
    "heads": [{"name": "gda", "features": "aligned", "label": "carried"}, {"name": "gda", "features": "deployed"}],
}


@pytest.fixture(scope="module")
def compatible(tmp_path_factory: pytest.TempPathFactory, prefect_api: dict[str, str]) -> Path:
    """A timeline of two steps, all of them compatible with step 0."""
    folder = projects.make(
        tmp_path_factory.mktemp("compatible") / "project",
        deploy={"compatible_with": "first"},
        evaluate=EVALUATE,
        gate={"require": ["compatibility_drop <= 100%"]},
    )
    done = chronomerge(folder, "run", **prefect_api)
    assert "recorded state/tiny/0000 to state/tiny/0002" in done.stdout
    return folder


def weights(project: Path, step: int, path: str, member: str = "") -> dict[str, torch.Tensor]:
    cache, entry = Cache(dvc_config.cache_dir(project)), timelines.find(project, "tiny", step).entries[path]
    return load_file(cache.path(cache.members(entry)[member] if member else entry.md5))


@pytest.mark.long
def test_the_deployed_copy_alone_is_rotated(compatible: Path) -> None:
    for step in (1, 2):
        running = weights(compatible, step, layout.RUNNING, "ema.safetensors")
        deployed = weights(compatible, step, layout.DEPLOYED)
        changed = {name for name, tensor in running.items() if not torch.equal(tensor, deployed[name])}
        assert changed == {"visual.proj", "text_projection"}
        inside = [one["visual.proj"].double() @ one["text_projection"].double().T for one in (running, deployed)]
        assert torch.allclose(*inside, atol=1e-6)
    assert timelines.find(compatible, "tiny", 0).manifest.compatible is None


@pytest.mark.long
def test_the_manifest_says_how(compatible: Path) -> None:
    for step in (1, 2):
        found = timelines.find(compatible, "tiny", step).manifest.compatible
        assert found
        assert found.state == "state/tiny/0000"
        assert found.images == 48 * (step + 1)
        assert found.cosine >= found.cosine_before
        assert found.similarity_change < 1e-5


@pytest.mark.long
def test_every_state_says_what_its_queries_find_and_the_gate_judges_it(compatible: Path) -> None:
    for step in range(3):
        state = timelines.find(compatible, "tiny", step)
        found = state.metrics["compatibility"]
        assert found == json.loads(show(compatible, state.commit, layout.COMPATIBILITY_METRICS))
        assert set(found["recall@1"]["first"]) == {str(before) for before in range(step + 1)}
        assert found["pairs"] == step * (step + 1) / 2
        assert state.manifest.gate
        [outcome] = state.manifest.gate.conditions
        assert outcome.value == (None if step == 0 else pytest.approx(found["drop"] / 100, abs=1e-6))
        files = Cache(dvc_config.cache_dir(compatible)).members(state.entries[layout.COMPATIBILITY])
        assert set(files) == {"pairs.json", *(f"{before:04d}.safetensors" for before in range(step + 1))}


@pytest.mark.long
def test_heads_on_aligned_features_are_carried_over(compatible: Path) -> None:
    """As many samples as those that are encoded anew at each step, and nearly their sums."""
    carried, anew = (weights(compatible, 2, layout.HEADS, f"{name}.safetensors") for name in ("carried", "gda"))
    assert torch.equal(carried["counts"], anew["counts"])
    cosines = torch.cosine_similarity(carried["sums"], anew["sums"])
    assert float(cosines.min()) > 0.9
    assert not torch.equal(carried["sums"], anew["sums"])
    first = timelines.find(compatible, "tiny", 0)
    cache = Cache(dvc_config.cache_dir(compatible))
    note, _, _ = headfile.read(
        cache.path(cache.members(timelines.find(compatible, "tiny", 2).entries[layout.HEADS])["carried.safetensors"])
    )
    digest = hashlib.sha256(cache.path(first.entries[layout.DEPLOYED].md5).read_bytes()).hexdigest()
    assert note.weights == (digest,)


@pytest.mark.long
def test_a_rotated_state_is_made_again_byte_for_byte(compatible: Path) -> None:
    assert projects.made_again(compatible, "2")[-1] == "compatibility"


@pytest.mark.long
def test_an_index_built_with_the_first_state_is_searched_with_the_newest(
    compatible: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lines of docs/guides/compatibility.md, on test images."""
    guide = (projects.ROOT / "docs/guides/compatibility.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    chronomerge(compatible, "publish", "0", "--to", str(tmp_path / "old"))
    chronomerge(compatible, "fetch", "--deployed", "--to", str(tmp_path / "new"))
    (tmp_path / "photos").mkdir()
    for i, path in enumerate(sorted((compatible / "drawings/base/test").rglob("*.png"))):
        Image.open(path).save(tmp_path / f"photos/{i:02d}.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert np.load(tmp_path / "index.npy").shape == (16, 16)
    assert re.fullmatch(r"photos/\d\d.png", capsys.readouterr().out.strip())


@pytest.mark.long
def test_the_report_draws_the_matrix(compatible: Path, tmp_path: Path) -> None:
    assert "Searching in an older index" in projects.report_page(compatible, tmp_path / "report")


@pytest.mark.long
def test_it_can_be_turned_on_later_and_names_a_state(
    compatible: Path, tmp_path: Path, prefect_api: dict[str, str]
) -> None:
    folder = projects.copy(compatible, tmp_path / "copy")
    third = {"name": "third", "update": ["images:drawings/first#test"]}
    projects.write_params(
        folder, stream=[*projects.PARAMS["stream"], third], deploy={"compatible_with": 2},
        evaluate={**EVALUATE, "allow_overlap": True}, gate={"require": ["compatibility_drop <= 100%"]},
    )  # fmt: skip
    chronomerge(folder, "run", **prefect_api)
    state = timelines.find(folder, "tiny", 3)
    assert state.manifest.compatible
    assert state.manifest.compatible.state == "state/tiny/0002"
    found = state.metrics["compatibility"]
    assert (found["from"], found["pairs"], list(found["drops"])) == (2, 1, ["2"])
    assert projects.made_again(folder, "3")[-1] == "compatibility"


def test_wrong_settings_are_refused_before_any_work(tmp_path: Path) -> None:
    projects.draw(tmp_path / "drawings")
    text = {**projects.MODEL["text_cfg"], "proj_bias": True}
    (tmp_path / "tiny.json").write_text(json.dumps({**projects.MODEL, "custom_text": True, "text_cfg": text}))
    projects.write_params(tmp_path, deploy={"compatible_with": "first"})
    with pytest.raises(UserError, match="the text tower ends in a projection with a bias") as refused:
        check(load(tmp_path / "params.yaml"), tmp_path, base=True)
    assert "\n" not in str(refused.value)
    projects.write_params(tmp_path, gate={"require": ["compatibility_drop <= 2%"]})
    with pytest.raises(UserError, match="compatibility is not measured; add compatibility: all to evaluate"):
        load(tmp_path / "params.yaml")
