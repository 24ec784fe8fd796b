"""What may leave the project: texts without paths of this machine, addresses of stores, names of people and secrets.

What is published is chosen by key (`manifest`, `params`), its texts are shortened (`shortened`), and the finished files
are searched for what must not be in them (`require_public`).
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.model import tokenizers
from tasks.storage import dvc_config
from tasks.storage.git import GitError, git

_URL = re.compile(
    r"\b(?!https://huggingface\.co/)(?:https?://[^\s\"',\]}#]+|[a-z][a-z0-9+.-]{0,30}://(?:[^\n]*/)?[^\s\"',\]}#]*)",
    re.IGNORECASE,
)
_PATH = re.compile(r"(?<![\w.…/-])(?:~[\w.-]*|\.\.|\.)?/(?![/\s])(?:[^\n]*/)?[^\s\"',\]}#]*")
"""Absolute, of a home, or relative to somewhere: not paths inside the project, such as ``data/spring``.

Folders may have names of any letters, spaces and quotes too: all up to the last slash of the line is one path.
"""
_SECRET = re.compile(r"(?i)(token|secret|password|passwd|credential|api_?key|access_?key)")
_LEFT_OUT = {"store", "hooks", "limits", "grid", "save_every", "threads", "track"}
"""Keys of params.yaml that say where and how it ran, and nothing of the model."""
_MANIFEST = {
    "version", "timeline", "step", "line", "arrival", "expert", "base", "previous", "starts_from", "protocol",
    "technique", "gate", "pointers", "seed", "budget", "inputs", "outputs", "code", "versions", "device", "seconds",
    "elapsed", "bytes",
}  # fmt: skip
"""Keys of a manifest that name neither people nor hosts."""
_VOCABULARIES = set(tokenizers.FILES) - {"tokenizer_config.json"}
"""Files of all kinds of words, which mean nothing there."""


def shortened(text: str) -> str:
    """A text in which an address or a path of this machine is its last part: ``…/spring``."""
    text = _URL.sub(lambda match: f"{match[0].partition('://')[0]}://…/{_last(match[0])}", text)
    return _PATH.sub(lambda match: f"…/{_last(match[0])}", text)


def _last(path: str) -> str:
    name = path.partition("?")[0].rstrip("/").rpartition("/")[2]
    return name.rpartition("@")[2]


def plain(value: Any) -> Any:
    """Every text in a value of JSON `shortened`."""
    if isinstance(value, str):
        return shortened(value)
    if isinstance(value, Mapping):
        return {shortened(str(key)): plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list) else value


def params(content: Mapping[str, Any]) -> dict[str, Any]:
    """What of a state's params.yaml makes its model."""
    return {key: plain(value) for key, value in content.items() if key not in _LEFT_OUT}


def manifest(content: Mapping[str, Any]) -> dict[str, Any]:
    """What of a state's manifest.json makes its model."""
    facts = {key: plain(value) for key, value in content.items() if key in _MANIFEST}
    return {**facts, "recorded": {"at": content["recorded"]["at"]}}


def require_public(folder: Path, project: Path) -> None:
    """Search the texts of a finished folder for what must not leave.

    Raises:
        UserError: names the file and the kind of thing; the thing itself is not repeated.
    """
    forbidden = list(_forbidden(project))
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.suffix in (".safetensors", ".png") or path.name in _VOCABULARIES:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        for what, word in forbidden:
            if word in text:
                raise UserError(
                    f"{path.name} would hold {what}, which is not for others; nothing is published (look for it in "
                    "params.yaml and in the names of arrivals and data sets)"
                )


def _forbidden(project: Path) -> Iterator[tuple[str, str]]:
    yield "the path of this project", str(project.resolve())
    home = str(Path.home())
    if len(home) > 5:  # /root is a word of its own
        yield "the path of your home", home
    if len(host := socket.gethostname()) > 5:
        yield "the name of this host", host
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRET.search(name):
            yield f"the value of {name}", value
    for name in dvc_config.remotes(project):
        for key, value in dvc_config.remote(project, name).options.items():
            if len(str(value)) >= 8 and (_SECRET.search(key) or key == "endpointurl"):
                yield f"the {key} of the store {name!r}", str(value)
    try:
        email = git(project, "config", "user.email").strip()
    except GitError:  # none is set
        return
    if email:
        yield "your e-mail address", email
