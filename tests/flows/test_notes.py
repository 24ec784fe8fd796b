"""What a run leaves in a file tells how it ended, and what it knew of the stream."""

import os
from pathlib import Path

import pytest

from flows import notes
from tasks import progress
from tasks.errors import UserError
from tasks.params import Arrival, Params
from tests.project import PARAMS

PARSED = Params.model_validate(PARAMS)


def test_a_run_notes_where_it_is_and_that_it_has_recorded(tmp_path: Path) -> None:
    assert notes.read(tmp_path, "tiny") is None
    with notes.recording(tmp_path, PARSED, range(1, 3)):
        progress.report("step 1: train", 1, 2)
        note = notes.read(tmp_path, "tiny")
        assert note
        assert (note.pid, note.first, note.last, note.ended) == (os.getpid(), 1, 2, None)
    note = notes.read(tmp_path, "tiny")
    assert note
    assert (note.outcome, note.at, note.why) == ("recorded", "step 1: train 1/2", None)
    assert note.ended


@pytest.mark.parametrize(
    ("error", "outcome", "why"),
    [(UserError("no\nsuch file"), "failed", "no such file"), (KeyboardInterrupt(), "interrupted", None)],
)
def test_a_run_notes_how_it_failed(tmp_path: Path, error: BaseException, outcome: str, why: str | None) -> None:
    with pytest.raises(type(error)), notes.recording(tmp_path, PARSED, range(1)):
        raise error
    note = notes.read(tmp_path, "tiny")
    assert note
    assert (note.outcome, note.why) == (outcome, why)


def test_a_signature_tells_streams_apart() -> None:
    longer = PARSED.model_copy(update={"stream": [*PARSED.stream, Arrival(name="new", expert="e.safetensors")]})
    assert notes.signature(PARSED) == notes.signature(Params.model_validate(PARAMS))
    assert notes.signature(PARSED) != notes.signature(longer)
