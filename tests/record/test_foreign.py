"""Other people's repositories and states: nothing that they name runs, and nothing leaves the folder."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tasks import layout
from tasks.errors import UserError
from tasks.progress import silent
from tasks.record import (
    delivery,
    diagnosis,
    foreign,
    heads,
    project_code,
    promotion,
    pruning,
    restoration,
    retention,
    rollbacks,
    sharing,
    timelines,
    worktrees,
)
from tasks.record.checks import records
from tasks.record.diagnosis import Visit
from tasks.record.manifest import read as read_manifest
from tasks.record.state import State, compatibility_of, heads_of, metrics_of
from tasks.storage import dvc_config
from tasks.storage.cache import Cache
from tasks.storage.dvc import Dvc
from tasks.storage.dvc_config import Remote
from tasks.storage.git import GitError, git
from tests import manifests
from tests.project import PARAMS
from tests.record import made_up
from tests.record.test_paths import committed
from tests.record.toy import record


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that every attack here makes if its command runs."""
    return tmp_path / "ran"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A project with one recorded state, in a folder as its store."""
    remote = Remote("there", str(tmp_path / "remote"))
    folder = made_up.project(tmp_path / "mine", remote)
    with Dvc(folder) as dvc:
        made_up.record(folder, remote, dvc)
    return folder


def set_params(project: Path, **changes: Any) -> None:
    YAML(typ="safe").dump({**PARAMS, "timeline": "x", **changes}, project / "params.yaml")


ASKING: dict[str, Callable[[Path], object]] = {
    "doctor": diagnosis.doctor,
    "gc": lambda project: pruning.prune(project),
    "fetch": lambda project: delivery.fetch_model(project, "x", project.parent / "serving"),
    "promote": lambda project: promotion.promote(project, "x", "0"),
    "hold": lambda project: promotion.hold(project, "x", "0"),
    "rollback": lambda project: rollbacks.rollback(project, "x", "0", wait=False),
}


@pytest.mark.parametrize("verb", ASKING)
def test_store_git_is_no_option_and_no_address(mine: Path, mark: Path, verb: str) -> None:
    for value in (f"--upload-pack=touch {mark}", f"ext::sh -c 'touch {mark}'", str(mine)):
        set_params(mine, store={"remote": "there", "git": value})
        if verb == "doctor":
            assert any("no git remote is named" in one.meaning for one, _ in diagnosis.doctor(mine).findings)
        else:
            with pytest.raises(UserError, match="no git remote is named"):
                ASKING[verb](mine)
        assert not mark.exists()


@pytest.mark.parametrize("value", ["--upload-pack=touch {}", "--receive-pack=touch {}", "ext::sh -c 'touch {}'"])
def test_every_call_that_names_a_git_remote_refuses_what_is_none(project: Path, mark: Path, value: str) -> None:
    state, name = record(project, 0, None), value.format(mark)
    nothing = heads.local(project, "x")
    for call in (
        lambda: heads.shared(project, "x", name),
        lambda: heads.push(project, "x", nothing, nothing, name, []),
        lambda: sharing.synchronize(project, "x", name),
        lambda: sharing.follow(project, "x", name),
        lambda: sharing.publish(state, nothing, nothing, name),
        lambda: retention.fetch_notes(project, name),
        lambda: retention.push_notes(project, name),
    ):
        with pytest.raises(UserError, match="no git remote is named"):
            call()
    assert not mark.exists()


def test_a_configured_remote_whose_address_is_a_command_is_not_asked(project: Path, mark: Path) -> None:
    record(project, 0, None)
    git(project, "remote", "add", "evil", f"ext::sh -c 'touch {mark}'")
    with pytest.raises(GitError, match="ext"):
        heads.shared(project, "x", "evil")
    assert not mark.exists()


def tampered(project: Path, files: dict[str, str]) -> State:
    """State 0 of timeline ``x`` with other files in its tree, as somebody else may publish it."""
    env = {"GIT_INDEX_FILE": str(project / ".chronomerge" / "index")}
    git(project, "read-tree", "state/x/0000", env=env)
    for path, text in files.items():
        blob = git(project, "hash-object", "-w", "--stdin", stdin=text)
        git(project, "update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", env=env)
    made = git(project, "commit-tree", git(project, "write-tree", env=env), stdin="bad")
    for ref in ("tags/state/x/0000", "heads/states/x", "tags/deployed/x"):
        git(project, "update-ref", f"refs/{ref}", made)
    return timelines.find(project, "x", 0)


def empty_cache(project: Path) -> None:
    for path in Cache(dvc_config.cache_dir(project)).folder.rglob("*"):
        if path.is_file():
            path.unlink()


def test_the_store_of_a_foreign_state_is_never_asked(mine: Path, mark: Path) -> None:
    """The state names a git remote and a store of its own; one's own params.yaml names neither."""
    params = git(mine, "show", "state/x/0000:params.yaml")
    stolen = params.replace("remote: there", "remote: evil").replace("git: null", f"git: --upload-pack=touch {mark}")
    assert stolen.count("evil") == stolen.count("upload-pack") == 1
    assert tampered(mine, {"params.yaml": stolen}).params["store"]["remote"] == "evil"
    diagnosis.doctor(mine)
    promotion.promote(mine, "x", "0")
    pruning.prune(mine)
    empty_cache(mine)
    assert restoration.restore(mine, "x", "0", mine.parent / "back").fetched > 0
    assert not mark.exists()


