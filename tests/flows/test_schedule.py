"""The parts of a schedule: what is accepted, what is tried again."""

import pytest

from flows.cli import serve
from flows.prefect.api import Api, UnansweredError
from tasks.errors import UnavailableError, UserError, may_pass


def test_only_what_may_pass_is_tried_again() -> None:
    assert may_pass(UnavailableError("the store does not answer"))
    assert may_pass(ConnectionError())
    assert not may_pass(UserError("no such file"))


@pytest.mark.parametrize("line", ["0 2 * *", "61 2 * * *", "nightly"])
def test_a_wrong_cron_line_is_refused(line: str) -> None:
    with pytest.raises(UserError, match="five fields") as refused:
        serve.checked(line)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_unknown_time_zone_is_refused() -> None:
    assert serve.zone("Europe/Berlin") == "Europe/Berlin"
    assert serve.zone(None)
    with pytest.raises(UserError, match="Middle/Earth"):
        serve.zone("Middle/Earth")


def test_a_server_that_is_not_there_is_told() -> None:
    with pytest.raises(UnansweredError, match="does not answer"):
        Api("http://127.0.0.1:1/api", patience=1).get("health")
