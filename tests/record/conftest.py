"""DVC is a fork of one that has imported it, but where a test is about processes."""

import pytest


@pytest.fixture(autouse=True)
def forked(forked_children: None) -> None:
    """Nearly every test here restores, verifies or records."""