def test_submodules_of_a_state_are_left_alone(project: Path, mark: Path, tmp_path: Path) -> None:
    """Whatever the user's git does by itself with submodules: it would read ``.gitmodules``, and refuse a command."""
    modules = f'[submodule "evil"]\n\tpath = evil\n\turl = ext::touch {mark}\n\tupdate = !touch {mark}\n'
    state = committed(project, {".gitmodules": modules})
    for key in ("submodule.recurse", "fetch.recurseSubmodules", "push.recurseSubmodules"):
        git(project, "config", key, "on-demand" if key.startswith("push") else "true")
    git(project, "config", "submodule.active", ".")
    index = {"GIT_INDEX_FILE": str(tmp_path / "index")}
    git(project, "read-tree", state.commit, env=index)
    git(project, "update-index", "--add", "--cacheinfo", f"160000,{state.commit},evil", env=index)
    commit = git(project, "commit-tree", "-p", state.commit, "-m", "x", git(project, "write-tree", env=index))
    folder = tmp_path / "there"
    git(project, "worktree", "add", "--detach", "--no-checkout", "--", str(folder), commit)
    foreign.check_out(project, folder, commit, state.tag)
    assert (folder / ".gitmodules").read_text() == modules
    assert list((folder / "evil").iterdir()) == []
    assert not mark.exists()


def test_no_hook_filter_or_monitor_runs(project: Path, mark: Path, tmp_path: Path) -> None:
    state = committed(project, {".gitattributes": "* filter=evil diff=evil\n", "x.txt": "exactly this\r\n"})
    for key in (
        "core.fsmonitor", "filter.evil.smudge", "filter.evil.process", "diff.evil.textconv", "diff.external",
    ):  # fmt: skip
        git(project, "config", key, f"touch {mark}")
    git(project, "config", "filter.evil.required", "true")
    for hook in ("post-checkout", "reference-transaction", "post-index-change"):
        path = project / ".git" / "hooks" / hook
        path.write_text(f"#!/bin/sh\ntouch {mark}\n")
        path.chmod(0o755)
    folder = tmp_path / "there"
    git(project, "worktree", "add", "--detach", "--no-checkout", "--", str(folder), state.commit)
    foreign.check_out(project, folder, state.commit, state.tag)
    git(project, "show", f"{state.tag}:x.txt")
    assert not mark.exists()
    assert (folder / "x.txt").read_bytes() == b"exactly this\r\n"


