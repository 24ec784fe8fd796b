"""A store that misbehaves: what can be tried again is, a wrong byte is never kept, and the rest is one line."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.run import pending
from tasks import layout
from tasks.errors import UserError
from tasks.record import restoration, timelines, worktrees
from tasks.record.state import State
from tasks.storage import dvc_config, store
from tasks.storage.cache import Cache, hash_of
from tasks.storage.dvc import Dvc, RemoteError
from tasks.storage.dvc_config import Remote
from tasks.storage.git import GitError, git
from tests.record import made_up
from tests.record.faults import Fault, FaultPlan, proxied

pytestmark = pytest.mark.slow

LISTING, FILE = r"/files/md5/../[0-9a-f]{30}\.dir", r"/files/md5/../[0-9a-f]{30}$"
PARTS = r"/files/md5/../[0-9a-f]{30}\?uploadId"
ONE_LINE = r"^store 'proxied' \(s3://[^ ]+\): [^\n]+$"


@dataclass
class Held:
    """A project with one state and a cache, and its store behind a proxy that does what ``plan`` says."""

    project: Path
    remote: Remote
    plan: FaultPlan
    dvc: Dvc

    @property
    def cache(self) -> Cache:
        return Cache(dvc_config.cache_dir(self.project))

    def record(self, expert: int = 5000) -> State:
        return made_up.record(self.project, self.remote, self.dvc, expert)

    def fetch(self) -> int:
        """Drop the cache, bring the newest state from the store and check every byte; returns how many came."""
        shutil.rmtree(self.cache.folder)
        state = timelines.last(self.project, "x")
        assert state is not None
        with worktrees.of_state(self.project, state, self.remote) as there:
            count = restoration.fetch(state, self.cache, self.dvc, there)
        assert all(self.cache.intact(entry) for entry in state.entries.values())
        return count


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, s3: Remote, dvc: Dvc) -> Iterator[Held]:
    plan = FaultPlan()
    with proxied(s3, plan, "faults") as remote:
        held = Held(made_up.project(tmp_path_factory.mktemp("faults") / "project", remote), remote, plan, dvc)
        held.record()
        yield held


@pytest.fixture
def held(shared: Held) -> Iterator[Held]:
    shared.plan.happened.clear()
    shared.plan.asked.clear()
    yield shared
    shared.plan.faults, shared.plan.rate = [], 0.0


def test_what_passes_is_tried_again(held: Held) -> None:
    """Of all requests an eighth fails, in all the ways that networks and stores have."""
    held.plan.rate, held.plan.kinds = 0.12, ("drop", "500", "503", "truncate", "lost", "slow")
    held.record()
    assert held.fetch() > 5000
    assert len({line.split()[0] for line in held.plan.happened}) >= 3, held.plan.happened


def test_wrong_bytes_are_asked_for_again(held: Held) -> None:
    held.plan.faults = [Fault(kind, "GET", what, times=1) for what in (LISTING, FILE) for kind in ("flip", "short")]
    held.fetch()
    assert len(held.plan.happened) == 4


@pytest.mark.parametrize("what", [FILE, LISTING])
def test_wrong_bytes_every_time_are_named_and_not_kept(held: Held, what: str) -> None:
    held.plan.faults = [Fault("flip", "GET", what)]
    with pytest.raises(UserError, match=r"^the store gives wrong bytes for data/[a-z./]+ of state/x/\d+ \(object \w+"):
        held.fetch()
    for stored in held.cache.folder.glob("files/md5/*/*"):
        assert hash_of(stored).md5 == (stored.parent.name + stored.name).removesuffix(".dir")
    held.plan.faults = []
    held.fetch()


def test_a_store_that_keeps_other_bytes_is_found_out(held: Held) -> None:
    """What was sent and what is held are compared, in one piece or in parts; the same call again mends it."""
    before = timelines.last(held.project, "x")
    held.plan.faults = [Fault("rot", "PUT", FILE, times=1), Fault("rot", "POST", PARTS, times=1)]
    with pytest.raises(RemoteError, match=r"^store 'proxied' \(s3://.*other bytes than were sent for 2 objects"):
        held.record(expert=101 << 20)
    assert timelines.last(held.project, "x") == before
    held.plan.asked.clear()
    held.record(expert=101 << 20)
    assert not [line for line in held.plan.asked if line.startswith("GET") and "/files/md5/" in line]  # not read again
    held.fetch()


def test_an_object_that_vanished_is_sent_again(held: Held) -> None:
    """A folder's listing in the store is no promise that its files are there."""
    last = timelines.last(held.project, "x")
    assert last is not None
    gone = held.cache.members(last.entries["data/history"])["weights/base.safetensors"]
    key = f"{held.remote.prefix}/files/md5/{gone[:2]}/{gone[2:]}"
    store.client(held.remote).delete_object(Bucket=held.remote.bucket, Key=key)
    held.record()
    held.fetch()
    store.client(held.remote).delete_object(Bucket=held.remote.bucket, Key=key)
    with pytest.raises(UserError, match=rf"does not hold data/history of state/x/\d+ \(object {gone}\)"):
        held.fetch()


