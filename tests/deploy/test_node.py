"""The node ``deploy`` with a state to stay compatible with, on a small project."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group

from tasks.deploy import check, folding, node, probe
from tasks.errors import UserError
from tasks.merge import node as merging
from tasks.model import checkpoints, models
from tasks.model.datasets import Dataset
from tasks.params import Params
from tasks.train.node import INIT, initialize
from tests.train.project import CONFIG, dataset, params, project

COMPATIBLE = {"compatible_with": "first"}


def with_deploy(step: int = 1, settings: dict[str, Any] = COMPATIBLE, **changes: Any) -> Params:
    given = params(step).model_dump(mode="json", exclude_none=True)
    arrival = {"arrival": {"name": "first", "update": ["folder:x"]}} if step else {}
    return Params.model_validate({**given, **arrival, "deploy": settings, **changes})


@pytest.fixture(scope="module")
def at_step_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose step 1 deploys a model that is step 0's in another basis, and trained a little further."""
    folder = project(tmp_path_factory.mktemp("deploy") / "project")
    initialize(folder, params(0))
    history = folder / "data/history"
    base = checkpoints.load(folder / INIT)
    q = torch.from_numpy(ortho_group.rvs(16, random_state=0))
    expert = folding.folded(base, folding.of_folder(history / "model"), q)
    torch.manual_seed(0)
    expert = {name: t + 0.02 * t.std(correction=0) * torch.randn_like(t) for name, t in expert.items()}
    checkpoints.save(history / "weights/base.safetensors", base)
    checkpoints.save(history / "weights/running/ema.safetensors", base)
    checkpoints.save(history / "reference/deployed.safetensors", base)
    (history / "reference/reference.json").write_text('{"state": "state/tiny/0000"}\n')
    (history / "weights/lineage.json").write_text('{"step": 1}\n')
    shutil.move(folder / "data/step/arrival", history / "pools/pretraining")
    (history / "pools/pools.json").write_text('["pretraining"]\n')
    dataset(folder / "data/step/arrival", 40, ("red", "blue"), noise=4)
    checkpoints.save(folder / "data/step/expert.safetensors", expert)
    return folder


@pytest.fixture
def folder(at_step_one: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(at_step_one, tmp_path / "project"))


FT = {"time": {"init": "ft", "deploy": "ft"}}


