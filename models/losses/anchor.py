"""The loss of heads with anchors (YOLOv5): overlap, objectness and classes at the assigned anchors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.assign import PatchTargets, assign_level
from models.coders import decode_anchor_boxes
from models.esod import ESODOutput
from models.iou import complete_iou
from models.levels import LevelOutput
from models.losses.base import Mean, Term
from utils.config import HypConfig

LEVEL_BALANCE = {4: 16.0, 8: 4.0, 16: 1.0, 32: 0.4}
"""Objectness weight by stride: the fine level has most positions and most small objects. At stride 4 ours: the sum is
divided by four times as many positions as at stride 8, so that one position weighs as much."""
REFERENCE_SIDE_PX = 640
REFERENCE_CLASSES = 80
"""YOLOv5's loss weights are stated for 640×640 inputs and 80 classes. Objectness is summed over the trained positions
and divided by those of such an input, classes by those of such a detector: what one object weighs depends neither on the
input's size, nor on how many patches are kept, nor on how many classes there are."""


class AnchorLoss(nn.Module):
    """``box``, ``obj`` and ``cls``.

    Args:
        anchors: [levels, A, 2] in input pixels.
        hyp: weights and options.
    """

    names = ("box", "obj", "cls")
    magnitude = 1.0
    anchors: Tensor

    def __init__(self, anchors: Tensor, hyp: HypConfig) -> None:
        super().__init__()
        self.hyp = hyp
        self.register_buffer("anchors", anchors.clone(), persistent=False)

    def forward(self, output: ESODOutput, targets: PatchTargets, images: int) -> list[Term]:
        """See `HeadLoss`."""
        terms = []
        for level, anchors_px in zip(output.levels, self.anchors, strict=True):
            balance = LEVEL_BALANCE[level.stride]
            box, obj, cls = self._level(level, anchors_px, targets, images)
            terms.append(Term("box", box, self.hyp.box))
            terms.append(Term("obj", obj, self.hyp.obj * balance))
            terms.append(Term("cls", cls, self.hyp.cls))
        return terms

    def _level(
        self, level: LevelOutput, anchors_px: Tensor, targets: PatchTargets, images: int
    ) -> tuple[Mean, Mean, Mean]:
        """Box, objectness and class terms of one level."""
        raw = level.raw.float()
        objectness = torch.zeros_like(raw[..., 4])
        found = assign_level(targets, anchors_px, level.stride, level.grid_hw, self.hyp.anchor_t)
        # Indexing with nothing keeps the predictions in the graph: all processes see the same parameters.
        chosen = raw[found.row, found.anchor]
        origin = torch.zeros((len(chosen), 3), dtype=torch.int64, device=raw.device)
        predicted = decode_anchor_boxes(
            chosen[:, None, :4], origin, chosen.new_zeros(1, 2), anchors_px[found.anchor, None], level.stride
        ).squeeze(1)
        wanted = torch.cat((found.offset * level.stride, found.wh_px), dim=1)
        overlap = complete_iou(predicted, wanted)
        # Several objects may share a prediction: the best overlap counts, whatever their order.
        flat = found.row * raw.shape[1] + found.anchor
        quality = overlap.detach().clamp(min=0)
        objectness.view(-1).scatter_reduce_(0, flat, quality, reduce="amax")
        obj = F.binary_cross_entropy_with_logits(
            raw[..., 4], objectness, pos_weight=raw.new_full((), self.hyp.obj_pw), reduction="sum"
        )
        positives = raw.new_full((), float(len(found.row)))
        reference = images * raw.shape[1] * (REFERENCE_SIDE_PX / level.stride) ** 2
        return (
            Mean((1 - overlap).sum(), positives),
            Mean(obj, raw.new_full((), reference)),
            Mean(self._classes(chosen[:, 5:], found.label), positives * REFERENCE_CLASSES),
        )

    def _classes(self, logits: Tensor, label: Tensor) -> Tensor:
        """Summed binary cross-entropy of every class. logits [P, classes], label [P]."""
        smooth = self.hyp.label_smoothing
        wanted = torch.full_like(logits, smooth / 2)
        wanted[torch.arange(len(label), device=label.device), label] = 1 - smooth / 2
        return F.binary_cross_entropy_with_logits(
            logits, wanted, pos_weight=logits.new_full((), self.hyp.cls_pw), reduction="sum"
        )
