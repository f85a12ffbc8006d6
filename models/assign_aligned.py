"""Which positions answer for which object in a head without anchors: task-aligned assignment (TOOD, arXiv 2108.07755).

Unlike models/assign.py it looks at the predictions: an object is given to the positions that already find it best, by
class and by box together. Everything here is about pairs (object, position) with the position near the object, so
memory grows with the objects' area in grid steps, never with objects × positions. No loss: see models/losses/distance.py.

α = 0.5, β = 6 and ten positions per object are YOLOv8's published choices (the paper: 1, 6, 13). The overlap is the paper's
plain IoU: YOLOv8's complete IoU, cut off at 0, is 0 for many a first guess about an object of a few pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from models.assign import PatchTargets
from models.iou import plain_iou
from models.levels import LevelOutput

SCORE_POWER = 0.5
OVERLAP_POWER = 6.0
POSITIONS_PER_OBJECT = 10
"""α, β and m of the paper, section 3.2."""


class LevelGrid(NamedTuple):
    """Where one level of a dense head lies among the positions of all levels.

    Attributes:
        stride: input pixels per grid step.
        grid_hw: rows and columns of a patch.
        first: number of the level's first position; patch by patch and row by row from there.
    """

    stride: int
    grid_hw: tuple[int, int]
    first: int


class CandidatePairs(NamedTuple):
    """Objects and positions that may answer for them.

    Attributes:
        target: [P] int64, index into the `PatchTargets`.
        position: [P] int64, counted over all levels as in `LevelGrid`.
    """

    target: Tensor
    position: Tensor


@dataclass
class AlignedAssignment:
    """The positive positions; each answers for one object.

    Attributes:
        position: [P] int64, no number twice, ascending; counted over all levels as in `LevelGrid`.
        target: [P] int64, index into the `PatchTargets`.
        score: [P] float32 in 0–1, what the position is to say for the object's class, and its weight in box losses.
    """

    position: Tensor
    target: Tensor
    score: Tensor


def level_grids(levels: Sequence[LevelOutput]) -> list[LevelGrid]:
    """Grids of a dense head's levels, one after the other."""
    grids, first = [], 0
    for level in levels:
        grids.append(LevelGrid(level.stride, level.grid_hw, first))
        first += len(level.raw)
    return grids


@torch.no_grad()
def assign_aligned(
    targets: PatchTargets, pairs: CandidatePairs, class_prob: Tensor, cxcywh_px: Tensor
) -> AlignedAssignment:
    """Positive positions and their target scores.

    Of its candidates of all levels an object takes the `POSITIONS_PER_OBJECT` with the largest t = s^α·u^β (paper
    section 3.2), s being the predicted probability of its class and u the IoU of the predicted box with it.
    A position that several objects take goes to the one with the largest u, to the first of them on a tie. The
    target score is t scaled such that an object's largest is its largest u.

    Where u is 0 at all its positions an object's scores are 0: they are background until a box reaches the object.

    Args:
        targets: N objects seen from the patches.
        pairs: P candidates; see `candidate_pairs`.
        class_prob: [P] in 0–1, of the pair's object's class at the pair's position.
        cxcywh_px: [P, 4] predicted at the pair's position, in input pixels relative to the patch's top left corner.
    """
    target, position = pairs
    wanted = torch.cat((targets.xy_px, targets.wh_px), dim=1)[target]
    overlap = plain_iou(cxcywh_px, wanted)
    log_t = log_alignment(class_prob, overlap)

    # Of all patches together where they answer together.
    thing = targets.object[target]
    chosen = top_of_each(thing, log_t, POSITIONS_PER_OBJECT)
    # These go object by object: of equal overlaps at a position the first is the first object's.
    chosen = chosen[top_of_each(position[chosen], overlap[chosen], 1)]
    target, position, overlap, log_t = target[chosen], position[chosen], overlap[chosen], log_t[chosen]
    score = target_scores(thing[chosen], log_t, overlap, len(targets.patch))
    return AlignedAssignment(position, target, score)