def test_an_outage_is_one_line_and_the_next_call_goes_on(held: Held) -> None:
    before = timelines.last(held.project, "x")
    held.plan.faults = [Fault("500", "PUT")]
    with pytest.raises(RemoteError, match=ONE_LINE):
        held.record()
    assert timelines.last(held.project, "x") == before
    held.plan.faults = [Fault("503")]
    with pytest.raises(UserError, match=r"store 'proxied' \(s3://[^ ]+ at http://[^ ]+\)"):
        store.check(held.remote)
    held.plan.faults = []
    held.record()


def test_a_store_that_hangs_is_given_up(held: Held) -> None:
    held.plan.faults = [Fault("hang", seconds=3)]
    impatient = Remote("proxied", held.remote.url, {**held.remote.options, "read_timeout": "1"})
    with pytest.raises(UserError, match="cannot be reached"):
        store.check(impatient)


def test_a_manifest_with_a_wrong_byte_is_found(held: Held, tmp_path: Path) -> None:
    """Git's own hash covers it: file and commit are named, and nothing goes on from it."""
    project = tmp_path / "copy"
    shutil.copytree(held.project, project, symlinks=True)
    last = timelines.last(project, "x")
    assert last is not None
    blob = git(project, "rev-parse", f"{last.tag}:manifest.json")
    stored = project / ".git" / "objects" / blob[:2] / blob[2:]
    content = bytearray(stored.read_bytes())
    content[len(content) // 2] ^= 1
    stored.chmod(0o644)
    stored.write_bytes(content)
    named = rf"^manifest\.json of {last.commit} cannot be read: .*(inflate|corrupt)"
    with pytest.raises(GitError, match=named):
        _ = last.manifest
    with pytest.raises(GitError, match=named):
        pending(project)
    assert timelines.last(project, "x") == last


def test_a_manifest_edited_by_hand_is_found(held: Held, tmp_path: Path) -> None:
    project, tree = tmp_path / "copy", tmp_path / "tree"
    shutil.copytree(held.project, project, symlinks=True)
    last = timelines.last(project, "x")
    assert last is not None
    git(project, "worktree", "add", "--quiet", str(tree), "states/x")
    text = (tree / "manifest.json").read_text()
    md5 = last.entries[layout.DEPLOYED].md5
    (tree / "manifest.json").write_text(text.replace(md5, md5[::-1]))
    git(tree, "commit", "--quiet", "--all", "--message", "better numbers")
    with pytest.raises(UserError, match="branch states/x is at"):
        timelines.last(project, "x")
    git(project, "tag", "--force", last.tag, "states/x")
    edited = timelines.last(project, "x")
    assert edited is not None
    assert edited.contradictions == (layout.DEPLOYED,)
    with pytest.raises(UserError, match=rf"^{last.tag} was edited: .* {layout.DEPLOYED}"):
        pending(project)
