"""The training criterion: named losses of boxes, objectness, classes and heatmap."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from models.assign import PatchTargets, assign_level, targets_in_patches
from models.decode import decode_boxes
from models.esod import ESODOutput
from models.head import LevelOutput
from models.slicer import STRIDE
from utils.config import HypConfig

LEVEL_BALANCE = (4.0, 1.0, 0.4)
"""Objectness weight of strides 8, 16, 32: the fine level has most positions and most small objects."""
TINY_AREA_PX = 256.0
"""Objects below this area (16×16 input pixels) weigh more in the weighted BCE of the heatmap."""
MAX_WEIGHT = 5.0
REFERENCE_SIDE_PX = 640
REFERENCE_CLASSES = 80
"""YOLOv5's loss weights are stated for 640×640 inputs and 80 classes. Objectness is summed over the trained positions
and divided by those of such an input, classes by those of such a detector: what one object weighs depends neither on the
input's size, nor on how many patches are kept, nor on how many classes there are."""
LEAST_LABEL_SHARE = 0.01
EPSILON_PX = 1e-6
FOCAL_TO_DICE = 20.0
"""Paper, section III-B: focal and dice loss 20:1."""


@dataclass
class Mean:
    """A loss as a sum and the number of things it is over, so that processes can share the number."""

    total: Tensor
    count: Tensor


class LevelTerms(NamedTuple):
    """The terms of one pyramid level."""

    box: Mean
    obj: Mean
    cls: Mean


