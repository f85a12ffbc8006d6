"""Which positions the sparse head computes, and gathering their 3×3 neighbourhoods.

The rule for the positions is that of the released models (paper section III-D): heatmap peaks dilated
by 3×3 at stride 8; for strides 16 and 32 that mask is max-pooled and dilated once more inside the patch. At stride 4,
which the released models do not have, it is the mask of stride 8.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from models.slicer import STRIDE, Candidates, cut_patches, local_maxima, max_3x3
from models.slicer import Patches as PatchList


def position_masks(
    prob: Tensor, candidates: Candidates, threshold: float, strides: Sequence[int]
) -> list[Tensor]:
    """Where the sparse head runs, for every candidate patch.

    Args:
        prob: [B, 1, H, W] heatmap probabilities.
        candidates: G possible patches; the masks of those not kept are all False.
        threshold: least probability of a peak.

        strides: of the levels.

    Returns one bool mask per level: [G, h, w] at stride 8, half and a quarter of that at 16 and 32, twice as much at 4.
    """
    peaks = max_3x3(local_maxima(prob, threshold).float())
    everywhere = PatchList(candidates.image_index, candidates.xyxy_cell, candidates.size_cell)
    base = cut_patches(peaks, everywhere) * candidates.keep.view(-1, 1, 1, 1)
    masks = []
    for stride in strides:
        if stride > STRIDE:
            step = stride // STRIDE
            masks.append(max_3x3(F.max_pool2d(base, step, step)))
        else:
            masks.append(F.interpolate(base, scale_factor=STRIDE / stride, mode="nearest"))
    return [mask.squeeze(1) > 0 for mask in masks]


def grow(mask: Tensor) -> Tensor:
    """A bool mask [G, h, w] and its neighbours, by 3×3 dilation inside the patch."""
    return max_3x3(mask.unsqueeze(1).float()).squeeze(1) > 0


def gather_neighbourhoods(features: Tensor, position: Tensor) -> Tensor:
    """3×3 neighbourhoods, zero outside the map, of selected positions only.

    Args:
        features: [K, C, h, w].
        position: [M, 3] int64 (map, row, column).

    Returns [M, 3, 3, C].
    """
    channels = features.shape[1]
    padded = F.pad(features, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    height, width = padded.shape[1:3]
    corner = (position[:, 0] * height + position[:, 1]) * width + position[:, 2]
    step = torch.arange(3, device=features.device)
    offset = (step.view(3, 1) * width + step).flatten()
    rows = padded.reshape(-1, channels).index_select(0, (corner.unsqueeze(1) + offset).flatten())
    return rows.view(-1, 3, 3, channels)


def gather_rows(maps: Tensor, position: Tensor) -> Tensor:
    """What is at positions [M, 3] (map, row, column) of maps [K, C, h, w]: [M, C]."""
    channels, height, width = maps.shape[1:]
    cell = (position[:, 0] * height + position[:, 1]) * width + position[:, 2]
    return maps.permute(0, 2, 3, 1).reshape(-1, channels).index_select(0, cell)


def scatter_rows(rows: Tensor, position: Tensor, like: Tensor) -> Tensor:
    """Rows [M, C] at positions [M, 3] (map, row, column) of zeros [K, C, h, w]; K, h and w of ``like``."""
    maps = rows.new_zeros(like.shape[0], like.shape[2], like.shape[3], rows.shape[1])
    maps[position[:, 0], position[:, 1], position[:, 2]] = rows
    return maps.permute(0, 3, 1, 2)
