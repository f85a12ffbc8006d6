"""Overlap of paired boxes, as losses and assignment see it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPSILON_PX = 1e-6


def plain_iou(first: Tensor, second: Tensor) -> Tensor:
    """Area shared by paired boxes over the area of both: [N, 4] (cx, cy, w, h) in pixels each → [N] in 0–1."""
    low = torch.maximum(first[:, :2] - first[:, 2:] / 2, second[:, :2] - second[:, 2:] / 2)
    high = torch.minimum(first[:, :2] + first[:, 2:] / 2, second[:, :2] + second[:, 2:] / 2)
    shared = (high - low).clamp(min=0).prod(dim=1)
    return shared / (first[:, 2:].prod(dim=1) + second[:, 2:].prod(dim=1) - shared + EPSILON_PX)


def complete_iou(first: Tensor, second: Tensor) -> Tensor:
    """Complete IoU of paired boxes: overlap less centre distance and difference of shape (CIoU, arXiv 1911.08287).

    From centres and sizes, not corners: a tiny predicted side would vanish in the difference of corners and
    make the gradient of the aspect ratio NaN.

    Args:
        first, second: [N, 4] (cx, cy, w, h) in pixels.

    Returns [N], at most 1.
    """
    iou = plain_iou(first, second)
    outer_low = torch.minimum(first[:, :2] - first[:, 2:] / 2, second[:, :2] - second[:, 2:] / 2)
    outer_high = torch.maximum(first[:, :2] + first[:, 2:] / 2, second[:, :2] + second[:, 2:] / 2)
    distance = (first[:, :2] - second[:, :2]).square().sum(dim=1)
    diagonal = (outer_high - outer_low).square().sum(dim=1) + EPSILON_PX
    angle = torch.atan2(second[:, 2], second[:, 3]) - torch.atan2(first[:, 2], first[:, 3] + EPSILON_PX)
    shape = 4 / math.pi**2 * angle.square()
    with torch.no_grad():
        weight = shape / (1 - iou + shape + EPSILON_PX)
    return iou - distance / diagonal - weight * shape
