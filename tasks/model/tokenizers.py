"""The tokenizer of a model, as files that travel with it.

open_clip has one of its own, which ships with the package. A model whose ``text_cfg`` has an ``hf_tokenizer_name``
needs files of the Hugging Face hub: `fetch` saves them once in the model folder, so no state needs the hub again.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy as shallow_copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import UserError
from tasks.model import vocabularies
from tasks.model.light_imports import prepare as prepare_imports
from tasks.storage import hub

if TYPE_CHECKING:
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    from tasks.model.models import Tokenizer

FOLDER = "tokenizer"
"""In a model folder: the files, where the tokenizer is none of open_clip's own."""
FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "vocab.txt",
    "added_tokens.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
)  # fmt: skip
"""What transformers' tokenizers are saved as; no other file is ever taken from a folder."""
CLIP_WORDS = vocabularies.CLIP_END + 1
"""Entries of the vocabulary of OpenAI's CLIP, which open_clip ships."""
_SETTINGS = ("additional_special_tokens", "clean", "language", "reduction_mask", "strip_sep_token")
"""Of ``tokenizer_kwargs``: what open_clip's tokenizers take that names no file, folder, address or code."""
BESIDE = "tokenizer"
"""The ``hf_tokenizer_name`` of a model whose tokenizer's files are beside its configuration."""


