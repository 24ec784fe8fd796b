"""The node ``heads`` on a project folder, as ``dvc.yaml`` declares it; it runs where ``evaluate.heads`` is set."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from tasks.errors import UserError
from tasks.evaluate import head as heads
from tasks.evaluate import headfile, headstate, zeroshot
from tasks.evaluate import support as supports
from tasks.evaluate.head import ALL, Classifier, Head, LinearClassifier, Space, SupportHead, Text
from tasks.evaluate.headstate import HeadState, Spec
from tasks.evaluate.memory import keeping_memory
from tasks.evaluate.metrics import DIGITS
from tasks.evaluate.node import templates_of
from tasks.evaluate.spaces import FeatureSpace
from tasks.evaluate.support import Moments, Support
from tasks.model import checkpoints, coded, models
from tasks.model.datasets import Dataset
from tasks.params import EvaluationSet, Params
from tasks.progress import Progress, silent
from tasks.scores import ROLES
from tasks.storage import atomic

HISTORY = Path("data/history")
ARRIVAL = Path("data/step/arrival")
EXPERT = Path("data/step/expert")
DEPLOYED = Path("data/step/deployed.safetensors")
SETS = Path("data/step/evaluation")
HEADS = Path("data/step/heads")
METRICS = Path("heads.json")
RUNNING = HEADS / "running"
"""What the next step goes on from; beside it lie the files of the heads, ``NAME.safetensors``."""
PAST = HISTORY / "heads/running"
REFERENCE = HISTORY / "reference/deployed.safetensors"
"""The deployed model of the state whose space later deployed models share."""
FIRST = "first.safetensors"
"""The expert of the first step, handed on for the space ``base+first``."""
BLOCK = 256
"""Images whose logits are computed at a time."""


@dataclass
class _Scores:
    """What ``heads.json`` says of one head."""

    features: Space
    top1: dict[str, dict[str, float]] = field(default_factory=dict)
    """Shots → test set → percent."""
    searched: dict[str, dict[str, float]] = field(default_factory=dict)
    """Shots → the settings that were chosen on held-out support."""
    fewer: dict[str, int] = field(default_factory=dict)
    """Shots → how many classes have fewer samples, and give all they have."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Test set, or shots → why it is not scored."""


@keeping_memory()
def run(project: Path, params: Params, progress: Progress = silent) -> None:
    """Write ``heads.json``, the scores of all heads, and ``data/step/heads``: their files and their running state.

    The support is drawn from the arrivals up to this step, the pretraining pool among them; test sets take no part.

    Raises:
        UserError: damaged weights, data or state, or a setting that cannot work.
    """
    models.configure(params.threads)
    chosen = {one.shown: heads.chosen(one) for one in params.evaluate.heads}
    folder = project / HEADS
    shutil.rmtree(folder, ignore_errors=True)
    (project / RUNNING).mkdir(parents=True)
    scores: dict[str, _Scores] = {}
    for space in dict.fromkeys(head.features for head in chosen.values()):
        mine = {name: head for name, head in chosen.items() if head.features == space}
        scores |= _Run(project, params, space, progress).score(mine)
    summaries = {name: _summary(scores[name], params) for name in chosen}
    atomic.write(project / METRICS, json.dumps(summaries, indent=1, ensure_ascii=False) + "\n")


def _summary(scores: _Scores, params: Params) -> dict[str, Any]:
    """A head's part of ``heads.json``; A_KA and A_ZS where every set of the role is scored."""
    content: dict[str, Any] = {"features": scores.features, "top1": scores.top1}
    for key, role in zip(("A_KA", "A_ZS"), ROLES, strict=True):
        names = [one.name for one in getattr(params.evaluate, role)]
        means = {
            shots: round(fmean(top1[name] for name in names), DIGITS)
            for shots, top1 in scores.top1.items()
            if all(name in top1 for name in names)
        }
        content[key] = means
    for key in ("searched", "fewer", "left_out"):
        if value := getattr(scores, key):
            content[key] = value
    return content


