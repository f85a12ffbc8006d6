"""Detection heads: the raw predictions per pyramid level, on whole patches or on selected positions.

No decoding, no suppression, no loss here: see models/decode.py, utils/boxes.py and models/loss.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers import Conv
from models.sparse import gather_neighbourhoods
from utils.config import ModelConfig

STRIDES = (8, 16, 32)


@dataclass
class LevelOutput:
    """Raw predictions of one pyramid level.

    Attributes:
        raw: [M, A, 5 + classes] logits: box (x, y, w, h), objectness, classes.
        position: [M, 3] int64 (patch, row, column) in this level's grid of the patch.
        stride: input pixels per grid step.
        grid_hw: rows and columns of a patch at this level.
    """

    raw: Tensor
    position: Tensor
    stride: int
    grid_hw: tuple[int, int]


def all_positions(patches: int, grid_hw: tuple[int, int], device: torch.device) -> Tensor:
    """Every (patch, row, column), patch by patch, row by row: [patches·h·w, 3] int64."""
    axes = [torch.arange(n, device=device) for n in (patches, *grid_hw)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).view(-1, 3)


class DecoupledLevel(nn.Module):
    """One level of the decoupled head: a shared 1×1 stem, then a 3×3 branch for classes and one for boxes."""

    def __init__(self, channels: int, num_anchors: int, num_classes: int, stride: int, eps: float) -> None:
        super().__init__()
        self.num_anchors, self.num_classes, self.stride = num_anchors, num_classes, stride
        self.stem = Conv(channels, channels, 1, eps=eps)
        self.cls_conv = Conv(channels, channels, 3, eps=eps)
        self.reg_conv = Conv(channels, channels, 3, eps=eps)
        self.cls_pred = nn.Conv2d(channels, num_anchors * num_classes, 1)
        self.reg_pred = nn.Conv2d(channels, num_anchors * 4, 1)
        self.obj_pred = nn.Conv2d(channels, num_anchors, 1)
        _init_bias(self.obj_pred, _objectness_prior(stride))
        _init_bias(self.cls_pred, _class_prior(num_classes))

    def forward(self, features: Tensor, position: Tensor | None = None) -> LevelOutput:
        """Features [K,C,h,w] → predictions everywhere, or only at position [M,3] (patch, row, column)."""
        x = self.stem(features)
        grid_hw = (x.shape[2], x.shape[3])
        if position is None:
            maps = [
                self.reg_pred(reg := self.reg_conv(x)),
                self.obj_pred(reg),
                self.cls_pred(self.cls_conv(x)),
            ]
            rows = [m.permute(0, 2, 3, 1).flatten(0, 2) for m in maps]
            position = all_positions(len(x), grid_hw, x.device)
        else:
            near = gather_neighbourhoods(x, position)
            reg, cls = self.reg_conv.forward_rows(near), self.cls_conv.forward_rows(near)
            rows = [
                _predict_rows(p, r)
                for p, r in ((self.reg_pred, reg), (self.obj_pred, reg), (self.cls_pred, cls))
            ]
        sizes = (4, 1, self.num_classes)
        raw = torch.cat(
            [r.unflatten(1, (self.num_anchors, n)) for r, n in zip(rows, sizes, strict=True)], dim=2
        )
        return LevelOutput(raw, position, self.stride, grid_hw)


class SingleLevel(nn.Module):
    """Plain YOLOv5's head: one 1×1 convolution that predicts everything. Always dense."""

    def __init__(self, channels: int, num_anchors: int, num_classes: int, stride: int) -> None:
        super().__init__()
        self.num_anchors, self.stride = num_anchors, stride
        self.predict = nn.Conv2d(channels, num_anchors * (5 + num_classes), 1)

    def forward(self, features: Tensor, position: Tensor | None = None) -> LevelOutput:
        """Features [K,C,h,w] → predictions everywhere."""
        if position is not None:
            raise ValueError(
                "the single-convolution head is always dense: use head.kind 'decoupled' for --head sparse"
            )
        grid_hw = (features.shape[2], features.shape[3])
        rows = self.predict(features).permute(0, 2, 3, 1).flatten(0, 2)
        raw = rows.unflatten(1, (self.num_anchors, -1))
        return LevelOutput(raw, all_positions(len(features), grid_hw, features.device), self.stride, grid_hw)


class DetectionHead(nn.Module):
    """One head per pyramid level, and the anchors [level, anchor, (w, h)] in input pixels."""

    anchors: Tensor

    def __init__(self, levels: Sequence[nn.Module], anchors: Tensor) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)
        # Geometry from the configuration, not a weight: half precision in a file would move boxes.
        self.register_buffer("anchors", anchors, persistent=False)

    def forward(self, pyramid: Sequence[Tensor], positions: Sequence[Tensor | None]) -> list[LevelOutput]:
        """Pyramid of [K,C,h,w] → one `LevelOutput` per level; a position of None means everywhere."""
        return [level(x, p) for level, x, p in zip(self.levels, pyramid, positions, strict=True)]


def build_head(channels: Sequence[int], config: ModelConfig) -> DetectionHead:
    """The configured head on pyramid levels with these channels."""
    anchors = torch.tensor(config.anchors, dtype=torch.float32)
    num_anchors = anchors.shape[1]
    levels: list[nn.Module] = []
    for c, stride in zip(channels, STRIDES, strict=True):
        if config.head.kind == "single":
            levels.append(SingleLevel(c, num_anchors, config.num_classes, stride))
        else:
            levels.append(DecoupledLevel(c, num_anchors, config.num_classes, stride, config.bn_eps))
    return DetectionHead(levels, anchors)


def _predict_rows(conv: nn.Conv2d, rows: Tensor) -> Tensor:
    """A 1×1 convolution on rows: [M, in] → [M, out]."""
    return F.linear(rows, conv.weight.flatten(1), conv.bias)


def _objectness_prior(stride: int) -> float:
    """Bias for about eight objects in a 640-pixel image before training (focal-loss paper, section 3.3)."""
    return math.log(8 / (640 / stride) ** 2)


def _class_prior(num_classes: int) -> float:
    return math.log(0.6 / (num_classes - 0.99))


def _init_bias(conv: nn.Conv2d, value: float) -> None:
    assert conv.bias is not None
    nn.init.constant_(conv.bias, value)
