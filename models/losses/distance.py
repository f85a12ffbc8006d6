"""The loss of the anchor-free head with distributions over distances (YOLOv8's recipe)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.assign import PatchTargets
from models.assign_aligned import AlignedAssignment, LevelGrid, assign_aligned, candidate_pairs, level_grids
from models.coders import expected_distances
from models.esod import ESODOutput
from models.iou import complete_iou
from models.levels import LevelOutput
from models.losses.base import Mean, Term
from utils.config import HypConfig

LAST_BIN_MARGIN = 0.01
"""A wanted distance stays this much below the last bin, so that there is a bin on either side of it."""


class DistanceLoss(nn.Module):
    """``box``, ``dfl`` and ``cls``, each per unit of target score in the joint batch.

    Positives and target scores come from `assign_aligned`. box: 1 − CIoU; dfl: see `distribution_focal_loss`, mean over
    the four sides; both weighted by target score. cls: binary cross-entropy of every class at every position, the
    target score being the wanted probability of the object's class and 0 that of all others.

    ``hyp.cls_pw`` weighs the positive part of cls, as for other heads. ``hyp.label_smoothing`` does not apply: the
    targets are overlaps, uncertain already, and a constant at every position would outweigh the few positives.

    Args:
        bins: distances 0 … bins − 1 in grid steps.
        hyp: weights and options.
    """

    names = ("box", "dfl", "cls")
    magnitude = 50.0

    def __init__(self, bins: int, hyp: HypConfig) -> None:
        super().__init__()
        self.bins = bins
        self.hyp = hyp

    def forward(self, output: ESODOutput, targets: PatchTargets, images: int) -> list[Term]:
        """See `HeadLoss`."""
        raw = _join(output.levels, self.bins)
        found = _assign(raw, targets, level_grids(output.levels))
        count = found.score.sum()
        box, dfl = _box_losses(raw.at(found.position), targets, found)
        cls = self._class_loss(raw.classes, targets.label, found)
        return [
            Term("box", Mean(box, count), self.hyp.dfl_box),
            Term("dfl", Mean(dfl, count), self.hyp.dfl),
            Term("cls", Mean(cls, count), self.hyp.dfl_cls),
        ]

    def _class_loss(self, logits: Tensor, label: Tensor, found: AlignedAssignment) -> Tensor:
        """Summed binary cross-entropy of every class at every position. logits [M, classes], label [N]."""
        wanted = torch.zeros_like(logits)
        wanted[found.position, label[found.target]] = found.score
        return F.binary_cross_entropy_with_logits(
            logits, wanted, pos_weight=logits.new_full((), self.hyp.cls_pw), reduction="sum"
        )


class _Raw(NamedTuple):
    """Raw predictions at positions of any levels.

    Attributes:
        sides: [M, 4, bins] logits of the distances to left, top, right and bottom.
        classes: [M, classes] logits.
        middle: [M, 2] x and y in grid steps, relative to the patch's top left corner.
        stride: [M, 1] input pixels per grid step.
    """

    sides: Tensor
    classes: Tensor
    middle: Tensor
    stride: Tensor

    def at(self, index: Tensor) -> _Raw:
        """Some of them, [P], in float32."""
        # Indexing with nothing keeps the predictions in the graph: all processes see the same parameters.
        return _Raw(*(values[index].float() for values in self))

    def cxcywh_px(self) -> Tensor:
        """Predicted boxes [M, 4] in input pixels, relative to the patch's top left corner."""
        distance = expected_distances(self.sides)
        low, high = self.middle - distance[:, :2], self.middle + distance[:, 2:]
        return torch.cat(((low + high) / 2, high - low), dim=1) * self.stride


def _join(levels: Sequence[LevelOutput], bins: int) -> _Raw:
    """All levels of a dense head one after the other, as `LevelGrid` counts; there is one box at each position."""
    stride = [level.position.new_full((len(level.raw), 1), level.stride) for level in levels]
    return _Raw(
        torch.cat([level.raw[:, 0, : 4 * bins] for level in levels]).unflatten(1, (4, bins)),
        torch.cat([level.raw[:, 0, 4 * bins :] for level in levels]).float(),
        torch.cat([level.position[:, [2, 1]] for level in levels]) + 0.5,
        torch.cat(stride),
    )


@torch.no_grad()
def _assign(raw: _Raw, targets: PatchTargets, grids: Sequence[LevelGrid]) -> AlignedAssignment:
    """Positives by what is predicted at the candidates; nothing is decoded anywhere else."""
    pairs = candidate_pairs(targets, grids)
    # Objects in a crowd share candidates: each is decoded once.
    position, place = pairs.position.unique(return_inverse=True)
    near = raw.at(position)
    prob = near.classes[place, targets.label[pairs.target]].sigmoid()
    return assign_aligned(targets, pairs, prob, near.cxcywh_px()[place])


def _box_losses(raw: _Raw, targets: PatchTargets, found: AlignedAssignment) -> tuple[Tensor, Tensor]:
    """Summed overlap and distribution losses of the positives; raw is of these, [P]."""
    xy, wh = targets.xy_px[found.target], targets.wh_px[found.target]
    overlap = complete_iou(raw.cxcywh_px(), torch.cat((xy, wh), dim=1))
    low, high = (xy - wh / 2) / raw.stride, (xy + wh / 2) / raw.stride
    distance = torch.cat((raw.middle - low, high - raw.middle), dim=1)
    dfl = distribution_focal_loss(raw.sides, distance).mean(dim=1)
    return ((1 - overlap) * found.score).sum(), (dfl * found.score).sum()


def distribution_focal_loss(logits: Tensor, distance: Tensor) -> Tensor:
    """Cross-entropy to the two bins beside a distance, by nearness (generalized focal loss, arXiv 2006.04388, eq. 6).

    Args:
        logits: [..., bins] of the distances 0 … bins − 1.
        distance: [...] wanted, in grid steps; clamped to what the bins can say. It is negative where the middle of the
            position lies outside of a small object.

    Returns [...].
    """
    last = logits.shape[-1] - 1
    distance = distance.clamp(min=0, max=last - LAST_BIN_MARGIN)
    below = distance.long()
    log_prob = logits.log_softmax(dim=-1)
    low, high = (log_prob.gather(-1, bin_.unsqueeze(-1)).squeeze(-1) for bin_ in (below, below + 1))
    share = distance - below
    return -(1 - share) * low - share * high
