"""Random crops: of a whole batch at once on its device, or of originals as they are decoded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

SCALE = (0.9, 1.0)
"""Share of the area that a crop keeps (TIME's setting of RandomResizedCrop; no flip)."""
RATIO = (3 / 4, 4 / 3)
TRIES = 10


WHOLE = np.array([0.5, 0.5, 1, 1], dtype=np.float32)
"""The box of `crop` that is the whole image."""


@dataclass(frozen=True)
class CropDraws:
    """The random numbers of RandomResizedCrop, for a batch; as torchvision draws them."""

    area: np.ndarray
    """Share of the area, uniform in `SCALE`, float64, shape (N, `TRIES`)."""
    ratio: np.ndarray
    """Width over height, log-uniform in `RATIO`, float64, shape (N, `TRIES`)."""
    place: np.ndarray
    """Where the box is between left and right, and top and bottom, uniform in [0, 1), float64, shape (N, 2)."""

    def __getitem__(self, rows: Any) -> CropDraws:
        return CropDraws(self.area[rows], self.ratio[rows], self.place[rows])

    def squares(self) -> np.ndarray:
        """Boxes in images at the model's size: float32, shape (N, 4): centre x, centre y, width, height, of 1.

        The first of ten tries that fits, else the whole image; with corners between pixels too.
        """
        width, height = np.sqrt(self.area * self.ratio), np.sqrt(self.area / self.ratio)
        fits = (width <= 1) & (height <= 1)
        size = _first(fits, width, height)
        size[~fits.any(axis=1)] = 1
        centre = size / 2 + self.place * (1 - size)
        return np.concatenate([centre, size], axis=1).astype(np.float32)

    def pixels(self, sizes: np.ndarray) -> np.ndarray:
        """Boxes in images of some widths and heights (N, 2), as torchvision has them: left, top, right, bottom.

        int64, shape (N, 4). The first of ten tries that fits; else the largest centre box of a ratio within `RATIO`,
        which is what photographs longer than 4:3 mostly get.
        """
        sides = sizes.astype(np.int64)
        areas = self.area * sides.prod(axis=1)[:, None]
        width, height = (np.rint(np.sqrt(side)).astype(np.int64) for side in (areas * self.ratio, areas / self.ratio))
        fits = (width > 0) & (width <= sides[:, :1]) & (height > 0) & (height <= sides[:, 1:])
        size = _first(fits, width, height)
        corner = np.floor(self.place * (sides - size + 1)).astype(np.int64)
        none = ~fits.any(axis=1)
        longest = np.stack([sides[:, 1] * RATIO[1], sides[:, 0] / RATIO[0]], axis=1)
        size[none] = np.minimum(sides, np.rint(longest).astype(np.int64))[none]
        corner[none] = ((sides - size) // 2)[none]
        return np.concatenate([corner, corner + size], axis=1)


def _first(fits: np.ndarray, width: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Width and height of each row's first try that fits, shape (N, 2)."""
    first = fits.argmax(axis=1)[:, None]
    return np.concatenate([np.take_along_axis(side, first, axis=1) for side in (width, height)], axis=1)


def draw(count: int, random: np.random.Generator) -> CropDraws:
    """The random numbers of ``count`` crops."""
    area = random.uniform(*SCALE, size=(count, TRIES))
    ratio = np.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1]), size=(count, TRIES)))
    return CropDraws(area, ratio, random.uniform(size=(count, 2)))


def crop(images: torch.Tensor, boxes: np.ndarray) -> torch.Tensor:
    """Each image (N, 3, H, W), float, resampled bilinearly from its box to its own size."""
    box = torch.from_numpy(boxes).to(images.device)
    affine = images.new_zeros(len(images), 2, 3)
    affine[:, 0, 0], affine[:, 1, 1] = box[:, 2], box[:, 3]
    affine[:, :, 2] = 2 * box[:, :2] - 1
    grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
