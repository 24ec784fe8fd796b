"""Passwords and keys stay where they were put: planted, used in a run that fails at its very end, searched for."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.errors import UserError
from tasks.storage import dvc_config, store
from tasks.storage.dvc_config import Remote
from tasks.storage.git import GitError
from tasks.storage.git import git as plumbing
from tests import project as projects
from tests.project import chronomerge, git

PASSWORD = "pass-Word0-of-git"
TOKEN = "hf_tokenThatNobodyShouldSee"
ENDPOINT_PASSWORD = "pass-Word1-of-endpoint"


@pytest.mark.slow
def test_secrets_are_in_no_file_but_the_one_for_them(tmp_path: Path, s3: Remote, prefect_api: dict[str, str]) -> None:
    secret = s3.options["secret_access_key"]
    planted = {
        "AWS_ACCESS_KEY_ID": s3.options["access_key_id"], "AWS_SECRET_ACCESS_KEY": secret, "HF_TOKEN": TOKEN,
        **prefect_api,
    }  # fmt: skip
    folder = projects.make(tmp_path / "project", store={"remote": "mine", "git": "origin"})
    git(tmp_path, "init", "--quiet", "--bare", "origin.git")
    git(folder, "remote", "add", "origin", str(tmp_path / "origin.git"))
    git(folder, "config", "remote.origin.pushurl", f"http://somebody:{PASSWORD}@127.0.0.1:9/x.git")
    url, endpoint = f"s3://{s3.bucket}/secrets", s3.options["endpointurl"]
    wrong = endpoint.replace("://", f"://somebody:{ENDPOINT_PASSWORD}@")
    said = []

    def run(*args: str, status: int = 0) -> str:
        done = chronomerge(folder, *args, check=False, **planted)
        assert done.returncode == status, done.stderr
        said.append(done.stdout + done.stderr)
        return done.stderr

    refusal = run("remote", "setup", url, "--endpoint-url", wrong, "--name", "mine", status=2)
    assert "knows no passwords in an endpoint" in refusal
    run("remote", "setup", url, "--endpoint-url", endpoint, "--region", "us-east-1", "--name", "mine")
    assert secret in (folder / ".dvc" / "config.local").read_text()
    failure = run("run", "--until", "0", status=2)  # it fails at the last moment, inside a Prefect task
    assert "git remote 'origin' did not take state/tiny/0000" in failure
    assert "127.0.0.1 port 9" in failure

    allowed = {folder / ".dvc" / "config.local", folder / ".git" / "config"}
    searched, logged = 0, False
    for where, content in (
        *(("output", text.encode()) for text in said),
        *_files(folder, allowed),
        *_files(Path(prefect_api["PREFECT_HOME"]).parent, set()),  # database, results and logs of the server
        *_git_objects(folder),
        *_objects(Remote("mine", url, s3.options)),
    ):
        searched, logged = searched + 1, logged or (".db" in where and b"did not take state/tiny/0000" in content)
        for name, planted_one in (("key", secret), ("git", PASSWORD), ("token", TOKEN), ("url", ENDPOINT_PASSWORD)):
            assert planted_one.encode() not in content, f"{name} in {where}"
    assert logged
    assert searched > 100


def _files(folder: Path, allowed: set[Path]) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file() and path not in allowed:
            yield str(path), path.read_bytes()


def _git_objects(folder: Path) -> Iterator[tuple[str, bytes]]:
    """All objects, referred to or not, unpacked."""
    listed = ["git", "cat-file", "--batch-all-objects", "--batch", "--unordered"]
    yield "git", subprocess.run(listed, cwd=folder, check=True, capture_output=True).stdout


def _objects(remote: Remote) -> Iterator[tuple[str, bytes]]:
    s3 = store.client(remote)
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=remote.bucket, Prefix=remote.prefix):
        for found in page.get("Contents", ()):
            yield found["Key"], s3.get_object(Bucket=remote.bucket, Key=found["Key"])["Body"].read()


def test_messages_lose_the_passwords_of_urls(project: Path) -> None:
    address = f"http://somebody:{PASSWORD}@127.0.0.1:9/x.git"
    with pytest.raises(GitError) as raised:
        plumbing(project, "fetch", address)
    assert PASSWORD not in str(raised.value)
    assert str(GitError(f"cannot read '{address}'")) == "cannot read 'http://***@127.0.0.1:9/x.git'"
    assert str(UserError("see s3://bucket/a@b and https://a:b@c/d?e=f@g")) == ("see s3://bucket/a@b and https://***@g")


def test_keys_are_not_shown_with_their_remote(s3: Remote, project: Path) -> None:
    (project / ".dvc").mkdir()
    dvc_config.write_remote(project, s3)
    assert s3.options["secret_access_key"] not in f"{dvc_config.remotes(project)} {s3} {store.described(s3)}"
