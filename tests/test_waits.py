"""Waits are settings: numbers of seconds, or a clear error."""

import pytest

from tasks import waits
from tasks.errors import UserError


def test_waits_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(waits.RUN, raising=False)
    assert waits.seconds(waits.RUN) == [60, 300, 900, 3600]
    monkeypatch.setenv(waits.RUN, "0.5, 2")
    assert waits.seconds(waits.RUN) == [0.5, 2]


@pytest.mark.parametrize("text", ["", "soon", "1,,2", "-1", "nan", "inf", "1;2"])
def test_what_is_no_wait_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(waits.ASK, text)
    with pytest.raises(UserError, match="CHRONOMERGE_ASK_AGAIN_SECONDS"):
        waits.seconds(waits.ASK)