def encoded(folder: Path, path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of a test set and its captions, as a model encodes them."""
    model = models.build(folder / node.MODEL)
    models.load_weights(model, checkpoints.load(path), path)
    model.eval()
    data = Dataset(folder / "data/step/evaluation/seen")
    with torch.inference_mode():
        pixels = models.normalize(np.array(data.images), models.preprocess(folder / node.MODEL), torch.device("cpu"))
        tokens = models.tokenizer(folder / node.MODEL)(data.captions)
        return model.encode_image(pixels, normalize=True), models.text_features(model, tokens)


def test_the_deployed_copy_lies_in_the_first_states_space(folder: Path) -> None:
    """On images that the rotation was not fitted on; similarities inside the model are the merged model's."""
    given = with_deploy(**FT)
    merging.deploy(folder, given)
    images, texts = encoded(folder, folder / node.DEPLOYED)
    node.deploy(folder, given)
    rotated, rotated_texts = encoded(folder, folder / node.DEPLOYED)
    first, _ = encoded(folder, folder / node.REFERENCE / "deployed.safetensors")
    assert float((images * first).sum(dim=1).mean()) < 0.9
    assert float((rotated * first).sum(dim=1).mean()) > 0.98
    assert float((rotated @ rotated_texts.T - images @ texts.T).abs().max()) < 1e-6
    assert float((rotated @ rotated.T - images @ images.T).abs().max()) < 1e-6


def test_the_note_says_what_was_done(folder: Path) -> None:
    node.deploy(folder, with_deploy(**FT))
    note = json.loads((folder / node.NOTE).read_text())
    assert note["state"] == "state/tiny/0000"
    assert note["images"] == 72
    assert 8 <= note["directions"] <= 16  # squares of four colours are nearly alike
    assert note["cosine_before"] < 0.9 < 0.98 < note["cosine"]
    assert 0 <= note["similarity_change"] < 1e-6


def test_the_running_model_is_not_rotated(folder: Path) -> None:
    node.deploy(folder, with_deploy())
    running = (folder / "data/step/running/ema.safetensors").read_bytes()
    merging.deploy(folder, with_deploy())
    assert (folder / "data/step/running/ema.safetensors").read_bytes() == running
    assert (folder / node.DEPLOYED).read_bytes() == running
    assert not (folder / node.NOTE).exists()


def test_equal_inputs_give_equal_bytes(folder: Path) -> None:
    made = []
    for _ in range(2):
        node.deploy(folder, with_deploy())
        made.append(((folder / node.DEPLOYED).read_bytes(), (folder / node.NOTE).read_bytes()))
    assert made[0] == made[1]


def test_without_a_reference_the_step_is_as_it_was(folder: Path) -> None:
    """Before the state that is named, and without the key."""
    shutil.rmtree(folder / node.REFERENCE)
    node.deploy(folder, with_deploy(settings={"compatible_with": 1}))
    assert (folder / node.DEPLOYED).read_bytes() == (folder / "data/step/running/ema.safetensors").read_bytes()
    assert not (folder / node.NOTE).exists()


def test_few_images_are_said(folder: Path) -> None:
    notes: list[str] = []
    node.deploy(
        folder,
        with_deploy(settings={**COMPATIBLE, "probe": 3}),
        lambda what, _done, _total, note="": notes.append(note) if what == "note:" else None,
    )
    assert notes == ["compatibility: 3 images decide 3 of 16 directions; the others stay as they are"]


def test_a_step_without_any_image_is_refused(folder: Path) -> None:
    (folder / "data/history/pools/pools.json").write_text("[]\n")
    shutil.rmtree(folder / "data/step/arrival")
    with pytest.raises(UserError, match="there is no image to fit the rotation on"):
        node.deploy(folder, with_deploy())


def test_data_beside_an_expert_is_part_of_the_probe(folder: Path) -> None:
    (folder / "data/history/pools/pools.json").write_text("[]\n")
    arrival = folder / "data/step/arrival"
    shutil.move(arrival, folder / "moved")
    arrival.mkdir()
    shutil.move(folder / "moved", arrival / "measure")
    assert len(probe.drawn(folder, 100, 0, "vendor")) == 40


def test_a_probe_is_drawn_by_seed_and_smaller_ones_are_part_of_it(folder: Path) -> None:
    def rows(size: int, seed: int = 0) -> set[tuple[int, int]]:
        made = probe.drawn(folder, size, seed, "first")
        return set(zip(made._where.tolist(), made._rows.tolist(), strict=True))

    assert len(rows(100)) == 72
    assert rows(10) < rows(20)
    assert rows(20) == rows(20)
    assert rows(20) != rows(20, seed=1)
    assert {pool for pool, _ in rows(20)} == {0, 1}


# Before any work


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("second", "say first, the step of a state, or its tag"),
        (-1, "say first, the step of a state, or its tag"),
        (True, "say first, the step of a state, or its tag"),
        (3.2, 'quote the name of a state with a line: "3.2"'),
        ("state/other/0003", "state/other/0003 is of another timeline than 'tiny'"),
    ],
)
def test_a_name_of_no_state_is_refused(named: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        with_deploy(settings={"compatible_with": named})


@pytest.mark.parametrize(
    ("named", "step"), [("first", 0), (2, 2), ("2.3", 2), ("state/tiny/0001", 1), ("state/tiny/0001.2", 1)]
)
def test_names_of_states(named: Any, step: int) -> None:
    deploy = with_deploy(settings={"compatible_with": named}).deploy
    assert deploy
    assert deploy.reference_step == step


def test_a_state_beyond_the_stream_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="compatible_with: 3: the stream has 2 arrivals, so the last step is 2"):
        check(with_deploy(settings={"compatible_with": 3}), tmp_path, base=False)


def test_a_stream_of_experts_without_images_is_refused(tmp_path: Path) -> None:
    base = {"model": "ViT-B-32", "pretrained": "a.safetensors"}
    stream = [{"name": "vendor", "expert": "b.safetensors"}]
    with pytest.raises(UserError, match="step 1, 'vendor', has no image to fit the rotation on"):
        check(with_deploy(base=base, stream=stream), tmp_path, base=False)
    given = [{**stream[0], "measure": ["images:c"]}]
    check(with_deploy(base=base, stream=given), tmp_path, base=False)


def test_a_model_that_does_not_fold_is_refused(tmp_path: Path) -> None:
    text = {**CONFIG["text_cfg"], "proj_bias": True}  # type: ignore[dict-item]
    (tmp_path / "model.json").write_text(json.dumps({**CONFIG, "custom_text": True, "text_cfg": text}))
    with pytest.raises(UserError, match=r"the text tower ends in a projection with a bias"):
        check(with_deploy(), tmp_path, base=True)
    check(with_deploy(settings={}), tmp_path, base=True)
