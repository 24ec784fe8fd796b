"""No test inherits what another has set for the whole process."""

import logging
import os
import random
import signal
import socket
import sys
import urllib.request
from pathlib import Path

import torch

from tests import isolation


def state() -> tuple[object, ...]:
    return (
        dict(os.environ), Path.cwd(), list(sys.path), signal.getsignal(signal.SIGTERM), logging.root.level,
        logging.root.manager.disable, socket.getdefaulttimeout(), torch.get_num_threads(), torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip


def test_all_that_a_test_sets_is_put_back(tmp_path: Path) -> None:
    before = state()
    with isolation.as_before():
        os.environ["HTTP_PROXY"] = "http://127.0.0.1:9"
        os.environ.pop("PATH")
        os.chdir(tmp_path)
        sys.path.append("elsewhere")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        logging.root.setLevel(logging.CRITICAL + 1)
        logging.disable()
        socket.setdefaulttimeout(3)
        torch.set_num_threads(torch.get_num_threads() + 1)
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(not torch.are_deterministic_algorithms_enabled())
        assert all(one != other for one, other in zip(before, state(), strict=True))
    assert state() == before


def test_random_numbers_and_urllib_do_not_depend_on_earlier_tests() -> None:
    drawn = []
    for _ in range(2):
        with isolation.as_before():
            assert urllib.request._opener is None  # type: ignore[attr-defined]
            urllib.request.install_opener(urllib.request.build_opener())
            drawn.append((random.random(), torch.rand(1)))
            random.seed(7)
            torch.manual_seed(7)
    assert drawn[0] == drawn[1]