class _Run:
    """The heads of one feature space at one step."""

    def __init__(self, project: Path, params: Params, name: Space, progress: Progress):
        self.project, self.params, self.name, self._progress = project, params, name, progress
        self.file = name.replace("+", "-")
        self.weights = _weights(project, params, name)
        # Up to the state that deployed models are compatible with, the space is the deployed model's own.
        named_by = project / REFERENCE if name == "aligned" and (project / REFERENCE).exists() else None
        self.space = FeatureSpace(project / HISTORY / "model", self.weights or [], params.evaluate.batch_size, named_by)
        self.unusable: dict[str, str] = {}
        """Test set → why no head can be scored on it."""
        self.frozen = name in ("base", "base+first")
        """Whether an image has the same features at every step."""

    def score(self, chosen: Mapping[str, Head]) -> dict[str, _Scores]:
        """The scores of heads; their files are written."""
        heads_scores = {name: _Scores(self.name) for name in chosen}
        if self.weights is None:
            for name in heads_scores:
                heads_scores[name].left_out["*"] = "there is no first expert yet"
            return heads_scores
        features = self._test_features()
        learning = {name: head for name, head in chosen.items() if isinstance(head, SupportHead)}
        state = self._state(list(learning.values())) if learning else None
        for name in chosen:
            if name not in learning:
                self._zero_shot(heads_scores[name], features)
        for name, head in learning.items():
            self._learning(name, head, state, features, heads_scores[name])
        return heads_scores

    def _test_features(self) -> dict[str, tuple[Dataset, torch.Tensor]]:
        """Of every test set with classes; in a frozen space they are handed on from step to step."""
        of_sets = {}
        for one in self.params.evaluate.sets:
            data = Dataset(self.project / SETS / one.name)
            if (data.labels < 0).any():
                self.unusable[one.name] = "it has samples without a class"
                continue
            if len(data.card.classes) < 2:
                self.unusable[one.name] = f"it has one class, {data.card.classes[0]!r}: there is nothing to tell apart"
                continue
            place = Path("tests") / self.file / f"{one.name}.safetensors"
            made, earlier = self.project / RUNNING / place, self.project / PAST / place
            facts = {
                "of": " ".join([*self.space.digests, _digest(data)])
            }  # one key: safetensors orders several at random
            if self.frozen and earlier.exists() and checkpoints.metadata(earlier) == facts:
                features = checkpoints.load(earlier)["features"]
            else:
                features = self.space.images(data, self._on_done(f"{self.name}: {one.name}", len(data)))
            if self.frozen:
                checkpoints.save(made, {"features": features}, facts)
            of_sets[one.name] = data, features
        return of_sets

    def _on_done(self, what: str, total: int) -> Any:
        return lambda done: self._progress("heads", done, total, what)

    def _state(self, learning: Sequence[SupportHead]) -> HeadState | None:
        """Support and moments of all arrivals up to this step."""
        numbers: list[int | str] = [shots for head in learning for shots in head.shots]
        earlier = _pools(self.project)
        pools = {name: self.project / HISTORY / "pools" / name for name in earlier}
        if (self.project / ARRIVAL / "dataset.json").exists():
            arrived = self.params.arrival.name if self.params.step and self.params.arrival else "pretraining"
            pools[arrived] = self.project / ARRIVAL
        spec = Spec(
            weights=self.space.digests, seed=self.params.seed, pools=tuple(earlier),
            shots=max((one for one in numbers if isinstance(one, int)), default=0), moments=ALL in numbers,
        )  # fmt: skip
        known, before = False, None
        file = f"state-{self.file}.safetensors"
        if self.name != "deployed":
            known, before = headstate.load(self.project / PAST / file, spec)
        new = [Dataset(path) for name, path in pools.items() if not (known and name in earlier)]
        on_done = self._on_done(f"{self.name}: support", sum(map(len, new)))
        state = headstate.added(before, headstate.collect(new, spec, self.space, on_done), spec)
        if self.name != "deployed":
            headstate.save(self.project / RUNNING / file, state, spec.model_copy(update={"pools": tuple(pools)}))
        return state

    def _zero_shot(self, scores: _Scores, features: Mapping[str, tuple[Dataset, torch.Tensor]]) -> None:
        top1 = scores.top1.setdefault("0", {})
        for one in self.params.evaluate.sets:
            if one.name not in features:
                scores.left_out[one.name] = self.unusable[one.name]
                continue
            data, its = features[one.name]
            text = self._text(one, data)
            classifier = LinearClassifier(text.double(), torch.zeros(len(text), dtype=torch.float64))
            top1[one.name] = _top1(classifier, its, data.labels, np.arange(len(text)))

    def _text(self, one: EvaluationSet, data: Dataset) -> torch.Tensor:
        return self.space.texts(zeroshot.prompts(one.name, data.card.classes, templates_of(one, data)))

    def _learning(
        self, name: str, head: SupportHead, state: HeadState | None,
        features: Mapping[str, tuple[Dataset, torch.Tensor]], scores: _Scores,
    ) -> None:  # fmt: skip
        if state is None:
            scores.left_out["*"] = "no sample has a class"
            self._note(name, scores.left_out["*"])
            return
        prompts = {**state.prompts, **self._prompts(features)}
        largest = 0
        for shots in head.shots:
            data = self._data(head, state, shots)
            counts = data.counts() if isinstance(data, Support) else data.counts
            if isinstance(shots, int):
                if largest and largest >= int(counts.max()):
                    scores.left_out[str(shots)] = f"no class has more than {largest} samples"
                    self._note(name, f"{shots} shots: {scores.left_out[str(shots)]}")
                    continue
                largest = int(counts.max())
                if fewer := int((counts < shots).sum()):
                    scores.fewer[str(shots)] = fewer
                    self._note(name, f"{shots} shots: {fewer} of {len(counts)} classes have fewer, and give all")
            text = Text(self.space.texts([prompts[name] for name in data.classes]), self.space.scale)
            fitted = heads.fit(head, data, text)
            if fitted.searched:
                scores.searched[str(shots)] = {key: getattr(fitted.head, key) for key in head.searches}
            scores.top1[str(shots)] = self._sets(fitted.classifier, data.classes, features, scores)
            note = headfile.note_of(
                head, fitted, data, text, shots=shots, space=self.name, weights=self.space.digests,
                seed=self.params.seed,
            )  # fmt: skip
            headfile.save(self.project / HEADS / f"{name}.safetensors", note, data, text, fitted)
        for one, why in scores.left_out.items():
            if one in features or not one.isdigit():
                self._note(name, f"{one} is not scored: {why}")

    def _note(self, name: str, text: str) -> None:
        self._progress("note:", 1, 1, f"head {name} on {self.name} features: {text}")

    def _data(self, head: SupportHead, state: HeadState, shots: int | str) -> Support | Moments:
        """What a head is computed from at a number of shots, without the classes that it is not to know."""
        if isinstance(shots, int):
            assert state.support
            known = supports.without(state.support, head.without) if head.without else state.support
            return known.at(shots)
        assert state.moments
        taken = [name for name in head.without if name in state.moments.classes]
        if not taken:
            return state.moments
        pools = [Dataset(self.project / HISTORY / "pools" / name) for name in _pools(self.project)]
        if (self.project / ARRIVAL / "dataset.json").exists():
            pools.append(Dataset(self.project / ARRIVAL))
        samples = supports.of_classes(supports.every(pools), taken)
        features = self.space.chosen(pools, samples, self._on_done(f"{self.name}: taken out", len(samples)))
        out = supports.moments(samples.classes, features, torch.from_numpy(samples.labels))
        return supports.minus(state.moments, out)

    def _prompts(self, sets: Mapping[str, tuple[Dataset, torch.Tensor]]) -> dict[str, Sequence[str]]:
        """Class → its prompts in the first test set that has it."""
        prompts: dict[str, Sequence[str]] = {}
        for one in self.params.evaluate.sets:
            if one.name in sets:
                data = sets[one.name][0]
                own = zeroshot.prompts(one.name, data.card.classes, templates_of(one, data))
                prompts = dict(zip(data.card.classes, own, strict=True)) | prompts
        return prompts

    def _sets(
        self, classifier: Classifier, classes: Sequence[str],
        features: Mapping[str, tuple[Dataset, torch.Tensor]], scores: _Scores,
    ) -> dict[str, float]:  # fmt: skip
        """Top-1 of each test set whose classes the head knows, among the classes of the set."""
        number, top1 = {name: i for i, name in enumerate(classes)}, {}
        for one in self.params.evaluate.sets:
            if one.name not in features:
                scores.left_out[one.name] = self.unusable[one.name]
                continue
            data, its = features[one.name]
            unknown = [name for name in data.card.classes if name not in number]
            if unknown:
                scores.left_out[one.name] = (
                    f"{len(unknown)} of its {len(data.card.classes)} classes have no support, {unknown[0]!r} for one"
                )
                continue
            columns = np.array([number[name] for name in data.card.classes])
            top1[one.name] = _top1(classifier, its, data.labels, columns)
        return top1


