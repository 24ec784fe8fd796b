"""Publish a state: put its folder together, search it for what is not for others, and hand it over."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tasks import layout
from tasks.errors import UserError
from tasks.model.writing import place, require_new
from tasks.progress import Progress, silent
from tasks.publish import card, picture, public, recipe
from tasks.record import Form, State, gather_model, lineage_of, open_source
from tasks.record import require_elsewhere as outside
from tasks.storage import atomic, hub, places

CARD = "README.md"
_CONFIG = "open_clip_config.json"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_READS = (layout.DEPLOYED, layout.HISTORY, layout.ARRIVAL, layout.EVALUATION)


@dataclass(frozen=True)
class Published:
    """Where a state's model is now: a folder, or a commit of a hub's repository."""

    state: State
    where: str
    files: int
    bytes: int
    commit: str | None
    notes: tuple[str, ...]


def publish(state: State, to: str, form: Form, progress: Progress = silent) -> Published:
    """Publish a state's model with its card and recipe.

    Args:
        to: a new folder, or ``hf:org/name``, which is made where it is missing.

    Raises:
        UserError: the folder is not new, or the address none of a repository of models; the hub wants a token, or
            refuses it; something of this machine would be published; or the model cannot be had. Nothing is left then.
        UnavailableError: the hub does not answer.
    """
    if state.routed:
        raise UserError(
            f"{state.tag} is a routed deployment: a base, deltas and a router, and no one model to publish; chronomerge"
            " fetch brings them to a server, and a timeline with time.deploy: ema or all has a model of its own"
        )
    address = _address(to)
    if address is None:
        folder = places.output(to, folder=True)
        outside(state.project, folder)
        require_new(folder)
        with atomic.private_folder(folder.parent / f".{folder.name}.part") as part:
            made, notes = _made(state, part, folder.name, None, form, progress)
            count, size = _extent(made)
            place(made, folder)
        return Published(state, str(folder), count, size, None, notes)
    from tasks.publish import upload

    upload.require_access(address)
    layout.make_private(state.project)
    with tempfile.TemporaryDirectory(dir=layout.private(state.project), prefix="publish-") as scratch:
        made, notes = _made(state, Path(scratch), address.repository.rpartition("/")[2], address, form, progress)
        count, size = _extent(made)
        commit = upload.send(made, address, state.tag)
    return Published(state, str(address), count, size, commit, notes)


def _address(to: str) -> hub.Address | None:
    if not hub.is_address(to):
        if "://" in to:
            raise UserError(f"--to {to}: give a folder, or hf:ORG/NAME")
        return None
    address = hub.parse(to)
    if address.file or address.revision:
        raise UserError(f"--to {to}: a model is published as a whole repository; write hf:{address.repository}")
    if address.repository.partition("/")[0] in ("datasets", "spaces"):
        raise UserError(f"--to {to}: is a repository of {address.repository.partition('/')[0]}, not of models")
    return address


def _made(
    state: State, part: Path, name: str, address: hub.Address | None, form: Form, progress: Progress
) -> tuple[Path, tuple[str, ...]]:
    lineage = lineage_of(state)
    with open_source(state, part, _READS) as source:
        model, notes = gather_model(source, part, form, progress)
        licences = card.licences(source)
    _keep_private(model, address.repository if address else None)
    recipe.write(state, model / recipe.FOLDER)
    (model / card.LINEAGE).write_bytes(picture.png(card.facts(lineage)))
    (model / CARD).write_text(card.text(name, state, lineage, form, model, licences), encoding="utf-8")
    public.require_public(model, state.project)
    return model, notes


def _keep_private(model: Path, repository: str | None) -> None:
    """Take paths of this machine out of the configuration files, and have them name the repository's own tokenizer."""
    for path in (model / _CONFIG, model / "tokenizer_config.json"):
        if not path.is_file():
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        if path.name != _CONFIG:
            content.pop("name_or_path", None)
        elif name := content["model_cfg"]["text_cfg"].get("hf_tokenizer_name"):
            public_name = name if _REPOSITORY.fullmatch(name) else "tokenizer"
            content["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = repository or public_name
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _extent(folder: Path) -> tuple[int, int]:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)
