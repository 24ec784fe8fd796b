"""Heads of many classes: seconds to fit and to classify, and memory, side by side with scikit-learn.

    .venv/bin/python benchmarks/heads.py [--classes 10000] [--width 512] [--shots 4] [--queries 1000] [--threads 2]
        [--peer] [--linear]

Features are drawn, not extracted: extraction is the same for all heads, and done once per model and set. Each head runs
in a process of its own, whose largest resident memory, less that before the head, is given. ``--peer`` adds
scikit-learn's LDA (the solver ``lsqr``) to compare ``gda`` with. ``--linear`` adds logistic regression, ours and, with
``--peer``, theirs: minutes at thousands of classes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import multiprocessing.connection
import resource
import time
from collections.abc import Callable

import torch

from tasks.evaluate.head import Classifier, SupportHead, Text, chosen, fit
from tasks.evaluate.support import Support
from tasks.params import LabelledHead

BLOCK = 256
"""Queries at a time, as in evaluation."""
Predict = Callable[[torch.Tensor], torch.Tensor]


def drawn(classes: int, width: int, shots: int) -> tuple[Support, Text]:
    """Unit vectors around a random direction for each class; the text is that direction."""
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, width, generator=random)
    labels = torch.arange(classes).repeat_interleave(shots)
    features = centres[labels] + torch.randn(len(labels), width, generator=random)
    names = tuple(f"{number:08}" for number in range(classes))
    unit = torch.nn.functional.normalize
    return Support(names, unit(features, dim=1), labels, torch.arange(len(labels))), Text(unit(centres, dim=1), 100.0)


def ours(name: str, shots: int) -> Callable[[Support, Text], Predict]:
    """How a head of ours is fitted."""
    head = chosen(LabelledHead.model_validate({"name": name, "shots": [shots]}))
    assert isinstance(head, SupportHead)

    def fitted(support: Support, text: Text) -> Predict:
        classifier: Classifier = fit(head, support, text).classifier
        return lambda queries: classifier.logits(queries).argmax(dim=1)

    return fitted


def theirs(name: str) -> Callable[[Support, Text], Predict]:
    """How scikit-learn's counterpart is fitted."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import LogisticRegression

    def fitted(support: Support, _: Text) -> Predict:
        model = (
            LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
            if name == "LDA"
            else LogisticRegression(C=31.6, max_iter=1000)
        )
        model.fit(support.features.double().numpy(), support.labels.numpy())
        return lambda queries: torch.from_numpy(model.predict(queries.double().numpy()))

    return fitted


def measure(name: str, peer: bool, options: argparse.Namespace, result: multiprocessing.connection.Connection) -> None:
    """Fit and classify in this process; sends seconds of both, megabytes, and the share of right answers."""
    torch.set_num_threads(options.threads)
    support, text = drawn(options.classes, options.width, options.shots)
    picked = torch.randint(len(support.labels), (options.queries,), generator=torch.Generator().manual_seed(1))
    noise = torch.randn(options.queries, options.width, generator=torch.Generator().manual_seed(2))
    queries = torch.nn.functional.normalize(text.features[support.labels[picked]] + 0.08 * noise, dim=1)
    build = theirs(name) if peer else ours(name, options.shots)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    predict = build(support, text)
    middle = time.perf_counter()
    right = sum(
        int((predict(queries[at : at + BLOCK]) == support.labels[picked[at : at + BLOCK]]).sum())
        for at in range(0, len(queries), BLOCK)
    )
    end, peak = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result.send((middle - start, end - middle, (peak - before) / 1024, 100 * right / len(queries)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("classes", 10_000), ("width", 512), ("shots", 4), ("queries", 1000), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--linear", action="store_true")
    options = parser.parse_args()
    runs = [(name, False) for name in ("prototype", "gda", "tip", "knn")]
    runs += [("LDA", True)] if options.peer else []
    runs += [("linear", False), *([("LogisticRegression", True)] if options.peer else [])] if options.linear else []
    print(f"{options.classes} classes, {options.width} dimensions, {options.shots} shots, {options.threads} threads")
    print(f"{'head':20} {'fit s':>9} {options.queries:>7} queries s {'MB':>8} {'right %':>8}")
    context = multiprocessing.get_context("spawn")
    for name, peer in runs:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=measure, args=(name, peer, options, sender))
        process.start()
        sender.close()
        seconds, each, megabytes, right = receiver.recv()
        process.join()
        shown = f"scikit-learn {name}" if peer else name
        print(f"{shown:20} {seconds:9.2f} {each:17.2f} {megabytes:8.0f} {right:8.1f}", flush=True)


if __name__ == "__main__":
    main()
