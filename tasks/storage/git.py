"""The few git plumbing calls that recording needs; none runs what a repository names.

Names that come from params.yaml, tags or other repositories follow ``--`` or ``--end-of-options``: git would take one
that starts with a dash for an option, and some of its options are commands.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tasks import layout
from tasks.errors import ReadableError, UserError

_OF_ANOTHER_REPOSITORY = frozenset({
    "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_NAMESPACE",
})  # fmt: skip
"""Set where a git hook calls us; they would send our git to the user's index."""


_NOTHING_RUNS = (
    "-c", "core.hooksPath=/dev/null",  # a user's hooks are for a user's commits
    "-c", "core.fsmonitor=false",
    "-c", "protocol.ext.allow=never",  # ext::COMMAND as an address
    "-c", "submodule.recurse=false", "-c", "fetch.recurseSubmodules=false", "-c", "push.recurseSubmodules=no",
)  # fmt: skip


LINK = "120000"
"""Git's mode of a symbolic link."""


class GitError(ReadableError):
    """A git command failed; the message is git's own."""


def git(folder: Path, *args: str, stdin: str | None = None, env: Mapping[str, str] | None = None) -> str:
    """Run git in a folder and return what it printed, without the last newline.

    Raises:
        GitError: a non-zero exit status.
    """
    done = _run(folder, args, None if stdin is None else os.fsencode(stdin), env)
    output, said = os.fsdecode(done.stdout), os.fsdecode(done.stderr).strip()
    if done.returncode:
        raise GitError(f"git {args[0]} failed in {folder}: {_few_lines(said or output.strip())}")
    return output.rstrip("\n")


def _few_lines(said: str) -> str:
    """What git said, as one line: it may have a line for each of a thousand files."""
    lines = said.splitlines()
    return "; ".join(lines[:2]) + f" (and {len(lines) - 2} more lines)" * (len(lines) > 2)


