"""A process that has imported what the command line imports, and forks for each call of it.

``python -m tests.fork_server SOCKET`` serves one test session: each connection brings the working folder, the
environment, the arguments, and the three standard streams of a call; the answer is the id of the forked process and,
once it has ended, its status. Imports are shared, nothing else: the fork has its own id, session, environment,
streams and signals, runs the code of the folder that it works in, and ends as any Python program does. Where that code
is the very code of this server, the fork has its modules already, moved to its own folder.
"""

from __future__ import annotations

import _imp
import faulthandler
import gc
import importlib
import importlib.util
import io
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder, SourceLoader
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from tasks import forking
from tests import forks

PREFECT = (
    "prefect", "prefect.artifacts", "prefect.cache_policies", "prefect.client.schemas.objects", "prefect.flow_engine",
    "prefect.task_engine", "prefect.utilities.visualization",
)  # fmt: skip
OTHERS = (
    "aiobotocore.session", "anyio._backends._asyncio", "boto3", "botocore.session", "configobj", "cryptography.x509",
    "cryptography.x509.oid", "datasets", "dulwich.client", "dulwich.index", "dulwich.worktree", "dvc.cachemgr",
    "dvc.cli.parser", "dvc.commands.repro", "dvc.data_cloud", "dvc.lock", "dvc.repo", "dvc.repo.artifacts",
    "dvc.repo.datasets", "dvc.repo.graph", "dvc.repo.index", "dvc.repo.metrics", "dvc.repo.params", "dvc.repo.plots",
    "dvc.repo.stage", "dvc.repo.trie", "dvc.rwlock", "dvc.scm", "dvc.utils.strictyaml", "dvc_data.hashfile.status",
    "dvc_data.index.checkout", "dvc_s3", "fastapi", "fsspec.implementations.memory", "httpx", "narwhals.dependencies",
    "networkx", "numpy", "numpy.ctypeslib", "PIL.Image", "psutil", "pyarrow.parquet", "pydantic", "pydantic.v1",
    "rich.progress", "rich.status", "ruamel.yaml", "ruamel.yaml.mergevalue", "s3fs", "safetensors.torch",
    "timm", "transformers", "typer._click.decorators",
)  # fmt: skip
OWN = ("chronomerge", "flows", "tasks")
"""Packages of the project: a fork has those of its own folder."""
_RETAINED: list[ModuleType] = []
"""Modules of the project that defined operators of torch, which go when the modules do."""
_HERE = Path.cwd()
_TEXTS: dict[str, bytes] = {}
"""Path of a file of the project → its text."""
_COMPILED: dict[bytes, CodeType] = {}
"""Text of a file of the project → what it compiles to."""
_FILES: list[tuple[ModuleType, Path]] = []
"""Module of the project → its file in it."""
_PATHS: list[tuple[ModuleType, str, Path]] = []
"""Module of the project, a name in it → the path in the project that this is."""


