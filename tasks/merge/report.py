"""What a merge did, or would do: for a manifest, and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tasks.merge.layout import MergeLayout, listed
from tasks.merge.measured import Measured
from tasks.merge.statistics import note
from tasks.merge.technique import Technique
from tasks.model.sources import TensorSource


@dataclass(frozen=True)
class Report:
    """What a merge did, or would do."""

    technique: str
    settings: dict[str, Any]
    form: str
    """``batch``: all experts were read; ``sequential``: one expert and the running state."""
    device: str
    """What computed: ``cpu``, or the GPU by name."""
    experts: int
    """How many experts the merge holds."""
    merged: int
    """How many tensors the technique merged; a tied tensor counts once."""
    parameters: int
    """Entries in them."""
    kept: dict[str, str]
    """Tensors copied from the base (or else the first expert) unmerged → why."""
    dropped: dict[str, str]
    """Tensors that only experts have, left out → whose."""
    read_bytes: int
    """Bytes of checkpoints that one pass reads."""
    hashes: list[str]
    """Content hashes of the experts read, where random numbers depend on them."""
    statistics: list[str] = field(default_factory=list)
    """Moments and counts of data, averaged by the models' weights."""
    tied: dict[str, str] = field(default_factory=dict)
    """Other names of tied tensors → the name under which each was merged."""
    measured: list[dict[str, Any]] = field(default_factory=list)
    """Of each expert whose data was looked at: the statistics file, its samples, estimator and pool."""
    notes: list[str] = field(default_factory=list)
    """What the user should know."""

    def as_json(self) -> dict[str, Any]:
        """For a manifest. Statistics, ties and notes are there where there are any."""
        optional = ("statistics", "tied", "measured", "notes")
        return {key: value for key, value in asdict(self).items() if value or key not in optional}

    def summary(self) -> list[str]:
        """The notes, and one line each on what was copied, tied and left out."""
        lines = [f"note: {text}" for text in self.notes]
        if self.tied:
            lines.append(f"note: merged once and stored under each name: {listed(_pairs(self.tied))}")
        if self.kept:
            plain = (reason.replace("shape", "another shape").partition(" in ")[0] for reason in self.kept.values())
            reasons = Counter(reason.partition(" [")[0] for reason in plain)
            shown = "; ".join(f"{reason}: {count}" for reason, count in reasons.most_common(3))
            more = "; …" if len(reasons) > 3 else ""
            lines.append(f"copied {_tensors(self.kept)} unmerged ({shown}{more}): {listed(list(self.kept))}")
        if self.dropped:
            lines.append(f"left out {_tensors(self.dropped)} that only experts have: {listed(list(self.dropped))}")
        return lines


def report_of(
    technique: Technique, plan: MergeLayout, inputs: Sequence[TensorSource], form: str, device: str, experts: int,
    hashes: list[str], measured: Sequence[Measured] = (), base: TensorSource | None = None,
) -> Report:  # fmt: skip
    """The report of a merge that computes with ``inputs``; ``base`` is one even where nothing is computed with it."""
    told = [*inputs, *([base] if base else [])]
    notes = [*dict.fromkeys(text for source in told for text in source.notes), *plan.notes]
    if plan.statistics:
        notes.append(note(plan.statistics))
    return Report(
        technique=technique.name,
        settings=technique.model_dump(mode="json"),
        form=form,
        device=device,
        experts=experts,
        merged=len(plan.merged),
        parameters=sum(t.size for t in plan.merged),
        kept=dict(plan.kept),
        dropped=dict(plan.dropped),
        read_bytes=sum(s.entries[t.name].bytes for s in inputs for t in plan.merged if t.name in s.entries),
        hashes=hashes,
        statistics=list(plan.statistics),
        tied={alias: tensor.name for tensor in plan.merged for alias in tensor.tied},
        measured=[{"file": one.label, **one.facts.as_json()} for one in measured],
        notes=notes,
    )


def _tensors(names: dict[str, str]) -> str:
    return f"{len(names)} tensor{'s' * (len(names) != 1)}"


def _pairs(tied: dict[str, str]) -> list[str]:
    return [f"{name} = {alias}" for alias, name in tied.items()]
