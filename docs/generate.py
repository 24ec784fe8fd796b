"""Writes the reference pages of the site from the code, as mkdocs builds it (see ``hooks`` in mkdocs.yml).

Nothing that is written here is committed: the params' models, the command line and the registries are the only source.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1]))

import chronomerge
from flows.cli.app import app
from tasks import params
from tasks.choice import Choice, available
from tasks.evaluate.head import Head
from tasks.fit.method import FitMethod
from tasks.model.codec import Codec
from tasks.prepare.registry import kinds
from tasks.prepare.sources.torchvision import ELSEWHERE, KNOWN
from tasks.stream.ordering import Ordering
from tasks.track.tracker import Tracker
from tasks.train.method import Method
from tasks.train.regularizer import Regularizer


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """mkdocs calls this with the files of docs/; the generated pages join them."""
    for name, text in pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def pages() -> dict[str, str]:
    """Every generated page by name, as Markdown."""
    return {
        "params": params_page(),
        "cli": cli_page(),
        "techniques": techniques_page(),
        "choices": choices_page(),
        "python": python_page(),
    }


# params.yaml


def params_page() -> str:
    """Every key of ``params.yaml``: type, default, meaning."""
    head = """\
# params.yaml

Every key, from the models that check the file. An unknown key, a missing one or a wrong value is an error before any
work starts. **required** marks keys without a default. Keys of a list's entries have `[]` in their path.
"""
    return head + "".join(_section(path, model) for path, model in sections(params.Params))


def sections(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """A model and those inside it, each with the key that leads to it."""
    yield path, model
    for name, field in model.model_fields.items():
        if (path, name) in OF_STATES:
            continue
        for inner, listed in _models(field.annotation):
            if inner.model_fields.keys() - {"name"}:
                yield from sections(inner, f"{path}.{name}".lstrip(".") + ("[]" if listed else ""))


OF_STATES = {("", "step"), ("", "arrival")}
"""What the flow writes into the params of a state; a user's own file has neither."""


def _section(path: str, model: type[BaseModel]) -> str:
    doc = inspect.cleandoc(model.__doc__ or "")
    rows = [
        f"| `{name}` | {_type(field)} | {_default(field)} | {_cell(described(model).get(name, ''))} |"
        for name, field in model.model_fields.items()
        if (path, name) not in OF_STATES
    ]
    table = "\n".join(["| key | value | default | meaning |", "|---|---|---|---|", *rows])
    return f"\n## {f'`{path}`' if path else 'Top level'}\n\n{doc}\n\n{table}\n"


@cache
def described(model: type[BaseModel]) -> dict[str, str]:
    """The docstring below each field, fields of base classes included."""
    texts: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if not issubclass(cls, BaseModel) or cls is BaseModel:
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, doc in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant):
                assert isinstance(field.target, ast.Name)
                texts[field.target.id] = " ".join(str(doc.value.value).split())
    return texts


def _models(annotation: Any, listed: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation, listed
    for part in get_args(annotation):
        yield from _models(part, listed or get_origin(annotation) is list)


def _type(field: FieldInfo) -> str:
    bounds = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "min_length": "length ≥"}
    limits = [
        f"{sign} {value}"
        for one in field.metadata
        for key, sign in bounds.items()
        if (value := getattr(one, key, None)) is not None
    ]
    return ", ".join([_shown(field.annotation), *limits])


def _shown(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _shown(parts[0])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys("null" if part is type(None) else _shown(part) for part in parts))
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin is list or (origin is tuple and parts[-1] is ...):
        return f"list of {_shown(parts[0])}"
    if origin is tuple:
        return " and ".join(_shown(part) for part in parts)
    if origin is dict or annotation is dict:
        return "mapping"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "name, or mapping with `name`" if issubclass(annotation, params.Named) else "mapping"
    return {str: "text", int: "integer", float: "number", bool: "true or false", Any: "any"}[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, params.Named):
        return f"`{value.name}`"
    if isinstance(value, BaseModel):
        return "see below"
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_yaml(one) for one in value) + "]"
    if isinstance(value, dict):
        return "{}" if not value else "{…}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _cell(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|")


# The command line


def cli_page() -> str:
    """Every verb: usage, arguments, options."""
    head = """\
# Command line

Every verb, as `chronomerge VERB --help` prints it. Errors are one line on standard error; status 0 means done, 1 that
a check found something, 2 that the command refused or could not do what was asked.
"""
    root = typer.main.get_command(app)
    return head + "".join(_verb(name, command) for name, command in verbs(root, ("chronomerge",)))