def load(folder: Path, text: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a model folder, whose ``text_cfg`` is ``text``.

    Raises:
        UserError: the files cannot be read, or cannot be had from the hub; or they want code of their own to run.
    """
    if not text.get("hf_tokenizer_name"):
        simple = shallow_copy(_simple(json.dumps(own_settings(text))))
        simple.context_length = text["context_length"]
        return simple
    kept = folder / FOLDER
    hugging_face: Tokenizer = _hugging_face(str(kept) if kept.is_dir() else text["hf_tokenizer_name"], text)
    return hugging_face


@functools.cache
def _simple(settings: str) -> SimpleTokenizer:
    """open_clip's own tokenizer with settings as JSON, made once: it reads a vocabulary for 0.1 s."""
    prepare_imports()
    import open_clip

    return open_clip.SimpleTokenizer(**json.loads(settings))


def fetch(
    folder: Path, text: Mapping[str, Any], project: Path, beside: Path | None = None, *, complete: bool = False
) -> None:
    """Save the files of the tokenizer that ``text`` names into the model folder; nothing where it is open_clip's own.

    They are those ``beside`` the model's configuration, if it is in a folder that has some (as open_clip has it for
    ``local-dir:``). Else the name is a folder (relative paths start at ``project``), or a repository of the hub. The
    configuration of a ``complete`` model may be somebody else's: it names no file outside of ``project``, its folder.

    Raises:
        UserError: as `load`; the configuration leads out of its folder; or the tokenizer is of another model: its
            numbers are none of the model's, or the text tower would not find the end of a text.
    """
    name = text.get("hf_tokenizer_name")
    if not name:
        return
    local = beside if beside and any((beside / file).is_file() for file in FILES) else project / name
    if complete and not local.resolve().is_relative_to(project.resolve()):
        raise UserError(
            f"{project}: its configuration names a tokenizer elsewhere on this machine ({name!r:.80}); put the "
            "tokenizer's files beside the configuration"
        )
    if name == BESIDE and not local.is_dir():
        raise UserError(
            f"{beside or project}: no tokenizer beside the model, whose vocabulary is not CLIP's (vocab_size "
            f"{text.get('vocab_size')}); save its tokenizer's files ({', '.join(FILES[:2])}, …) there"
        )
    if project == beside:
        for file in FILES:
            if (local / file).is_file():
                require_own(local, file)
    made = folder / f".{FOLDER}"
    tokenizer = _hugging_face(str(local) if local.is_dir() else name, text)
    _require_fitting(tokenizer, text, name if local is not beside else str(beside))
    tokenizer.tokenizer.save_pretrained(made)
    (folder / FOLDER).mkdir()
    if not copy(made, folder / FOLDER):
        raise UserError(f"the model's tokenizer {name!r} has none of the files {', '.join(FILES[:2])}, …")
    shutil.rmtree(made)


def of_transformers(folder: Path, words: int, end: int) -> dict[str, Any]:
    """What a ``text_cfg`` of open_clip says of the tokenizer in a folder of a transformers ``CLIPModel``.

    Nothing where it is CLIP's own. ``words`` is the configuration's ``vocab_size``, ``end`` its ``eos_token_id``: 2
    means the token with the largest number (transformers/models/clip/modeling_clip.py, ``CLIPTextModel``).

    Raises:
        UserError: a file cannot be read, or the files are of another model.
    """
    if any(vocabularies.is_source(name) for name in FILES if (folder / name).is_file()):
        _require_numbers(folder, words)
        ours = vocabularies.is_clip(folder)
    else:
        ours = words == CLIP_WORDS  # as transformers' own conversion of OpenAI's models, which saves the model alone
    if ours and end in (2, vocabularies.CLIP_END):
        return {}
    if ours:
        raise UserError(
            f"{folder}: eos_token_id {end} is not the end of a text in CLIP's vocabulary ({vocabularies.CLIP_END}); "
            "put the files of the tokenizer that the model was trained with there"
        )
    return {"hf_tokenizer_name": BESIDE, **({} if end == 2 else {"pool_type": "eos", "eos_id": end})}


def of_siglip(folder: Path, words: int) -> dict[str, Any]:
    """What a ``text_cfg`` of open_clip says of the tokenizer in a folder of a transformers ``SiglipModel``.

    Texts are cleaned as open_clip does for its own SigLIP models: lower case, no punctuation.

    Raises:
        UserError: as `of_transformers`.
    """
    _require_numbers(folder, words)
    return {"hf_tokenizer_name": BESIDE, "tokenizer_kwargs": {"clean": "canonicalize"}}


def _require_numbers(folder: Path, words: int) -> None:
    """Hold the numbers of a tokenizer's files against a model's ``vocab_size``."""
    for name in FILES:
        if (folder / name).is_file():
            require_own(folder, name)
    numbers = vocabularies.of(folder)
    if numbers and max(numbers.values()) >= words:
        raise UserError(
            f"{folder}: the tokenizer's files number {max(numbers.values()) + 1} tokens, and the model has "
            f"vocab_size {words}; put the tokenizer that it was trained with there"
        )


def require_same(folder: Path, model: Path) -> None:
    """Hold the tokenizer beside other weights, if there is one, against that of a timeline's model folder.

    Weights that were trained with other numbers for the same words mean something else, whatever their shapes.

    Raises:
        UserError: a token has another number in one than in the other; or a file cannot be read.
    """
    theirs = vocabularies.of(folder)
    if theirs is None:
        return
    for name in FILES:
        if (folder / name).is_file():
            require_own(folder, name)
    kept = model / FOLDER
    ours = vocabularies.of(kept) if kept.is_dir() else vocabularies.clip()[0]
    if ours is None or theirs == ours:
        return
    differing = sorted(theirs.items() ^ ours.items(), key=lambda pair: (pair[1], pair[0]))
    token = differing[0][0]
    raise UserError(
        f"{folder}: its tokenizer is another than the base's: the token {token!r:.60} is number "
        f"{theirs.get(token, 'none')}, in the base {ours.get(token, 'none')} ({len(theirs)} tokens, the base has "
        f"{len(ours)}); merging needs models that were trained with the same tokenizer"
    )


def _require_fitting(tokenizer: HFTokenizer, text: Mapping[str, Any], name: str) -> None:
    """Hold a tokenizer against the model: one text shows what every text has."""
    its = f"the model's tokenizer {name!r}"
    if tokenizer.tokenizer.pad_token_id is None:
        raise UserError(f"{its} has no pad_token, which fills texts up to the context length; name one in its settings")
    if tokenizer.tokenizer.padding_side != "right":
        raise UserError(f"{its} pads on the left, where the text tower would read it; set padding_side: right")
    with _readable(f"{its} cannot read a text"):
        tokens = tokenizer(["a"])[0].tolist()
    largest, words = max(tokens), text.get("vocab_size") or CLIP_WORDS
    if largest >= words:
        raise UserError(f"{its} gives the number {largest}, and the model has {words} words (vocab_size)")
    if text.get("pool_type") == "eos" and text.get("eos_id", 2) not in tokens:
        raise UserError(
            f"{its} does not end a text with the token {text.get('eos_id', 2)}, where the text tower reads "
            f"(eos_token_id of transformers, eos_id of open_clip); it gives {str(tokens[:8])[1:-1]}, …"
        )


def _hugging_face(name: str, text: Mapping[str, Any]) -> HFTokenizer:
    prepare_imports()
    # A repository can name code of its own; it never runs, whatever the configuration asks for.
    settings = {**own_settings(text), "trust_remote_code": False}
    hub.guard()
    with _readable(f"the model's tokenizer {name!r} cannot be had"):
        try:
            from open_clip.tokenizer import HFTokenizer

            return HFTokenizer(
                name, context_length=text["context_length"], tokenizer_mode=text.get("tokenizer_mode"), **settings
            )
        except ImportError as error:
            raise UserError(
                f"the model's tokenizer {name!r} needs a package that is not installed ({error}); "
                "pip install transformers"
            ) from None


@contextmanager
def _readable(otherwise: str) -> Iterator[None]:
    """Files that are damaged, or do not go together, make their parsers raise errors of any type, and those in Rust
    panic, which is no Exception.

    Raises:
        UserError: ``otherwise`` and the reason.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{otherwise}: {reason}") from None


def own_settings(text: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer's own settings.

    Raises:
        UserError: one is of what loads the tokenizer: a configuration of somebody else's must not choose files and
            folders of this machine, proxies, or code.
    """
    settings = text.get("tokenizer_kwargs") or {}
    if not isinstance(settings, Mapping):
        raise UserError(f"tokenizer_kwargs: expected settings, got {settings!r:.80}")
    if others := [key for key in settings if key not in _SETTINGS]:
        raise UserError(f"tokenizer_kwargs: {others[0]!r:.80} is not taken; there are {', '.join(_SETTINGS)}")
    return dict(settings)


def name_class(folder: Path) -> None:
    """Have copied files say which of transformers' classes reads them, which a config.json of CLIP's said before."""
    path = folder / "tokenizer_config.json"
    settings = vocabularies.read(path) if path.is_file() else {}
    if "tokenizer_class" not in settings:
        path.write_text(json.dumps({**settings, "tokenizer_class": "CLIPTokenizer"}, indent=1) + "\n", encoding="utf-8")


def copy(source: Path, target: Path) -> list[str]:
    """Copy the tokenizer's files from one folder to another; returns their names.

    Raises:
        UserError: one is a link that leads out of the folder: somebody else's model must not take files of yours along.
    """
    names = [name for name in FILES if (source / name).is_file()]
    for name in names:
        require_own(source, name)
        shutil.copyfile(source / name, target / name)
    return names


def require_own(folder: Path, name: str) -> None:
    """Refuse a file of a model's folder that is a link out of it.

    In the hub's cache, a file of ``snapshots/COMMIT`` is a link to one in ``blobs`` beside ``snapshots``.

    Raises:
        UserError: it is such a link.
    """
    home, file = folder.resolve(), (folder / name).resolve()
    stored = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if not file.is_relative_to(home) and file.parent != stored:
        raise UserError(f"{folder / name}: is a link to {file}, outside its folder; put the file itself there")


def write_clip(target: Path, context_length: int) -> None:
    """The files of transformers' ``CLIPTokenizer`` for CLIP's vocabulary."""
    words, merges = vocabularies.clip()
    start, end = vocabularies.START, vocabularies.END
    (target / "vocab.json").write_text(json.dumps(words, ensure_ascii=False), encoding="utf-8")
    (target / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{pair}\n" for pair in merges), encoding="utf-8")
    settings = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": context_length, "do_lower_case": True,
        "bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end, "errors": "replace",
    }  # fmt: skip
    (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
