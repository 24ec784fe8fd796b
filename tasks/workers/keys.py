"""Keys for the connections of a Dask scheduler: mutual TLS with one certificate for all sides.

Without them, whoever reaches the scheduler or a worker can run commands there: Dask unpickles what it receives.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tasks import certificates, layout
from tasks.errors import UserError

OPEN = (
    "{scheduler} has no sign-in: whoever reaches it or one of its workers can run commands there as its user; "
    "`chronomerge workers keys` makes keys for tls://"
)


def folder(project: Path) -> Path:
    """The folder of the keys in a project, and in the clone of each worker."""
    return layout.private(project) / "workers-keys"


def make(project: Path) -> Path:
    """Make new keys; returns their folder, readable by its owner alone.

    Raises:
        UserError: the folder exists.
    """
    layout.make_private(project)
    made = folder(project)
    try:
        made.mkdir(mode=0o700)
    except FileExistsError:
        raise UserError(
            f"{made} has keys, which scheduler and workers may be using; copy that folder to other machines, or "
            "delete it to make new ones"
        ) from None
    certificates.make(made)
    return made


SCRATCH = f"DASK_TEMPORARY_DIRECTORY={layout.private(Path()) / 'dask'}"
"""Where Dask's processes keep their files. Its default is a folder of a known name in the shared temporary one, which
Dask also imports from: another user who makes that folder first would run code in them."""


def starts(keys: Path) -> tuple[str, str]:
    """The command lines that start a scheduler and a worker with the keys, each in a clone."""
    given = (
        f"--tls-ca-file {keys / certificates.AUTHORITY} --tls-cert {keys / certificates.CERTIFICATE} "
        f"--tls-key {keys / certificates.KEY}"
    )
    return (
        f"{SCRATCH} dask scheduler --protocol tls --host HOST --no-dashboard {given}",
        f"{SCRATCH} dask worker tls://HOST:8786 --nthreads 1 --no-dashboard {given}",
    )


def security(scheduler: str, project: Path) -> Any:
    """Dask's `Security` for a client of a scheduler at tls://: with the project's keys, else Dask's own configuration.

    None for any other address.

    Raises:
        UserError: there are no keys.
    """
    if urlsplit(scheduler).scheme != "tls":
        return None
    import dask
    from distributed import Security

    keys = folder(project)
    if keys.is_dir():
        names = certificates.AUTHORITY, certificates.CERTIFICATE, certificates.KEY
        authority, certificate, key = (keys / name for name in names)
        if missing := [path for path in (authority, certificate, key) if not path.is_file()]:
            raise UserError(f"{missing[0]} is missing; copy the whole folder from the machine that made the keys")
        return Security(
            tls_ca_file=str(authority), tls_client_cert=str(certificate), tls_client_key=str(key),
            require_encryption=True,
        )  # fmt: skip
    if dask.config.get("distributed.comm.tls.ca-file", None):
        return Security(require_encryption=True)
    raise UserError(
        f"--scheduler {scheduler}: no keys in {keys}; copy that folder from the machine where "
        "`chronomerge workers keys` made them, or name your own in Dask's configuration (distributed.comm.tls)"
    )
