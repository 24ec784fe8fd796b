"""The model card: what the model is, where it comes from, how good it is, under which licences, and how it is checked.

Front matter: huggingface_hub's ``ModelCardData`` (https://huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import layout
from tasks.errors import UserError
from tasks.model import configurations
from tasks.params import Base
from tasks.publish import public
from tasks.publish.recipe import FOLDER as RECIPE
from tasks.record import Form, RecordedOrigin, State, StateObjects
from tasks.scores import MEANS, ROLES
from tasks.storage import hub
from tasks.storage.cache import sha256_of
from tasks.text import markdown, one_line, redacted
from tasks.units import counted

LINEAGE = "lineage.png"
_TASK = "zero-shot-image-classification"
_UNKNOWN = "unknown"


@dataclass(frozen=True)
class Licence:
    """Under which licence a part of the model's data is, as its source says."""

    of: str
    source: str
    licence: str
    credit: str


def licences(source: StateObjects) -> list[Licence]:
    """Of every data set that a state was trained or tested on, out of the cards of its data sets.

    Raises:
        UserError: a card is damaged, or its bytes cannot be had.
    """
    known: dict[Licence, None] = {}
    roles = {layout.HISTORY: "trained on", layout.ARRIVAL: "trained on", layout.EVALUATION: "tested on"}
    for path, role in roles.items():
        if path not in source.state.entries:
            continue
        for name, md5 in sorted(source.listing(path).items()):
            if name.rpartition("/")[2] != "dataset.json":
                continue
            try:
                content = json.loads(source.get(md5, f"{path}/{name}").read_text(encoding="utf-8"))
                title, origins = str(content["name"]), [dict(one) for one in content["origins"]]
            except (KeyError, TypeError, ValueError, RecursionError) as error:
                raise UserError(f"{source.state.tag}: {path}/{name} is damaged ({error!r:.100})") from None
            for one in origins:
                told = [str(one.get(key) or "") for key in ("source", "licence", "attribution")]
                known[
                    Licence(f"{role}: {title}", public.shortened(told[0]), told[1] or _UNKNOWN, redacted(told[2]))
                ] = None
    return list(known)


def bases(lineage: Sequence[State]) -> list[str]:
    """The repositories of a hub that a model was merged from: its base, and experts that were trained elsewhere.

    The manifests say it, wherever the files were when they arrived; those of before there were pins say less.
    """
    base, pin = lineage[0].settings.base, lineage[0].manifest.base
    if pin:
        repositories = [pin.repository]
    elif named := [text for text in (base.pretrained, base.model) if hub.is_address(text)]:
        repositories = [hub.parse(named[0]).repository]
    else:
        repositories = _of_tag(base.model, base.pretrained)
    for state in lineage[1:]:
        if origin := _origin(state):
            repositories.append(origin.repository)
        elif hub.is_address(text := _expert(state) or ""):
            repositories.append(hub.parse(text).repository)
    return list(dict.fromkeys(repositories))


def _of_tag(model: str, tag: str) -> list[str]:
    """The repository that open_clip has the weights of one of its tags in."""
    from tasks.model.light_imports import prepare

    prepare()
    import open_clip

    where = (open_clip.get_pretrained_cfg(model.replace("/", "-"), tag) or {}).get("hf_hub", "")
    return ["/".join(where.split("/")[:2])] if where.count("/") else []


def _expert(state: State) -> str | None:
    arrival = state.settings.arrival
    return arrival.expert if arrival else None


def _origin(state: State) -> RecordedOrigin | None:
    return state.manifest.expert.origin if state.manifest.expert else None