EVIL = """[core]
    analytics = false
['remote "there"']
    url = s3://bucket/elsewhere
    endpointurl = http://127.0.0.1:9
    profile = evil
    configpath = ../aws
"""


def test_a_states_own_dvc_config_is_replaced(s3: Remote, tmp_path: Path, mark: Path) -> None:
    """A fetch under the state's own options would read ``aws`` and run its ``credential_process``."""
    remote = Remote("there", f"{s3.url}-foreign", s3.options)  # its timeline x is in other tests too
    folder = made_up.project(tmp_path / "mine", remote)
    with Dvc(folder) as dvc:
        made_up.record(folder, remote, dvc)
    aws = f"[profile evil]\ncredential_process = touch {mark}\nregion = us-east-1\n"
    state = tampered(folder, {".dvc/config": EVIL, "aws": aws})
    assert "configpath" in git(folder, "show", f"{state.tag}:.dvc/config")
    empty_cache(folder)
    restored = restoration.restore(folder, "x", "0", tmp_path / "back")
    assert restored.fetched > 0
    assert (restored.folder / "aws").exists()
    assert "configpath" not in (restored.folder / ".dvc" / "config").read_text()
    assert git(restored.folder, "status", "--porcelain") == ""
    assert not mark.exists()


def test_a_committed_option_that_names_commands_is_refused(mine: Path, mark: Path) -> None:
    """The configuration of a clone is a stranger's too."""
    (mine / "aws").write_text(f"[profile evil]\ncredential_process = touch {mark}\nregion = us-east-1\n")
    (mine / ".dvc" / "config").write_text(EVIL)
    with Dvc(mine) as dvc, pytest.raises(UserError, match=r"sets configpath, which names a command"):
        dvc("stored", mine, remote="there")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("['remote \"there\"']\nurl = s3://b\nConfigPath = ../aws\n", "sets configpath"),  # DVC's names have no case
        ("['REMOTE \"there\"']\nURL = s3://b\nCREDENTIALPATH = ../aws\n", "sets credentialpath"),
        ("[remote]\n[[there]]\nurl = s3://b\nconfigpath = ../aws\n", "there is a list or a section"),
        ("['remote \"there\"']\nurl = webdavs://b\nbearer_token_command = touch ran\n", "sets bearer_token_command"),
        ("[core]\nsite_cache_dir = /tmp/x\n", "sets site_cache_dir"),
        ("[cache]\ndir = ../../elsewhere\n", "outside of the project, and is committed"),
        ("[Cache]\nDir = /elsewhere\n", "outside of the project, and is committed"),
        ("[cache]\nlocal = /elsewhere\ndir = %(local)s/x\n", "outside of the project, and is committed"),
        ("[cache]\ndir = ../link/x\n", "outside of the project, and is committed"),
        ("[cache]\ndir = %(dir)s\n", "not a DVC config file"),
        ("cache = 5\n", "stands in no section"),
    ],
)
def test_a_committed_configuration_chooses_no_files_and_commands_however_it_is_spelled(
    tmp_path: Path, text: str, said: str
) -> None:
    mine = tmp_path / "mine"
    (mine / ".dvc").mkdir(parents=True)
    (mine / "link").symlink_to(tmp_path)
    (mine / ".dvc" / "config").write_text(text)
    with pytest.raises(UserError, match=said):
        dvc_config.require_harmless(mine)
    if "[cache]" in text.lower():
        with pytest.raises(UserError, match=said):
            dvc_config.cache_dir(mine)
        (mine / ".dvc" / "config.local").write_text(f"[cache]\ndir = {tmp_path}/mine\n")
        assert dvc_config.cache_dir(mine) == mine