class DetectionLoss(nn.Module):
    """Named losses of a batch; their weighted sum is ``total``.

    Anchors, hyper-parameters and class frequencies are given at construction; no state is kept between calls.
    """

    anchors: Tensor
    level_balance: Tensor
    class_rarity: Tensor

    def __init__(
        self,
        anchors: Tensor,
        num_classes: int,
        hyp: HypConfig,
        class_counts: Tensor | None = None,
        reduce_counts: Callable[[Tensor], Tensor] | None = None,
        world_size: int = 1,
    ) -> None:
        """Build the criterion.

        Args:
            anchors: [levels, A, 2] in input pixels.
            num_classes: of the detector.
            hyp: weights and options.
            class_counts: [classes] objects per class in the training set, for the class-rarity weight of
                the heatmap's BCE; None: all alike.
            reduce_counts: sums a vector of counts over all processes. With it and world_size, gradients
                averaged over processes (as DDP does) equal those of one process with the joint batch.
            world_size: number of processes.
        """
        super().__init__()
        self.hyp = hyp
        self.reduce_counts = reduce_counts or (lambda counts: counts)
        self.world_size = world_size
        self.register_buffer("anchors", anchors.clone(), persistent=False)
        self.register_buffer("level_balance", anchors.new_tensor(LEVEL_BALANCE), persistent=False)
        counts = torch.ones(num_classes) if class_counts is None else class_counts.float().clamp(min=1)
        self.register_buffer("class_rarity", (counts.max() / counts).sqrt(), persistent=False)

    def forward(self, output: ESODOutput, targets: Tensor, heatmaps: Tensor) -> dict[str, Tensor]:
        """Losses of one batch.

        Args:
            output: of the model in training mode (dense head on every patch).
            targets: [T, 6] (image, class, cx, cy, w, h), boxes in 0–1 of the input.
            heatmaps: [B, 1, H/8, W/8] label heatmaps in 0–1.

        Returns ``box``, ``obj``, ``cls``, ``heatmap`` (this process's share of the mean over all, weighted)
        and ``total``: their sum × the number of images in the joint batch, so that accumulated gradients
        add up. With no object or no patch they are zero or the loss of "nothing is here", never NaN.
        """
        map_hw = (heatmaps.shape[2], heatmaps.shape[3])
        input_hw = (map_hw[0] * STRIDE, map_hw[1] * STRIDE)
        in_patch = targets_in_patches(targets, output.patches, input_hw)
        levels = [
            self._level(level, anchors_px, in_patch, len(heatmaps))
            for level, anchors_px in zip(output.levels, self.anchors, strict=True)
        ]
        return self._combine(levels, self._heatmap(output.heatmap_logits, targets, heatmaps), len(heatmaps))

    def _combine(self, levels: list[LevelTerms], heatmap: list[Mean], images: int) -> dict[str, Tensor]:
        """Weigh and add the terms of the levels and of the heatmap; their counts are shared in one go."""
        terms = [term for level in levels for term in level] + heatmap
        counts = torch.stack([t.count.float() for t in terms] + [self.anchors.new_full((), float(images))])
        counts = self.reduce_counts(counts)
        means = [t.total / n.clamp(min=1) for t, n in zip(terms, counts[:-1], strict=True)]
        first = len(terms) - len(heatmap)
        box, obj, cls = torch.stack(means[:first]).view(len(levels), -1).unbind(dim=1)
        losses = {
            "box": box.sum() * self.hyp.box,
            "obj": (obj * self.level_balance).sum() * self.hyp.obj,
            "cls": cls.sum() * self.hyp.cls,
            "heatmap": torch.stack(means[first:]).sum() * self.hyp.heatmap,
        }
        # DDP divides by the number of processes what has been divided by the joint counts already.
        losses["total"] = torch.stack(list(losses.values())).sum() * counts[-1] * self.world_size
        return losses

    def _level(
        self, level: LevelOutput, anchors_px: Tensor, targets: PatchTargets, images: int
    ) -> LevelTerms:
        """Box, objectness and class terms of one level."""
        raw = level.raw.float()
        objectness = torch.zeros_like(raw[..., 4])
        found = assign_level(targets, anchors_px, level.stride, level.grid_hw, self.hyp.anchor_t)
        # Indexing with nothing keeps the predictions in the graph: all processes see the same parameters.
        chosen = raw[found.row, found.anchor]
        origin = torch.zeros((len(chosen), 3), dtype=torch.int64, device=raw.device)
        predicted = decode_boxes(
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
        return LevelTerms(
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

    def _heatmap(self, logits: Tensor | None, targets: Tensor, heatmaps: Tensor) -> list[Mean]:
        """The heatmap's terms; none for a model without a seeker."""
        if logits is None:
            return [Mean(self.anchors.new_zeros(()), self.anchors.new_ones(()))]
        logits = logits.float()
        if self.hyp.heatmap_loss == "focal_dice":
            return focal_dice_loss(logits, heatmaps)
        return [weighted_bce_loss(logits, heatmaps, cell_weights(targets, heatmaps, self.class_rarity))]


def complete_iou(first: Tensor, second: Tensor) -> Tensor:
    """Complete IoU of paired boxes: overlap less centre distance and difference of shape (CIoU, arXiv 1911.08287).

    From centres and sizes, not corners: a tiny predicted side would vanish in the difference of corners and
    make the gradient of the aspect ratio NaN.

    Args:
        first, second: [N, 4] (cx, cy, w, h) in pixels.

    Returns [N], at most 1.
    """
    low = torch.maximum(first[:, :2] - first[:, 2:] / 2, second[:, :2] - second[:, 2:] / 2)
    high = torch.minimum(first[:, :2] + first[:, 2:] / 2, second[:, :2] + second[:, 2:] / 2)
    outer_low = torch.minimum(first[:, :2] - first[:, 2:] / 2, second[:, :2] - second[:, 2:] / 2)
    outer_high = torch.maximum(first[:, :2] + first[:, 2:] / 2, second[:, :2] + second[:, 2:] / 2)
    shared = (high - low).clamp(min=0).prod(dim=1)
    iou = shared / (first[:, 2:].prod(dim=1) + second[:, 2:].prod(dim=1) - shared + EPSILON_PX)
    distance = (first[:, :2] - second[:, :2]).square().sum(dim=1)
    diagonal = (outer_high - outer_low).square().sum(dim=1) + EPSILON_PX
    angle = torch.atan2(second[:, 2], second[:, 3]) - torch.atan2(first[:, 2], first[:, 3] + EPSILON_PX)
    shape = 4 / math.pi**2 * angle.square()
    with torch.no_grad():
        weight = shape / (1 - iou + shape + EPSILON_PX)
    return iou - distance / diagonal - weight * shape


def weighted_bce_loss(logits: Tensor, label: Tensor, weight: Tensor) -> Mean:
    """Weighted binary cross-entropy of the heatmap, per unit of label.

    The sum over the map is divided by the label's mass instead of the number of cells, because objects
    cover a small and varying share of it; at least `LEAST_LABEL_SHARE` of the map, so that images with few
    or no objects do not outweigh all others. [B,1,h,w] each.
    """
    loss = F.binary_cross_entropy_with_logits(logits, label, weight=weight, reduction="sum")
    return Mean(loss, label.sum() + LEAST_LABEL_SHARE * label.numel())


def focal_dice_loss(logits: Tensor, label: Tensor) -> list[Mean]:
    """Focal and dice loss in the ratio 20:1 (paper section III-B), both on soft labels. [B,1,h,w] each."""
    share = FOCAL_TO_DICE / (FOCAL_TO_DICE + 1)
    focal = sigmoid_focal_loss(logits, label, reduction="sum")
    prob, flat = logits.sigmoid().flatten(1), label.flatten(1)
    overlap = 2 * (prob * flat).sum(dim=1) + 1
    dice = 1 - overlap / (prob.square().sum(dim=1) + flat.square().sum(dim=1) + 1)
    images = logits.new_full((), float(len(logits)))
    mass = label.sum() + LEAST_LABEL_SHARE * label.numel()
    return [Mean(focal * share, mass), Mean(dice.sum() * (1 - share), images)]


def cell_weights(targets: Tensor, heatmaps: Tensor, class_rarity: Tensor) -> Tensor:
    """Weight of every heatmap cell in the BCE: 1 + log r where an object is, 1 elsewhere.

    r is the larger of (TINY_AREA_PX / area)² for tiny objects and the class-rarity factor, at least 1;
    of overlapping objects the largest weight counts (method of the released models).

    Args:
        targets: [T, 6] (image, class, cx, cy, w, h)_norm.
        heatmaps: [B, 1, h, w], only its shape is used.
        class_rarity: [classes], ≥ 1.

    Returns [B, 1, h, w].
    """
    batch, _, height, width = heatmaps.shape
    scale = targets.new_tensor([width, height])
    xy, wh = targets[:, 2:4] * scale, targets[:, 4:6] * scale
    tiny = (TINY_AREA_PX / (wh.prod(dim=1) * STRIDE**2).clamp(min=1.0)).square()
    ratio = torch.maximum(tiny, class_rarity[targets[:, 1].long()]).clamp(min=1)
    weight = (1 + ratio.log()).clamp(max=MAX_WEIGHT)

    limit = targets.new_tensor([width, height]).long() - 1
    first = torch.minimum((xy - wh / 2).long().clamp(min=0), limit)
    last = torch.minimum((xy + wh / 2).long().clamp(min=0), limit)
    columns, rows = (last - first + 1).unbind(dim=1)
    area = rows * columns
    owner = torch.arange(len(targets), device=targets.device).repeat_interleave(area)
    inner = torch.arange(len(owner), device=targets.device) - (area.cumsum(0) - area)[owner]
    y = first[owner, 1] + inner // columns[owner]
    x = first[owner, 0] + inner % columns[owner]
    cell = (targets[owner, 0].long() * height + y) * width + x
    flat = targets.new_ones(batch * height * width)
    return flat.scatter_reduce_(0, cell, weight[owner], reduce="amax").view(batch, 1, height, width)