def front_matter(name: str, state: State, lineage: Sequence[State], form: Form) -> str:
    """The YAML at the head of the card."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type=task, dataset_type=one, dataset_name=one, metric_type=kind, metric_name=label, metric_value=value
        )
        for task, one, kind, label, value in _results(state)
    ]
    data = ModelCardData(
        model_name=name,
        base_model=bases(lineage) or None,
        base_model_relation="merge",
        library_name=form.library,
        license=_UNKNOWN,
        pipeline_tag=_TASK,
        tags=["clip", form.library, "merge", "model-merging", "time", "chronomerge"],
        eval_results=results,
    )
    return f"---\n{data.to_yaml().strip()}\n---\n"


def _results(state: State) -> Iterator[tuple[str, str, str, str, float]]:
    for one, value in state.metrics["top1"].items():
        yield _TASK, one, "accuracy", "top-1 (percent)", value
    for one, ways in state.metrics.get("recall", {}).items():
        for way, at in ways.items():
            for k, value in at.items():
                yield "image-text-retrieval", one, "recall", f"{way}_recall@{k} (percent)", value
    for name in MEANS:
        yield _TASK, "all test sets", name, f"{name} (percent)", state.metrics[name]


def text(
    name: str, state: State, lineage: Sequence[State], form: Form, folder: Path, licences: Iterable[Licence]
) -> str:
    """The whole card, ``README.md``; ``folder`` holds the model's files."""
    return front_matter(name, state, lineage, form) + "\n".join(
        [
            f"# {markdown(name)}",
            "",
            f"A CLIP model that was merged over {counted(len(lineage) - 1, 'time step')} with "
            "chronomerge (TIME: Temporal Integration of Model Expertise, arXiv 2412.06712). "
            f"It is state `{state.tag}`.",
            "",
            "```python",
            *_loading(form, folder),
            "```",
            "",
            "## Scores",
            "",
            "In percent: top-1, or recall where a test set has captions and no classes. Adaptation sets are of what "
            "arrived (A_KA is their mean), retention sets of what the base knew and what never arrived (A_ZS).",
            "",
            *_scores(state),
            "",
            "## Lineage",
            "",
            f"![What arrived at each time step, and the scores after it]({LINEAGE})",
            "",
            *_lineage(lineage),
            "",
            f"`{RECIPE}/merge.yaml` is the last merge in the manner of mergekit, `{RECIPE}/params.yaml` the "
            f"experiment, `{RECIPE}/manifest.json` what the state says of itself: hashes, versions, devices, seeds."
            + _rotated(state),
            "",
            "## Licences",
            "",
            "As far as the state tells, of repositories what their cards said; one that it does not know is `unknown`.",
            "",
            *_licences(lineage, licences),
            "",
            "## Verify and reproduce",
            "",
            *_commands(state, form, folder),
            "",
        ]
    )


def _loading(form: Form, folder: Path) -> list[str]:
    if form.library == "transformers":
        (kind,) = json.loads((folder / configurations.TRANSFORMERS).read_text(encoding="utf-8"))["architectures"]
        return ["import transformers", "", f'model = transformers.{kind}.from_pretrained("FOLDER-OR-REPOSITORY")']
    return [
        "import open_clip",
        "",
        'where = "local-dir:FOLDER"  # or "hf-hub:ORG/NAME"',
        "model, _, preprocess = open_clip.create_model_and_transforms(where)",
        "tokenize = open_clip.get_tokenizer(where)",
    ]


def _scores(state: State) -> list[str]:
    roles = {one.name: role for role in ROLES for one in getattr(state.settings.evaluate, role)}
    rows = [(one, roles.get(one, ""), f"{value:.2f}") for one, value in state.metrics["top1"].items()]
    for one, ways in state.metrics.get("recall", {}).items():
        told = ", ".join(f"{way} recall@{k} {value:.2f}" for way, at in ways.items() for k, value in at.items())
        rows.append((one, roles.get(one, ""), told.replace("_", " ")))
    rows += [(name, "mean", f"{state.metrics[name]:.2f}") for name in MEANS]
    return _table(("test set", "role", "score"), rows)


def _lineage(lineage: Sequence[State]) -> list[str]:
    rows = []
    for state in lineage:
        manifest, metrics = state.manifest, state.metrics
        how = f"init {manifest.protocol.init}, deploy {manifest.protocol.deploy}, {manifest.technique.label}"
        rows.append((
            str(state.step), manifest.arrival or "base", kind(state), public.shortened(how) if state.step else "",
            f"{metrics['A_KA']:.2f}", f"{metrics['A_ZS']:.2f}", state.tag,
        ))  # fmt: skip
    return _table(("step", "arrival", "what", "merged by", "A_KA", "A_ZS", "state"), rows)