def test_every_option_of_dvc_that_names_files_or_commands_is_known() -> None:
    from dvc.config_schema import REMOTE_SCHEMAS, SCHEMA

    options = {str(key) for scheme in REMOTE_SCHEMAS.values() for key in scheme}
    options |= {str(key) for section in ("core", "machine") for key in _keys(SCHEMA[section])}
    files = {option for option in options if re.search("path|file|command|script|ticket|_dir$|private", option)}
    assert files - {"profile"} == dvc_config.OF_FILES


def _keys(schema: dict[Any, Any]) -> set[Any]:
    inside = [_keys(value) for value in schema.values() if isinstance(value, dict)]
    return set().union(schema, *inside)


@pytest.mark.parametrize(
    ("files", "links", "said"),
    [
        ({}, {".dvc": "code"}, r"\.dvc cannot be part"),
        ({}, {".dvc/config": "../code.py"}, r"\.dvc/config cannot be part"),
        ({}, {".dvc/tmp": "../code"}, r"\.dvc/tmp cannot be part"),
        ({}, {".chronomerge": "code"}, r"\.chronomerge cannot be part"),
        ({".dvc/config.local": "[core]\n"}, {}, r"\.dvc/config\.local cannot be part"),
        ({".dvc": "a file"}, {}, r"\.dvc cannot be part"),
        ({}, {"data": "/etc"}, "the link data leads outside"),
    ],
)
def test_what_a_tree_may_not_hold_is_refused_by_every_checkout(
    project: Path, tmp_path: Path, files: dict[str, str], links: dict[str, str], said: str
) -> None:
    set_params(project)
    state = committed(project, files, links)
    for path in (*files, *links):
        (project / path).unlink()
    with pytest.raises(UserError, match=said):
        restoration.restore_into(project, state, tmp_path / "there", None)
    code = project_code.Code(state.commit, git(project, "rev-parse", f"{state.commit}^{{tree}}"), False)
    with (
        pytest.raises(UserError, match=said),
        worktrees.for_step(project, code, Remote("there", str(tmp_path / "remote")), 0, None),
    ):
        pass
    assert not (tmp_path / "there").exists()
    assert not (tmp_path / "config.local").exists()


@pytest.mark.parametrize("name", ["*", "../x", "-x", "a/b", "x y", "", "x\n", "\x1b[31m", "a..b"])
def test_a_timeline_is_a_name(project: Path, name: str) -> None:
    record(project, 0, None)
    for call in (timelines.states, timelines.last, heads.local, timelines.deployed):
        with pytest.raises(UserError, match="cannot be the name of a timeline"):
            call(project, name)


@pytest.mark.parametrize("tag", ["state/<script>/0001", "state/-x/0001", "state/a=b/0001", "state/x/y/0001"])
def test_tags_that_are_no_states_are_left_alone(project: Path, tag: str) -> None:
    record(project, 0, None)
    git(project, "tag", tag)
    assert timelines.timeline_names(project) == ["x"]
    assert len(timelines.every(project)) == 1


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("metrics.json", '{"A_KA": "1", "A_ZS": 1, "geometric_mean": 1, "top1": {}}'),
        ("metrics.json", '{"A_KA": 1, "A_ZS": 1, "geometric_mean": 1, "top1": [1]}'),
        ("metrics.json", "[]"),
        ("params.yaml", "- 1\n"),
        ("params.yaml", "a: [\n"),
        ("dvc.lock", "stages: {one: {outs: [{path: x, md5: 5, size: 1}]}}\n"),
        ("dvc.lock", "stages: [1]\n"),
        ("dvc.lock", "5\n"),
        ("data/history.dvc", "outs: []\n"),
        ("data/history.dvc", "outs: [{md5: a, size: many}]\n"),
    ],
)
def test_a_record_of_another_type_is_one_sentence(project: Path, file: str, text: str) -> None:
    good = {
        "metrics.json": json.dumps({"A_KA": 1.0, "A_ZS": 2.0, "geometric_mean": 1.4, "top1": {"a": 1.0}}),
        "params.yaml": "seed: 0\n", "dvc.lock": "stages: {}\n",
        **{f"{path}.dvc": "outs: [{md5: a, size: 1}]\n" for path in layout.INPUTS},
    }  # fmt: skip
    state = committed(project, {**good, file: text})
    damaged = state.unreadable()
    assert ("dvc.lock" if file.endswith(".dvc") else file) in damaged
    with pytest.raises(UserError, match=r"state/x/0000: .*damaged"):
        _ = (state.metrics, state.params, state.entries)


