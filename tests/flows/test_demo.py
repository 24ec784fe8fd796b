"""The demo as a new user meets it: icons from npm, the embedded store, a Prefect server of its own; less of each."""

import json
import re
from pathlib import Path

import pytest

from tasks import yaml
from tests import project as projects
from tests.project import chronomerge, git

pytestmark = pytest.mark.slow


def test_the_demo_tells_its_story(tmp_path: Path) -> None:
    folder = projects.make(tmp_path / "project")
    short = yaml.load((projects.ROOT / "params.yaml").read_text())
    short["base"]["pretraining"] = ["icons:smileys", "icons:food/base"]
    short["base"]["train"]["steps"] = short["train"]["steps"] = 3
    short["stream"] = short["stream"][:1]
    for key, name in (("adaptation", "food"), ("retention", "smileys")):
        short["evaluate"][key] = [one for one in short["evaluate"][key] if one["name"] == name]
    (folder / "params.yaml").write_text(yaml.dump(short))
    (folder / "icons-clip.json").write_bytes((projects.ROOT / "icons-clip.json").read_bytes())
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "a short demo")
    done = chronomerge(folder, "demo")
    assert re.search(r"0 base .*\n.*1 food", done.stdout)
    assert "chronomerge restore" in done.stdout
    rows = json.loads(chronomerge(folder, "states", "--json").stdout)
    assert [row["arrival"] for row in rows] == ["base", "food"]
    assert rows[1]["bytes"]["new"] < rows[1]["bytes"]["total"]
    log = (folder / ".chronomerge" / "logs" / "prefect.log").read_text()
    assert "Traceback" not in log
    card = json.loads((restored(folder, tmp_path) / "data/step/arrival/dataset.json").read_text())
    assert all(origin["licence"] != "unknown" for origin in card["origins"])


def restored(folder: Path, where: Path) -> Path:
    chronomerge(folder, "restore", "1", "--to", str(where / "state"))
    return where / "state"