def _run(
    folder: Path, args: Sequence[str], stdin: bytes | None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Bytes in, bytes out: names of files need not be UTF-8.

    Raises:
        UserError: git is not installed.
    """
    try:
        return subprocess.run(
            ["git", *_NOTHING_RUNS, *args],
            cwd=folder, input=stdin, env={**_environment(), **(env or {})}, capture_output=True,
        )  # fmt: skip
    except FileNotFoundError as error:
        if error.filename != "git":
            raise
        raise UserError("there is no program git; install it (apt-get install git), or put it on the PATH") from None


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _OF_ANOTHER_REPOSITORY}


def identity(folder: Path) -> Mapping[str, str]:
    """The environment for making commits: nothing where git knows the user's own name, else the program's."""
    try:
        git(folder, "var", "GIT_COMMITTER_IDENT")
        return {}
    except GitError:
        who = {"NAME": "chronomerge", "EMAIL": "chronomerge@localhost"}
        return {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()}


def require_remote(folder: Path, name: str) -> None:
    """Refuse a git remote that is no configured one: an address in its place could be a command.

    Raises:
        UserError: no remote of that name is configured; names those that are.
    """
    known = git(folder, "remote").splitlines()
    if name not in known:
        there = ", ".join(known) or "none"
        raise UserError(
            f"store.git: no git remote is named {name!r} (there are: {there}); it takes the name of one, no address: "
            "git remote add shared ADDRESS, then store.git: shared"
        )


def check_out(folder: Path, tree: str) -> None:
    """Fill a worktree with the files of a tree or commit, byte for byte: no filter of anybody's attributes runs."""
    names = git(folder, "config", "--name-only", "--list").splitlines()
    drivers = dict.fromkeys(name.rpartition(".")[0] for name in names if name.startswith("filter."))
    settings = [(f"{each}.{key}", value) for each in drivers for key, value in _NO_FILTER.items()]
    env = {"GIT_CONFIG_COUNT": str(len(settings))}
    for index, (key, value) in enumerate(settings):
        env |= {f"GIT_CONFIG_KEY_{index}": key, f"GIT_CONFIG_VALUE_{index}": value}
    git(folder, "read-tree", "--reset", "-u", "--end-of-options", tree, env=env)


_NO_FILTER = {"smudge": "", "process": "", "required": "false"}


def resolve(folder: Path, revision: str) -> str | None:
    """The object id of a revision, or None where there is none."""
    try:
        return git(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", revision)
    except GitError:
        return None


def is_ancestor(project: Path, older: str, newer: str) -> bool:
    """Whether one commit is another, or is among what led to it."""
    try:
        git(project, "merge-base", "--is-ancestor", "--end-of-options", older, newer)
    except GitError:
        return False
    return True


def top_level(folder: Path) -> Path:
    """The project: the top of the git working tree that a folder is in.

    Raises:
        UserError: no git working tree, or one without a commit; or settings of one machine are committed in it.
    """
    try:
        # A folder of a working tree may look like a bare repository, and bring a configuration with commands.
        top = Path(git(folder, "-c", "safe.bareRepository=explicit", "rev-parse", "--show-toplevel"))
    except GitError:
        raise UserError(f"{folder} is not in a git repository; clone chronomerge and run it in the clone") from None
    if resolve(top, "HEAD") is None:
        raise UserError(f"{top} has no commit yet; states are commits on top of your code, so commit it first")
    _require_own_settings(top)
    return top


def _require_own_settings(top: Path) -> None:
    """Refuse a clone that brings what each machine makes for itself: those files are trusted, and written to.

    Raises:
        UserError: names the first of them.
    """
    for row in git(top, "ls-files", "--stage", "-z", "--", *(f":(icase){one}" for one in layout.OURS)).split("\0")[:-1]:
        facts, _, path = row.partition("\t")
        if layout.is_of_one_machine(path, link=facts.startswith(LINK)):
            raise UserError(
                f"{top}: {path} is committed, and cannot be part of a project (a link, or settings of one machine); "
                f"look at it, then remove it from the repository: git rm -r --cached -- {shlex.quote(path)}"
            )


def common_dir(project: Path) -> Path:
    """The repository's own folder, shared by all its worktrees."""
    return Path(git(project, "rev-parse", "--path-format=absolute", "--git-common-dir"))


def show(project: Path, revision: str, path: str) -> str:
    """A file's text at a revision.

    Raises:
        GitError: there is none, or the repository is damaged there; names both.
    """
    try:
        return git(project, "show", "--no-textconv", "--end-of-options", f"{revision}:{path}")
    except GitError as error:
        raise GitError(f"{path} of {revision} cannot be read: {error} (`git fsck` tells more)") from None


def show_all(project: Path, names: Sequence[str]) -> dict[str, str]:
    """The texts of many files, each named ``revision:path``, in one call: a process a file would take 5 ms each.

    Raises:
        GitError: one of them is not there or not UTF-8, or the repository is damaged; names it.
    """
    asked = "".join(f"{name}\n" for name in names).encode()
    done = _run(project, ["cat-file", "--batch"], asked)
    texts, at = {}, 0
    for name in names:
        end = done.stdout.find(b"\n", at)
        _, _, size = done.stdout[at:end].decode(errors="replace").rpartition(" ")
        revision, _, path = name.partition(":")
        if end < 0 or not size.isdecimal():
            reason = done.stderr.decode(errors="replace").strip() or "it is missing"
            raise GitError(f"{path} of {revision} cannot be read: {reason} (`git fsck` tells more)")
        try:
            texts[name] = done.stdout[end + 1 : end + 1 + int(size)].decode()
        except UnicodeDecodeError as error:
            raise GitError(f"{path} of {revision} cannot be read: it is not UTF-8 ({error})") from None
        at = end + 1 + int(size) + 1
    return texts


def snapshot(project: Path, scratch: Path, *include: str) -> str:
    """A tree object of the project as it stands: HEAD, uncommitted changes, and untracked files of the code.

    Goes through an index of its own, so that the user's index and files stay as they are. ``include`` names
    untracked paths that belong to the code all the same.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    index = scratch / f"index-{os.getpid()}"
    env = {"GIT_INDEX_FILE": str(index)}
    try:
        git(project, "read-tree", "HEAD", env=env)
        git(project, "add", "--update", env=env)
        paths = [path for path in include if (project / path).exists()]
        if paths:
            git(project, "add", "--", *paths, env=env)
        return git(project, "write-tree", env=env)
    finally:
        index.unlink(missing_ok=True)
