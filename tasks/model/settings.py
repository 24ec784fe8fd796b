"""Settings of a model's configuration file, checked before anything is built from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.errors import UserError

Size = Annotated[int, Field(gt=0, le=1 << 24)]
Layers = Annotated[int, Field(gt=0, le=1000)]
Ratio = Annotated[float, Field(gt=0, le=100)]
Three = Annotated[list[float], Field(min_length=3, max_length=3)]
"""One number for each of red, green and blue."""


class Checked(BaseModel):
    """Settings of their types; others that a file has are left alone."""

    model_config = ConfigDict(strict=True, frozen=True)


class Processor(Checked):
    """What is used of transformers' preprocessor_config.json."""

    image_mean: Three | None = None
    image_std: Three | None = None


C = TypeVar("C", bound=Checked)


def checked(model: type[C], content: Mapping[str, Any], path: Path) -> C:
    """The content of a file as settings.

    Raises:
        UserError: names the file and the first setting that is wrong.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {key}: {first['msg']}, not {first['input']!r:.60}") from None


def mlp_ratio(inner: int, width: int) -> float:
    """The ratio r with int(width · r) = ``inner``, which is how open_clip computes the size of a hidden layer."""
    ratio = inner / width
    while int(width * ratio) < inner:  # the quotient was rounded down
        ratio = math.nextafter(ratio, math.inf)
    return ratio
