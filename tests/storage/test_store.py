"""The embedded S3 server and the configuration that leads to a store."""

import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tasks.errors import UserError
from tasks.storage import dvc_config, embedded, seaweedfs, store
from tasks.storage.dvc import RemoteError
from tasks.storage.dvc_config import Remote


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / ".dvc").mkdir()
    return tmp_path


def test_starts_when_used_and_ends_with_the_last_user(project: Path) -> None:
    with store.open_store(project, "embedded") as remote:
        server = embedded.running(project)
        assert server is not None
        with store.open_store(project, "embedded") as same:
            assert same == remote
        assert embedded.running(project) == server  # one user is left
        store.client(remote).put_object(Bucket=remote.bucket, Key="kept", Body=b"kept")
    assert embedded.running(project) is None
    with store.open_store(project, "embedded") as again:
        body = store.client(again).get_object(Bucket=again.bucket, Key="kept")["Body"].read()
        assert body == b"kept"
        addresses = [one.options.pop("endpointurl") for one in (remote, again)]
        assert addresses[0] != addresses[1]  # nobody can wait at the old one
        assert again == remote


def test_data_of_earlier_versions_stays_readable(project: Path) -> None:
    """Their server had no certificates, and answered at other ports."""
    home = embedded.folder(project)
    (home / "data").mkdir(parents=True)
    keys = seaweedfs.credentials(home)
    ports = seaweedfs._free_ports()
    before = [
        Path(sys.executable).parent / "weed", "mini", f"-dir={home / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-s3.config={home / 's3.json'}", "-master.telemetry=false", "-webdav=false", "-admin.ui=false",
        "-s3.port.iceberg=0", "-s3.port.lance=0",
        *(f"-{name}.port={port}" for name, port in ports.items() if "." not in name),
    ]  # fmt: skip
    process = subprocess.Popen(before, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = seaweedfs.StoreServer(process.pid, ports)
    while not server.answers():
        assert process.poll() is None
        time.sleep(0.05)
    options = {"endpointurl": server.endpoint, "region": "us-east-1", "access_key_id": keys["accessKey"],
               "secret_access_key": keys["secretKey"]}  # fmt: skip
    content = {"small": b"small", "large": os.urandom(9_000_000)}
    remote = Remote("old", f"s3://{embedded.BUCKET}/states", options)
    s3 = store.client(remote)
    s3.create_bucket(Bucket=remote.bucket)
    for name, body in content.items():
        s3.put_object(Bucket=remote.bucket, Key=name, Body=body)
    process.kill()
    process.wait()
    with store.open_store(project, "embedded") as now:
        for name, body in content.items():
            assert store.client(now).get_object(Bucket=now.bucket, Key=name)["Body"].read() == body


def test_a_copy_of_a_project_has_a_server_of_its_own(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its note of the server names that of the original, which it neither uses nor ends."""
    with store.open_store(project, "embedded") as remote:
        store.client(remote).put_object(Bucket=remote.bucket, Key="first", Body=b"first")
        copy = tmp_path_factory.mktemp("copied") / "copy"
        shutil.copytree(project, copy, ignore=shutil.ignore_patterns("*.sock"))
        server = embedded.running(project)
        assert server is not None
        assert embedded.running(copy) is None
        sockets = {
            path
            for path in Path("/tmp").glob("seaweedfs-*.sock")
            if path.stem.split("-")[-1] in map(str, server.ports.values())
        }
        assert sockets
        with store.open_store(copy, "embedded") as own:
            assert own.options["endpointurl"] != remote.options["endpointurl"]
            store.client(own).put_object(Bucket=own.bucket, Key="second", Body=b"second")
        embedded.stop_unused(copy)
        assert embedded.running(project) == server
        assert all(path.exists() for path in sockets)
        listed = store.client(remote).list_objects_v2(Bucket=remote.bucket)["Contents"]
        assert [row["Key"] for row in listed] == ["first"]
    moved = project.with_name("moved")
    with store.open_store(project, "embedded"):
        server = embedded.running(project)
        project.rename(moved)
        assert embedded.running(moved) == server
        moved.rename(project)


def test_another_process_keeps_it_alive_until_it_is_killed(project: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from tasks.storage import embedded\n"
        "with embedded.serving(Path(sys.argv[1])): print('up', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", script, str(project)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "up\n"
    with store.open_store(project, "embedded"):
        pass
    assert embedded.running(project) is not None  # the other still uses it
    other.kill()
    other.wait()
    other.stdout.close()
    assert embedded.running(project) is not None  # an orphan now …
    with store.open_store(project, "embedded"):
        pass
    assert embedded.running(project) is None  # … that the next user ends


def test_credentials_are_private_and_checked(project: Path) -> None:
    with store.open_store(project, "embedded") as remote:
        server = embedded.running(project)
        wrong = Remote(remote.name, remote.url, {**remote.options, "secret_access_key": "wrong"})
        with pytest.raises(UserError, match="refuses these credentials"):
            store.check(wrong)
    assert server
    psutil.wait_procs([psutil.Process(server.pid)], timeout=15)  # while it ends, it may still answer
    with pytest.raises(UserError, match="cannot be reached"):
        store.check(remote)
    assert remote.options["secret_access_key"] not in repr(remote)
    for path in (project / ".dvc" / "config.local", project / ".chronomerge" / "store" / "s3.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_server_that_cannot_start_says_where_its_log_is(project: Path) -> None:
    with embedded.serving(project):
        pass
    settings = embedded.folder(project) / "s3.json"
    settings.write_text(settings.read_text().replace('"actions": [', '"actions": 5, "other": ['))
    with pytest.raises(UserError, match=r"server\.log"), embedded.serving(project):
        pass


def test_local_options_go_before_committed_ones(project: Path) -> None:
    (project / ".dvc" / "config").write_text(
        "[core]\n    analytics = false\n['remote \"store\"']\n    url = s3://a/b\n    region = one\n"
    )
    dvc_config.write_remote(project, Remote("store", "s3://a/b", {"region": "two", "secret_access_key": "x/y+z="}))
    found = dvc_config.remote(project, "store")
    assert (found.url, found.bucket, found.prefix) == ("s3://a/b", "a", "b")
    assert found.options == {"region": "two", "secret_access_key": "x/y+z="}
    with pytest.raises(UserError, match=rf"no DVC remote is named 'stroe' in {project} \(there are: embedded, store\)"):
        dvc_config.remote(project, "stroe")


def test_a_store_that_another_process_started_has_an_address(project: Path) -> None:
    with pytest.raises(UserError, match=rf"{project} does not run.* `chronomerge remote use CLONE` in {project}"):
        embedded.address(project)
    with embedded.serving(project) as remote:
        assert embedded.address(project) == remote


def test_dvc_reads_what_we_write(project: Path) -> None:
    dvc_config.write_remote(project, Remote("mine", "s3://a/b", {"endpointurl": "http://127.0.0.1:1"}))
    subprocess.run([str(Path(sys.executable).parent / "dvc"), "init", "-q", "--no-scm", "-f"], cwd=project, check=True)
    dvc_config.write_remote(project, Remote("mine", "s3://a/b", {"endpointurl": "http://127.0.0.1:1"}))
    listed = subprocess.run(
        [str(Path(sys.executable).parent / "dvc"), "remote", "list"], cwd=project, capture_output=True, text=True
    )
    assert listed.stdout.split() == ["mine", "s3://a/b"]


def test_a_clone_uses_the_store_of_another(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    clone = tmp_path_factory.mktemp("clone")
    with pytest.raises(UserError, match="has no embedded store"):
        embedded.share(clone, project)
    with store.open_store(project, "embedded") as remote:
        embedded.share(clone, project)
        with store.open_store(clone, "embedded") as shared:
            assert shared == remote
    assert dvc_config.remote(clone, "embedded") == remote


@pytest.mark.parametrize("option", ["version_aware", "worktree"])
@pytest.mark.parametrize("value", ["true", "Yes"])
def test_a_remote_that_can_never_hold_states_is_refused_before_any_work(project: Path, option: str, value: str) -> None:
    for url in ("s3://a/b", str(project / "elsewhere")):
        dvc_config.write_remote(project, Remote("mine", url, {option: value, "endpointurl": "http://127.0.0.1:9"}))
        with (
            pytest.raises(UserError, match=rf"'mine'.* option {option}.*dvc remote modify mine --unset {option}"),
            store.open_store(project, "mine"),
        ):
            pass


def test_a_remote_that_is_not_s3_is_written_and_read_before_any_work(project: Path) -> None:
    subprocess.run([str(Path(sys.executable).parent / "dvc"), "init", "-q", "--no-scm", "-f"], cwd=project, check=True)
    dvc_config.write_remote(project, Remote("disk", str(project / "elsewhere")))
    with store.open_store(project, "disk") as remote:
        assert remote.name == "disk"
    assert not [path for path in (project / "elsewhere").rglob("*") if path.is_file()]
    (project / "file").write_text("in the way")
    dvc_config.write_remote(project, Remote("blocked", str(project / "file" / "below")))
    with pytest.raises(RemoteError, match=r"store 'blocked' .*Not a directory"), store.open_store(project, "blocked"):
        pass
    dvc_config.write_remote(project, Remote("lacking", "gs://bucket/prefix"))
    with pytest.raises(UserError, match=r"requires 'dvc-gs' to be installed"), store.open_store(project, "lacking"):
        pass
