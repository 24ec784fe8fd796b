"""What must hold after a crash, and after the same command was run again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crashing.lab import PATIENCE, BrokenError, Sandbox, recorded
from tasks import layout
from tasks.record import names, timelines
from tasks.storage import dvc_config, embedded, store
from tests.project import git

OBJECT = re.compile(r"files/md5/[0-9a-f]{2}/[0-9a-f]{30}(\.dir)?")


@dataclass(frozen=True)
class Users:
    """What is the user's: HEAD, branch, index and files."""

    facts: Mapping[str, str]

    @classmethod
    def of(cls, project: Path) -> Users:
        return cls({
            "HEAD": git(project, "symbolic-ref", "HEAD"),
            "branch": git(project, "rev-parse", "main"),
            "index": git(project, "ls-files", "--stage"),
            "status": git(project, "status", "--porcelain"),
            "notes.txt": (project / "notes.txt").read_text(encoding="utf-8"),
            "mine.bin": (project / "mine.bin").read_text(encoding="utf-8"),
        })  # fmt: skip


def whole(project: Path, users: Users, timeline: str = "tiny") -> None:
    """No half of a state anywhere, and the user's own as it was."""
    now = Users.of(project)
    for name, before in users.facts.items():
        if now.facts[name] != before:
            raise BrokenError(f"the user's {name} has changed: {now.facts[name]!r}")
    tags = git(project, "tag", "--list", f"state/{timeline}/*").splitlines()
    if tags != [names.short_tag(timeline, step) for step in range(len(tags))]:
        raise BrokenError(f"tags have a gap: {tags}")
    head = git(project, "for-each-ref", "--format=%(objectname)", names.branch(timeline))
    if head != (git(project, "rev-parse", tags[-1]) if tags else ""):
        raise BrokenError(f"the branch is at {head[:10] or 'nothing'}, not at {tags[-1:]}")
    pointer = git(project, "for-each-ref", "--format=%(objectname)", names.pointer(timeline))
    if pointer != head:  # all are promoted
        raise BrokenError(f"deployed/{timeline} is at {pointer[:10] or 'nothing'}, not at {tags[-1:]}")
    for older, tag in zip([None, *tags], tags, strict=False):
        files = git(project, "ls-tree", "-r", "--name-only", tag).splitlines()
        if lacking := set(layout.RECORDED) - {*layout.OPTIONAL, *files}:
            raise BrokenError(f"{tag} lacks {lacking}")
        parents = git(project, "rev-list", "--parents", "-1", tag).split()[1:]
        if older and parents[0] != git(project, "rev-parse", older):
            raise BrokenError(f"{tag} does not follow {older}")
    git(project, "fsck", "--connectivity-only", "--no-dangling")


def remote_holds_all(project: Path, timeline: str = "tiny") -> None:
    """Ask the S3 store itself for each object that a tag refers to, and for its md5."""
    server = embedded.running(project)
    with contextlib.ExitStack() as stack:
        remote = dvc_config.remote(project, "embedded") if server else stack.enter_context(
            store.open_store(project, "embedded")
        )  # fmt: skip
        s3 = store.client(remote)
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=remote.bucket, Prefix=remote.prefix)
        there = {row["Key"]: row["ETag"].strip('"') for page in pages for row in page.get("Contents", ())}
        for state in timelines.states(project, timeline):
            wanted = []
            for path, entry in state.entries.items():
                wanted.append((path, entry.md5))
                if entry.is_folder:
                    key = _key(remote.prefix, entry.md5)
                    if key in there:
                        listing = s3.get_object(Bucket=remote.bucket, Key=key)["Body"].read()
                        wanted += [(f"{path}/{row['relpath']}", row["md5"]) for row in json.loads(listing)]
            for path, md5 in wanted:
                tagged = there.get(_key(remote.prefix, md5))
                if tagged is None:
                    raise BrokenError(f"the remote lacks {path} of {state.tag}")
                if tagged != md5.removesuffix(".dir"):
                    raise BrokenError(f"the remote has other bytes for {path} of {state.tag}")
        if uploads := s3.list_multipart_uploads(Bucket=remote.bucket).get("Uploads"):
            raise BrokenError(f"unfinished uploads: {[row['Key'] for row in uploads]}")


def _key(prefix: str, md5: str) -> str:
    return f"{prefix}/files/md5/{md5[:2]}/{md5[2:]}"


def same_as(project: Path, expected: Mapping[str, Any]) -> None:
    """Every hash of every state is that of an undisturbed run."""
    actual = recorded(project)
    if actual.keys() != expected.keys():
        raise BrokenError(f"recorded {sorted(actual)}, not {sorted(expected)}")
    for tag, facts in expected.items():
        for name, value in facts.items():
            if actual[tag][name] != value:
                raise BrokenError(f"{tag}: {name} differs from an undisturbed run: {actual[tag][name]} / {value}")


def intact(project: Path) -> None:
    """Every object in the cache is what its name says."""
    for path in (project / ".dvc/cache/files").rglob("*"):
        if path.is_file():
            name = path.relative_to(project / ".dvc/cache").as_posix()
            if not OBJECT.fullmatch(name):
                raise BrokenError(f"left in the cache: {name}")
            if hashlib.md5(path.read_bytes()).hexdigest() != path.parent.name + path.name.removesuffix(".dir"):
                raise BrokenError(f"damaged in the cache: {name}")


def nothing_left(sandbox: Sandbox) -> None:
    """No worktree, temporary file, lock or process of ours."""
    project = sandbox.project
    private = project / ".chronomerge"
    git_locks = [path for path in (project / ".git").rglob("*.lock") if path.parent.name != "chronomerge"]
    left = [
        *git_locks, *(project / ".git/worktrees").glob("*"), *(private / "work").glob("*/*"),
        *(private / "tmp").glob("*"), *private.glob("dvc/*"), *(private / "store").glob(".*"),
        *project.rglob(".*.part"),
    ]  # fmt: skip
    if left:
        raise BrokenError(f"left behind: {', '.join(str(path.relative_to(project)) for path in left[:5])}")
    for path in (private / "results").glob("*"):
        json.loads(path.read_bytes())
    for name in (project / ".git/chronomerge").glob("*.lock"):
        if name.read_text(encoding="utf-8"):
            raise BrokenError(f"{name.name} still names a holder")
    deadline = time.monotonic() + PATIENCE  # on a busy machine a store takes long to end
    while running := sandbox.strays():
        if time.monotonic() > deadline:
            started = [f"{' '.join(one.cmdline()[:3])}, {time.time() - one.create_time():.0f} s old" for one in running]
            log = (private / "store/server.log").read_text(errors="replace", encoding="utf-8")
            note = (
                (private / "store/server.json").read_text(encoding="utf-8")
                if (private / "store/server.json").exists()
                else "none"
            )
            raise BrokenError(f"still running: {started}; the store's note: {note}; its log ends: {log[-1500:]}")
        time.sleep(0.3)