def _top1(classifier: Classifier, features: torch.Tensor, labels: np.ndarray, columns: np.ndarray) -> float:
    """Percent of features, float (N, D), whose label, an index into ``columns``, has the largest of these logits."""
    at, hits = torch.from_numpy(columns), 0
    for start in range(0, len(features), BLOCK):
        nearest = classifier.logits(features[start : start + BLOCK])[:, at].argmax(dim=1)
        hits += int((nearest.numpy() == labels[start : start + BLOCK]).sum())
    return round(100 * hits / len(features), DIGITS)


def _weights(project: Path, params: Params, space: Space) -> list[Path] | None:
    """The checkpoints of a space; None where the first expert is yet to come. At step 0 the base is deployed."""
    if space in ("deployed", "aligned") or (params.step == 0 and space == "base"):
        return [project / DEPLOYED]
    base, kept = project / HISTORY / "weights/base.safetensors", project / RUNNING / FIRST
    if space == "base":
        return [base]
    number = int(json.loads((project / HISTORY / "weights/lineage.json").read_text(encoding="utf-8"))["step"])
    if number == 0:
        return None
    places = {1: coded.stored(project / EXPERT), 2: coded.stored(project / HISTORY / "weights/expert")}
    first = project / PAST / FIRST
    source = next((path for path in (places.get(number), first) if path and path.exists()), None)
    if source is None:
        raise UserError(
            "evaluate.heads: features: base+first needs the first expert, and earlier steps did not hand it on; set it"
            " before the second step, or start a new timeline"
        )
    if not kept.exists():
        coded.as_safetensors(source, base, kept)
    return [base, kept]


def _pools(project: Path) -> list[str]:
    names: list[str] = json.loads((project / HISTORY / "pools/pools.json").read_text(encoding="utf-8"))
    return names


def _digest(data: Dataset) -> str:
    """Of all images of a data set: what their features depend on beside the weights."""
    digest = hashlib.sha256()
    for start in range(0, len(data), 1024):
        digest.update(np.ascontiguousarray(data.images[start : start + 1024]).data)
    return digest.hexdigest()
