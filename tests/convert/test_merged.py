"""``chronomerge merge --out FOLDER``: a folder that loads, with a card, and the recipe in the weights."""

from __future__ import annotations

import json
import shlex
import shutil
from collections import Counter
from pathlib import Path

import open_clip
import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTokenizer, CLIPVisionModelWithProjection
from typer.testing import CliRunner, Result

from flows.cli.app import app
from tasks.convert import convert, merge_into
from tasks.errors import UserError
from tests import hub, tokenizers
from tests.convert.test_conversion import words
from tests.model.test_vocabularies import save


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three transformers folders with tokenizers: base, a and b."""
    home = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "a", "b")):
        torch.manual_seed(seed)
        CLIPModel(words()).save_pretrained(home / name)
    convert(home / "base", "open_clip", home / "oc")
    convert(home / "oc", "transformers", home / "words")
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (home / "base" / file).write_bytes((home / "words" / file).read_bytes())
    return home


def merged(*args: str | Path) -> Result:
    return CliRunner().invoke(app, ["merge", *map(str, args)], catch_exceptions=True)


def test_the_folder_loads_in_transformers_and_has_card_recipe_and_tokenizer(folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    models = ("--base", folders / "base", "--expert", f"{folders / 'a'}:0.25", "--expert", f"{folders / 'b'}:0.75")
    done = merged("--technique", "task_arithmetic", *models, "--set", "scale=0.5", "--out", out)
    assert done.exit_code == 0, done.output
    base, a, b = (load_file(folders / name / "model.safetensors") for name in ("base", "a", "b"))
    found = CLIPModel.from_pretrained(out).state_dict()
    for name, tensor in base.items():
        expected = tensor + 0.5 * (0.25 * (a[name] - tensor) + 0.75 * (b[name] - tensor))
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)
    assert CLIPTokenizer.from_pretrained(out)("a dog").input_ids[0] == 49406

    card = ModelCard.load(out / "README.md")
    assert {"merge", "chronomerge"} <= set(card.data.tags or [])
    assert "| a | expert | 0.25 |" in card.text
    assert str(tmp_path) not in card.content
    assert str(folders) not in card.content
    with safe_open(out / "model.safetensors", "pt") as file:
        recipe = json.loads(file.metadata()["chronomerge"])
    assert recipe == {
        "technique": "task_arithmetic", "settings": {"scale": 0.5}, "base": "base", "experts": ["a", "b"],
        "weights": [0.25, 0.75], "seed": 0,
    }  # fmt: skip


def test_the_command_on_the_card_merges_them_again(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders)
    once, again = tmp_path / "once", tmp_path / "again"
    arguments = ("-t", "ties", "-b", "base", "-e", "a", "-e", "b", "--set", "density=0.3", "--dtype", "bfloat16")
    assert merged(*arguments, "-o", once).exit_code == 0
    command = next(line for line in (once / "README.md").read_text().splitlines() if line.startswith("chronomerge "))
    words = shlex.split(command)[2:]
    words[-1] = str(again)
    assert merged(*words).exit_code == 0
    names = {path.name for path in once.iterdir()}
    assert names == {path.name for path in again.iterdir()}
    assert (once / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert json.loads((once / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_folder_of_an_open_clip_base_loads_in_open_clip(folders: Path, tmp_path: Path) -> None:
    """Experts may be of the other library."""
    done = merged("-t", "ties", "-b", folders / "oc", "-e", folders / "a", "-o", tmp_path / "merged")
    assert done.exit_code == 0, done.output
    model = open_clip.create_model(f"local-dir:{tmp_path / 'merged'}")
    weights = load_file(tmp_path / "merged" / "open_clip_model.safetensors")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in weights.items())


def test_a_base_that_is_a_file_alone_gives_weights_and_card_and_says_so(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "x.safetensors")
    done = merged("-t", "linear", "-e", tmp_path / "x.safetensors", "-o", tmp_path / "merged")
    assert done.exit_code == 0, done.output
    assert "no configuration" in done.output
    assert {path.name for path in (tmp_path / "merged").iterdir()} == {"model.safetensors", "README.md"}


def test_a_file_has_the_recipe_too(folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    assert merged("-t", "linear", "-e", folders / "a", "-e", folders / "b", "-o", out).exit_code == 0
    with safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["chronomerge"])["experts"] == ["a", "b"]


def test_a_folder_with_files_and_a_failed_merge_leave_all_as_it_was(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists; choose a new folder"):
        merge_into(tmp_path / "mine", technique="linear", experts=[folders / "a"])
    save_file({"w": torch.ones(2)}, tmp_path / "strange.safetensors")
    with pytest.raises(UserError):
        merge_into(
            tmp_path / "new", technique="linear", base=folders / "base", experts=[tmp_path / "strange.safetensors"]
        )
    with pytest.raises(UserError, match=r"give a \.safetensors file"):
        raise merged("-t", "linear", "-e", folders / "a", "-o", tmp_path / "m.pt").exception or AssertionError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "strange.safetensors"]


@pytest.mark.parametrize("with_base", [True, False])
def test_a_hub_is_asked_once_for_a_model_and_its_configuration(folders: Path, tmp_path: Path, with_base: bool) -> None:
    with hub.serving() as server, server.used(tmp_path / "home"):
        server.commit("org/base", folders / "base")
        base = {"base": "hf:org/base"} if with_base else {}
        experts = [folders / "a" if with_base else "hf:org/base", folders / "b"]
        merge_into(tmp_path / "out", technique="linear", experts=experts, **base)
        asked = Counter(request.path for request in server.requests if request.path.startswith("/api/"))
    assert set(asked.values()) == {1}, asked
    assert CLIPTokenizer.from_pretrained(tmp_path / "out")("a dog").input_ids[0] == 49406
    assert "hf:org/base" in (tmp_path / "out/README.md").read_text()


def test_notes_name_models_of_a_hub_by_repository_and_the_card_no_folder(folders: Path, tmp_path: Path) -> None:
    adapter = get_peft_model(CLIPModel.from_pretrained(folders / "base"), LoraConfig(r=2, target_modules=["q_proj"]))
    adapter.save_pretrained(tmp_path / "own/lora")
    with hub.serving() as server, server.used(tmp_path / "home"):
        commits = [server.commit("org/base", folders / "base"), server.commit("org/lora", tmp_path / "own/lora")]
        models = {"base": "hf:org/base", "experts": ["hf:org/lora", tmp_path / "own/lora"]}
        done, notes = merge_into(tmp_path / "out", technique="linear", **models)
    base, lora = (f"hf:org/{name}@{commit[:12]}" for name, commit in zip(("base", "lora"), commits, strict=True))
    told = done.report.summary()
    for label in (lora, tmp_path / "own/lora"):
        assert f"note: {label}: a PEFT adapter of 'base', applied to {base}" in told
    assert f"note: hf:org/lora: commit {commits[1]}" in told
    assert notes[0].startswith(f"of {base}: config.json")
    card = (tmp_path / "out/README.md").read_text()
    assert "- note: lora: a PEFT adapter" in card
    assert str(tmp_path) not in card


def with_buffers(folder: Path, out: Path) -> Path:
    """A model as older versions saved it, with buffers that hold nothing learned."""
    shutil.copytree(folder, out)
    (weights,) = out.glob("*.safetensors")
    tensors = load_file(weights)
    if "visual.proj" in tensors:
        context = len(tensors["positional_embedding"])
        added = {"attn_mask": torch.full((context, context), -torch.inf).triu(1), "context_length": torch.tensor(77)}
    else:
        added = {f"{tower}_model.embeddings.position_ids": torch.arange(5)[None] for tower in ("text", "vision")}
    save_file({**tensors, **added}, weights, {"format": "pt"})
    return out


@pytest.mark.parametrize("library", ["oc", "base"])
@pytest.mark.parametrize("with_base", [True, False])
def test_buffers_of_any_of_the_models_change_nothing(
    folders: Path, tmp_path: Path, library: str, with_base: bool
) -> None:
    """Whichever has them, and of whichever library: the output is that of the same models without."""
    given = {name: with_buffers(folders / name, tmp_path / name) for name in ("base", "oc", "a", "b")}

    def outcome(name: str, base: Path, *experts: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
        models = {"base": base, "experts": experts} if with_base else {"experts": [base, *experts]}
        done, _ = merge_into(tmp_path / name, technique="linear", **models)
        return load_file(next((tmp_path / name).glob("*.safetensors"))), done.report.summary()

    wanted, _ = outcome("plain", folders / library, folders / "a", folders / "b")
    for number, (base, a, b) in enumerate([(True, False, False), (False, True, False), (True, True, True)]):
        choice = ((library, base), ("a", a), ("b", b))
        made, told = outcome(str(number), *((given[name] if old else folders / name) for name, old in choice))
        assert made.keys() == wanted.keys()
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in made.items())
        assert sum("left out: nothing that is learned" in line for line in told) == base + a + b
        assert "missing" not in " ".join(told)


def test_a_card_has_the_base_of_a_hub_once_and_says_what_was_left_out(folders: Path, tmp_path: Path) -> None:
    expert = with_buffers(folders / "a", tmp_path / "older")
    with hub.serving() as server, server.used(tmp_path / "home"):
        commit = server.commit("org/base", folders / "base")
        merge_into(tmp_path / "out", technique="linear", base="hf:org/base", experts=[expert])
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.base_model == ["org/base"]
    assert card.text.count("| hf:org/base | base | |") == 1
    assert card.text.count(commit) == 1
    left = ", ".join(f"{tower}\\_model.embeddings.position\\_ids" for tower in ("text", "vision"))
    assert card.text.count(f"- note: older: {left} left out: nothing that is learned") == 1


def test_a_vision_tower_alone_is_refused_or_merged_where_it_is(folders: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)
    CLIPVisionModelWithProjection(words().vision_config).save_pretrained(tmp_path / "tower")
    models = {"technique": "ties", "base": folders / "base", "experts": [tmp_path / "tower"]}
    with pytest.raises(UserError, match=r"^expert 1 shares 40 of 78 tensors .*; or keep the rest .*--on-missing keep$"):
        merge_into(tmp_path / "out", **models)
    assert [path.name for path in tmp_path.iterdir()] == ["tower"]
    merge_into(tmp_path / "out", **models, on_missing="keep")
    base, made = (load_file(folder / "model.safetensors") for folder in (folders / "base", tmp_path / "out"))
    for name, tensor in base.items():
        of_text = name.startswith(("text", "logit_scale"))
        if of_text or tensor.ndim > 1:  # biases are zero in all of them
            assert torch.equal(made[name], tensor) == of_text, name


def test_models_with_different_tokenizers_are_not_merged(tmp_path: Path) -> None:
    longer = (*tokenizers.WORDS, "more")
    for name, tokens in (("base", tokenizers.WORDS), ("a", tokenizers.REORDERED), ("b", longer)):
        save(tmp_path / name, 14, 12, None)
        tokenizers.save(tmp_path / name, tokens)
    why = r"its tokenizer is another than that of the base: the token '</s>' is number 3, there 12 \(11 such tokens\)"
    with pytest.raises(UserError, match=why):
        merge_into(tmp_path / "out", technique="linear", base=tmp_path / "base", experts=[tmp_path / "a"])
    assert not (tmp_path / "out").exists()
    file = tmp_path / "a/model.safetensors"
    merge_into(tmp_path / "out", technique="linear", base=tmp_path / "base", experts=[tmp_path / "b", file])
