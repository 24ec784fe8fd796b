"""Machines made of the kernel's namespaces: each with a network address, a host name and a view of the disk of its own.

Needs root. Where that is not given, they are plain processes on one host.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Self

import psutil


class Machines:
    """Machines on one network, used as a context manager; all that runs on them ends with it."""

    def __init__(self, hidden: Path):
        self._hidden = hidden
        self._net = f"cm{os.getpid() % 100_000}"
        self._names: list[str] = []
        self._started: list[subprocess.Popen[bytes]] = []
        self.real = _possible(f"{self._net}p")
        self._address = f"10.{78 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
        """Of the network, without the last part."""
        self.host = "127.0.0.1"
        """Where machines reach this process."""
        if self.real:
            _must("link", "add", self._net, "type", "bridge")
            self.host = f"{self._address}.1"
            _must("addr", "add", f"{self.host}/24", "dev", self._net)
            _must("link", "set", self._net, "up")

    def add(self, name: str) -> str:
        """Add a machine and return its address."""
        self._names.append(name)
        if not self.real:
            return self.host
        number, space = len(self._names) + 1, f"{self._net}-{name}"
        outer, inner = f"{self._net}o{number}", f"{self._net}i{number}"
        _must("netns", "add", space)
        _must("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", space)
        _must("link", "set", outer, "master", self._net, "up")
        for rest in (
            ("addr", "add", f"{self._address}.{number}/24", "dev", inner), ("link", "set", inner, "up"),
            ("link", "set", "lo", "up"),
        ):  # fmt: skip
            _must("-netns", space, *rest)
        return f"{self._address}.{number}"

    def start(self, name: str, command: list[str], cwd: Path, log: Path) -> psutil.Process:
        """Start a program on a machine; it sees nothing of what lies in the hidden folder."""
        if self.real:
            inside = 'hostname "$0" && mount -t tmpfs none "$1" && shift && cd "$1" && shift && exec "$@"'
            command = [
                "ip", "netns", "exec", f"{self._net}-{name}", "unshare", "--uts", "--mount",
                "sh", "-c", inside, name, str(self._hidden), str(cwd), *command,
            ]  # fmt: skip
        with log.open("wb") as file:
            started = subprocess.Popen(command, cwd=cwd, stdout=file, stderr=file, start_new_session=True)
        self._started.append(started)
        return psutil.Process(started.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if self.real:
            for name in self._names:
                _must("netns", "del", f"{self._net}-{name}")
            _must("link", "del", self._net)


def _possible(probe: str) -> bool:
    """Whether this process may make all that a machine is made of."""
    made = _done("ip", "netns", "add", probe)
    found = (
        made
        and _done("ip", "link", "add", f"{probe}b", "type", "bridge")
        and _done("ip", "link", "add", f"{probe}o", "type", "veth", "peer", "name", f"{probe}i", "netns", probe)
        and _done("unshare", "--uts", "--mount", "sh", "-c", "hostname probe && mount -t tmpfs none /mnt")
    )
    for name in (f"{probe}o", f"{probe}b"):
        _done("ip", "link", "del", name)
    _done("ip", "netns", "del", probe)
    return found


def _done(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def _must(*args: str) -> None:
    done = subprocess.run(["ip", *args], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(args)}: {done.stderr}"
