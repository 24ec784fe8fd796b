"""Repositories of a model hub: addresses, and files of one commit, by way of huggingface_hub and its cache.

An address is ``hf:org/name[@revision][/file]``, or ``hf-hub:…`` as open_clip writes it. A revision is a branch, a tag
or a commit; a ``/`` in it is written ``%2F``. Tokens come from where huggingface_hub takes them (HF_TOKEN, a stored
login) and go to the hub alone. HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are obeyed.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from tasks.errors import UnavailableError, UserError
from tasks.progress import Progress, silent
from tasks.storage import cards
from tasks.storage.cache import sha256_of

SCHEMES = ("hf:", "hf-hub:")
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_ADDRESS = re.compile(rf"(?P<repository>{_PART}/{_PART})(?:@(?P<revision>[^/@#\s]+))?(?:/(?P<file>[^@#]+))?")
TAIL = 1 << 18
"""Bytes that are asked for at a time where parts of a file are read."""
_PLAIN = re.compile(r'(?:W/)?"?[A-Za-z0-9][A-Za-z0-9._-]{0,199}"?')
"""An ETag or a commit that may be the name of a file."""
_LONGEST = 96
"""Characters of a repository's name."""

Kind = Literal["model", "dataset"]


@dataclass(frozen=True)
class Address:
    """A repository, and perhaps a revision and a file of it."""

    repository: str
    """``org/name``."""
    revision: str | None = None
    """A branch, a tag or a commit; None for the default branch."""
    file: str | None = None
    kind: Kind = "model"

    def __str__(self) -> str:
        revision = f"@{self.revision.replace('/', '%2F')}" if self.revision else ""
        return f"hf:{self.repository}{revision}{f'/{self.file}' if self.file else ''}"


@dataclass(frozen=True)
class FileFacts:
    """What identifies the content of a file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Pin:
    """Where files came from, so that they can be told from others and found again."""

    repository: str
    revision: str | None
    """As it was asked for."""
    commit: str
    files: Mapping[str, FileFacts]
    """Path in the repository → content."""
    licence: str | None = None
    """As the repository's card says."""

    def as_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "licence" or value}


def is_address(text: str) -> bool:
    """Whether a text is the address of a hub."""
    return text.startswith(SCHEMES)