def candidate_pairs(targets: PatchTargets, grids: Sequence[LevelGrid]) -> CandidatePairs:
    """`candidate_positions` of all levels, level by level."""
    found = [candidate_positions(targets, grid) for grid in grids]
    return CandidatePairs(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def candidate_positions(targets: PatchTargets, grid: LevelGrid) -> CandidatePairs:
    """Pairs of objects and the positions of their patch whose middle lies in their box, borders included.

    Here a box's sides count as at least one grid step. That is a deviation: in YOLOv8 the box counts as it is, and one
    smaller than a step, as most in aerial pictures are at stride 32 and many at stride 8, has no position at all where
    it lies between the middles. This way every object whose centre is in its patch has at least one at every level;
    one whose centre is exactly on the border of two cells has both. As no distance is negative, the box of a position
    outside of its object cannot fit it exactly; such positions lose to better ones by their overlap, if there are any.

    Returns them object by object, positions ascending.
    """
    rows, columns = grid.grid_hw
    reach = targets.wh_px.clamp(min=grid.stride) / 2
    last_cell = torch.tensor([columns, rows], device=reach.device) - 1
    # A rectangle of cells that surely holds all candidates; which of them are is tested below, without rounding.
    first = ((targets.xy_px - reach) / grid.stride - 0.5).floor().long()
    last = ((targets.xy_px + reach) / grid.stride - 0.5).ceil().long()
    first, last = (torch.minimum(cell.clamp(min=0), last_cell) for cell in (first, last))
    width, height = (last - first + 1).unbind(dim=1)
    area = width * height
    target = torch.arange(len(area), device=area.device).repeat_interleave(area)
    inner = torch.arange(len(target), device=area.device) - (area.cumsum(0) - area)[target]
    cell = first[target] + torch.stack((inner % width[target], inner // width[target]), dim=1)

    middle_px = (cell.to(reach.dtype) + 0.5) * grid.stride
    inside = ((middle_px - targets.xy_px[target]).abs() <= reach[target]).all(dim=1)
    target, cell = target[inside], cell[inside]
    position = (targets.patch[target] * rows + cell[:, 1]) * columns + cell[:, 0]
    return CandidatePairs(target, position + grid.first)


def log_alignment(score: Tensor, overlap: Tensor) -> Tensor:
    """Logarithm of t = s^α·u^β (paper section 3.2); −∞ where s or u is 0.

    In logarithms because u⁶ of a tiny object under a large first guess is less than any constant that one would add
    to keep a quotient of two t finite, and less than float32 can hold.

    Args:
        score, overlap: [P] in 0–1.
    """
    return SCORE_POWER * score.log() + OVERLAP_POWER * overlap.log()


def top_of_each(group: Tensor, value: Tensor, count: int) -> Tensor:
    """Index of the ``count`` largest values of each group, group by group; of equal values the first.

    Args:
        group: [P] int64.
        value: [P].
        count: per group.
    """
    order = value.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    ordered = group[order]
    # A group's rows are together now: their distance from its first row is their rank.
    rank = torch.arange(len(ordered), device=ordered.device) - torch.searchsorted(ordered, ordered)
    return order[rank < count]


def target_scores(target: Tensor, log_t: Tensor, overlap: Tensor, number: int) -> Tensor:
    """Scores t / max t · max u, maxima over the positions of each object; 0 where all t are 0 (paper section 3.2).

    Args:
        target: [P] int64, object of each position.
        log_t: [P], see `log_alignment`.
        overlap: [P] in 0–1.
        number: of objects.
    """
    best_t = log_t.new_full((number,), -torch.inf).scatter_reduce_(0, target, log_t, reduce="amax")
    best_u = overlap.new_zeros(number).scatter_reduce_(0, target, overlap, reduce="amax")
    share = (log_t - best_t[target]).exp() * best_u[target]
    return torch.where(log_t == -torch.inf, 0.0, share)
