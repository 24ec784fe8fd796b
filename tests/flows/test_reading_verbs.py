"""Verbs that only read run no code that `params.yaml` names."""

from pathlib import Path

import pytest

from tests import project as projects

READING = (
    ("states",),
    ("report", "--to", "{out}"),
    ("restore", "1", "--to", "{out}"),
    ("fetch", "--deployed", "--to", "{out}"),
    ("doctor",),
    ("verify", "1", "--quick"),
    ("gc",),
    ("hold", "2"),
)


@pytest.fixture
def foreign(run: Path, tmp_path: Path) -> Path:
    """A recorded project whose technique is a file of the repository; importing it leaves a file ``ran``."""
    folder = projects.copy(run, tmp_path / "foreign")
    code = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
    (folder / "evil.py").write_text(code)
    projects.write_params(folder, time={"technique": {"name": "evil.py:Evil"}})
    projects.git(folder, "add", "--all")
    projects.git(folder, "commit", "--quiet", "--message", "a technique of one's own")
    return folder


@pytest.mark.parametrize("verb", READING, ids=lambda verb: verb[0])
def test_a_reading_verb_does_not_import_the_technique_that_params_name(
    foreign: Path, tmp_path: Path, verb: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    projects.chronomerge(foreign, *(part.format(out=out) for part in verb))
    assert not (tmp_path / "ran").exists()


def test_status_does_not_import_it_for_a_timeline_that_begins(foreign: Path, tmp_path: Path) -> None:
    projects.write_params(foreign, timeline="other", time={"technique": {"name": "evil.py:Evil"}})
    projects.chronomerge(foreign, "status")
    assert not (tmp_path / "ran").exists()


def test_a_verb_that_merges_does_import_it(foreign: Path, tmp_path: Path) -> None:
    """So the tests above can fail."""
    assert "evil.py" in projects.chronomerge(foreign, "grid", "--plan", check=False).stderr
    assert (tmp_path / "ran").exists()
