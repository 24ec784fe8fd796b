"""A timeline runs behind a proxy that all programs are told of, and that knows nothing of this machine."""

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
}  # fmt: skip


def test_a_timeline_runs_with_dead_proxies_and_foreign_aws_settings(tmp_path: Path) -> None:
    folder = projects.make(tmp_path / "project", stream=projects.PARAMS["stream"][:1])
    done = chronomerge(folder, "run", **SETTINGS)
    assert "recorded state/tiny/0000 to state/tiny/0001" in done.stdout
    assert "can be written and read" in chronomerge(folder, "remote", "check", **SETTINGS).stdout
    assert "healthy" in chronomerge(folder, "doctor", **SETTINGS).stdout
