"""A merged model as a folder that loads: configuration, preprocessing and tokenizer of the base, and a model card.

The card follows https://huggingface.co/docs/hub/model-cards; ``base_model_relation: merge`` is the hub's own term.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks import yaml
from tasks.convert.conversion import WEIGHTS
from tasks.errors import UserError
from tasks.merge import Merged, merge
from tasks.model import configurations, tokenizers
from tasks.model.adapters import is_adapter
from tasks.model.origins import located
from tasks.model.sinks import INDEX
from tasks.model.writing import place, require_new
from tasks.storage import atomic, hub
from tasks.text import markdown

CARD = "README.md"
RECIPE = "chronomerge"
"""The key of the weights' metadata that has the recipe, as JSON."""
_COPIED = (
    configurations.OPEN_CLIP, configurations.TRANSFORMERS, configurations.PREPROCESSOR, "processor_config.json",
    "generation_config.json", "chat_template.jinja",
)  # fmt: skip


def recipe(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What `merge` is called with, as JSON: models by their names, or addresses on a hub, without their folders."""
    made = {
        "technique": _name(arguments["technique"]),
        "settings": arguments.get("settings") or {},
        "base": _name(arguments["base"]) if arguments.get("base") else None,
        "experts": [_name(expert) for expert in arguments["experts"]],
        "weights": arguments.get("weights"),
        "part_weights": arguments.get("part_weights"),
        "statistics": [_name(path) for path in arguments.get("statistics") or []],
        "dtype": arguments.get("dtype"),
        "seed": arguments.get("seed", 0),
    }
    return {key: value for key, value in made.items() if value or key in ("technique", "seed")}


def merge_into(folder: Path, **arguments: Any) -> tuple[Merged, list[str]]:
    """Merge models (arguments as of `tasks.merge.merge`, without ``out``) into a new folder that others load.

    The weights are ``open_clip_model.safetensors`` or ``model.safetensors``, sharded where the base's are. Returns the
    outcome, and what to tell of the other files. With ``dry_run`` nothing is written.

    Raises:
        UserError: as of `tasks.merge.merge`; or the folder is not empty.
    """
    require_new(folder)
    # Looked up once: weights and configuration are of one commit, whatever becomes of a branch meanwhile.
    first = located(arguments.get("base") or arguments["experts"][0])
    like = first.path
    models: dict[str, Any] = {"base": first}
    if not arguments.get("base"):
        models = {"experts": [first, *arguments["experts"][1:]]}
    if arguments.get("dry_run"):
        return merge(**arguments | models), []
    source = like if like.is_dir() else like.parent
    library = "open_clip" if (source / configurations.OPEN_CLIP).is_file() else "transformers"
    weights = WEIGHTS[library]
    sharded = like.name.endswith(INDEX) or (like.is_dir() and (like / f"{weights}{INDEX}").is_file())
    with atomic.private_folder(folder.parent / f".{folder.name}.part") as part:
        made = part / "model"
        made.mkdir()
        merged = merge(**arguments | models, out=made / (f"{weights}{INDEX}" if sharded else weights))
        notes = [] if is_adapter(like) else _copy(source, made, arguments.get("dtype"))
        notes = [f"of {first.label if first.pin else source}: {', '.join(notes)}"] if notes else []
        if not any((made / name).is_file() for name in (configurations.OPEN_CLIP, configurations.TRANSFORMERS)):
            notes.append(
                f"no configuration: there is none beside {like}; the folder has the weights and the card alone"
            )
        told = _without_folders(merged.report.summary(), arguments)
        (made / CARD).write_text(card(folder.name, library, arguments, told), encoding="utf-8")
        place(made, folder)
    return merged, notes


def card(title: str, library: str, arguments: Mapping[str, Any], notes: Sequence[str]) -> str:
    """The text of a model card: front matter, the models and the command that merges them again."""
    made = recipe(arguments)
    named = [name for name in (made.get("base"), *made["experts"]) if name and hub.is_address(name)]
    front: dict[str, Any] = {"library_name": library, "tags": ["merge", "model-merging", "chronomerge"]}
    if named:
        repositories = dict.fromkeys(hub.parse(name).repository for name in named)
        front |= {"base_model": list(repositories), "base_model_relation": "merge"}
    weights = made.get("weights") or [None] * len(made["experts"])
    lines = [
        f"# {markdown(title)}",
        "",
        f"Merged with the technique `{made['technique']}`.",
        "",
        "| model | role | weight |",
    ]
    lines += ["|---|---|---|"]
    if base := made.get("base"):
        lines.append(f"| {markdown(base)} | base | |")
    for expert, weight in zip(made["experts"], weights, strict=True):
        lines.append(f"| {markdown(expert)} | expert | {'' if weight is None else f'{weight:g}'} |")
    lines += ["", "The recipe, which the weights' metadata has too:", "", "```yaml", yaml.dump(made).rstrip(), "```"]
    if made.get("part_weights") is None and "parts" not in made.get("settings", {}):
        lines += ["", "The command that merges them again:", "", "```", _command(made), "```"]
    lines += ["", *[f"- {markdown(note)}" for note in notes]] if notes else []
    return f"---\n{yaml.dump(front)}---\n\n" + "\n".join(lines) + "\n"


def _without_folders(notes: Sequence[str], arguments: Mapping[str, Any]) -> list[str]:
    """Notes for others, in which models have the names of `recipe`."""
    given = [arguments.get("base"), *arguments["experts"], *(arguments.get("statistics") or [])]
    texts = [str(one) for one in given if one]
    paths = sorted({str(Path(one)) for one in texts if not hub.is_address(one)}, key=len, reverse=True)
    for path in (one for one in paths if _name(one)):
        notes = [note.replace(path, _name(path)) for note in notes]
    return list(notes)


def _name(model: Any) -> str:
    text = str(model)
    return text if hub.is_address(text) else Path(text).name


def _command(made: Mapping[str, Any]) -> str:
    words = ["chronomerge", "merge", "--technique", made["technique"]]
    words += ["--base", made["base"]] if made.get("base") else []
    weights = made.get("weights") or [None] * len(made["experts"])
    for expert, weight in zip(made["experts"], weights, strict=True):
        words += ["--expert", expert if weight is None else f"{expert}:{weight!r}"]
    for name in made.get("statistics", []):
        words += ["--statistics", name]
    for key, value in made.get("settings", {}).items():
        words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    words += ["--dtype", made["dtype"]] if made.get("dtype") else []
    words += ["--seed", str(made["seed"])] if made["seed"] else []
    return shlex.join([*words, "--out", "merged"])


def _copy(source: Path, made: Path, dtype: str | None) -> list[str]:
    """Copy configuration and tokenizer; returns the names of the files."""
    names = [name for name in _COPIED if (source / name).is_file()]
    for name in names:
        tokenizers.require_own(source, name)
        (made / name).write_bytes((source / name).read_bytes())
    config = made / configurations.TRANSFORMERS
    if dtype and config.is_file():  # transformers loads in the dtype that the configuration names
        try:
            content = json.loads(config.read_text(encoding="utf-8"))
            content |= {key: dtype for key in ("dtype", "torch_dtype") if key in content}
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{source / config.name}: not a readable configuration ({error!r:.100})") from None
        config.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return [*names, *tokenizers.copy(source, made)]
