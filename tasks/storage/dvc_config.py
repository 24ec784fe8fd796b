"""DVC's configuration of a project: which remote keeps the states, and how to reach it.

``.dvc/config`` is committed; ``.dvc/config.local`` is not, and is where credentials and endpoints belong.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from configobj import ConfigObj, ConfigObjError

from tasks.errors import UserError
from tasks.storage import atomic, locks

EMBEDDED = "embedded"
"""The name of the remote that is our own server."""

TIMEOUTS = {"connect_timeout": "10", "read_timeout": "30"}
"""Seconds to wait for a connection, and for the next bytes of an answer; a remote's own options go first."""


@dataclass(frozen=True)
class Remote:
    """One DVC remote, with the options of both config files."""

    name: str
    url: str
    options: dict[str, str] = field(default_factory=dict, repr=False)  # may hold a secret key

    @property
    def is_s3(self) -> bool:
        return self.url.startswith("s3://")

    @property
    def bucket(self) -> str:
        return self.url.removeprefix("s3://").split("/", 1)[0]

    @property
    def prefix(self) -> str:
        return self.url.removeprefix("s3://").partition("/")[2].rstrip("/")

    def key(self, *names: str) -> str:
        """The key in the bucket of something in a remote on S3."""
        return "/".join(filter(None, [self.prefix, *names]))

    def object_key(self, md5: str) -> str:
        """The key in the bucket of one of DVC's objects."""
        return self.key("files", "md5", md5[:2], md5[2:])


def remotes(project: Path) -> dict[str, Remote]:
    """All remotes of a project; local options go before committed ones."""
    merged: dict[str, dict[str, str]] = {}
    for name in ("config", "config.local"):
        for section, options in _sections(project / ".dvc" / name).items():
            if named := _REMOTE.fullmatch(section):
                merged.setdefault(named[1], {}).update(options)
    if nowhere := [name for name, options in merged.items() if "url" not in options]:
        raise UserError(
            f"{project / '.dvc' / 'config'}: remote {nowhere[0]!r} has no url; "
            "`chronomerge remote setup` or `dvc remote modify` sets one"
        )
    return {name: Remote(name, o["url"], {k: v for k, v in o.items() if k != "url"}) for name, o in merged.items()}


def remote(project: Path, name: str) -> Remote:
    """One remote by name.

    Raises:
        UserError: there is none of that name; names the project, and those that it has.
    """
    known = remotes(project)
    if name not in known:
        others = ", ".join(sorted({EMBEDDED, *known}))
        raise UserError(
            f"store.remote: no DVC remote is named {name!r} in {project} (there are: {others}); "
            "`chronomerge remote setup` makes one"
        )
    return known[name]


def write_local(project: Path, sections: dict[str, dict[str, str]]) -> None:
    """Update sections of ``.dvc/config.local``, atomically and readable by its owner alone."""
    path = project / ".dvc" / "config.local"
    path.parent.mkdir(exist_ok=True)
    with locks.exclusive(path.parent / "config.local.lock"):
        config = _read(path)
        for section, options in sections.items():
            config.setdefault(section, {}).update(options)
        buffer = io.BytesIO()
        config.write(buffer)
        ignored = path.parent / "tmp"  # by git: a kill may leave the file there, with its secrets
        ignored.mkdir(exist_ok=True)
        with atomic.made(path, inside=ignored) as part:
            part.touch(0o600)
            part.write_bytes(buffer.getvalue())


def write_remote(project: Path, made: Remote) -> None:
    """Keep a remote in ``.dvc/config.local``."""
    write_local(project, {f'remote "{made.name}"': {"url": made.url, **made.options}})


_OWN = """[core]
    analytics = false
    autostage = false
[cache]
    type = "hardlink,symlink,copy"
"""


