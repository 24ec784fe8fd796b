"""What one time step merges, and how its protocol does it: for the nodes ``deploy`` and ``fit``."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.merge import engine
from tasks.merge.combined import combine
from tasks.merge.fitted import FitResult
from tasks.merge.protocol import for_all
from tasks.merge.report import Report
from tasks.merge.sequential import Accumulator
from tasks.merge.technique import Technique, create
from tasks.model import coded
from tasks.params import Params
from tasks.progress import Progress, silent
from tasks.storage import atomic

WEIGHTS = Path("data/history/weights")
BASE = WEIGHTS / "base.safetensors"
EXPERT = Path("data/step/expert")
"""Of the file, which may be coded, without its ending."""
STATISTICS = Path("data/step/statistics/expert.safetensors")
EMA = "ema.safetensors"
_EMA_STATISTICS = "ema.stats.safetensors"


@dataclass(frozen=True)
class StepMerge:
    """The merge of one time step; paths of models are from the project's folder."""

    project: Path
    params: Params
    number: int
    """Which expert the step's is, counted from 1; 0 for the base. Arrivals that were skipped do not count."""
    technique: Technique
    progress: Progress = silent

    @classmethod
    def of(cls, project: Path, params: Params, progress: Progress = silent) -> StepMerge:
        """That of a project folder.

        Raises:
            UserError: no expert, no lineage, or an unknown technique or setting.
        """
        expert = coded.stored(project / EXPERT)
        if not expert.is_file():
            raise UserError(f"{expert}: no such checkpoint; the train node writes it")
        technique = create(params.time.technique.name, params.time.technique.settings)
        return cls(project, params, _number(project / WEIGHTS / "lineage.json"), technique, progress)

    @property
    def merges(self) -> bool:
        """Whether what is deployed is a merge at this step."""
        if self.number == 0 or self.params.time.deploy in ("ft", "routed"):
            return False
        return self.params.time.deploy == "all" or not self._starts

    @property
    def _starts(self) -> bool:
        """Whether the running model is the step's expert as it is: at step 0, or at the first expert.

        The base has no statistics, so that the recursion of a technique that looks at data starts at θ_1.
        """
        late = self.params.time.ema_start == "first-expert" or bool(self.technique.statistics)
        return self.number == 0 or (self.number == 1 and late)

    @property
    def base(self) -> Path:
        """θ_0.

        Raises:
            UserError: it is missing.
        """
        return self._needed(BASE)

    def models(self) -> list[tuple[str, Path]]:
        """What is merged, by name, relative to the project: expert and running model; or all experts, oldest first.

        Raises:
            UserError: one is missing.
        """
        if self.params.time.deploy == "ema":
            named = [("expert", self._stored(EXPERT)), ("running", WEIGHTS / "running" / EMA)]
        else:
            named = [(f"expert {t}", self._stored(WEIGHTS / "experts" / f"{t:04}")) for t in range(1, self.number)]
            named.append((f"expert {self.number}", self._stored(EXPERT)))
        for _, path in named:
            self._needed(path)
        return named

    def copy_expert(self, target: Path) -> None:
        """Write the step's expert as a safetensors file."""
        coded.as_safetensors(self.project / self._stored(EXPERT), self.project / BASE, target)

    def before(self) -> Path:
        """The model that was deployed when the step started.

        Raises:
            UserError: it is missing.
        """
        if self.number == 1:
            return self.base
        ema = self.params.time.deploy == "ema"
        return self._needed(WEIGHTS / "running" / EMA if ema else WEIGHTS / "deployed.safetensors")

    def merged(self, technique: Technique, folder: Path) -> Path:
        """A file in a folder with what the protocol would deploy with a technique."""
        if self.params.time.deploy == "ema":
            self.running(technique, folder)
            return folder / EMA
        out = folder / "merged.safetensors"
        shutil.rmtree(folder / "all", ignore_errors=True)
        self.all(for_all(technique), folder / "all", out)
        return out

    def running(self, technique: Technique, folder: Path) -> dict[str, Any]:
        """EMA_t = f([θ_t, EMA_{t-1}]): the new expert first. It starts at θ_0 or, with first-expert, at θ_1.

        Leaves ``ema.safetensors`` in a folder. A technique that looks at data also hands on the statistics of the
        running model.
        """
        start, out = self.params.time.ema_start, folder / EMA
        measured = technique.statistics and self.number
        if measured and self.number == 1:
            copy(self._measured(), folder / _EMA_STATISTICS)
        if self._starts:
            self.copy_expert(out)
            return {"start": start, "merges": 0}
        expert, base, before = (self._needed(path) for path in (self._stored(EXPERT), BASE, WEIGHTS / "running" / EMA))
        statistics = None
        if measured:
            statistics = [self._measured(), self._needed(WEIGHTS / "running" / _EMA_STATISTICS)]
            combine(statistics[0], statistics[1], folder / _EMA_STATISTICS)
        report = engine.merge(
            technique, [expert, before], base, out, statistics=statistics, seed=self.params.seed,
            threads=self.params.threads, progress=self.progress,
        ).report  # fmt: skip
        merges = self.number - (start == "first-expert" or bool(measured))
        return {"start": start, "merges": merges, "report": self.noted(report)}

    def all(self, technique: Technique, state: Path, out: Path) -> dict[str, Any]:
        """The merge of all experts so far; its running state goes to ``state`` where there is a sequential form."""
        if isinstance(technique, Accumulator) and technique.sequential:
            previous = self.project / WEIGHTS / "running" / "all" if self.number > 1 else None
            report = engine.advance(
                technique, self._needed(self._stored(EXPERT)), self.base, previous, state, out,
                statistics=self._measured() if technique.statistics else None, seed=self.params.seed,
                threads=self.params.threads, progress=self.progress,
            )  # fmt: skip
            if report.experts != self.number:
                held, wanted = report.experts - 1, self.number - 1
                raise UserError(f"{previous}: holds {held} experts, and expert {self.number} needs {wanted}")
            return {"report": self.noted(report)}
        experts = [self.project / path for _, path in self.models()]
        report = engine.merge(
            technique, experts, self.base, out, seed=self.params.seed, threads=self.params.threads,
            progress=self.progress,
        ).report  # fmt: skip
        return {"report": self.noted(report)}

    def weighted(self, fit: FitResult, out: Path) -> dict[str, Any]:
        """The merge of models with the weights that the node `fit` found for them."""
        models = [self._needed(Path(path)) for path in fit.models or ()]
        report = engine.merge(
            fit.create(), models, self.base, out, weights=fit.weights, part_weights=fit.tensors or None,
            seed=self.params.seed, threads=self.params.threads, progress=self.progress,
        ).report  # fmt: skip
        return {"report": self.noted(report)}

    def noted(self, report: Report) -> dict[str, Any]:
        """A report as JSON, with paths from the project's folder, wherever that is; its notes are shown."""
        for text in report.notes:
            self.progress("note:", 1, 1, f"merging: {text}")

        def inside(text: str) -> str:
            return text.replace(f"{self.project}/", "") if self.project.is_absolute() else text

        content = report.as_json()
        if report.measured:
            content["measured"] = [{**one, "file": inside(one["file"])} for one in report.measured]
        if report.notes:
            content["notes"] = [inside(text) for text in report.notes]
        return content

    def _measured(self) -> Path:
        path = self.project / STATISTICS
        if not path.is_file():
            raise UserError(f"{path}: no such statistics file; the measure node writes it")
        return path

    def _stored(self, stem: Path) -> Path:
        return coded.stored(self.project / stem).relative_to(self.project)

    def _needed(self, path: Path) -> Path:
        full = self.project / path
        if not full.is_file():
            raise UserError(
                f"{full}: no such checkpoint; the earlier state is incomplete, so restore it or run "
                "`chronomerge doctor`"
            )
        return full


def copy(source: Path, target: Path) -> None:
    """Copy a file under a temporary name, then rename."""
    with atomic.made(target) as part:
        shutil.copyfile(source, part)


def _number(lineage: Path) -> int:
    try:
        return int(json.loads(lineage.read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{lineage}: does not say how many experts came before ({error})") from None
