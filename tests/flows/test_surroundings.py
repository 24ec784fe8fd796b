"""A timeline runs with what a working person's machine may be set to: proxies, AWS, git, locale and limits."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests import project as projects
from tests.project import chronomerge

pytestmark = pytest.mark.slow

DEAD = "http://127.0.0.1:9"
SETTINGS = {
    **dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"), DEAD),
    "ALL_PROXY": "socks5://127.0.0.1:9", "NO_PROXY": "", "no_proxy": "",
    "AWS_PROFILE": "nosuch", "AWS_CA_BUNDLE": "/nonexistent.pem", "AWS_ENDPOINT_URL": DEAD,
    "LC_ALL": "C", "TMPDIR": "/nonexistent", "SSL_CERT_FILE": "/nonexistent.pem", "SSL_CERT_DIR": "/nonexistent",
}  # fmt: skip


def users_git(folder: Path) -> dict[str, str]:
    """Settings of git that would stop a commit, or change its bytes: hooks, signatures without a key, line ends."""
    hooks = folder / "hooks"
    hooks.mkdir()
    for name in ("pre-commit", "commit-msg", "post-checkout", "reference-transaction", "pre-push"):
        (hooks / name).write_text("#!/bin/sh\nexit 1\n")
        (hooks / name).chmod(0o755)
    settings = {
        "core.hooksPath": str(hooks), "commit.gpgSign": "true", "tag.gpgSign": "true", "user.signingKey": "nobody",
        "core.autocrlf": "true", "core.quotePath": "false",
    }  # fmt: skip
    keys = {f"GIT_CONFIG_KEY_{number}": key for number, key in enumerate(settings)}
    values = {f"GIT_CONFIG_VALUE_{number}": value for number, value in enumerate(settings.values())}
    return {"GIT_CONFIG_COUNT": str(len(settings)), **keys, **values}


def test_a_timeline_runs_on_a_machine_with_settings_of_its_own(tmp_path: Path) -> None:
    folder = projects.make(tmp_path / "mein Ordner [ü]", stream=projects.PARAMS["stream"][:1])
    settings = {**SETTINGS, **users_git(tmp_path)}
    # A process from nothing: the locale and the number of open files are read as one starts.
    command = f"ulimit -n 128 && exec {shlex.quote(sys.executable)} -m flows run"
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env={**os.environ, **settings}, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "recorded state/tiny/0000 to state/tiny/0001" in done.stdout
    assert "\r" not in projects.git(folder, "show", "state/tiny/0001:params.yaml")
    del settings["LC_ALL"]  # so that the next ones are forks
    assert "can be written and read" in chronomerge(folder, "remote", "check", **settings).stdout
    assert "healthy" in chronomerge(folder, "doctor", **settings).stdout
