"""A gate from params to a server, for real: held and skipped, promoted and held by hand, fetched and loaded."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from flows.cli import status, tables
from tasks import layout
from tasks.errors import UserError
from tasks.model import checkpoints, models
from tasks.model.light_imports import prepare as prepare_imports
from tasks.params import load
from tasks.record import delivery, heads, history, promotion, restoration, timelines, verification
from tasks.storage import dvc_config
from tasks.storage.cache import Cache, hash_of
from tests import project as projects
from tests.project import chronomerge, git

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gated(run: Path, tmp_path_factory: pytest.TempPathFactory, prefect_api: dict[str, str]) -> Path:
    """After the three states of the run, two experts trained elsewhere; the gate holds both, and both are skipped."""
    folder = projects.copy(run, tmp_path_factory.mktemp("gated") / "project")
    cache = Cache(dvc_config.cache_dir(folder))
    (folder / "elsewhere").mkdir()
    for step, name in ((0, "bad"), (1, "good")):
        expert = timelines.find(folder, "tiny", step).entries[layout.EXPERT]
        shutil.copyfile(cache.path(expert.md5), folder / "elsewhere" / f"{name}.safetensors")
    gate = {"require": ["retention_drop <= 100%", "A_KA > 100%"], "held": "skip"}
    pointers = {"candidate": {}, "champion": {"require": ["A_KA > 100%"]}}
    projects.write_params(folder, stream=stream("bad", "good"), gate=gate, pointers=pointers)
    done = chronomerge(folder, "run", **prefect_api)
    assert "recorded state/tiny/0003 to state/tiny/0004" in done.stdout
    assert "state/tiny/0004 is held: A_KA > 100% (" in done.stdout
    assert "deployed/tiny stays at state/tiny/0002" in done.stdout
    return folder


def stream(*experts: str) -> list[dict[str, object]]:
    arriving = [{"name": name, "expert": f"elsewhere/{name}.safetensors"} for name in experts]
    return [*projects.PARAMS["stream"], *arriving]


def test_a_held_state_is_recorded_and_skipped(gated: Path, tmp_path: Path) -> None:
    two, three, four = (timelines.find(gated, "tiny", step) for step in (2, 3, 4))
    assert git(gated, "rev-parse", "deployed/tiny") == two.commit
    assert git(gated, "rev-parse", "states/tiny") == four.commit
    for state in (three, four):
        judged = state.manifest.gate
        assert judged
        assert (judged.promoted, judged.compared_with) == (False, "state/tiny/0002")
        drop = (two.metrics["A_ZS"] - state.metrics["A_ZS"]) / 100
        assert judged.conditions[0].as_dict() == {
            "condition": "retention_drop <= 100%", "value": pytest.approx(drop, abs=1e-6), "holds": True,
        }  # fmt: skip
        assert verification.unlike_history(state, Cache(dvc_config.cache_dir(gated)), tmp_path) == ()
        assert verification.needs(state)[0] == (two, [path for path in history.READS if path in two.entries])
    assert four.manifest.previous == "state/tiny/0003"
    assert four.manifest.starts_from == "state/tiny/0002"
    assert four.entries[layout.HISTORY] == three.entries[layout.HISTORY]
    shown = status.text(status.gather(gated))
    assert "last      state/tiny/0004 (held)" in shown
    assert "deployed  state/tiny/0002" in shown


def test_decisions_by_hand_are_seen_and_count(gated: Path) -> None:
    three = timelines.find(gated, "tiny", 3)
    done = promotion.promote(gated, "tiny", "3", reason="wanted")
    assert done == promotion.DecisionOutcome(three, True, three)
    assert promotion.next_start(gated, "tiny", load(gated / "params.yaml").gate) == three
    rows = tables.states_rows(gated, "tiny")
    assert [(row["name"], row["promoted"], row["pointer"]) for row in rows] == [
        ("0", True, False), ("1", True, False), ("2", True, False), ("3", True, True), ("4", False, False),
    ]  # fmt: skip
    assert rows[3]["decision"]["reason"] == "wanted"
    assert promotion.promote(gated, "tiny", "3", reason=None) == promotion.DecisionOutcome(three, False, three)
    held = chronomerge(gated, "hold", "3", "--reason", "not any more")
    assert "state/tiny/0003 is held; deployed/tiny is at state/tiny/0002" in held.stdout
    table = chronomerge(gated, "states").stdout
    assert "▸2" in table
    assert "× 3 is held: by Tester <tester@localhost> on " in table
    assert "× 4 is held: A_KA > 100% (" in table


def test_pointers_are_moved_by_gates_and_by_hand_and_followed(gated: Path, tmp_path: Path) -> None:
    four = timelines.find(gated, "tiny", 4)
    assert {name: found.as_dict() for name, found in four.manifest.pointers.items()} == {
        "candidate": {"promoted": True, "conditions": [], "compared_with": None},
        "champion": {
            "promoted": False, "compared_with": None,
            "conditions": [{"condition": "A_KA > 100%", "value": pytest.approx(four.metrics["A_KA"] / 100, abs=1e-6),
                            "holds": False}],
        },
    }  # fmt: skip
    done = chronomerge(gated, "promote", "1", "--pointer", "champion", "--reason", "the best")
    assert done.stdout == "champion is at state/tiny/0001\n"
    assert "nothing to do" in chronomerge(gated, "promote", "1", "--pointer", "champion").stdout
    fetched = json.loads(chronomerge(
        gated, "fetch", "--pointer", "champion", "--to", str(tmp_path), "--format", "transformers", "--json"
    ).stdout)  # fmt: skip
    assert fetched["tag"] == json.loads((tmp_path / delivery.NOTE).read_text())["tag"] == "state/tiny/0001"
    assert (tmp_path / "model.safetensors").exists()
    rows = json.loads(chronomerge(gated, "states", "--json").stdout)
    assert [row["pointers"] for row in rows] == [[], ["champion"], [], [], ["candidate"]]
    table = chronomerge(gated, "states").stdout
    assert "• champion: 1, tag pointer/tiny/champion" in table
    assert "champion  state/tiny/0001" in chronomerge(gated, "status").stdout
    for args in (("--pointer", "none"), (), ("--deployed", "--pointer", "champion")):
        refused = chronomerge(gated, "fetch", "--to", str(tmp_path), *args, check=False)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr


def test_the_deployed_weights_alone_and_open_clip_loads_them(gated: Path, tmp_path: Path) -> None:
    prepare_imports()
    import open_clip

    folder, two = tmp_path / "serving", timelines.find(gated, "tiny", 2)
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    (folder / delivery.WEIGHTS).write_text("an older one")
    done = delivery.fetch_model(gated, "tiny", folder)
    assert (done.state, done.new, done.fetched) == (two, True, 0)
    assert {path.name for path in folder.iterdir()} == {
        "mine.txt", delivery.WEIGHTS, delivery.CONFIG, delivery.NOTE,
    }  # fmt: skip
    assert hash_of(folder / delivery.WEIGHTS).md5 == two.entries[layout.DEPLOYED].md5
    before = (folder / delivery.NOTE).stat()
    assert not delivery.fetch_model(gated, "tiny", folder).new
    assert (folder / delivery.NOTE).stat().st_mtime_ns == before.st_mtime_ns
    assert json.loads((folder / delivery.NOTE).read_text())["tag"] == "state/tiny/0002"

    restored = restoration.restore_into(gated, two, tmp_path / "state", None).folder
    ours = models.build(restored / layout.HISTORY / "model")
    models.load_weights(ours, checkpoints.load(restored / layout.DEPLOYED), restored / layout.DEPLOYED)
    open_clip.add_model_config(gated / "tiny.json")
    images, tokens = torch.rand(2, 3, 16, 16), models.tokenizer(restored / layout.HISTORY / "model")(["a red square"])
    with torch.no_grad():
        for theirs in (
            open_clip.create_model("tiny", pretrained=str(folder / delivery.WEIGHTS)),
            open_clip.create_model(f"local-dir:{folder}"),
        ):
            assert torch.equal(theirs.encode_image(images), ours.encode_image(images))
            assert torch.equal(theirs.encode_text(tokens), ours.encode_text(tokens))
    (mean,) = {tuple(t.mean) for t in open_clip.create_model_and_transforms(f"local-dir:{folder}")[2].transforms
               if hasattr(t, "mean")}  # fmt: skip
    assert mean == models.preprocess(restored / layout.HISTORY / "model").mean
    git(gated, "worktree", "remove", "--force", str(restored))


def test_a_clone_with_nothing_but_tags_fetches_three_objects(gated: Path, tmp_path: Path) -> None:
    clone, two = tmp_path / "clone", timelines.find(gated, "tiny", 2)
    git(tmp_path, "clone", "--quiet", str(gated), "clone")
    assert heads.local(clone, "tiny") == heads.Heads(None, two.commit, None, heads.local(gated, "tiny").named)
    chronomerge(clone, "remote", "use", str(gated))
    done = delivery.fetch_model(clone, "tiny", tmp_path / "serving")
    assert done.new
    assert two.entries[layout.DEPLOYED].size < done.fetched < two.entries[layout.DEPLOYED].size + 4000
    assert hash_of(tmp_path / "serving" / delivery.WEIGHTS).md5 == two.entries[layout.DEPLOYED].md5
    assert not list((clone / ".dvc" / "cache").glob("files/md5/*/*"))
    with pytest.raises(UserError, match="not for you to keep things in"):
        delivery.fetch_model(clone, "tiny", clone / ".git" / "x")
    with pytest.raises(UserError, match="timeline 'other' has no deployed state in this clone"):
        delivery.fetch_model(clone, "other", tmp_path / "serving")


def test_what_was_skipped_has_left_no_trace(gated: Path, prefect_api: dict[str, str]) -> None:
    """Without the arrival that was held, the next one deploys the same bytes (an expert: nothing is drawn for it)."""
    chronomerge(gated, "rollback", "2")
    assert git(gated, "rev-parse", "deployed/tiny") == timelines.find(gated, "tiny", "2.2").commit
    projects.write_params(gated, stream=stream("good"))
    chronomerge(gated, "run", **prefect_api)
    three, four = timelines.find(gated, "tiny", "3.2"), timelines.find(gated, "tiny", "4.1")
    assert three.manifest.gate
    assert three.manifest.gate.as_dict() == {"promoted": True, "conditions": [], "compared_with": None}
    assert git(gated, "rev-parse", "deployed/tiny") == three.commit
    for path in (layout.HISTORY, layout.EXPERT, layout.DEPLOYED):
        assert three.entries[path] == four.entries[path], path
    assert three.metrics == four.metrics