def preload() -> None:
    """Import what takes long, and what of the project imports no Prefect."""
    from tasks.model import models

    models.preload()
    for name in (*OTHERS, *PREFECT):
        importlib.import_module(name)
    importlib.import_module("PIL.Image").init()
    sys.meta_path.insert(0, _Later())
    for package in OWN:
        for path in Path(package).rglob("*.py"):
            text = _TEXTS[str(path)] = path.read_bytes()
            _COMPILED[text] = compile(text, path, "exec", dont_inherit=True)
    for name, text in _TEXTS.items():
        if name.startswith("tasks/") and b'if __name__ == "__main__":' not in text:
            importlib.import_module(name.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    importlib.import_module("flows.cli.app")
    tokenizers, store, configs = (
        importlib.import_module(f"tasks.{name}") for name in ("model.tokenizers", "storage.store", "storage.dvc_config")
    )
    tokenizers.load(Path(), {"context_length": 77})
    store.client(configs.Remote("warm", "s3://warm", {"region": "us-east-1"}))
    assert "prefect" not in sys.modules, "it would have the settings of this process"
    for module in _of_this_project():
        _FILES.append((module, Path(str(module.__file__)).relative_to(_HERE)))
        for name, value in vars(module).items():
            if isinstance(value, Path) and value.is_relative_to(_HERE):
                _PATHS.append((module, name, value.relative_to(_HERE)))
    gc.collect()
    gc.freeze()
    assert threading.active_count() == 1, threading.enumerate()


def _of_this_project() -> list[ModuleType]:
    return [module for name, module in sys.modules.items() if name.partition(".")[0] in OWN]


def _move(folder: Path) -> None:
    """Have the modules of the project as if they had been imported from a folder with the same files."""
    for module, file in _FILES:
        module.__file__ = str(folder / file)
        if file.name == "__init__.py":
            module.__path__ = [str(folder / file.parent)]
    for module, name, path in _PATHS:
        setattr(module, name, folder / path)


def _forget() -> None:
    """Have no module of the project."""
    for module in _of_this_project():
        _RETAINED.append(sys.modules.pop(module.__name__))


def _same_code(folder: Path) -> bool:
    """Whether a folder has the very files of this server, and no other."""
    here = {str(path.relative_to(folder)) for package in OWN for path in (folder / package).rglob("*.py")}
    return here == _TEXTS.keys() and all((folder / name).read_bytes() == text for name, text in _TEXTS.items())


def _source_to_code(_loader: SourceLoader, data: bytes, path: str, *, _optimization: int = -1) -> CodeType:
    """As `SourceLoader.source_to_code`, with what `_COMPILED` has."""
    if code := _COMPILED.get(bytes(data)):
        _imp._fix_co_filename(code, path)  # type: ignore[attr-defined]  # as the import system does with code that was compiled elsewhere
        return code
    compiled: CodeType = compile(data, path, "exec", dont_inherit=True, optimize=_optimization)
    return compiled


class _Later(MetaPathFinder, Loader):
    """Hides Prefect until it is imported: it reads its settings from the environment of that moment."""

    def __init__(self) -> None:
        names = [name for name in sys.modules if name.partition(".")[0] == "prefect"]
        self._hidden = {name: sys.modules.pop(name) for name in names}

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        if fullname != "prefect":
            return None
        sys.meta_path.remove(self)
        return importlib.util.spec_from_loader("prefect", self)

    def create_module(self, _: ModuleSpec) -> ModuleType:
        self._spec = self._hidden["prefect"].__spec__
        return self._hidden["prefect"]

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec
        sys.modules.update(self._hidden)
        sys.modules["prefect.context"].refresh_global_settings_context()
        sys.modules["prefect.logging.configuration"].setup_logging(incremental=False)


def begin(call: dict[str, Any], streams: Sequence[int]) -> None:
    """Be the process of a call, from its session to its streams, without a module of the tests."""
    os.setsid()
    forking.become(call, streams)
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.stdin = sys.__stdin__ = _text(0, "r")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _text(1, "w")  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _text(2, "w", errors="backslashreplace", line_buffering=True)  # type: ignore[misc]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]


def become(call: dict[str, Any], streams: Sequence[int]) -> None:
    """As `begin`, with the code of the call's folder."""
    begin(call, streams)
    stacks = os.open(f"{call['stacks']}/stack-{os.getpid()}", os.O_WRONLY | os.O_CREAT, 0o600)
    faulthandler.register(signal.SIGUSR1, stacks)
    if _same_code(Path.cwd()):
        _move(Path.cwd())
    else:
        _forget()
    SourceFileLoader.source_to_code = _source_to_code  # type: ignore[assignment, method-assign]
    if call["forking"]:
        forks.FOLDER = Path(call["forking"])
        subprocess.Popen = forks.Popen  # type: ignore[assignment, misc]
    if "huggingface_hub.constants" in sys.modules:
        importlib.reload(sys.modules["huggingface_hub.constants"])  # it has read the environment


def _text(number: int, mode: str, errors: str = "strict", line_buffering: bool = False) -> io.TextIOWrapper:
    raw = os.fdopen(number, f"{mode}b", closefd=False)
    return io.TextIOWrapper(raw, errors=errors, line_buffering=line_buffering or os.isatty(number))


def main(path: str) -> None:
    preload()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{path}.new")
        listening.listen(64)
        Path(f"{path}.new").rename(path)
        if (called := forking.serve(listening)) is None:
            Path(path).unlink()
    if called:
        become(*called)
        forking.run(*called[0]["arguments"])


if __name__ == "__main__":
    main(sys.argv[1])
