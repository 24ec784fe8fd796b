"""The node ``fit``: coefficients of the step's merge, found on data; it runs where ``fit`` is set."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tasks import randomness
from tasks.fit.method import Problem, chosen
from tasks.fit.samples import of_step
from tasks.merge import fitted
from tasks.merge.step import StepMerge
from tasks.model import models
from tasks.params import Params
from tasks.progress import Progress, silent

MODEL = Path("data/history/model")
FIT = Path("data/step/fit")


def fit(project: Path, params: Params, progress: Progress = silent) -> None:
    """Write ``data/step/fit/fit.json`` (`tasks.merge.fitted`), which the node ``deploy`` merges with.

    Raises:
        UserError: the inputs are damaged, or there are no samples to decide on.
    """
    target = project / FIT
    shutil.rmtree(target, ignore_errors=True)  # in a restored state its files are links into the cache
    target.mkdir(parents=True)
    merge = StepMerge.of(project, params)
    if params.fit is None or not merge.merges:
        fitted.write(target, None, {"skipped": "nothing is merged at this step"})
        progress("fit", 1, 1)
        return
    method = chosen(params.fit)
    models.configure(params.threads)
    seed = randomness.derive(params.seed, params.step or 0, "fit") % 2**63
    model = models.build(project / MODEL)
    model.to(models.device())
    with tempfile.TemporaryDirectory(prefix="fit-") as scratch:
        problem = Problem(
            project=project,
            params=params,
            technique=merge.technique,
            model=model,
            samples=of_step(project, params),
            base=merge.base,
            models=merge.models() if method.learns else (),
            reference=merge.before(),
            merged=lambda technique: merge.merged(technique, Path(scratch)),
            scratch=Path(scratch),
            out=FIT,
            seed=seed,
            progress=progress,
        )
        result, report = method.fit(problem)
    fitted.write(target, result, {"method": method.name, **report})
