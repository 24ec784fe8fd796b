"""Tokenizers of the Hugging Face hub travel as files, and run no code of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import UserError
from tasks.model import models
from tasks.model import tokenizers as ours
from tests import tokenizers
from tests.model.test_models import base
from tests.train.project import CONFIG


def config(**text: Any) -> dict[str, Any]:
    return {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "context_length": 8, **text}}


def resolved(project: Path, **text: Any) -> Path:
    """The model folder of a configuration with these settings, with its tokenizer."""
    (project / "tiny.json").write_text(json.dumps(config(**text)))
    given = base("tiny.json", "train")
    models.resolve(given, project, project / "model")
    models.fetch_tokenizer(given, project, project / "model")
    return project / "model"


def test_a_model_folder_keeps_the_files_and_needs_nothing_else(tmp_path: Path) -> None:
    tokenizers.save(tmp_path / "words")
    folder = resolved(tmp_path, hf_tokenizer_name="words")
    assert {path.name for path in (folder / ours.FOLDER).iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    (tmp_path / "words").rename(tmp_path / "gone")
    assert models.tokenizer(folder)(["a red square", "a purple circle"]).tolist() == [
        [2, 5, 9, 12, 0, 0, 0, 0], [2, 1, 10, 12, 0, 0, 0, 0],
    ]  # fmt: skip


def test_files_beside_the_configuration_come_first(tmp_path: Path) -> None:
    tokenizers.save(tmp_path)
    assert models.tokenizer(resolved(tmp_path, hf_tokenizer_name="org/not-there"))(["red"]).tolist()[0][:2] == [5, 12]


def test_open_clips_own_tokenizer_leaves_no_files(tmp_path: Path) -> None:
    assert not (resolved(tmp_path) / ours.FOLDER).exists()


def test_a_tokenizer_that_cannot_be_had_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"^the model's tokenizer 'org/none' cannot be had: [^\n]+$"):
        resolved(tmp_path, hf_tokenizer_name="org/none")
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"^the model's tokenizer '.*words' cannot be had: [^\n]+$"):
        resolved(tmp_path, hf_tokenizer_name="words")


@pytest.mark.parametrize(
    ("part", "key", "value", "says"),
    [
        ("model", "vocab", {"</s>": 0}, "cannot be had|cannot read a text"),  # no unknown word, which it promises
        ("post_processor", "special_tokens", {}, "cannot be had|cannot read a text"),  # its parser panics
    ],
)
def test_files_that_do_not_go_together_are_one_line(
    tmp_path: Path, part: str, key: str, value: dict[str, Any], says: str
) -> None:
    path = tokenizers.save(tmp_path / "words") / "tokenizer.json"
    saved = json.loads(path.read_text())
    saved[part][key] = value
    path.write_text(json.dumps(saved))
    with pytest.raises(UserError, match=rf"^the model's tokenizer '[^\n]*words' ({says}): [^\n]+$"):
        resolved(tmp_path, hf_tokenizer_name="words")


def test_code_of_a_tokenizer_never_runs(tmp_path: Path) -> None:
    folder = tokenizers.save(tmp_path / "words")
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="cannot be had"):
        resolved(tmp_path, hf_tokenizer_name="words")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "key", ["trust_remote_code", "tokenizer_file", "subfolder", "cache_dir", "proxies", "bpe_path"]
)
@pytest.mark.parametrize("name", ["words", ""])
def test_a_configuration_chooses_no_code_files_or_proxies_for_its_tokenizer(
    tmp_path: Path, key: str, name: str
) -> None:
    tokenizers.save(tmp_path / "words")
    settings = {"context_length": 8, "hf_tokenizer_name": name, "tokenizer_kwargs": {key: "../private"}}
    with pytest.raises(UserError, match=f"tokenizer_kwargs: '{key}' is not taken; there are additional_special_tokens"):
        ours.load(tmp_path, settings)


def test_a_complete_model_takes_no_tokenizer_from_elsewhere_on_this_machine(tmp_path: Path) -> None:
    model = tmp_path / "model"
    private = tokenizers.save(tmp_path / "private")
    model.mkdir()
    for name in (str(private), "../private"):
        with pytest.raises(UserError, match="its configuration names a tokenizer elsewhere on this machine"):
            ours.fetch(tmp_path, {"hf_tokenizer_name": name, "context_length": 8}, model, model, complete=True)
    (model / "tokenizer.json").symlink_to(private / "tokenizer.json")
    with pytest.raises(UserError, match=r"tokenizer\.json: is a link to .*, outside its folder"):
        ours.fetch(tmp_path, {"hf_tokenizer_name": ours.BESIDE, "context_length": 8}, model, model, complete=True)
    assert not (tmp_path / ours.FOLDER).exists()


def test_tokenizers_of_one_process_keep_their_own_length_and_settings(tmp_path: Path) -> None:
    short, long, other = (
        ours.load(tmp_path, {"context_length": length, "tokenizer_kwargs": settings})
        for length, settings in ((8, {}), (16, {}), (8, {"clean": "canonicalize"}))
    )
    assert [tuple(one(["a cat, a dog"]).shape) for one in (short, long, other)] == [(1, 8), (1, 16), (1, 8)]
    assert (short(["a cat, a dog"]) != other(["a cat, a dog"])).any(), "one of them drops the comma"