@pytest.mark.parametrize(
    "changes",
    [
        {"A_KA": float("nan")}, {"A_ZS": 1e308}, {"top1": {"a": -1.0}}, {"top5": {"a": float("inf")}},
        {"share": {"a": 0.0}}, {"recall": {"a": {}}}, {"recall": {"a": {"image_to_text": {"1": 1.0}}}},
        {"recall": {"a": {"<script>": {"5": 1.0}}}}, {"recall": {"a": {"image_to_text": {"5": 1.0, "k": 1.0}}}},
        {"expert": {"set": "a"}}, {"routing": {"images": {"a": {"x": 0}}}}, {"classes": {"a": -1}},
    ],
)  # fmt: skip
def test_scores_that_no_model_has_are_damaged(changes: dict[str, Any]) -> None:
    scores = {"A_KA": 1.0, "A_ZS": 2.0, "geometric_mean": 1.4, "top1": {"a": 1.0}}
    assert metrics_of(json.dumps(scores), "s") == scores
    with pytest.raises(UserError, match=r"^s: metrics\.json is damaged .*; `chronomerge doctor` says more$"):
        metrics_of(json.dumps({**scores, **changes}), "s")


def test_heads_compatibility_and_manifests_have_numbers_of_their_kind() -> None:
    for shots in ("x", "9" * 5000, "-1"):
        with pytest.raises(UserError, match=r"heads\.json is damaged"):
            heads_of(json.dumps({"h": {"features": "base", "top1": {shots: {}}, "A_KA": {}, "A_ZS": {}}}), "s")
    rows = {"recall@1": {"a": {"<b>": 1.0}}, "recall@5": {}}
    with pytest.raises(UserError, match=r"compatibility\.json is damaged"):
        compatibility_of(json.dumps({"drop": 0.0, "pairs": 1, "compatible": 1.0, **rows}), "s")
    for changes in ({"seconds": {"train": float("nan")}}, {"recorded": {"at": "soon", "host": "h"}}):
        with pytest.raises(UserError, match=r"manifest\.json is damaged"):
            read_manifest(json.dumps(manifests.content(**changes)), "s")


def test_decisions_and_notes_of_another_type_are_one_sentence(project: Path) -> None:
    state = record(project, 0, None)
    blob = git(project, "hash-object", "-w", "--stdin", stdin='[{"state": 5}]')
    tree = git(project, "mktree", stdin=f"100644 blob {blob}\tdecisions.json\n")
    git(project, "update-ref", "refs/decisions/x", git(project, "commit-tree", tree, stdin="bad"))
    with pytest.raises(UserError, match=r"decisions\.json of .* is damaged"):
        timelines.promoted_state(project, "x", heads.local(project, "x").decisions)
    git(project, "notes", f"--ref={retention.NOTES}", "add", "-m", '{"at": 5}', state.commit)
    with pytest.raises(UserError, match=r"the note on .* is damaged"):
        retention.let_go(project)


def test_doctor_asks_only_the_remote_that_params_name(mine: Path, mark: Path) -> None:
    git(mine, "remote", "add", "evil", f"ext::sh -c 'touch {mark}'")
    set_params(mine, store={"remote": "there", "git": "evil"})
    with Visit(mine, "there", silent) as visit:
        (found,) = records.not_pushed(visit)
    assert found.what == "git remote 'evil' cannot be reached"
    assert not mark.exists()
