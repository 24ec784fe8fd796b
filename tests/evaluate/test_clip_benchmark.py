"""Scores of miniature sets equal those that CLIP_benchmark's own program gave for the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.project import ROOT

THEIRS = {
    "one": {"acc1": 8.333333, "acc5": 40.0, "mean_per_class_recall": 8.333333},
    "ensemble": {"acc1": 8.333333, "acc5": 53.333333, "mean_per_class_recall": 8.333333},
    "twice": {"acc1": 3.333333, "acc5": 53.333333, "mean_per_class_recall": 8.333333},
    "pairs": {
        "image_retrieval_recall@1": 1.666667, "image_retrieval_recall@5": 9.166667,
        "image_retrieval_recall@10": 16.666667, "text_retrieval_recall@1": 1.666667,
        "text_retrieval_recall@5": 8.333334, "text_retrieval_recall@10": 16.666667,
    },
}  # fmt: skip
"""Percent, by clip-benchmark 1.6.2."""


@pytest.mark.long
def test_scores_are_those_that_clip_benchmarks_program_gave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of `benchmarks/clip_benchmark.py --python clipbench/bin/python --count 60 --steps 20`."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import clip_benchmark

    sets = clip_benchmark.made(tmp_path / "sets", 60)
    clip_benchmark.trained(tmp_path / "model", 20)
    mine = clip_benchmark.ours(tmp_path / "project", tmp_path / "sets", tmp_path / "model", list(sets))
    for name, scores in THEIRS.items():
        assert {score: mine[name][score] for score in scores} == pytest.approx(scores, abs=clip_benchmark.TOLERANCE)
