"""``chronomerge remote``: set up, check, start and share the S3-compatible store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.terminal import out
from tasks.errors import UserError

app = typer.Typer(help="Set up and check the S3-compatible store of states.", no_args_is_help=True)


@app.command()
def check(
    name: Annotated[str | None, typer.Argument(help="A DVC remote; by default that of params.yaml.")] = None,
) -> None:
    """Write, read and delete a small object in the store; say what is wrong if that fails."""
    from tasks.storage import store

    project = _project()
    with store.open_store(project, name or _named(project)) as remote:
        where = remote.options.get("endpointurl")
        out.print(f"{remote.name}: {remote.url}" + (f" at {where}" if where else "") + " can be written and read")


@app.command()
def setup(
    url: Annotated[str, typer.Argument(help="s3://bucket/prefix")],
    name: Annotated[str, typer.Option(help="What params.yaml calls it (store.remote).")] = "store",
    endpoint_url: Annotated[str | None, typer.Option(help="For MinIO, R2 and others; AWS needs none.")] = None,
    region: Annotated[str | None, typer.Option(help="A region; R2 wants auto.")] = None,
    profile: Annotated[str | None, typer.Option(help="A profile of ~/.aws to take credentials from.")] = None,
) -> None:
    """Set up an S3 store: write, read and delete a small object in it, then store its address and credentials.

    Credentials come from the profile, else from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, which are then stored
    in .dvc/config.local (never in git), else from where AWS's own tools find them.
    """
    from tasks.storage import dvc_config, store

    project = _project()
    if not url.startswith("s3://") or url == "s3://":
        raise UserError(f"{url!r} is not an S3 address; expected s3://bucket/prefix")
    if name == dvc_config.EMBEDDED:
        raise UserError(f"{name!r} is the name of the embedded store; choose another")
    given = {"endpointurl": endpoint_url, "region": region, "profile": profile}
    if not profile:
        given |= {
            "access_key_id": os.environ.get("AWS_ACCESS_KEY_ID"),
            "secret_access_key": os.environ.get("AWS_SECRET_ACCESS_KEY"),
            "session_token": os.environ.get("AWS_SESSION_TOKEN"),
        }
    made = dvc_config.Remote(name, url.rstrip("/"), {key: value for key, value in given.items() if value})
    store.check(made)
    dvc_config.write_remote(project, made)
    out.print(f"{made.url} works, and is in .dvc/config.local as {name!r}; set store.remote: {name} in params.yaml")


@app.command()
def start() -> None:
    """Start the embedded store and let it run, for `dvc pull` and other tools; `stop` ends it."""
    from tasks.storage import embedded

    project = _project()
    with embedded.serving(project) as remote:
        embedded.keep(project, stays=True)
        out.print(
            f"{remote.url} at {remote.options['endpointurl']}; credentials are in .dvc/config.local; other "
            "clones on this machine need `chronomerge remote use` after each start: the address is a new one"
        )


@app.command()
def stop() -> None:
    """Stop the embedded store (once nothing uses it)."""
    from tasks.storage import embedded

    project = _project()
    if not embedded.keep(project, stays=False):
        out.print("the embedded store does not run")
        return
    with embedded.serving(project):
        pass  # the last to leave stops it
    busy = embedded.running(project)
    out.print("something still uses the embedded store; it stops with that" if busy else "stopped")


@app.command()
def use(clone: Annotated[Path, typer.Argument(help="Another clone on this machine, with an embedded store.")]) -> None:
    """Use the embedded store of another clone, so that its states can be restored or pulled here."""
    from tasks.storage import embedded, store

    project = _project()
    embedded.share(project, clone)
    with store.open_store(project, "embedded") as remote:
        out.print(f"using the embedded store of {clone.resolve()} ({remote.url})")


def _project() -> Path:
    from tasks.storage.git import top_level

    return top_level(Path.cwd())


def _named(project: Path) -> str:
    from tasks.params import load

    return load(project / "params.yaml").store.remote
