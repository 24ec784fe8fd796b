"""Which files of a hub's data set are which split: ``datasets``' own rules, on the names of the files alone.

The rules (the card's ``configs``, names of folders and files, extensions) are asked with a folder of empty files of
these names and the card; so nothing is looked up on the network, and no code of a repository is run.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.prepare import hugging
from tasks.storage.cards import CARD
from tasks.text import one_line, shortened

READ = {"parquet": "Parquet", "imagefolder": "folders of images", "webdataset": "WebDataset"}
"""What is read, by the name of its module in ``datasets``."""
MOST_FILES = 1_000_000
MAIN = "default"
DEEPEST = 50
"""Levels of a card's head."""
MOST_TRIALS = 10_000_000
"""Ways in which the wildcards of a card's pattern may be laid over a name."""


@dataclass(frozen=True)
class Layout:
    """The files of one configuration of a data set."""

    form: str
    """One of `READ`."""
    config: str
    splits: Mapping[str, tuple[str, ...]]
    """Split → files, sorted as ``datasets`` reads them."""
    others: tuple[str, ...]
    """The other configurations."""
    of_others: frozenset[str]
    """Files of theirs alone."""
    classes: Mapping[str, tuple[str, ...]]
    """Column → names of classes, from the card."""
    columns: Mapping[str, str]
    """Column → its kind, from the card: ``image``, ``class`` or another."""


def layout(names: Collection[str], card: str, config: str | None, what: str) -> Layout:
    """The layout of a data set of these files; ``card`` is the text of its README.md.

    Raises:
        UserError: no data that are read, no such configuration, or several and none is the main one; names ``what``.
    """
    if len(names) > MOST_FILES:
        raise UserError(f"{what}: has {len(names)} files, more than {MOST_FILES}; use a copy in Parquet or tar files")
    with tempfile.TemporaryDirectory(prefix="layout-") as scratch:
        root = Path(scratch).resolve() / "data-set"
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        root.mkdir(exist_ok=True)
        (root / CARD).unlink(missing_ok=True)
        if card.lstrip().startswith("---"):  # else it says nothing
            (root / CARD).write_text(card, encoding="utf-8")
        with _readable(what):
            _require_plain(card, what)
            _require_own_files(root / CARD, names, what)
            return _asked(root, config, what, converted=_is_converted(names))


def _asked(root: Path, config: str | None, what: str, *, converted: bool) -> Layout:
    from datasets.load import LocalDatasetModuleFactory

    top = sorted(path.name for path in root.iterdir() if path.is_dir())
    if converted and config is None:
        if len(top) > 1:
            there = shortened(", ".join(top), 300)
            raise UserError(f"{what}: has the configurations {there}; name one as ORG/NAME/CONFIGURATION")
        config = top[0] if top else None
    module = LocalDatasetModuleFactory(str(root)).get_module()
    configs = {one.name: one for one in module.builder_configs_parameters.builder_configs}
    data_dir = None
    if config in top and (converted or config not in configs):
        module = LocalDatasetModuleFactory(str(root), data_dir=config).get_module()
        configs = {config: module.builder_configs_parameters.builder_configs[0]}
        data_dir = config
    form = module.module_path.rpartition(".")[2]
    if form not in READ:
        raise UserError(f"{what}: its files are read as {form}; {', '.join(READ.values())} are read here")
    main = module.builder_configs_parameters.default_config_name
    name = config or main or (next(iter(configs)) if len(configs) == 1 else None)
    if name is None or name not in configs:
        there = shortened(", ".join(sorted(configs)), 300)
        wrong = f"has no configuration {config!r}, only {there}" if config else f"has the configurations {there}"
        raise UserError(f"{what}: {wrong}; name one as ORG/NAME/CONFIGURATION")
    splits = {one: _files(root, configs[one]) for one in configs}
    own = {file for files in splits[name].values() for file in files}
    theirs = {file for one in splits if one != name for files in splits[one].values() for file in files}
    if data_dir:
        theirs = {f.relative_to(root).as_posix() for f in root.rglob("*") if f.is_file()}
    if any(file.endswith(".zip") for file in own):
        raise UserError(
            f"{what}: has its files in zip archives, which are not read here; use a copy in Parquet{_parquet(what)}"
        )
    info = module.dataset_infos.get(name) or (module.dataset_infos.get(MAIN) if data_dir is None else None)
    features = dict(info.features or {}) if info else {}
    classes = {column: tuple(one.names) for column, one in features.items() if hasattr(one, "names") and one.names}
    kinds = {column: hugging.kind(one) for column, one in features.items()}
    others = tuple(sorted((set(top) if data_dir else set(configs)) - {name}))
    return Layout(form, name, splits[name], others, frozenset(theirs - own), classes, kinds)


