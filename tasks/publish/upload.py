"""Hand a folder to a model hub, through huggingface_hub: one commit, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import UnavailableError, UserError
from tasks.storage.hub import Address

REPLACED = (
    "open_clip_model.safetensors", "open_clip_config.json", "model.safetensors", "config.json",
    "preprocessor_config.json", "recipe/*",
)  # fmt: skip
"""What an earlier publication may have left, and this one may not replace: another form of the model loads first."""


def require_access(address: Address) -> None:
    """Look whether the hub answers and takes a token, before any work.

    Raises:
        UserError: there is no token, or the hub refuses it.
        UnavailableError: the hub does not answer.
    """
    from huggingface_hub import HfApi, get_token

    if not get_token():
        raise UserError(f"{address}: publishing needs a token; log in with `hf auth login`, or set HF_TOKEN")
    with _sentences(address):
        HfApi().whoami()


def send(folder: Path, address: Address, what: str) -> str:
    """Upload the folder as one commit; returns it.

    Raises:
        UserError: the token may not write there, or the hub refuses the files.
        UnavailableError: the hub does not answer, or broke off; the repository is as it was before.
    """
    from huggingface_hub import HfApi

    with _sentences(address):
        api = HfApi()
        api.create_repo(address.repository, repo_type="model", exist_ok=True)
        done = api.upload_folder(
            repo_id=address.repository, repo_type="model", folder_path=folder, commit_message=f"chronomerge: {what}",
            delete_patterns=list(REPLACED),
        )  # fmt: skip
    return str(done.oid)


@contextmanager
def _sentences(address: Address) -> Iterator[None]:
    """What huggingface_hub raises, in one sentence, without the token or a signed address."""
    import httpx2
    from huggingface_hub import errors as theirs
    from huggingface_hub import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except theirs.OfflineModeIsEnabled:
        raise UserError(f"{address}: HF_HUB_OFFLINE is set, so nothing can be published; unset it") from None
    except (theirs.HfHubHTTPError, httpx2.HTTPError, OSError, ValueError, RuntimeError) as error:
        raise _told(address, error) from None
    finally:
        logging.set_verbosity(before)


def _told(address: Address, error: Exception) -> UserError:
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub import errors as theirs

    if type(error) is RuntimeError and isinstance(error.__cause__, theirs.HfHubHTTPError | httpx2.HTTPError):
        error = error.__cause__  # huggingface_hub only says which file was on its way
    if isinstance(error, theirs.HfHubHTTPError):
        status = int(error.response.status_code)
        if status in (401, 403):
            return UserError(
                f"{address}: the hub refuses the token (status {status}); it needs write access to that repository "
                "(`hf auth whoami`)"
            )
        if status in (400, 404, 409, 422):
            message = " ".join(str(getattr(error, "server_message", None) or type(error).__name__).split())[:200]
            return UserError(f"{address}: the hub refuses this (status {status}: {message})")
        return UnavailableError(f"{address}: {constants.ENDPOINT} answers with status {status}; try again")
    if isinstance(error, httpx2.HTTPError):
        return UnavailableError(
            f"{address}: {constants.ENDPOINT} does not answer, or broke off ({type(error).__name__}); try again"
        )
    return UserError(f"{address}: cannot be published ({' '.join(str(error).split())[:200]})")
