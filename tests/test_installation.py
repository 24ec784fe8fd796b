"""`make install` and its locks; that it installs is shown by every run of these tests."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LOCKS = ("requirements.lock", "requirements-torch.lock", "requirements-test.lock", "requirements-tools.lock")
ENVIRONMENTS = [
    {
        "python_version": version,
        "python_full_version": f"{version}.4",
        "sys_platform": platform,
        "platform_machine": machine,
    }
    for version in ("3.11", "3.12", "3.13")
    for platform, machine in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
]


def pins(lock: str) -> list[tuple[Requirement, list[str]]]:
    """The pinned requirements of a lock, each with its hashes."""
    entries = re.split(r"^(?=[a-z])", (ROOT / lock).read_text(), flags=re.MULTILINE)[1:]
    return [(Requirement(entry.split("\\")[0]), re.findall(r"--hash=sha256:[0-9a-f]{64}", entry)) for entry in entries]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_of_a_lock_has_hashes(lock: str) -> None:
    assert pins(lock)
    for requirement, hashes in pins(lock):
        assert re.fullmatch(r"==[^+*]+", str(requirement.specifier)), requirement
        assert hashes, f"{lock}: {requirement} has no hash; run make lock"


@pytest.mark.parametrize(
    "environment", ENVIRONMENTS, ids=lambda e: "-".join((e["python_version"], e["platform_machine"]))
)
def test_the_locks_pin_every_dependency_once_on_each_python(environment: dict[str, str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = {
        ("requirements.lock", "requirements-torch.lock"): project["project"]["dependencies"],
        LOCKS[:3]: project["dependency-groups"]["test"],
        LOCKS[3:]: project["dependency-groups"]["tools"],
    }
    for locks, wanted in groups.items():
        applicable = {
            (normal(one.name), str(one.specifier))
            for lock in locks
            for one, _ in pins(lock)
            if one.marker is None or one.marker.evaluate(environment)
        }
        names = [name for name, _ in applicable]
        assert len(names) == len(set(names)), "one package, two versions"
        for requirement in map(Requirement, wanted):
            (version,) = [version for name, version in applicable if name == normal(requirement.name)]
            assert requirement.specifier.contains(version.removeprefix("=="), prereleases=True), requirement


def test_what_only_tests_need_is_not_installed_for_a_demo() -> None:
    demo = {normal(one.name) for lock in LOCKS[:2] for one, _ in pins(lock)}
    assert not demo & {"pytest", "mypy", "ruff", "playwright", "peft", "hypothesis", "mkdocs-material", "distributed"}


@pytest.mark.parametrize("python", ["python2.7", "no-such-python", "false"])
def test_an_unsuitable_python_is_refused_in_one_line_that_says_what_to_install(python: str, tmp_path: Path) -> None:
    make = [shutil.which("make") or "make", "--file", str(ROOT / "Makefile"), "demo", f"PYTHON={python}"]
    for name in (*LOCKS, "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(make, cwd=tmp_path, capture_output=True, text=True, check=False)
    line, _ = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith(f"PYTHON={python} is no Python 3.11, 3.12 or 3.13; install one (")
    assert line.endswith("make demo PYTHON=/path/to/python3.13")
    assert not (tmp_path / ".venv").exists()


def test_without_any_python_one_line_says_what_to_install(tmp_path: Path) -> None:
    for name in (*LOCKS, "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "bin").mkdir()
    for name in ("sh", "sed"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or name)
    make = [shutil.which("make") or "make", "--file", str(ROOT / "Makefile"), "demo"]
    environment = {"PATH": str(tmp_path / "bin")}
    done = subprocess.run(make, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].startswith("found no Python 3.11, 3.12 or 3.13; install one (")
