"""The bytes of states: in the cache, in the remote, and on their way there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tasks import layout
from tasks.errors import UserError
from tasks.record import names
from tasks.record.checks.leftovers import writers_since
from tasks.record.diagnosis import Finding, Visit
from tasks.record.garbage import YOUNG
from tasks.storage import dvc_config, store
from tasks.storage.dvc_config import Remote
from tasks.storage.objects import Depot
from tasks.units import counted

if TYPE_CHECKING:
    from types_boto3_s3.type_defs import MultipartUploadTypeDef


def store_reachable(visit: Visit) -> Iterator[Finding]:
    """The store answers, and can be written to."""
    if visit.depot is None:
        visit.skipped.append("the store does not answer: what it holds was not looked at")
        yield Finding(
            "the store cannot be used", visit.remote, visit.unreachable or "", "repair that, then run doctor again"
        )


def uploads(visit: Visit) -> Iterator[Finding]:
    """Uploads in parts that nobody will end; S3 keeps (and charges for) their parts for ever."""
    if visit.depot is None or not visit.depot.remote.is_s3:
        return
    remote = visit.depot.remote
    before = writers_since(visit) - (0 if remote.name == dvc_config.EMBEDDED else YOUNG.total_seconds())
    pages = store.client(remote).get_paginator("list_multipart_uploads").paginate(
        Bucket=remote.bucket, Prefix=f"{remote.prefix}/" if remote.prefix else ""
    )  # fmt: skip
    for upload in (upload for page in pages for upload in page.get("Uploads", ())):
        if upload["Initiated"].timestamp() < before:
            yield Finding(
                "an upload that was never ended", f"{remote.url.removesuffix(remote.prefix)}{upload['Key']}",
                "a push was killed; its parts take up space, and nothing refers to them", "abort it",
                partial(_abort, remote, upload),
            )  # fmt: skip


def _abort(remote: Remote, upload: MultipartUploadTypeDef) -> None:
    store.client(remote).abort_multipart_upload(Bucket=remote.bucket, Key=upload["Key"], UploadId=upload["UploadId"])


def cache(visit: Visit) -> Iterator[Finding]:
    """Objects of the cache have the bytes that their names promise; all are read."""
    for md5 in sorted(visit.damaged):
        where = ", ".join(visit.wanted.get(md5, ["no state"])[:3])
        in_remote = visit.depot is not None and md5 in visit.there
        yield Finding(
            "damaged bytes in the cache", f"{visit.cache.path(md5)} ({where})",
            "the file was written to, or the disk is failing; a restored state would have wrong bytes",
            "replace it by the store's copy if that is intact, else move it aside" if in_remote
            else f"move it to {_aside(visit.project)}: the store has none",
            partial(_replace, visit.depot, visit.project, visit.cache.path(md5), md5),
        )  # fmt: skip


def _replace(depot: Depot | None, project: Path, damaged: Path, md5: str) -> str:
    with tempfile.TemporaryDirectory(dir=layout.private(project)) as folder:
        if depot and depot.take([md5], Path(folder)):
            good = Path(folder, md5)
            good.chmod(0o444)
            good.replace(damaged)
            return "replaced by the store's copy"
    _aside(project).mkdir(parents=True, exist_ok=True)
    damaged.replace(_aside(project) / md5)
    raise UserError(f"no intact copy of {md5} is in the store; the damaged file was moved to {_aside(project) / md5}")


def _aside(project: Path) -> Path:
    return layout.private(project) / "damaged"


def remote(visit: Visit) -> Iterator[Finding]:
    """The store holds every object that a state refers to; what it lacks and the cache has can be sent."""
    if visit.depot is None:
        return
    sound = {md5: about.size for md5, about in visit.here.items() if md5 not in visit.damaged}
    absent = [md5 for md5 in visit.wanted if md5 not in visit.there]
    cut = [md5 for md5 in visit.wanted if md5 in sound and md5 in visit.there and visit.there[md5].size != sound[md5]]
    sendable = [md5 for md5 in absent if md5 in sound]
    for what, objects, meaning in (
        ("objects that the store lacks", sendable, "another clone could not restore these states; the cache has them"),
        ("objects of another size in the store", cut, "an upload was cut off, or the store is damaged"),
    ):
        if objects:
            yield Finding(
                what, f"{counted(len(objects), 'object')} of {_tags(visit, objects)}", meaning,
                "send them from the cache", partial(visit.depot.send, objects),
            )  # fmt: skip
    for md5 in sorted(set(absent) - set(sendable)):
        places = visit.wanted[md5]
        yield Finding(
            "an object that is nowhere", f"{', '.join(places[:3])}{' …' if len(places) > 3 else ''} (object {md5})",
            "neither the cache nor the store has its bytes; what is named cannot be restored",
            "look for it in the cache of another clone or in a backup, put it into this cache, and run doctor again",
        )  # fmt: skip


def _tags(visit: Visit, objects: Iterable[str]) -> str:
    return names.listed({place.split(" ", 1)[0] for md5 in objects for place in visit.wanted[md5]})
