"""The environment variables of this process and of the processes that it starts: made here and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tasks.errors import UserError

CODE = Path(__file__).parents[1]
"""The folder that holds the packages of this program."""

AWS_DEFAULTS = {
    # Many S3-compatible stores do not know the newest checksums that clients send by default.
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    # Back off 1, 2, 4, … s (times a random part) after dropped connections, 500, 503 and the like.
    "AWS_RETRY_MODE": "standard",
    "AWS_MAX_ATTEMPTS": "5",
}
"""AWS's own variables for every client of a store; the user's values take precedence."""

NO_FILE = f"{os.devnull}/none"
"""A path at which there is no file, and never will be."""

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_FOR_SERVERS = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ")


def bypass_proxies_on_loopback(variables: MutableMapping[str, str] = os.environ) -> None:
    """Make every client connect to this machine directly; for other addresses the user's proxy stays.

    urllib, httpx, botocore, aiohttp, websockets and curl all read ``no_proxy`` or ``NO_PROXY``, in different orders, so
    both are set. Without a proxy variable nothing changes: on macOS and Windows any of them hides the system's proxy.

    Raises:
        UserError: a variable holds no address; httpx would fail at any client, also of this machine. It may hold a
            password, so it is not shown.
    """
    users = {name.lower(): value for name, value in variables.items() if name.lower().endswith("_proxy") and value}
    if not users.keys() - {"no_proxy"}:
        return
    for name, value in variables.items():
        if name.lower() in ("http_proxy", "https_proxy", "all_proxy") and value and not _is_address(value):
            raise UserError(f"{name}: holds no address of a proxy, such as http://HOST:PORT; correct it, or unset it")
    lists = {name: variables.get(name) or users.get("no_proxy", "") for name in ("no_proxy", "NO_PROXY")}
    for name, listed in lists.items():
        hosts = [host.strip() for host in listed.split(",") if host.strip()]
        missing = [] if hosts == ["*"] else [host for host in _LOOPBACK if host not in hosts]
        variables[name] = ",".join([*hosts, *missing])


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        return bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def absent_certificates() -> list[str]:
    """The user's variables of OpenSSL that lead nowhere: httpx reads them before it asks any address, ours too."""
    return [
        name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if name in os.environ and not Path(os.environ[name]).exists()
    ]


def for_child(code: Path | None = None, /, **variables: str) -> dict[str, str]:
    """The environment of a child process: this process's own, and ``code``, by default ours, first on its path."""
    path = os.pathsep.join(filter(None, [str(code or CODE), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]))
    made = {**AWS_DEFAULTS, **os.environ, "PYTHONPATH": path, **variables}
    made.pop("PYTHONWARNINGS", None)  # libraries warn of each other: with ``error`` no child would start
    bypass_proxies_on_loopback(made)
    return made


def for_server(home: Path, **variables: str) -> dict[str, str]:
    """The environment of a server that is not our code: no setting and no secret of the user; ``home`` is its own."""
    inherited = {name: os.environ[name] for name in _FOR_SERVERS if name in os.environ}
    return {**inherited, "HOME": str(home), "TMPDIR": str(home), **variables}


@contextmanager
def without_user_aws_settings() -> Iterator[None]:
    """Hide the user's AWS variables and files for the block: the embedded store has settings of its own.

    Changes this process's environment, so other threads must not read AWS settings meanwhile.
    """
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("AWS_")}
    os.environ.update(AWS_DEFAULTS, AWS_CONFIG_FILE=NO_FILE, AWS_SHARED_CREDENTIALS_FILE=NO_FILE)
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ.update(hidden)
