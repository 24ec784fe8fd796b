"""README and docs/: every command parses, every key is checked, the site builds, and nothing of it needs a network."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from ruamel.yaml import YAML

import chronomerge
from flows.cli.app import app
from tasks.params import Params, parse

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "data/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`([^`]+)`")


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def fences(page: Path) -> Iterator[tuple[str, str]]:
    """What stands behind the opening fence, and the block."""
    yield from FENCE.findall(page.read_text())


def lines(page: Path) -> Iterator[tuple[str, bool]]:
    """Every line that looks like a command, and whether it is a command of a block or words in a sentence."""
    for kind, block in fences(page):
        if kind in ("", "bash", "sh", "console"):
            for line in block.replace("\\\n", " ").splitlines():
                yield line.strip().removeprefix("$ "), True
    for words in CODE.findall(FENCE.sub("", page.read_text())):
        yield " ".join(words.split()), False


def parsed(line: str, *, complete: bool) -> None:
    """Parse one chronomerge command against the command line itself, without running it.

    Raises:
        Exception: there is no such verb, option or argument; where ``complete``, something is missing too.
    """
    words = shlex.split(line, comments=True)
    words = words[words.index("chronomerge") + 1 :]
    words = words[: min((i for i, word in enumerate(words) if word in ("|", ">", "&&", "&")), default=len(words))]
    command: Any = typer.main.get_command(app)
    context = command.make_context("chronomerge", [], resilient_parsing=True)
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        assert words[0] in command.commands, f"no verb {words[0]!r}"
        command = command.commands[words[0]]
        name, *words = words
        context = command.make_context(name, [], parent=context, resilient_parsing=True)
    if complete and not hasattr(command, "commands"):
        command.make_context(context.info_name, words, parent=context.parent)
        return
    options = {option for one in command.params for option in (*one.opts, *one.secondary_opts)} | {"--help"}
    unknown = [word for word in words if word.startswith("-") and word.partition("=")[0] not in options]
    assert not unknown, f"no option {unknown[0]}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_of_a_page_parses(page: Path) -> None:
    for line, complete in lines(page):
        if re.match(r"([A-Z_]+=\S+ +)*(ExecStart=)?(\S*/)?chronomerge( |$)", line):
            try:
                parsed(re.sub(r"(ExecStart=)?\S*/chronomerge", "chronomerge", line), complete=complete)
            except Exception as error:
                raise AssertionError(f"{named(page)}: {line}: {error}") from error


@pytest.mark.parametrize(
    "line", ["chronomerge rum", "chronomerge run --untill 3", "chronomerge restore", "chronomerge run 3"]
)
def test_a_wrong_command_in_a_page_is_found(line: str) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011  typer's classes of errors are its own
        parsed(line, complete=True)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_make_target_and_extra_of_a_page_exists(page: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for line, _ in lines(page):
        for target in re.findall(r"^make ([a-z-]+)", line):
            assert target in targets, f"{named(page)}: {line}"
        for package, extra in re.findall(r"pip install.*?([\w.]+)\[(\w+)\]", line):
            assert package == ".", f"{named(page)}: {line}: chronomerge is on no index; a clone installs '.[{extra}]'"
            assert extra in extras, f"{named(page)}: {line}"


def test_every_snippet_of_params_is_valid() -> None:
    shipped = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    checked = 0
    for page in PAGES:
        for kind, block in fences(page):
            if kind == "yaml":
                snippet = YAML(typ="safe").load(block)
                given = {**shipped, **snippet}
                if "evaluate" in snippet and "gate" not in snippet:
                    given.pop("gate", None)  # the shipped gate names the shipped sets
                parse(_dumped(given), Path(named(page)))
                checked += 1
    assert checked >= 5


def _dumped(given: dict[str, Any]) -> str:
    text = io.StringIO()
    YAML(typ="safe").dump(given, text)
    return text.getvalue()


@cache
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = module
    spec.loader.exec_module(module)
    return module


def test_every_key_of_params_has_its_meaning_in_the_reference() -> None:
    for path, model in generate().sections(Params):
        missing = [name for name in model.model_fields if name not in generate().described(model)]
        assert not missing, f"{model.__name__} ({path}): no docstring below {', '.join(missing)}"


def test_the_reference_has_every_key_every_verb_and_every_technique() -> None:
    from tasks.merge import available

    pages = generate().pages()
    for path in ("train.mixture", "stream[]", "evaluate.retention[]", "time", "store"):
        assert f"\n## `{path}`\n" in pages["params"]
    assert "step" not in re.findall(r"^\| `(\w+)`", pages["params"].split("## `base`")[0], flags=re.MULTILINE)
    for name, _ in generate().verbs(typer.main.get_command(app), ("chronomerge",)):
        assert f"\n## {' '.join(name[1:])}\n" in pages["cli"]
    for name in chronomerge.__all__:
        assert f"\n## {name}\n" in pages["python"]
    for technique in available():
        assert f"| `{technique}` |" in pages["techniques"]


def test_the_site_builds_strictly_and_needs_no_network(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "HTTPS_PROXY": "http://127.0.0.1:9"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img|iframe)[^>]*?(?:src|href)="((?:https?:)?//[^"]+)"', page.read_text())
        assert not loaded, f"{page.name} loads {loaded[0]}"
    assert (tmp_path / "site/reference/cli.html").exists()


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/security.md", "CONTRIBUTING.md"])
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    text = (ROOT / page).read_text()
    paths = re.findall(r"`((?:flows|tasks|tests|chronomerge|data|docs|benchmarks)/[\w./-]*)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    "output", ["report/index.html", "serving/open_clip_config.json", "dvc_plots/index.html", "build/site/x"]
)
def test_what_the_commands_of_a_page_write_is_no_change_of_the_repository(output: str) -> None:
    ignored = subprocess.run(["git", "check-ignore", "--quiet", output], cwd=ROOT, check=False)
    assert ignored.returncode == 0, f"{output} would be committed"
