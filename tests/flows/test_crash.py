"""A sample of the crash matrix; ``benchmarks/crash.py`` runs all of it."""

import os
import subprocess
import sys

import pytest

from tests.project import ROOT

pytestmark = pytest.mark.long

SEED, CASES = 24, 4


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts small file systems")
def test_a_sample_of_the_matrix(prefect_api: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/crash.py", "--seed", str(SEED), "--cases", str(CASES)],
        cwd=ROOT, env={**os.environ, **prefect_api}, capture_output=True, text=True, timeout=3600,
    )  # fmt: skip
    assert f"{CASES} cases, 0 failures" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0