def verbs(command: Any, name: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands below a group that do something, with the words that call them."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
        return
    for word, one in inner.items():
        yield from verbs(one, (*name, word))


def _verb(name: tuple[str, ...], command: Any) -> str:
    context = command.make_context(name[-1], [], resilient_parsing=True)
    usage = " ".join([*name, *command.collect_usage_pieces(context)])
    rows = [record for one in command.params if (record := one.get_help_record(context))]
    table = "\n".join(
        ["| option | meaning |", "|---|---|", *(f"| `{_cell(term)}` | {_cell(text)} |" for term, text in rows)]
    )
    text = inspect.cleandoc(command.help or "").replace("\f", "").replace("\b", "")
    return f"\n## {' '.join(name[1:])}\n\n```\n{usage}\n```\n\n{text}\n" + (f"\n{table}\n" if rows else "")


# What is chosen by name


def techniques_page() -> str:
    """The merging techniques, from their registry."""
    head = """\
# Merging techniques

`time.technique` in `params.yaml`, `--technique` of `chronomerge merge`, `merge_method` of mergekit. θ_0 is the base,
τ_k = θ_k − θ_0 a task vector, λ the setting `scale`; `density` is the fraction of entries that stay.

"""
    return head + CliRunner().invoke(app, ["techniques", "--markdown"]).output


def choices_page() -> str:
    """Data sources, training methods, regularizers, heads, codecs and orders of a stream: what one file adds."""
    parts = [
        "# Choices by name\n\nEach is one file of the code. A new file is found by this page, by the check of\n"
        "`params.yaml` and by the command line.\n",
        _choices("Data sources", "`kind:what` or `{source: kind, …}` in `params.yaml`.", kinds()),
    ]
    texts: list[tuple[str, str, type[Choice]]] = [
        ("Training methods", "`train.method` in `params.yaml`.", Method),
        ("Regularizers", "`train.regularizer` in `params.yaml`.", Regularizer),
        ("Fits", "`fit` in `params.yaml`; [the guide](../guides/fitting.md).", FitMethod),
        ("Heads", "`evaluate.heads` in `params.yaml`; [the guide](../guides/heads.md).", Head),
        ("Codecs of experts", "`store.experts` in `params.yaml`; [the guide](../guides/store.md).", Codec),
        ("Trackers", "`track` in `params.yaml`.", Tracker),
        ("Stream orders", "`--order` of `chronomerge stream cut`.", Ordering),
    ]
    parts.append(_torchvision())
    parts += [_choices(title, text, available(kind)) for title, text, kind in texts]
    return "\n".join(parts)


def _torchvision() -> str:
    """The classes of torchvision that are read, and where others are."""
    rows = [
        f"| `{name}{'/' + known.variants[0] if known.variants else ''}` | {', '.join(known.splits)} | "
        f"{', '.join(known.variants)} |"
        for name, known in KNOWN.items()
    ]
    others = [f"| `{name}` | {place} |" for name, place in ELSEWHERE.items()]
    return "\n".join([
        "### Classes of torchvision\n", "| `torchvision:` | splits | variants |", "|---|---|---|", *rows, "",
        "Not downloaded, or not checked, by torchvision itself:\n", "| class | use |", "|---|---|", *others, "",
    ])  # fmt: skip


def _choices(title: str, text: str, known: Any) -> str:
    rows = []
    for name, one in known.items():
        settings = ", ".join(
            key if field.is_required() else f"{key}={_yaml(field.get_default(call_default_factory=True))}"
            for key, field in one.model_fields.items()
        )
        first = inspect.cleandoc(one.__doc__ or "").split("\n\n")[0]
        rows.append(f"| `{name}` | {_cell(' '.join(first.split()))} | {f'`{_cell(settings)}`' if settings else ''} |")
    return "\n".join([f"## {title}\n", text, "", "| name | meaning | settings |", "|---|---|---|", *rows, ""])


# The Python API


def python_page() -> str:
    """Every public name of ``import chronomerge``: signature and docstring."""
    doc = inspect.cleandoc(chronomerge.__doc__ or "").split("\n", 1)
    text = "# Python\n\n" + f"{doc[0]}\n{doc[1]}\n" + "".join(_public(name) for name in chronomerge.__all__)
    return re.sub(r"<function (\w+) at 0x[0-9a-f]+>", r"\1", text)


def _public(name: str) -> str:
    one = getattr(chronomerge, name)
    kind = "class " if inspect.isclass(one) else ""
    signature = "" if inspect.isclass(one) else str(inspect.signature(one, eval_str=False))
    text = textwrap.indent(inspect.getdoc(one) or "", "    ")
    methods = [
        f"    {method}{inspect.signature(value)}\n{textwrap.indent(inspect.getdoc(value) or '', '        ')}\n"
        for method, value in vars(one).items()
        if inspect.isclass(one) and inspect.isfunction(value) and not method.startswith("_") and value.__doc__
    ]
    return f"\n## {name}\n\n```text\n{kind}{name}{signature}\n{text}\n" + "\n".join(["", *methods]) + "```\n"