def _is_converted(names: Collection[str]) -> bool:
    """Whether this is a copy in Parquet that the hub made: ``CONFIGURATION/SPLIT/0000.parquet`` and no other file."""
    seen = [name for name in names if not name.startswith(".")]
    return bool(seen) and all(re.fullmatch(r"[^/]+/[^/]+/\d{4}\.parquet", name) for name in seen)


def _files(root: Path, config: Any) -> dict[str, tuple[str, ...]]:
    """The files of each split of a configuration, relative to the root."""
    from datasets.data_files import DataFilesPatternsDict

    patterns = config.data_files
    if isinstance(patterns, DataFilesPatternsDict):
        base = root / config.data_dir if config.data_dir else root
        patterns = patterns.resolve(base_path=str(base))
    return {
        str(split): tuple(dict.fromkeys(Path(file).resolve().relative_to(root).as_posix() for file in files))
        for split, files in patterns.items()
    }


def _require_plain(card: str, what: str) -> None:
    """Look at the head of a card without building anything of it: a few aliases can mean millions of values.

    Raises:
        UserError: it has aliases, or is nested too deep.
    """
    import yaml
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    head = REGEX_YAML_BLOCK.search(card)
    depth = 0
    for event in yaml.parse(head[2] if head else "", Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > DEEPEST:
            raise UserError(f"{what}: the head of its card has YAML aliases, or is nested deeper than {DEEPEST} levels")


def _require_own_files(card: Path, names: Collection[str], what: str) -> None:
    """Raises:
    UserError: the card's configurations name files elsewhere, or by patterns that take years to be compared.
    """
    from tasks.storage.cards import front_matter

    longest = max(map(len, names), default=0)
    for text in _strings(front_matter(card).get("configs")):
        if "://" in text or "::" in text or text.startswith(("/", "~")) or ".." in text.split("/"):
            raise UserError(f"{what}: its card names files outside of the repository ({text!r:.80}); they are not read")
        # datasets makes regular expressions of patterns, which try every place for every wildcard.
        wildcards = len(re.findall(r"\*+", text))
        if math.comb(longest + 1, wildcards) > MOST_TRIALS:
            raise UserError(
                f"{what}: its card has the pattern {text!r:.80}, whose {wildcards} wildcards can stand at too many"
                f" places in names of {longest} characters"
            )


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _strings(one)
    elif isinstance(value, Sequence):
        for one in value:
            yield from _strings(one)


def _parquet(what: str) -> str:
    """Where a hub has a copy in Parquet, which it makes of many data sets by itself."""
    address = what.partition(": ")[2].partition("@")[0]
    return f": the hub may have one, {address}@refs%2Fconvert%2Fparquet"


def refuse_scripts(names: Collection[str], repository: str, what: str) -> None:
    """Raises:
    UserError: a data set's loading script is there.
    """
    script = f"{repository.rpartition('/')[2]}.py"
    if script in names:
        raise UserError(
            f"{what}: is loaded by a script of its own ({script}), and no code of a repository is run; use a copy in "
            f"Parquet{_parquet(what)}"
        )


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """What ``datasets`` raises about a data set's files or card, in a sentence."""
    import yaml
    from datasets.exceptions import DatasetsError

    with hugging.silent():
        try:
            yield
        except UserError:
            raise
        except yaml.YAMLError as error:
            raise UserError(f"{what}: the head of its card is no YAML ({one_line(str(error)):.200})") from None
        except (DatasetsError, OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            reason = one_line(str(error)) or type(error).__name__
            raise UserError(f"{what}: has no data that are read here ({shortened(reason, 200)})") from None
