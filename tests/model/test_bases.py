"""Bases out of folders and repositories: the same model as the library that saved it has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from tasks.convert import convert
from tasks.errors import UserError
from tasks.model import models
from tasks.params import Base
from tests import hub
from tests.model.test_adapters import trained
from tests.model.test_translated import CONTEXT, WORDS, CLIPModel, clip_config


@pytest.fixture(scope="module")
def model() -> CLIPModel:
    torch.manual_seed(5)
    return CLIPModel(clip_config()).eval()


@pytest.fixture(scope="module")
def folders(model: CLIPModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``theirs``, a folder of transformers, and ``ours``, the same of open_clip."""
    home = tmp_path_factory.mktemp("bases")
    model.save_pretrained(home / "theirs")
    convert(home / "theirs", "open_clip", home / "ours")
    return home


@pytest.fixture(scope="module")
def server(folders: Path) -> Iterator[hub.Hub]:
    with hub.serving() as one:
        one.commit("org/theirs", folders / "theirs")
        one.commit("org/ours", folders / "ours")
        yield one


def logits(given: Base, project: Path, into: Path) -> torch.Tensor:
    models.resolve(given, project, into / "model")
    models.fetch_base(given, project, into)
    read = models.build(into / "model")
    models.load_weights(read, load_file(into / "base.safetensors"), into)
    images, texts = inputs()
    with torch.no_grad():
        return read.eval().get_logits(images, texts)[0]  # type: ignore[operator]


def fetch(given: Base, project: Path, into: Path) -> None:
    models.check(given, project)
    models.resolve(given, project, into / "model")
    models.fetch_base(given, project, into)


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(1, WORDS - 2, (4, CONTEXT), generator=generator)
    texts[:, 6] = WORDS - 1
    return torch.randn(3, 3, 16, 16, generator=generator), texts


@pytest.mark.parametrize(
    ("base", "of_hub"),
    [
        ({"model": "hf-hub:org/ours"}, True),
        ({"model": "hf-hub:org/theirs@main"}, True),
        ({"model": "local-dir:ours"}, False),
        ({"model": "local-dir:theirs"}, False),
        ({"model": "local-dir:ours", "pretrained": "hf:org/theirs"}, True),
        ({"model": "local-dir:ours", "pretrained": "theirs"}, False),
        ({"model": "ours/open_clip_config.json", "pretrained": "theirs/model.safetensors"}, False),
        ({"model": "hf-hub:org/ours", "pretrained": "hf:org/theirs/model.safetensors"}, True),
    ],
)
def test_a_base_computes_as_the_model_that_was_saved(
    server: hub.Hub, folders: Path, model: CLIPModel, tmp_path: Path, base: dict[str, str], of_hub: bool
) -> None:
    with server.used(tmp_path / "home"):
        models.check(Base(**base), folders)
        given = logits(models.pinned(Base(**base)), folders, tmp_path)
        images, texts = inputs()
        with torch.no_grad():
            wanted = model(input_ids=texts, pixel_values=images).logits_per_image
        torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-5)
    assert (tmp_path / "source").exists() == of_hub  # the bytes as they came


def test_what_is_pinned_stays_although_the_branch_moves_on(server: hub.Hub, folders: Path, tmp_path: Path) -> None:
    first = server.commit("org/moving", folders / "ours")
    with server.used(tmp_path / "home"):
        pinned = models.pinned(Base(model="hf-hub:org/moving"))
        assert pinned.model == f"hf:org/moving@{first}"
        weights = load_file(folders / "ours/open_clip_model.safetensors")
        moved = {name: tensor + 1 for name, tensor in weights.items()}
        save_file(moved, tmp_path / "open_clip_model.safetensors")
        server.commit("org/moving", {"open_clip_model.safetensors": tmp_path / "open_clip_model.safetensors"})
        pin = models.fetch_base(pinned, tmp_path, tmp_path)
    assert pin is not None
    assert pin.commit == first
    assert torch.equal(load_file(tmp_path / "base.safetensors")["visual.proj"], weights["visual.proj"])


