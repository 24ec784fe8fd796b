"""Few-shot curves on the images of a recorded timeline: top-1 against shots, with intervals over draws of the support.

    .venv/bin/python benchmarks/fewshot.py [--project .] [--timeline demo] [--draws 5] [--shots 1 2 4] [--threads 1]
        [--features base] [--step N] [--sets NAME ...] [--linear] [--peer] [--json FILE]

The support is drawn from the pools of all arrivals, as `evaluate.heads` draws it, once for each seed; scores are means
over the adaptation sets (or ``--sets``), each among its own classes. Features are those of the base or of the state's
deployed model, computed once. Give ``make demo``'s timeline, say; nothing is written to it. ``--peer`` adds
scikit-learn's LDA (lsqr, with the shrinkage of Ledoit and Wolf) and, with ``--linear``, its logistic regression.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from compatibility import placed
from scipy import stats

from tasks import layout
from tasks.evaluate import support as supports
from tasks.evaluate import zeroshot
from tasks.evaluate.head import SupportHead, Text, chosen, fit
from tasks.evaluate.node import templates_of
from tasks.evaluate.spaces import FeatureSpace
from tasks.evaluate.support import Support
from tasks.params import LabelledHead
from tasks.record import timelines
from tasks.storage import dvc_config
from tasks.storage.cache import Cache

BLOCK = 256
Predict = Callable[[torch.Tensor], torch.Tensor]
"""Features (N, D) → scores of all classes (N, C)."""


def head(name: str, **settings: Any) -> Callable[[Support, Text], Predict]:
    """A head of ours."""
    made = chosen(LabelledHead.model_validate({"name": name, "shots": [1], **settings}))
    assert isinstance(made, SupportHead)
    return lambda support, text: fit(made, support, text).classifier.logits


def peer(name: str) -> Callable[[Support, Text], Predict]:
    """scikit-learn's."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import LogisticRegression

    warnings.filterwarnings("ignore", message="Only one sample available")  # shrinkage of a class with one

    def fitted(support: Support, _: Text) -> Predict:
        model = (
            LinearDiscriminantAnalysis(
                solver="lsqr", shrinkage="auto", priors=np.full(len(support.classes), 1 / len(support.classes))
            )
            if name == "LDA"
            else LogisticRegression(C=31.6, max_iter=1000)
        )
        model.fit(support.features.double().numpy(), support.labels.numpy())
        return lambda features: torch.from_numpy(model.decision_function(features.double().numpy()))

    return fitted


def half(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean (Student's t)."""
    if len(values) < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Head → shots → top-1 of each draw."""
    project = options.project.resolve()
    states, cache = timelines.lineage(project, options.timeline), Cache(dvc_config.cache_dir(project))
    states = states[: options.step + 1] if options.step is not None else states
    newest = states[-1]
    weights = cache.path((states[0] if options.features == "base" else newest).entries[layout.DEPLOYED].md5)
    heads = {name: head(name) for name in ("prototype", "gda", "tip", "knn")}
    heads |= {f"gda, alpha {alpha}": head("gda", alpha=alpha) for alpha in (1, 10, 100)}
    heads["gda, searched"] = head("gda", alpha="search")
    slow = {"tip, searched": head("tip", alpha="search", beta="search")}
    if options.linear:
        slow["linear"] = head("linear")
    if options.peer:
        heads["scikit-learn LDA"] = peer("LDA")
        if options.linear:
            slow["scikit-learn logistic regression"] = peer("LogisticRegression")
    with tempfile.TemporaryDirectory() as folder:
        home, pools, tests = placed(states, cache, Path(folder))
        space, data = FeatureSpace(home, [weights], BLOCK), list(pools.values())
        all_features = [space.images(one, lambda _: None) for one in data]
        sets = {}
        named = {one.name: one for one in newest.settings.evaluate.sets}
        scored = [named[name] for name in options.sets] if options.sets else newest.settings.evaluate.adaptation
        for one in scored:
            test = tests[one.name]
            prompts = zeroshot.prompts(one.name, test.card.classes, templates_of(one, test))
            sets[one.name] = test, space.images(test, lambda _: None), prompts
        names = supports.every(data).classes
        prompts: dict[str, Sequence[str]] = {}
        for pool in data:
            prompts |= {name: [pool.card.prompt.replace("{}", name)] for name in pool.card.classes}
        for test, _, own in sets.values():
            prompts |= dict(zip(test.card.classes, own, strict=True))
        text = Text(space.texts([prompts[name] for name in names]), space.scale)
        number = {name: i for i, name in enumerate(names)}

        def score(predict: Predict) -> float:
            accuracies = []
            for test, features, _ in sets.values():
                columns = torch.tensor([number[name] for name in test.card.classes])
                scores = torch.cat([predict(part) for part in features.split(BLOCK)])[:, columns]
                accuracies.append(100 * float((scores.argmax(dim=1).numpy() == test.labels).mean()))
            return fmean(accuracies)

        top1: dict[str, dict[str, list[float]]] = {"zeroshot": {"0": [score(text.logits)]}}
        seconds: dict[str, float] = {}
        for seed in range(options.draws):
            drawn = supports.draw(data, max(options.shots), seed)
            features = torch.stack([all_features[d][row] for d, row in zip(drawn.data, drawn.rows, strict=True)])
            whole = Support(
                drawn.classes, features, torch.from_numpy(drawn.labels.copy()), torch.from_numpy(drawn.ranks.copy())
            )
            assert drawn.classes == names
            for shots in options.shots:
                for name, fitted in {**heads, **(slow if seed < options.slow_draws else {})}.items():
                    if shots == 1 and name == "scikit-learn LDA":
                        continue  # one sample a class has no covariance
                    start = time.perf_counter()
                    predict = fitted(whole.at(shots), text)
                    seconds[f"{name}@{shots}"] = time.perf_counter() - start
                    top1.setdefault(name, {}).setdefault(str(shots), []).append(score(predict))
                    print(f"draw {seed}: {name} at {shots}: {top1[name][str(shots)][-1]:.2f}", flush=True)
        counts = np.bincount(drawn.labels)
    return {
        "timeline": options.timeline, "features": options.features, "classes": len(names), "draws": options.draws,
        "fewest_and_most_samples_of_a_class": [int(counts.min()), int(counts.max())], "sets": list(sets),
        "top1": top1, "fit_seconds": {name: round(value, 2) for name, value in seconds.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, default=Path())
    parser.add_argument("--timeline", default="demo")
    parser.add_argument("--features", choices=("base", "deployed"), default="base")
    parser.add_argument("--step", type=int, help="The state; the newest by default.")
    parser.add_argument("--sets", nargs="+", help="Evaluation sets whose classes all have support at that step.")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--slow-draws", type=int, default=3, help="Draws of what takes long.")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--linear", action="store_true")
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = run(options)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"\n{result['classes']} classes, {result['features']} features; top-1 in percent, mean over")
    print(f"{len(result['sets'])} sets ± half of the 95 % interval over draws")
    print(f"{'head':34}" + "".join(f"{shots:>16}" for shots in options.shots))
    for name, row in result["top1"].items():
        if name == "zeroshot":
            print(f"{name:34}{row['0'][0]:16.1f}")
            continue
        cells = [(row.get(str(shots)), half(row.get(str(shots), []))) for shots in options.shots]
        print(f"{name:34}" + "".join(f"{fmean(v):9.1f} ± {h:4.1f}" if v else f"{'':16}" for v, h in cells))


if __name__ == "__main__":
    main()
