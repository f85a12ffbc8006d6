"""Heatmaps that make the slicer keep a given share of the map: what a trained seeker would say, without images."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.esod import find_candidates
from models.slicer import patch_size
from utils.config import ModelConfig

ATTEMPTS = 20
"""Random heatmaps that are tried until the slicer keeps exactly what is wanted in every image."""
CENTRE, SURROUND, BACKGROUND = 3.0, 1.0, -5.0
"""Logits above that of the threshold: of a peak (up to 1 more), of its eight neighbours, of everything else."""


class HeatmapError(ValueError):
    """No heatmap was found by which this slicer keeps the wanted share."""


def wanted_patches(map_hw: tuple[int, int], per_side: int, kept: float) -> int:
    """Patches per image whose areas sum up to a share of the map as nearly as whole patches can, at most the grid's."""
    height, width = map_hw
    size_y, size_x = patch_size(map_hw, per_side)
    grid = -(-height // size_y) * -(-width // size_x)
    return min(round(kept * height * width / (size_y * size_x)), grid)


def kept_share(map_hw: tuple[int, int], per_side: int, patches: int) -> float:
    """Sum of the areas of so many patches over the area of the map."""
    size_y, size_x = patch_size(map_hw, per_side)
    return patches * size_y * size_x / (map_hw[0] * map_hw[1])


def given_logits(
    config: ModelConfig, batch: int, map_hw: tuple[int, int], kept: float, peaks: int, seed: int
) -> Tensor:
    """Heatmap logits [batch, 1, H/8, W/8] by which the configured slicer keeps `wanted_patches` in each image.

    A random choice of the grid's cells holds objects, another one in each image. An object is a peak and its eight
    neighbours. The objects of a cell lie in its inner half, so that patches move as on real images, but none onto
    another.

    Args:
        config: slicer and thresholds; its patch budget must not cut off what is wanted.
        batch: images.
        map_hw: height and width in stride-8 cells.
        kept: 0–1.
        peaks: objects per kept patch; where two touch, only the stronger one is a peak.
        seed: of the choice.

    Raises:
        HeatmapError: the slicer does not keep what it should.
    """
    per_side = config.slicer.patches_per_side
    count = wanted_patches(map_hw, per_side, kept)
    found: list[int] = []
    for attempt in range(ATTEMPTS):
        generator = torch.Generator().manual_seed(seed * ATTEMPTS + attempt)
        logits = torch.stack([_image(config, map_hw, count, peaks, generator) for _ in range(batch)])
        candidates = find_candidates(logits.sigmoid(), config.slicer)
        found = candidates.image_index[candidates.keep].bincount(minlength=batch).tolist()
        if found == [count] * batch:
            return logits
    raise HeatmapError(
        f"a heatmap with objects in {count} cells of the grid gives {found} patches (slicer "
        f"{config.slicer.algorithm}, at most {config.slicer.max_patches}): use a grid slicer without --max-patches"
    )


def _image(
    config: ModelConfig, map_hw: tuple[int, int], count: int, peaks: int, generator: torch.Generator
) -> Tensor:
    """Logits [1, H, W] of one image with objects in ``count`` cells of the grid."""
    height, width = map_hw
    size_y, size_x = patch_size(map_hw, config.slicer.patches_per_side)
    columns = -(-width // size_x)
    logits = torch.full(
        (height, width), _logit(min(config.slicer.threshold, config.head.threshold)) + BACKGROUND
    )
    centres: list[tuple[int, int]] = []
    for cell in torch.randperm(-(-height // size_y) * columns, generator=generator)[:count].tolist():
        top, left = cell // columns * size_y, cell % columns * size_x
        rows = _inner(top, min(size_y, height - top), peaks, generator)
        centres += zip(rows, _inner(left, min(size_x, width - left), peaks, generator), strict=True)
    base = _logit(max(config.slicer.threshold, config.head.threshold))
    for row, column in centres:
        logits[row - 1 : row + 2, column - 1 : column + 2] = base + SURROUND
    strength = torch.rand(len(centres), generator=generator).tolist()
    for (row, column), more in zip(centres, strength, strict=True):
        logits[row, column] = base + CENTRE + more
    return logits.unsqueeze(0)


def _inner(begin: int, size: int, count: int, generator: torch.Generator) -> list[int]:
    """Random whole numbers in the inner half of an interval whose size is a multiple of 4."""
    return (begin + size // 4 + torch.randint(size // 2, (count,), generator=generator)).tolist()


def _logit(prob: float) -> float:
    prob = min(max(prob, 1e-4), 1 - 1e-4)
    return math.log(prob / (1 - prob))
