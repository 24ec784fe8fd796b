"""Random crops of a whole batch at once, on whatever device the batch is."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional

SCALE = (0.9, 1.0)
"""Share of the area that a crop keeps (TIME's setting of RandomResizedCrop; no flip)."""
RATIO = (3 / 4, 4 / 3)
TRIES = 10


def draw_crops(count: int, random: np.random.Generator) -> np.ndarray:
    """RandomResizedCrop's boxes in a unit square: float32, shape (count, 4): centre x, centre y, width, height.

    As torchvision draws them: area and log aspect ratio uniform, ten tries for a box that fits, else the whole image;
    but with corners between pixels too.
    """
    area = random.uniform(*SCALE, size=(count, TRIES))
    ratio = np.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1]), size=(count, TRIES)))
    width, height = np.sqrt(area * ratio), np.sqrt(area / ratio)
    fits = (width <= 1) & (height <= 1)
    first = fits.argmax(axis=1)[:, None]
    size = np.concatenate([np.take_along_axis(side, first, axis=1) for side in (width, height)], axis=1)
    size[~fits.any(axis=1)] = 1
    centre = size / 2 + random.uniform(size=(count, 2)) * (1 - size)
    return np.concatenate([centre, size], axis=1).astype(np.float32)


def crop(images: torch.Tensor, boxes: np.ndarray) -> torch.Tensor:
    """Each image (N, 3, H, W), float, resampled bilinearly from its box to its own size."""
    box = torch.from_numpy(boxes).to(images.device)
    affine = images.new_zeros(len(images), 2, 3)
    affine[:, 0, 0], affine[:, 1, 1] = box[:, 2], box[:, 3]
    affine[:, :, 2] = 2 * box[:, :2] - 1
    grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
