"""Where the centre head looks for an object, and what its class maps should be (CenterNet, arXiv 1904.07850).

Pure functions without weights. CenterNet has one map at stride 4; here there are three, so every object first gets a
level, and then, in each patch that holds its centre, one cell of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.assign import PatchTargets

LEVEL_LIMITS_PX = (64.0, 128.0)
"""Longer side in input pixels up to which an object belongs to stride 8, and to stride 16; larger ones to stride 32.

FCOS's ranges (arXiv 1904.01355, section 3.2) with everything above 128 px at the last level, because there is none behind
it. Its ranges are of the largest distance from a position to a side, ours of the side itself, which is at most 8 grid
steps at strides 8 and 16: a 3×3 head sees such an object, and nearly all small objects stay at the finest grid."""


TINY = 1e-9
"""Stands in for a sum of sides that is zero: such a box has radius 0."""


@dataclass
class CentreAssignment:
    """Objects of one level at the cells of their centres.

    Attributes:
        row: [N] int64, index into `LevelOutput.raw` of a dense head. Objects of one cell repeat it.
        label: [N] int64.
        offset: [N, 2] of the centre from the cell's left top corner in grid steps, 0–1.
        size: [N, 2] (w, h) in grid steps.
    """

    row: Tensor
    label: Tensor
    offset: Tensor
    size: Tensor


def levels_of(wh_px: Tensor) -> Tensor:
    """Number of the level, 0–2, of objects with these sides: [N, 2] in input pixels → int64 [N]."""
    return torch.bucketize(wh_px.amax(dim=1), wh_px.new_tensor(LEVEL_LIMITS_PX))


def targets_of_level(targets: PatchTargets, number: int) -> PatchTargets:
    """Those objects that belong to a level."""
    own = levels_of(targets.wh_px) == number
    patch = targets.patch[own]
    alone = torch.arange(len(patch), device=patch.device)
    return PatchTargets(patch, targets.label[own], targets.xy_px[own], targets.wh_px[own], alone)


def assign_centres(targets: PatchTargets, stride: int, grid_hw: tuple[int, int]) -> CentreAssignment:
    """Cells of the centres.

    Args:
        targets: objects of this level.
        stride: input pixels per grid step.
        grid_hw: grid of a patch.
    """
    xy = targets.xy_px / stride
    # A centre inside the patch may be rounded onto its far border.
    cell = torch.minimum(xy.long(), xy.new_tensor([grid_hw[1], grid_hw[0]]).long() - 1)
    row = (targets.patch * grid_hw[0] + cell[:, 1]) * grid_hw[1] + cell[:, 0]
    return CentreAssignment(row, targets.label, xy - cell, targets.wh_px / stride)


def gaussian_radius(size: Tensor, min_overlap: float) -> Tensor:
    """How far both corners of a box may be off (in x and in y) so that its IoU stays at least min_overlap.

    CornerNet's rule (arXiv 1808.01244, section 3.2). Of its three ways, both corners moving the same way, both outwards
    or both inwards, the last is always the strictest: (w−2r)(h−2r) / wh = t, so 4r² − 2(w+h)·r + (1−t)·wh = 0, of which
    r is the smaller root.

    The first program of CornerNet, and with it CenterNet's, divides the roots by 2 instead of by 2a and takes larger
    ones: its "0.7" gives 0.27 of a square's side, at which a box may have an IoU of 0.2. Here the root is the right one:
    0.08 of the side for 0.7, and 0.23 for the 0.3 that CornerNet's revised paper has beside its corrected program.

    Args:
        size: [N, 2] (w, h), in any unit.
        min_overlap: between 0 and 1.

    Returns [N] in the same unit.
    """
    total, product = size.sum(dim=1), (1 - min_overlap) * size.prod(dim=1)
    root = (total.square() - 4 * product).clamp(min=0).sqrt()
    # (total − root) / 4 without the difference of nearly equal numbers that it is for long boxes.
    return product / (total + root).clamp(min=TINY)


def class_maps(
    found: CentreAssignment, patches: int, grid_hw: tuple[int, int], num_classes: int, min_overlap: float
) -> Tensor:
    """What the class maps of a level should be: a Gaussian around each centre cell in its object's class.

    exp(−d²/2σ²) at distance d from the cell, within `gaussian_radius` rounded down and inside the object's patch; σ is a
    sixth of the window's 2r + 1 cells (CornerNet: a third of the radius), so that a radius of 0 needs no exception.
    Where objects of one class overlap the larger value counts; a centre cell has exactly 1.

    Args:
        found: objects at their cells.
        patches, grid_hw: number of patches, and rows and columns of each.
        num_classes: of the detector.
        min_overlap: of `gaussian_radius`.

    Returns [patches·h·w, num_classes] in 0–1, rows as those of `all_positions`.
    """
    height, width = grid_hw
    radius = gaussian_radius(found.size, min_overlap).long()
    patch = found.row // (height * width)
    cell = torch.stack((found.row % width, found.row // width % height), dim=1)
    limit = torch.tensor([width, height], device=cell.device) - 1
    first = (cell - radius.unsqueeze(1)).clamp(min=0)
    columns, rows = (torch.minimum(cell + radius.unsqueeze(1), limit) - first + 1).unbind(dim=1)
    area = rows * columns
    owner = torch.arange(len(cell), device=cell.device).repeat_interleave(area)
    inner = torch.arange(len(owner), device=cell.device) - (area.cumsum(0) - area)[owner]
    x = first[owner, 0] + inner % columns[owner]
    y = first[owner, 1] + inner // columns[owner]

    squared = (x - cell[owner, 0]).square() + (y - cell[owner, 1]).square()
    sigma = (2 * radius + 1) / 6
    value = torch.exp(-squared / (2 * sigma[owner].square()))
    index = ((patch[owner] * height + y) * width + x) * num_classes + found.label[owner]
    flat = value.new_zeros(patches * height * width * num_classes)
    return flat.scatter_reduce_(0, index, value, reduce="amax").view(-1, num_classes)
