"""The child process that runs DVC: one JSON request a line on stdin, one JSON answer a line on stdout.

DVC's ``Repo`` depends on the process's working directory, prints and logs as it likes, and takes a second to
import; in a process of its own, which a run uses from start to end, none of that touches the flow.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from dvc.repo import Repo
from dvc_data.hashfile.hash_info import HashInfo
from dvc_objects.fs import localfs

from tasks import environment, processes
from tasks.layout import is_inside
from tasks.storage import inventory, transfer
from tasks.storage.dvc_config import EMBEDDED
from tasks.storage.transfer import TransferError


class OutsideError(Exception):
    """A path leads outside the folder that is checked out."""


def record(
    repo: Repo, *, tracked: list[str], hashes: dict[str, str], objects: list[str], known: list[str]
) -> dict[str, Any]:
    """Track inputs, write ``dvc.lock`` from what is there, and make the store hold every byte of it.

    ``hashes`` (path → md5 of files just put into the cache) spares DVC from reading them again; ``objects`` are all
    that this makes of them, and ``known`` are those of the previous state.
    """
    for path, md5 in hashes.items():
        repo.state.save(str(Path(path).absolute()), localfs, HashInfo("md5", md5))
    repo.add(tracked)
    # Nothing asks DVC's run cache, which would hold every metrics file a second time and grow for ever.
    repo.stage_cache.save = lambda _stage: None
    committed = repo.commit(force=True)  # every stage there is; asking `repo.index` would parse all files again
    locked = {out.hash_info.value for stage in committed for out in stage.outs if out.use_cache}
    if not locked <= set(objects):
        raise ValueError(f"it finds other bytes than were stored: {', '.join(sorted(locked - set(objects)))}")
    return {"pushed": transfer.push(repo, objects, known)}


def fetch(repo: Repo, *, md5s: list[str]) -> dict[str, Any]:
    """Download objects of the store into the cache, each complete or not at all; ``absent`` are those it lacks."""
    return {"absent": transfer.fetch(repo, md5s)}


def checkout(repo: Repo) -> dict[str, Any]:
    """Place everything the checked-out commit refers to in the working tree, from the cache.

    DVC itself would follow a folder's list of files to wherever that leads; see `tasks.record.foreign`.
    """
    for out in repo.index.outs:
        if not out.is_in_repo:
            raise OutsideError(f"{out.stage.relpath} puts a file outside the folder, at {out.def_path}")
        if out.hash_info and out.hash_info.isdir:
            for parts, _, _ in out.get_obj() or ():
                if not is_inside("/".join(parts)):
                    raise OutsideError(f"{out.def_path} lists a file outside it, at {'/'.join(parts)}")
    repo.checkout(force=True)
    return {}


ACTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "record": record,
    "fetch": fetch,
    "checkout": checkout,
    "send": transfer.send,
    "keep": transfer.keep,
    "probe": inventory.probe,
    "stored": inventory.stored,
    "take": inventory.take,
    "discard": inventory.discard,
    "used": inventory.used,
}


def main() -> None:
    # When the parent is killed, the next run must not find this process at work in the parent's worktree.
    processes.end_with(os.getppid(), every=0.1)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # whatever DVC prints goes with its log, never among the answers
        for line in sys.stdin:
            print(json.dumps(_answered(json.loads(line))), file=answers, flush=True)


def _answered(request: dict[str, Any]) -> dict[str, Any]:
    """What a request of the parent comes to: a value, or an error and whether it may pass."""
    try:
        os.chdir(request["folder"])
        with Repo() as repo, _settings_of_remote(repo, request["arguments"].get("remote")):
            return {"value": ACTIONS[request["action"]](repo, **request["arguments"])}
    except Exception as error:  # the parent decides what it means
        traceback.print_exc()
        may_pass = isinstance(error, TransferError)
        return {"error": str(error) if may_pass else f"{type(error).__name__}: {error}", "may_pass": may_pass}


def _settings_of_remote(repo: Repo, name: str | None) -> AbstractContextManager[None]:
    """Nothing of the user's AWS settings for the embedded store; no change for any other remote."""
    embedded = (name or repo.config["core"].get("remote")) == EMBEDDED
    return environment.without_user_aws_settings() if embedded else nullcontext()


if __name__ == "__main__":
    main()