def reset(workspace: Path) -> None:
    """Replace the configuration that a tree brought by our own, completely.

    DVC merges its configuration files, and a stranger's options can name files with commands of theirs (``configpath``
    with a ``credential_process``).

    Raises:
        UserError: ``.dvc`` is no folder.
    """
    folder = workspace / ".dvc"
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder} is no folder; remove it from the repository")
    folder.mkdir(exist_ok=True)
    for name in ("config", "config.local"):
        (folder / name).unlink(missing_ok=True)
    (folder / "config").write_text(_OWN, encoding="utf-8")


OF_FILES = frozenset({
    "configpath", "credentialpath", "keyfile", "cert_path", "key_path", "kerb_ticket", "gdrive_user_credentials_file",
    "gdrive_service_account_json_file_path", "bearer_token_command", "ssh_private", "startup_script", "setup_script",
    "site_cache_dir",
})  # fmt: skip
"""Options of DVC that name a command, or a file or folder that is read as one, for secrets, or written to."""


def require_harmless(folder: Path) -> None:
    """Refuse a committed configuration with options that let a repository run commands or choose files.

    Raises:
        UserError: names the section and the option.
    """
    path = folder / ".dvc" / "config"
    for section, options in _sections(path).items():
        for option in options:
            if option in OF_FILES:
                raise UserError(
                    f"{path}: {section} sets {option}, which names a command, or a file that can name some; "
                    "such an option belongs into .dvc/config.local, which is not committed (dvc remote modify --local)"
                )
    cache_dir(folder)


def write_workspace(workspace: Path, project: Path, made: Remote) -> None:
    """Configure DVC in a worktree of the project: the project's cache, hardlinks, and one remote as the default."""
    write_local(workspace, {"core": {"remote": made.name}, "cache": {"dir": str(cache_dir(project))}})
    patient = {**TIMEOUTS, **made.options} if made.is_s3 else made.options
    write_remote(workspace, replace(made, options=patient))


def cache_dir(project: Path) -> Path:
    """The DVC cache of a project, as its configuration says.

    Raises:
        UserError: a committed configuration puts it outside the project: whose folder that is, only its user can say.
    """
    for name in ("config.local", "config"):
        path = project / ".dvc" / name
        configured = _sections(path).get("cache", {}).get("dir")
        if configured:
            folder = (project / ".dvc" / configured).resolve()
            if name == "config" and not folder.is_relative_to(project.resolve()):
                raise UserError(
                    f"{path}: cache.dir is {configured!r}, outside of the project, and is committed; a cache elsewhere "
                    "is for each machine to choose: dvc config --unset cache.dir && dvc cache dir --local FOLDER"
                )
            return folder
    return project / ".dvc" / "cache"


_REMOTE = re.compile(r'\s*remote\s*"(.*)"\s*')


def _sections(path: Path) -> dict[str, dict[str, str]]:
    """A configuration as DVC understands it: names in small letters, values put in for ``%(name)s``.

    Raises:
        UserError: DVC would not read it, or there is a section in a section.
    """
    try:
        content = _parse(path, interpolation=True).dict()
    except ConfigObjError as error:
        raise _unreadable(path, error) from None
    sections: dict[str, dict[str, str]] = {}
    for section, options in content.items():
        if not isinstance(options, dict):
            raise UserError(f"{path}: {section} stands in no section; write [core], or another, above it")
        for option, value in options.items():
            if not isinstance(value, str) or "\0" in value:
                raise UserError(
                    f"{path}: {section}: {option} is a list or a section, not a text (quote one with a comma)"
                )
        sections.setdefault(section.lower(), {}).update({option.lower(): value for option, value in options.items()})
    return sections


def _read(path: Path) -> ConfigObj:
    """A configuration as it is written, to be changed."""
    try:
        return _parse(path, interpolation=False)
    except ConfigObjError as error:
        raise _unreadable(path, error) from None


def _parse(path: Path, *, interpolation: bool) -> ConfigObj:
    try:
        content = path.read_bytes().decode().splitlines() if path.exists() else []
    except UnicodeDecodeError as error:
        raise _unreadable(path, error) from None
    return ConfigObj(content, interpolation=interpolation, encoding="utf-8", default_encoding="utf-8")


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: not a DVC config file: {error}")
