"""What the node ``fit`` found, as the node ``deploy`` reads it: ``data/step/fit/fit.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.errors import UserError, first_problem
from tasks.merge.technique import Technique, create

FILE = "fit.json"


class FitResult(BaseModel):
    """Coefficients of one merge, and the technique that takes them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    technique: str
    settings: dict[str, Any] = {}
    models: tuple[str, ...] | None = None
    """The models that are merged, from the project's folder; None: those that the protocol merges, with its state."""
    weights: tuple[float, ...] | None = None
    """One a model."""
    tensors: dict[str, tuple[float, ...]] = {}
    """The same for single tensors."""

    def create(self) -> Technique:
        """The technique with the settings that were found.

        Raises:
            UserError: unknown technique or setting.
        """
        return create(self.technique, self.settings)


class FitFile(BaseModel):
    """The content of ``fit.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fitted: FitResult | None = None
    """None where there was nothing to fit."""
    report: dict[str, Any] = {}
    """How it was found, for the manifest and the report; without ``fitted``, why it was not."""


def write(folder: Path, fitted: FitResult | None, report: Mapping[str, Any]) -> None:
    """Write ``fit.json`` into a folder."""
    content = FitFile(fitted=fitted, report=dict(report))
    (folder / FILE).write_text(content.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read(folder: Path) -> FitResult | None:
    """What a folder's ``fit.json`` says.

    Raises:
        UserError: it is missing or damaged.
    """
    path = folder / FILE
    try:
        return FitFile.model_validate_json(path.read_text(encoding="utf-8")).fitted
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; the fit node writes it") from None
    except ValidationError as error:
        raise UserError(f"{path}: not what the fit node writes ({first_problem(error)})") from None
