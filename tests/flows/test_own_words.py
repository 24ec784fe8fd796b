"""A timeline whose base has a tokenizer of its own keeps it, from the base to what is published."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests import project as projects
from tests import tokenizers
from tests.model.test_vocabularies import TEXTS, of_open_clip, of_transformers, save
from tests.project import chronomerge

pytestmark = pytest.mark.slow


EVALUATE = {
    "adaptation": [{"name": "first", "test": ["images:drawings/first#test"]}],
    "retention": [{"name": "base", "test": ["images:drawings/base#test"]}],
}
"""Of classes whose names have words in the tokenizer."""


def own(folder: Path) -> Path:
    return tokenizers.save(folder, tokenizers.REORDERED)


@pytest.mark.long
def test_the_tokenizer_of_a_base_goes_through_states_to_the_published_model(
    tmp_path: Path, prefect_api: dict[str, str]
) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "project"
    for name in ("base", "vendor"):
        save(elsewhere / name, 14, 3, own)
    save(elsewhere / "other", 14, 12, tokenizers.save)
    shutil.copytree(elsewhere / "base", tmp_path / "moved")
    projects.make(
        folder,
        evaluate=EVALUATE,
        base={"model": f"local-dir:{tmp_path / 'moved'}"},
        stream=[
            {"name": "data", "update": ["images:drawings/first#train"]},
            {"name": "vendor", "expert": str(elsewhere / "vendor")},
        ],
    )
    refused = chronomerge(folder, "arrive", "other", "--expert", str(elsewhere / "other"), check=False, **prefect_api)
    assert refused.returncode == 2
    assert "its tokenizer is another than the base's: the token 'a' is number 2, in the base 4" in refused.stdout
    chronomerge(folder, "run", **prefect_api)
    shutil.rmtree(tmp_path / "moved")
    chronomerge(folder, "verify", "1", **prefect_api)
    chronomerge(folder, "fetch", "--deployed", "--to", str(tmp_path / "oc"), **prefect_api)
    chronomerge(folder, "fetch", "--deployed", "--format", "transformers", "--to", str(tmp_path / "hf"), **prefect_api)
    chronomerge(folder, "publish", "2", "--to", str(tmp_path / "published"), **prefect_api)
    chronomerge(folder, "publish", "2", "--format", "transformers", "--to", str(tmp_path / "theirs"), **prefect_api)
    images = torch.randn(3, 3, 16, 16)
    wanted = of_transformers(tmp_path / "hf", images, TEXTS)
    torch.testing.assert_close(of_transformers(tmp_path / "theirs", images, TEXTS), wanted, rtol=1e-5, atol=1e-5)
    for made in ("oc", "published"):
        torch.testing.assert_close(of_open_clip(tmp_path / made, images, TEXTS), wanted, rtol=1e-5, atol=1e-5)

    base = {"model": f"local-dir:{tmp_path / 'theirs'}"}
    second = projects.make(tmp_path / "second", timeline="second", base=base, stream=[], evaluate=EVALUATE)
    chronomerge(second, "run", **prefect_api)
    chronomerge(second, "fetch", "--deployed", "--to", str(tmp_path / "again"), **prefect_api)
    torch.testing.assert_close(of_open_clip(tmp_path / "again", images, TEXTS), wanted, rtol=1e-5, atol=1e-5)
