"""The loss of the anchor-free head with distributions over distances (YOLOv8's recipe)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.assign import PatchTargets
from models.assign_aligned import AlignedAssignment, assign_aligned, level_grids
from models.coders import DistanceCoder, decode_distances
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

    def __init__(self, bins: int, hyp: HypConfig) -> None:
        super().__init__()
        self.hyp = hyp
        self.coder = DistanceCoder(bins)

    def forward(self, output: ESODOutput, targets: PatchTargets, images: int) -> list[Term]:
        """See `HeadLoss`."""
        levels = output.levels
        # Level by level, in the order in which `level_grids` counts the positions; there is one box at each.
        raw = torch.cat([level.raw.squeeze(1) for level in levels]).float()
        found = self._assign(levels, targets)
        count = found.score.sum()
        box, dfl = self._boxes(raw[:, : 4 * self.coder.bins], levels, targets, found)
        cls = self._classes(raw[:, 4 * self.coder.bins :], targets.label, found)
        return [
            Term("box", Mean(box, count), self.hyp.dfl_box),
            Term("dfl", Mean(dfl, count), self.hyp.dfl),
            Term("cls", Mean(cls, count), self.hyp.dfl_cls),
        ]

    @torch.no_grad()
    def _assign(self, levels: list[LevelOutput], targets: PatchTargets) -> AlignedAssignment:
        """Positives, by what is predicted at all positions."""
        decoded = [
            self.coder.decode(number, level, level.raw.new_zeros((1, 2), dtype=torch.float32))
            for number, level in enumerate(levels)
        ]
        prob = torch.cat([boxes.class_prob.squeeze(1) for boxes in decoded])
        cxcywh_px = torch.cat([boxes.cxcywh_px.squeeze(1) for boxes in decoded])
        return assign_aligned(targets, level_grids(levels), prob, cxcywh_px)

    def _boxes(
        self, logits: Tensor, levels: list[LevelOutput], targets: PatchTargets, found: AlignedAssignment
    ) -> tuple[Tensor, Tensor]:
        """Summed box and distribution losses of the positives. logits [M, 4·bins]."""
        # Indexing with nothing keeps the predictions in the graph: all processes see the same parameters.
        chosen = logits[found.position].unflatten(1, (4, self.coder.bins))
        position = torch.cat([level.position for level in levels])[found.position]
        stride = torch.cat([level.position.new_full((len(level.raw), 1), level.stride) for level in levels])
        stride = stride[found.position]
        # In grid steps, relative to the patch's corner; pixels only where absolute sizes matter.
        xyxy = decode_distances(chosen, position, chosen.new_zeros(1, 2), 1) * stride
        predicted = torch.cat(((xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]), dim=1)
        xy, wh = targets.xy_px[found.target], targets.wh_px[found.target]
        overlap = complete_iou(predicted, torch.cat((xy, wh), dim=1))

        middle = position[:, [2, 1]] + 0.5
        distance = torch.cat((middle - (xy - wh / 2) / stride, (xy + wh / 2) / stride - middle), dim=1)
        dfl = distribution_focal_loss(chosen, distance).mean(dim=1)
        return ((1 - overlap) * found.score).sum(), (dfl * found.score).sum()

    def _classes(self, logits: Tensor, label: Tensor, found: AlignedAssignment) -> Tensor:
        """Summed binary cross-entropy of every class at every position. logits [M, classes], label [N]."""
        wanted = torch.zeros_like(logits)
        wanted[found.position, label[found.target]] = found.score
        return F.binary_cross_entropy_with_logits(
            logits, wanted, pos_weight=logits.new_full((), self.hyp.cls_pw), reduction="sum"
        )


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