def parse(text: str, kind: Kind = "model") -> Address:
    """The address that a text means.

    Raises:
        UserError: it is none, or its file leads out of the repository.
    """
    plain = next((text.removeprefix(scheme) for scheme in SCHEMES if text.startswith(scheme)), text)
    match = _ADDRESS.fullmatch(plain)
    parts = plain.split("/")
    if match is None or ".." in plain or "--" in match["repository"] or len(match["repository"]) > _LONGEST:
        raise UserError(f"{text}: not an address of a hub; write hf:ORG/NAME, hf:ORG/NAME@REVISION or …/FILE")
    if match["file"] and not _is_inside(match["file"]):
        raise UserError(f"{text}: {'/'.join(parts[2:])!r} is no path of a file in a repository")
    revision = unquote(match["revision"]) if match["revision"] else None
    if revision is not None and (".." in revision or not _is_inside(revision)):
        raise UserError(f"{text}: {revision!r} is no branch, tag or commit")
    return Address(match["repository"], revision, match["file"], kind)


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit; files are downloaded when they are asked for, and stay in huggingface_hub's cache."""

    address: Address
    commit: str
    sizes: Mapping[str, int]
    """The paths of all files → bytes; of a cache that knows no list of files, only those that it has."""
    public: Path | None = None
    """A cache of its own, filled without a token."""

    @property
    def names(self) -> frozenset[str]:
        """The paths of all files."""
        return frozenset(self.sizes)

    def bring(self, names: Iterable[str], progress: Progress = silent) -> Path:
        """Download files; returns the folder that has them. What the cache has already needs no hub.

        Raises:
            UserError: the repository has no such file, or its bytes in the cache are not those that came.
            UnavailableError: the hub does not answer, and the cache lacks the file.
        """
        from huggingface_hub import hf_hub_download

        paths: dict[str, Path] = {}
        for name in names:
            if name not in self.names:
                raise UserError(f"{self.address}: has no file {name!r}{self._near(name)}")
            with _readable(self.address):
                what = f"downloading {name} of {self.address.repository}"
                bar = _bar(progress, what, most=self.sizes[name])
                paths[name] = Path(
                    hf_hub_download(
                        self.address.repository, name, repo_type=self.address.kind, revision=self.commit,
                        tqdm_class=bar, **_access(self.public),
                    )
                )  # fmt: skip
            if not _is_intact(paths[name].resolve()):
                raise UserError(
                    f"{self.address}: {name} is damaged in the cache, {paths[name].resolve()}; remove that file"
                )
        name, path = next(iter(paths.items()))
        return path.parents[name.count("/")]

    def has(self, name: str) -> bool:
        """Whether a file is in the cache."""
        from huggingface_hub import try_to_load_from_cache

        where: dict[str, Any] = {"repo_type": self.address.kind, "revision": self.commit}
        return isinstance(try_to_load_from_cache(self.address.repository, name, cache_dir=self.public, **where), str)

    @contextmanager
    def opened(self, name: str) -> Iterator[Any]:
        """A file for reading: from the cache, or else the parts that are read come over the network, and are not kept.

        Raises:
            UserError, UnavailableError: as `bring`.
        """
        from huggingface_hub import HfFileSystem, try_to_load_from_cache

        where: dict[str, Any] = {"repo_type": self.address.kind, "revision": self.commit}
        cached = try_to_load_from_cache(self.address.repository, name, cache_dir=self.public, **where)
        folder = "datasets/" if self.address.kind == "dataset" else ""
        with _readable(self.address), ExitStack() as stack:
            if isinstance(cached, str):
                yield stack.enter_context(Path(cached).open("rb"))
                return
            token = {"token": False} if self.public else {}
            store = HfFileSystem(endpoint=_endpoint(), skip_instance_cache=True, **token)
            path = f"{folder}{self.address.repository}@{self.commit}/{name}"
            yield stack.enter_context(store.open(path, "rb", block_size=TAIL))

    def stated_hashes(self, names: Sequence[str]) -> dict[str, str]:
        """The SHA-256 of large files as the hub states them; of files that it keeps in git itself, none.

        Raises:
            UserError, UnavailableError: as `bring`.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        token: dict[str, Any] = {"token": False} if self.public else {}
        with _readable(self.address):
            rows = HfApi(endpoint=_endpoint()).get_paths_info(
                self.address.repository, list(names), repo_type=self.address.kind, revision=self.commit, **token
            )
        return {row.path: row.lfs.sha256 for row in rows if isinstance(row, RepoFile) and row.lfs}

    def require(self, names: Iterable[str]) -> None:
        """Look whether files can be had, without downloading any.

        Raises:
            UserError: the repository lacks one, or access to it is restricted.
            UnavailableError: the hub does not answer, and the cache lacks the file.
        """
        from huggingface_hub import hf_hub_download

        for name in names:
            if name not in self.names:
                raise UserError(f"{self.address}: has no file {name!r}{self._near(name)}")
            with _readable(self.address):
                hf_hub_download(
                    self.address.repository, name, repo_type=self.address.kind, revision=self.commit, dry_run=True,
                    **_access(self.public),
                )  # fmt: skip

    def copy(self, names: Collection[str], into: Path, progress: Progress = silent) -> Pin:
        """Copy files into a folder, under their own paths; says what they are.

        Raises:
            UserError, UnavailableError: as `bring`.
        """
        folder = self.bring(names, progress)
        for name in names:
            target = into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, target)
        return self.pin(names, into)

    def pin(self, names: Iterable[str], folder: Path) -> Pin:
        """What identifies files that lie in a folder."""
        facts = {name: FileFacts((folder / name).stat().st_size, sha256_of(folder / name)) for name in sorted(names)}
        return Pin(self.address.repository, self.address.revision, self.commit, facts)

    def licence(self) -> str | None:
        """What the repository's card says of its licence; None where it says nothing, or only the cache can be read."""
        if self.sizes.get(cards.CARD, cards.CARD_BYTES + 1) > cards.CARD_BYTES:
            return None
        try:
            folder = self.bring([cards.CARD])
        except UserError:  # a cache that was filled for loading has no card; nothing else depends on it
            return None
        return cards.licence(cards.front_matter(folder / cards.CARD)) or None

    def _near(self, name: str) -> str:
        import difflib

        near = difflib.get_close_matches(name, self.names, n=3, cutoff=0.5)
        return f"; near matches: {', '.join(near)}" if near else ""


