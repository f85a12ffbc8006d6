"""Which prediction answers for which object: YOLOv5's anchor assignment, per patch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.slicer import STRIDE, Patches

NEIGHBOUR_REACH = 0.5
"""An object also belongs to the neighbouring grid position its centre is nearer to than this."""

MAX_REACH_PX = 32
"""The coarsest stride: an object may belong to a position whose middle is half of it away from its centre."""


@dataclass
class PatchTargets:
    """Objects seen from the patches that may answer for them.

    Attributes:
        patch: [N] int64.
        label: [N] int64 class.
        xy_px: [N, 2] centre in input pixels, relative to the patch's top left corner.
        wh_px: [N, 2].
        object: [N] int64 below N, ascending: the same number where patches answer for an object together.
    """

    patch: Tensor
    label: Tensor
    xy_px: Tensor
    wh_px: Tensor
    object: Tensor


@dataclass
class Assignment:
    """Positive predictions of one level.

    Attributes:
        row: [P] int64, index into `LevelOutput.raw` of a dense head.
        anchor: [P] int64.
        label: [P] int64.
        offset: [P, 2] centre relative to the grid position, in grid steps: −0.5…1.5.
        wh_px: [P, 2].
    """

    row: Tensor
    anchor: Tensor
    label: Tensor
    offset: Tensor
    wh_px: Tensor


def targets_in_patches(
    targets: Tensor, patches: Patches, input_hw: tuple[int, int], across: bool = False
) -> PatchTargets:
    """Pair every object with each patch of its image that holds its centre, or that it reaches into.

    Args:
        targets: [T, 6] (image, class, cx, cy, w, h), boxes in 0–1 of the input.
        patches: of the batch.
        input_hw: input height and width in pixels.
        across: False: patches know nothing of each other. Those that hold the centre answer, each for itself: in two
            overlapping ones an object counts twice. True (`models.borders`): all that the box reaches into answer together;
            a side counts as at least `MAX_REACH_PX`.
    """
    scale = targets.new_tensor([input_hw[1], input_hw[0]])
    xy, wh = targets[:, 2:4] * scale, targets[:, 4:6] * scale
    box = patches.xyxy_cell.to(targets.dtype) * STRIDE
    # By pixels beyond the centre: a patch begins at or before the last of them and ends behind the first.
    reach = wh.clamp(min=MAX_REACH_PX).unsqueeze(1) / 2 if across else 0
    inside = (xy.unsqueeze(1) + reach >= box[:, :2]) & (xy.unsqueeze(1) - reach < box[:, 2:])
    same_image = targets[:, :1].long() == patches.image_index
    index, patch = (same_image & inside.all(dim=2)).nonzero(as_tuple=True)
    together = (
        torch.unique_consecutive(index, return_inverse=True)[1]
        if across
        else torch.arange(len(index), device=index.device)
    )
    return PatchTargets(patch, targets[index, 1].long(), xy[index] - box[patch, :2], wh[index], together)


def assign_level(
    targets: PatchTargets, anchors_px: Tensor, stride: int, grid_hw: tuple[int, int], anchor_threshold: float
) -> Assignment:
    """Positive predictions of one level.

    An object matches an anchor when neither side differs by more than anchor_threshold times; it is then
    assigned to the grid position of its centre and to the nearest horizontal and vertical neighbour
    inside the patch.

    Args:
        targets: objects seen from the patches.
        anchors_px: [A, 2].
        stride: input pixels per grid step.
        grid_hw: grid of a patch.
        anchor_threshold: largest ratio of sides.
    """
    ratio = targets.wh_px.unsqueeze(1) / anchors_px
    matches = torch.maximum(ratio, 1 / ratio).amax(dim=2) < anchor_threshold
    index, anchor = matches.nonzero(as_tuple=True)
    xy = targets.xy_px[index] / stride
    cells, source = _cells_around(xy, grid_hw)
    patch = targets.patch[index][source]
    row = (patch * grid_hw[0] + cells[:, 1]) * grid_hw[1] + cells[:, 0]
    return Assignment(
        row, anchor[source], targets.label[index][source], xy[source] - cells, targets.wh_px[index][source]
    )


def _cells_around(xy: Tensor, grid_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Grid cells (x, y) of centres xy [N,2] and their nearest neighbours inside the grid, with source index."""
    limit = xy.new_tensor([grid_hw[1], grid_hw[0]]).long()
    home = xy.floor().long()
    step = torch.where(xy - home < NEIGHBOUR_REACH, -1, 1)
    zero = torch.zeros_like(step[:, 0])
    beside = home + torch.stack((step[:, 0], zero), dim=1)
    above = home + torch.stack((zero, step[:, 1]), dim=1)
    cells = torch.cat((home, beside, above))
    source = torch.arange(len(xy), device=xy.device).repeat(3)
    inside = ((cells >= 0) & (cells < limit)).all(dim=1)
    return cells[inside], source[inside]
