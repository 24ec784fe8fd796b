"""What holds for a whole process, put back after each test: no test depends on which others its worker ran before."""

from __future__ import annotations

import logging
import os
import random
import signal
import socket
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)


@contextmanager
def as_before() -> Iterator[None]:
    """The environment, the folder, Python's path, signals, limits of logging and sockets, torch's settings.

    Global generators start from one seed, and urllib from no opener: it keeps that of its first request, with the
    proxies of that moment.
    """
    environment, folder, paths = dict(os.environ), os.getcwd(), list(sys.path)  # noqa: PTH109
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    level, disabled, timeout = logging.root.level, logging.root.manager.disable, socket.getdefaulttimeout()
    torch: Any = sys.modules.get("torch")
    of_torch = _settings(torch) if torch else None
    urllib.request._opener = None  # type: ignore[attr-defined]
    _seed()
    yield
    if os.environ != environment:
        os.environ.clear()
        os.environ.update(environment)
    os.chdir(folder)
    sys.path[:] = paths
    for number, handler in handlers.items():
        if signal.getsignal(number) != handler:
            signal.signal(number, handler)
    logging.root.setLevel(level)
    logging.disable(disabled)
    socket.setdefaulttimeout(timeout)
    if of_torch and of_torch != _settings(torch):
        threads, dtype, deterministic = of_torch
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.use_deterministic_algorithms(deterministic)


def _settings(torch: Any) -> tuple[int, Any, bool]:
    return torch.get_num_threads(), torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()


def _seed() -> None:
    random.seed(0)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