def look(address: Address, public: Path | None = None) -> Snapshot:
    """The repository at the revision of an address; downloads no more than the list of its files.

    With ``public``, a folder for a cache of its own, no token is sent, and no other cache is read: what somebody else
    names may be had only where anybody can have it. Else, where the hub cannot be reached, or HF_HUB_OFFLINE says so,
    what huggingface_hub's cache has decides.

    Raises:
        UserError: there is no such repository or revision, or no access to it; or the hub names files that would lie
            outside of their folder.
        UnavailableError: the hub does not answer, and the cache lacks the repository.
    """
    from huggingface_hub import HfApi

    with _readable(address):
        commit = str(
            HfApi()
            .resolve_revision(address.repository, repo_type=address.kind, revision=address.revision, **_access(public))
            .resolved
        )
        files = _listed(address, commit, public)
    strange = sorted(name for name in files if not _is_inside(name))
    if strange:
        raise UserError(f"{address}: has a file named {strange[0]!r}, which would lie outside of its folder")
    return Snapshot(address, commit, files, public)


def _access(public: Path | None) -> dict[str, Any]:
    return {"cache_dir": str(public), "token": False} if public else {}


def _listed(address: Address, commit: str, public: Path | None) -> dict[str, int]:
    """The paths of all files of a commit → bytes; of those in the cache where that has to do."""
    from huggingface_hub import constants, get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError
    from huggingface_hub.file_download import repo_folder_name

    where: dict[str, Any] = {"repo_type": address.kind, "revision": commit}
    try:
        # It stores the list of files in the cache; no file is called so.
        snapshot_download(
            address.repository, allow_patterns=["\0"], tqdm_class=_bar(silent, ""), **where, **_access(public)
        )
    except LocalEntryNotFoundError as error:
        unreachable: Exception = error
    else:
        unreachable = LocalEntryNotFoundError("the list of files is missing")
    try:
        tree = get_cached_repo_tree(address.repository, cache_dir=public, **where)
        return {file.path: file.size for file in tree}
    except CachedRepoTreeNotFoundError:
        name = repo_folder_name(repo_id=address.repository, repo_type=address.kind)
        folder = Path(public or constants.HF_HUB_CACHE) / name / "snapshots" / commit
        paths = [path for path in folder.rglob("*") if path.is_file()]
        files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
        if not files:
            raise unreachable from None
        return files