def _rotated(state: State) -> str:
    """What the last merge does not show: a rotation of the deployed copy."""
    rotation = state.manifest.compatible
    if rotation is None:
        return ""
    return (
        f" After the merge, both projections were rotated into the joint space of {_verbatim(rotation.state)}, so that"
        " its embeddings can be searched with this model."
    )


def kind(state: State) -> str:
    """What arrived at a state's step, in a word or two."""
    arrival, base = state.settings.arrival, state.settings.base
    if state.step == 0 or arrival is None:
        return "trained from scratch" if base.pretrained == "train" else _named(base)
    return f"expert {_weights(arrival.expert, _origin(state))[0]}" if arrival.expert else "data"


def _named(base: Base) -> str:
    """A base as params.yaml names it, one address once."""
    return public.shortened(", ".join(dict.fromkeys([base.model, base.pretrained])))


def _licences(lineage: Sequence[State], licences: Iterable[Licence]) -> list[str]:
    base, pin = lineage[0].settings.base, lineage[0].manifest.base
    weights = "trained here" if base.pretrained == "train" else _named(base)
    rows = [("base weights", *_weights(weights, pin), "")]
    rows += [
        (f"expert: {state.manifest.arrival}", *_weights(expert, _origin(state)), "")
        for state in lineage[1:]
        if (expert := _expert(state))
    ]
    rows += [(one.of, one.source, one.licence, one.credit) for one in licences]
    return _table(("of", "source", "licence", "credit"), rows)


def _weights(named: str, origin: RecordedOrigin | None) -> tuple[str, str]:
    """Where weights are from, and the licence that their repository's card named."""
    if origin is None:
        return public.shortened(named), _UNKNOWN
    return f"hf:{origin.repository}@{origin.commit[:12]}", redacted(origin.licence or _UNKNOWN)


def _commands(state: State, form: Form, folder: Path) -> list[str]:
    code, changed = state.manifest.code, " and changes, which the state has" if state.manifest.code.dirty else ""
    weights = next(path for path in folder.iterdir() if path.suffix == ".safetensors")
    digest = sha256_of(weights)
    own = f"; before the conversion they were {state.entries[layout.DEPLOYED].md5}" if form != Form() else ""
    return [
        f"In a clone of the project (the code was commit {_verbatim(code.commit[:12])}{changed}):",
        "",
        "```",
        f"chronomerge verify {state.tag}          # runs the step again from its inputs, and compares every hash",
        f"chronomerge restore {state.tag}         # every byte: code, params, data, weights",
        f"git checkout {state.tag} && dvc checkout && dvc repro --force   # the same with plain git and DVC",
        f"chronomerge publish {state.tag} --to FOLDER{_options(form)}      # this folder again",
        "```",
        "",
        f"`{weights.name}` has the SHA-256 `{digest}`{own and f' (md5 in the state{own})'}.",
    ]


def _verbatim(text: str) -> str:
    """A text of a manifest, which may be a stranger's, as code in a line: nothing in it ends the code or the line."""
    return f"`{one_line(text).replace('`', '')}`"


def _options(form: Form) -> str:
    library = f" --format {form.library}" if form.library != Form().library else ""
    return library + (f" --dtype {form.dtype}" if form.dtype else "")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return [*lines, *(f"| {' | '.join(markdown(cell) for cell in row)} |" for row in rows)]


def facts(lineage: Sequence[State]) -> list[Mapping[str, Any]]:
    """What the picture shows of each state."""
    return [
        {"title": f"{state.step}: {state.manifest.arrival or 'base'}", "kind": kind(state),
         "scores": f"A_KA {state.metrics['A_KA']:.1f}   A_ZS {state.metrics['A_ZS']:.1f}"}
        for state in lineage
    ]  # fmt: skip
