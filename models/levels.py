"""The raw predictions of one pyramid level, and where they are: what heads give and coders and losses take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

STRIDES = (8, 16, 32)
"""Input pixels per grid step of the levels that every model has; `ModelConfig.strides` are those of one model."""


@dataclass
class LevelOutput:
    """Raw predictions of one pyramid level.

    Attributes:
        raw: [M, A, values] of M positions with A boxes each; what the values are says the head's coder.
        position: [M, 3] int64 (patch, row, column) in this level's grid of the patch.
        stride: input pixels per grid step.
        grid_hw: rows and columns of a patch at this level.
    """

    raw: Tensor
    position: Tensor
    stride: int
    grid_hw: tuple[int, int]


class HeadPositions(NamedTuple):
    """Where a sparse head computes at one level.

    Attributes:
        wanted: [M, 3] int64 (patch, row, column) of the predictions.
        around: [M', 3] the same and their neighbours, which a head with two 3×3 convolutions in a row needs
            in between; None for a head with one.
    """

    wanted: Tensor
    around: Tensor | None


def all_positions(patches: int, grid_hw: tuple[int, int], device: torch.device) -> Tensor:
    """Every (patch, row, column), patch by patch, row by row: [patches·h·w, 3] int64."""
    axes = [torch.arange(n, device=device) for n in (patches, *grid_hw)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).view(-1, 3)