def test_the_licence_on_a_repositorys_card_is_pinned(server: hub.Hub, folders: Path, tmp_path: Path) -> None:
    cards = {
        "mit": "---\nlicense: mit\n---\n# A model\n", "silent": "# A model\n", "torn": "---\nlicense: [\n---\n",
        "own": "---\nlicense: other\nlicense_name: own-1\nlicense_link: https://x.org/own\n---\n",
    }  # fmt: skip
    found = {}
    with server.used(tmp_path / "home"):
        for name, card in cards.items():
            server.commit(f"org/{name}", {**server.files("org/ours"), "README.md": card})
            pin = models.fetch_base(Base(model=f"hf-hub:org/{name}"), folders, tmp_path / name)
            assert pin is not None
            found[name] = pin.as_dict().get("licence")
            assert "README.md" not in pin.files
    assert found == {"mit": "mit", "silent": None, "torn": None, "own": "own-1, https://x.org/own"}


def test_what_cannot_be_a_base_is_one_line(server: hub.Hub, folders: Path, tmp_path: Path) -> None:
    server.commit("org/weights", {"model.safetensors": (folders / "theirs/model.safetensors").read_bytes()})
    server.commit("org/pickles", {"config.json": "{}", "pytorch_model.bin": b"x"})
    server.commit("org/bert", {"config.json": json.dumps({"model_type": "bert"}), "model.safetensors": b"x"})
    server.commit("org/torn", {**server.files("org/ours"), "open_clip_model.safetensors": b"torn"})
    trained(CLIPModel(clip_config()), tmp_path / "adapter", target_modules=["q_proj"])
    server.commit("org/adapter", tmp_path / "adapter")
    cases: list[tuple[dict[str, str], str]] = [
        ({"model": "hf-hub:org/none"}, "base.model: hf:org/none: .* no such repository"),
        ({"model": "hf-hub:org/ours@v9"}, "base.model: hf:org/ours@v9: the repository has no revision 'v9'"),
        ({"model": "hf-hub:../x"}, "base.model: hf-hub:../x: not an address of a hub"),
        ({"model": "hf-hub:org/weights"}, "base.model: .*has no configuration"),
        ({"model": "hf-hub:org/pickles"}, "base.model: hf:org/pickles: has its weights in pickles only"),
        ({"model": "hf-hub:org/bert"}, "models of type 'bert' are not converted"),
        ({"model": "hf-hub:org/torn"}, "open_clip_model.safetensors: "),
        ({"model": "local-dir:none"}, "base.model: .*none: no such f"),
        ({"model": "local-dir:ours", "pretrained": "hf:org/adapter"}, "is a PEFT adapter; name the model"),
        ({"model": "local-dir:ours", "pretrained": "none/"}, "base.pretrained: .*no such file or folder"),
        ({"model": "local-dir:ours", "pretrained": f"{'n' * 300}/"}, "base.pretrained: .*no such file or folder"),
        ({"model": "ViT-B-32", "pretrained": "hf:org/ours"}, "hf:org/ours: .*has shape"),
    ]
    with server.used(tmp_path / "home"):
        for number, (base, words) in enumerate(cases):
            with pytest.raises(UserError, match=words) as error:
                fetch(Base(**base), folders, tmp_path / f"{number}")
            assert "\n" not in str(error.value)
            assert not (tmp_path / f"{number}" / "base.safetensors").exists()
    with pytest.raises(ValidationError, match="pretrained"):
        Base(model="ViT-B-32")


def test_a_filled_cache_is_enough(server: hub.Hub, folders: Path, tmp_path: Path) -> None:
    given = Base(model="hf-hub:org/theirs")
    with server.used(tmp_path / "home"):
        online = logits(given, folders, tmp_path / "online")
    server.requests.clear()
    with server.used(tmp_path / "home", offline=True):
        models.check(given, folders)
        assert torch.equal(logits(models.pinned(given), folders, tmp_path / "offline"), online)
    assert not server.requests
