"""Experts trained elsewhere: fetched from a path or S3 as safetensors, with finite values.

Whether one fits the timeline's model, the node ``train`` sees: what is prepared here depends on no timeline's weights.
"""

from __future__ import annotations

import os
from pathlib import Path

from tasks.errors import UserError
from tasks.prepare import captured, files
from tasks.progress import Progress

FILE = "expert.safetensors"
CHUNK = 4 << 20
"""Bytes per read of a download."""


def check(expert: str, project: Path) -> None:
    """Look whether the file is there; an S3 address is only checked for its form.

    Raises:
        UserError: it isn't.
    """
    if "://" in expert:
        _bucket_and_key(expert)
    elif not (project / expert).is_file() and captured.pointer(project, expert) is None:
        raise UserError(f"expert {expert}: no such file")


def fetch(expert: str, target: Path, project: Path, progress: Progress) -> None:
    """Put an expert at ``target`` as safetensors, whatever it is stored as.

    Safetensors files are copied byte for byte. A torch checkpoint (loaded with ``weights_only``: no code of its is
    run) may nest its weights under ``state_dict`` and prefix their names with ``module.``. ``s3://`` addresses are
    read with the usual AWS environment variables (AWS_ENDPOINT_URL for another store than AWS).

    Raises:
        UserError: no such file, no access, or no readable checkpoint.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if "://" not in expert:
        check(expert, project)
        _convert(project / expert, target, expert)
        return
    download = target.with_name(f".download{Path(expert).suffix}")
    try:
        _download(expert, download, progress)
        _convert(download, target, expert)
    finally:
        download.unlink(missing_ok=True)


def prepare(expert: Path, target: Path) -> None:
    """Copy a fetched expert, once it has been read whole.

    Raises:
        UserError: names the file, and the tensor that is not finite.
    """
    from tasks.model import checkpoints

    checkpoints.check_finite(expert)
    files.copy(expert, target)


def _convert(path: Path, target: Path, name: str) -> None:
    """``name`` is what the user calls the file."""
    from tasks.model import checkpoints, models

    try:
        if path.suffix == ".safetensors":
            checkpoints.shapes(path)
            files.copy(path, target)
        else:
            # Clones: tensors that share memory cannot be stored as safetensors.
            checkpoints.save(target, {k: tensor.clone() for k, tensor in models.read_checkpoint(path).items()})
    except UserError as error:
        raise UserError(f"expert {name}: {str(error).removeprefix(f'{path}: ')}") from None


def _download(address: str, target: Path, progress: Progress) -> None:
    import s3fs
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, key = _bucket_and_key(address)
    try:
        store = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
        with store.open(f"{bucket}/{key}", "rb", block_size=CHUNK) as source, target.open("wb") as sink:
            done = 0
            while chunk := source.read(CHUNK):
                sink.write(chunk)
                done += len(chunk)
                progress("downloading the expert", done, int(source.size))
            sink.flush()
            os.fsync(sink.fileno())
    except FileNotFoundError:
        raise UserError(f"expert {address}: no such object in the store") from None
    except PermissionError as error:
        raise UserError(f"expert {address}: access denied ({error}); check the AWS credentials") from None
    except (BotoCoreError, ClientError, OSError) as error:
        raise UserError(
            f"expert {address}: cannot be downloaded ({error}); check address, endpoint and network"
        ) from None


def _bucket_and_key(address: str) -> tuple[str, str]:
    bucket, _, key = address.removeprefix("s3://").partition("/")
    if not address.startswith("s3://") or not bucket or not key:
        raise UserError(f"expert {address}: not of the form s3://BUCKET/KEY")
    return bucket, key
