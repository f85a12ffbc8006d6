"""Losses of the heatmap head."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from models.losses.base import Mean
from models.slicer import STRIDE

TINY_AREA_PX = 256.0
"""Objects below this area (16×16 input pixels) weigh more in the weighted BCE of the heatmap."""
MAX_WEIGHT = 5.0
LEAST_LABEL_SHARE = 0.01
FOCAL_TO_DICE = 20.0
"""Paper, section III-B: focal and dice loss 20:1."""


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
