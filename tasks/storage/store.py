"""The S3-compatible store of states: open it, and know before any work that it can be written to."""

from __future__ import annotations

import functools
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import environment
from tasks.errors import UnavailableError, UserError
from tasks.storage import dvc_config, embedded
from tasks.storage.dvc import open_dvc
from tasks.storage.dvc_config import Remote

if TYPE_CHECKING:
    from botocore.configprovider import ConfigValueStore
    from types_boto3_s3 import S3Client


@contextmanager
def open_store(project: Path, name: str) -> Iterator[Remote]:
    """The remote ``name`` (``embedded``: our own server, started if need be), once it was written and read.

    Raises:
        UserError: unknown remote, or one that cannot be read and written.
        RemoteError: a remote that is not on S3 does not answer DVC.
    """
    if name == dvc_config.EMBEDDED:
        with embedded.serving(project) as remote:
            check(remote)
            yield remote
    else:
        remote = dvc_config.remote(project, name)
        check(remote)
        if not remote.is_s3:
            with open_dvc(project) as dvc:
                dvc("probe", project, remote=name)
        yield remote


def client(remote: Remote, attempts: int | None = None, connections: int = 10) -> S3Client:
    """A boto3 client with the remote's own options, as DVC would use them; ``attempts`` at most at each request.

    ``connections`` stay open at most, for as many threads.

    Other settings come from the user's AWS variables and files; for the embedded store there are none.
    """
    import boto3
    from botocore.config import Config
    from botocore.session import Session

    environment.bypass_proxies_on_loopback()
    options, variables = remote.options, {**environment.AWS_DEFAULTS, **os.environ}
    core = Session()
    core.register_component("data_loader", _service_models())
    if remote.name == dvc_config.EMBEDDED:
        variables = environment.AWS_DEFAULTS
        core.register_component("config_store", _no_user_settings())
    session = boto3.Session(
        botocore_session=core,
        aws_access_key_id=options.get("access_key_id"),
        aws_secret_access_key=options.get("secret_access_key"),
        aws_session_token=options.get("session_token"),
        profile_name=options.get("profile"),
        region_name=options.get("region"),
    )
    timeouts = {key: float(options.get(key, default)) for key, default in dvc_config.TIMEOUTS.items()}
    settings = Config(
        connect_timeout=timeouts["connect_timeout"], read_timeout=timeouts["read_timeout"],
        max_pool_connections=connections,
        retries={"mode": "standard", "total_max_attempts": attempts or int(variables["AWS_MAX_ATTEMPTS"])},
        request_checksum_calculation="when_required", response_checksum_validation="when_required",
    )  # fmt: skip
    return session.client("s3", endpoint_url=options.get("endpointurl"), config=settings)


@functools.cache
def _service_models() -> Any:
    """botocore's descriptions of the AWS services, read once: most of what a client costs."""
    from botocore.loaders import create_loader

    return create_loader(os.environ.get("AWS_DATA_PATH"))


def _no_user_settings() -> ConfigValueStore:
    """botocore's settings with their default values, whatever AWS variables and the files of ``~/.aws`` say."""
    from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES as VARIABLES
    from botocore.configprovider import ConfigValueStore, ConstantProvider

    defaults = {name: default for name, (_, _, default, _) in VARIABLES.items()}
    defaults |= {"config_file": environment.NO_FILE, "credentials_file": environment.NO_FILE}
    return ConfigValueStore({name: ConstantProvider(value) for name, value in defaults.items()})


def check(remote: Remote) -> None:
    """Write, read and delete one small object of an S3 store; make the bucket of the embedded one.

    Raises:
        UserError: what is wrong (options, credentials, no bucket, no permission) and what to do.
        UnavailableError: the store does not answer, or says itself that it cannot.
    """
    where = described(remote)
    for option in ("version_aware", "worktree"):
        if remote.options.get(option, "false").lower() in _TRUE:
            raise UserError(
                f"{where} has the option {option}: DVC then stores files under their own names, but states need them "
                f"by hash; take it out (dvc remote modify {remote.name} --unset {option}), or name another remote in "
                "store.remote"
            )
    if not remote.is_s3:
        return
    from botocore.exceptions import BotoCoreError, ClientError

    if "@" in remote.options.get("endpointurl", ""):
        raise UserError(f"{where}: S3 knows no passwords in an endpoint; give access_key_id and secret_access_key")
    key = remote.key(f".chronomerge-probe-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        s3 = client(remote, attempts=3)  # a person may be waiting for the answer
        if remote.name == dvc_config.EMBEDDED and not any(
            bucket["Name"] == remote.bucket for bucket in s3.list_buckets()["Buckets"]
        ):
            s3.create_bucket(Bucket=remote.bucket)
        s3.put_object(Bucket=remote.bucket, Key=key, Body=b"probe")
        body = s3.get_object(Bucket=remote.bucket, Key=key)["Body"].read()
        s3.delete_object(Bucket=remote.bucket, Key=key)
    except ClientError as error:
        passing = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500
        raise (UnavailableError if passing else UserError)(f"{where} {reason(error)}") from None
    except (BotoCoreError, ValueError) as error:
        kind = UnavailableError if isinstance(error, BotoCoreError) else UserError
        raise kind(f"{where} cannot be reached: {reason(error)}; is it running, and is its endpoint right?") from None
    if body != b"probe":
        raise UserError(f"{where} gives back other bytes than were written; do not trust it")


def described(remote: Remote) -> str:
    """A remote in a message: its name, its address, its endpoint."""
    endpoint = remote.options.get("endpointurl")
    return f"store {remote.name!r} ({remote.url}" + (f" at {endpoint})" if endpoint else ")")


def reason(error: Exception) -> str:
    """Why a store refused a request, on one line."""
    code = (getattr(error, "response", None) or {}).get("Error", {}).get("Code", "?")
    return _REASONS.get(code) or " ".join(str(error).split())


_TRUE = ("true", "yes", "on", "1")
"""How DVC's configuration files write yes."""
ABSENT = {"NoSuchKey", "404", "NotFound"}
"""The codes of S3 for an object that does not exist."""
_CREDENTIALS = "refuses these credentials; set them with `chronomerge remote setup` or in the AWS environment variables"
_REASONS = {
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "AccessDenied": "denies access; these credentials may not read, write and delete there",
    "403": _CREDENTIALS,
    "NoSuchBucket": "has no such bucket; create it first",
}