def cache_folder() -> Path:
    """Where huggingface_hub keeps what it downloads."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _is_inside(path: str) -> bool:
    return not any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in path.split("/"))


def _is_intact(blob: Path) -> bool:
    """Whether a file of the cache has the bytes that it is named by: their SHA-256, or the id that git gives them."""
    if re.fullmatch("[0-9a-f]{64}", blob.name):
        return sha256_of(blob) == blob.name
    if re.fullmatch("[0-9a-f]{40}", blob.name):
        content = blob.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == blob.name
    return True  # a cache without links, on a file system that has none


@contextmanager
def _readable(address: Address) -> Iterator[None]:
    """What huggingface_hub raises, in a sentence; its warnings, which name signed URLs, are not printed."""
    import httpx2
    from huggingface_hub import constants, logging
    from huggingface_hub import errors as theirs

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    guard()
    try:
        yield
    except theirs.GatedRepoError as error:
        way_out = "log in with `hf auth login`, or set HF_TOKEN" if _status(error) == 401 else "ask for it on its page"
        raise UserError(f"{address}: access to the repository is restricted; {way_out}") from None
    except theirs.RepositoryNotFoundError:
        raise UserError(
            f"{address}: {constants.ENDPOINT} has no such repository, or it is private; check the name, or set HF_TOKEN"
        ) from None
    except theirs.RevisionNotFoundError:
        raise UserError(f"{address}: the repository has no revision {address.revision or 'main'!r}") from None
    except theirs.RemoteEntryNotFoundError:
        raise UserError(f"{address}: the repository lacks a file that it lists") from None
    except (theirs.LocalEntryNotFoundError, theirs.RevisionResolutionError, theirs.OfflineModeIsEnabled) as error:
        if constants.HF_HUB_OFFLINE:
            raise UserError(
                f"{address}: HF_HUB_OFFLINE is set, and the cache in {constants.HF_HUB_CACHE} lacks it; "
                f"`hf download {address.repository}` on a machine with a network fills it"
            ) from None
        raise UnavailableError(f"{address}: {constants.ENDPOINT} does not answer{_cause(error)}") from None
    except theirs.HfHubHTTPError as error:
        status = _status(error)
        if status in (401, 403):
            raise UserError(f"{address}: the hub refuses the token (status {status}); see `hf auth whoami`") from None
        raise UnavailableError(f"{address}: {constants.ENDPOINT} answers with status {status}") from None
    except httpx2.HTTPError as error:
        raise UnavailableError(f"{address}: the download broke off ({type(error).__name__})") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{address}: cannot be downloaded ({' '.join(str(error).split())[:200]})") from None
    finally:
        logging.set_verbosity(before)


def _status(error: Any) -> int:
    return int(error.response.status_code)


def _cause(error: BaseException) -> str:
    """What kind of error stands behind another."""
    behind = error.__cause__ or error.__context__
    return f" ({type(behind).__name__})" if behind else ""


def guard() -> None:
    """Have huggingface_hub refuse a hub's answers that would lead out of its cache, or fill the memory.

    It names files of the cache by ETag and commit, whatever these hold, and takes all of an answer to a question for a
    part of a file into memory (seen in version 1.33).
    """
    from huggingface_hub import get_session

    client = get_session()
    if _require_plain not in client.event_hooks["response"]:
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks["request"], _ask_for_plain_bytes],
            "response": [*hooks["response"], _require_plain, _require_part],
        }


def _require_plain(response: Any) -> None:
    """Raises:
    ValueError: what a hub says of a file cannot be the name of one.
    """
    if response.request.method != "HEAD":  # ETags of other answers are not used
        return
    for name in ("etag", "x-linked-etag", "x-repo-commit"):
        value = response.headers.get(name)
        if value and not _PLAIN.fullmatch(value):
            raise ValueError(f"the hub's answer has {name}: {value!r:.80}, which names no file")


def _ask_for_plain_bytes(request: Any) -> None:
    """A part of a file comes as it is: compressed, it could unpack to anything."""
    if "range" in request.headers:
        request.headers["accept-encoding"] = "identity"


def _require_part(response: Any) -> None:
    """Raises:
    ValueError: what comes for a part of a file is more than that part, compressed, or of no known length.
    """
    asked = re.fullmatch(r"bytes=(\d+)-(\d+)", response.request.headers.get("range", ""))
    if asked is None or response.status_code not in (200, 206):
        return
    length, most = response.headers.get("content-length", ""), int(asked[2]) - int(asked[1]) + 1
    if not length.isdecimal() or int(length) > most or "content-encoding" in response.headers:
        raise ValueError(f"asked for {most} bytes of it, the hub sends {length or 'any number'}: it knows no ranges")


def _bar(progress: Progress, what: str, most: int | None = None) -> type[Any]:
    """A progress bar for huggingface_hub that draws nothing, and tells ``progress`` instead.

    It ends a download of more than ``most`` bytes: one that does not end would fill the disk.
    """
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc,unused-ignore]
        monitor_interval = 0  # no thread of its own

        def __init__(self, *given: Any, **settings: Any) -> None:
            super().__init__(*given, **{**settings, "file": io.StringIO(), "disable": False})

        def update(self, n: float | None = 1) -> bool | None:
            drawn: bool | None = super().update(n)
            if most is not None and self.n > most:
                raise UserError(f"{what}: the hub sends more than the {most} bytes that it lists")
            progress(what, int(self.n), int(self.total or self.n))
            return drawn

    return Bar
