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
    prob: Tensor,
    candidates: Candidates,
    threshold: float,
    strides: Sequence[int],
    *,
    around: bool = False,
    across: bool = False,
) -> list[Tensor]:
    """Where the sparse head runs, for every candidate patch.

    Args:
        prob: [B, 1, H, W] heatmap probabilities.
        candidates: G possible patches; the masks of those not kept are all False.
        threshold: least probability of a peak.
        strides: of the levels.
        around: add the masks grown once more by 3×3 (`HeadPositions.around`).
        across: masks are dilated across the borders of patches, not inside of each.

    Returns:
        Bool masks [G, h, w], one per level, then with ``around`` as many again: h and w at stride 8 are the patch's,
        half and a quarter of that at 16 and 32, twice as much at 4.
    """
    peaks = max_3x3(local_maxima(prob, threshold).float())
    everywhere = PatchList(candidates.image_index, candidates.xyxy_cell, candidates.size_cell)
    masks = _at_strides(peaks if across else cut_patches(peaks, everywhere), strides)
    if around:
        masks += [max_3x3(mask) for mask in masks]
    if across:
        masks = [cut_patches(mask, _scaled(everywhere, mask.shape[-1] / prob.shape[-1])) for mask in masks]
    return [(mask.squeeze(1) > 0) & candidates.keep.view(-1, 1, 1) for mask in masks]


def _at_strides(base: Tensor, strides: Sequence[int]) -> list[Tensor]:
    """A mask of 0 and 1 at stride 8, [N, 1, H, W], at other strides."""
    masks = []
    for stride in strides:
        if stride > STRIDE:
            step = stride // STRIDE
            masks.append(max_3x3(F.max_pool2d(base, step, step)))
        else:
            masks.append(F.interpolate(base, scale_factor=STRIDE / stride, mode="nearest"))
    return masks


def _scaled(patches: PatchList, factor: float) -> PatchList:
    """The same patches in a map whose sides are that many times as long."""
    size_y, size_x = (round(side * factor) for side in patches.size_cell)
    return PatchList(patches.image_index, (patches.xyxy_cell * factor).long(), (size_y, size_x))


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
    cells = neighbourhood_cells(position, (padded.shape[1], padded.shape[2]))
    return padded.reshape(-1, channels).index_select(0, cells).view(-1, 3, 3, channels)


def neighbourhood_cells(position: Tensor, padded_hw: tuple[int, int]) -> Tensor:
    """Flat cells in maps of padded_hw, which have a border of 1, of the neighbourhoods of positions: [9·M]."""
    height, width = padded_hw
    corner = (position[:, 0] * height + position[:, 1]) * width + position[:, 2]
    step = torch.arange(3, device=position.device)
    offset = (step.view(3, 1) * width + step).flatten()
    return (corner.unsqueeze(1) + offset).flatten()


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
