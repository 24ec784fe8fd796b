"""The step's threads: none works on once the step ends."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.step import Step, StoppedError
from tests.project import ROOT


@pytest.fixture
def step(tmp_path: Path) -> Step:
    nothing: Any = SimpleNamespace(folder=ROOT, params=None)
    (tmp_path / ".dvc").mkdir()
    return Step(tmp_path, 1, nothing, nothing, (None, None), nothing, nothing, fresh=False, began=0.0)


def test_stop_ends_a_node_in_another_thread_and_returns_when_it_has_ended(step: Step) -> None:
    begun, ended = threading.Event(), []

    def work() -> None:
        try:
            with step.working():
                for done in range(1_000_000_000):
                    begun.set()
                    step.progress("work", done, 1_000_000_000)
        except StoppedError as error:
            ended.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(10)
    step.stop()
    thread.join(10)
    assert ended == ["step 1 was stopped"]
    with pytest.raises(StoppedError), step.working():
        pass
