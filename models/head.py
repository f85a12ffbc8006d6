"""Detection heads: the raw predictions per pyramid level, on whole patches or on selected positions.

No decoding, no suppression, no loss here: see models/coders.py, models/decode.py and models/loss.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.borders import Surroundings
from models.coders import BoxCoder
from models.layers import Conv
from models.levels import HeadPositions, LevelOutput, all_positions
from models.sparse import gather_neighbourhoods, gather_rows, scatter_rows

DENSE_ABOVE = {4: 0.45, 8: 0.45, 16: 0.5, 32: 0.9}
"""By stride, the selected share of the positions above which a sparse head with one 3×3 convolution per branch
computes everything and picks; measured, see docs/notes/sparse-head.md (stride 4 was not: it has that of stride 8)."""
DENSE_ABOVE_TWO = 0.3
"""The same with two convolutions in a row at any stride, for the mean of the shares that they compute."""


class TwoBranchLevel(nn.Module):
    """What levels with a box branch and a class branch of 3×3 convolutions have in common.

    Attributes:
        reg_conv, cls_conv: the branches, one `Conv` each or two in a row.
        surroundings: what neighbourhoods hold beyond the border of a patch; None: zeros.
    """

    reg_conv: nn.Module
    cls_conv: nn.Module
    surroundings: Surroundings | None = None

    def neighbourhoods(self, features: Tensor, position: Tensor) -> Tensor:
        """See `gather_neighbourhoods`."""
        if self.surroundings is None:
            return gather_neighbourhoods(features, position)
        return self.surroundings.neighbourhoods(features, position)


class DecoupledLevel(TwoBranchLevel):
    """One level of ESOD's decoupled head (YOLOv6's): a shared 1×1 stem, then a 3×3 branch for classes and one for boxes.

    raw [M, A, 5 + classes]; see `AnchorCoder`.
    """

    needs_around = False

    def __init__(self, channels: int, num_anchors: int, num_classes: int, stride: int, eps: float) -> None:
        super().__init__()
        self.num_anchors, self.stride = num_anchors, stride
        self.sizes = (4, 1, num_classes)
        self.stem = Conv(channels, channels, 1, eps=eps)
        self.cls_conv = Conv(channels, channels, 3, eps=eps)
        self.reg_conv = Conv(channels, channels, 3, eps=eps)
        self.cls_pred = nn.Conv2d(channels, num_anchors * num_classes, 1)
        self.reg_pred = nn.Conv2d(channels, num_anchors * 4, 1)
        self.obj_pred = nn.Conv2d(channels, num_anchors, 1)
        _init_bias(self.obj_pred, _objectness_prior(stride))
        _init_bias(self.cls_pred, _class_prior(num_classes))

    def forward(self, features: Tensor, where: HeadPositions | None = None) -> LevelOutput:
        """Features [K,C,h,w] → predictions everywhere, or only at some positions."""
        x = self.stem(features)
        reg, cls, position = _two_branches(self, x, where, DENSE_ABOVE[self.stride])
        parts = ((self.reg_pred, reg), (self.obj_pred, reg), (self.cls_pred, cls))
        rows = [predict_rows(conv, r) for conv, r in parts]
        raw = torch.cat(
            [r.unflatten(1, (self.num_anchors, n)) for r, n in zip(rows, self.sizes, strict=True)], dim=2
        )
        return LevelOutput(raw, position, self.stride, (x.shape[2], x.shape[3]))


class CentreLevel(TwoBranchLevel):
    """One level of the CenterNet-style head: the decoupled head without anchors and without objectness.

    raw [M, 1, 4 + classes]; see `CentreCoder`.
    """

    needs_around = False

    def __init__(self, channels: int, num_classes: int, stride: int, eps: float) -> None:
        super().__init__()
        self.stride = stride
        self.stem = Conv(channels, channels, 1, eps=eps)
        self.cls_conv = Conv(channels, channels, 3, eps=eps)
        self.reg_conv = Conv(channels, channels, 3, eps=eps)
        self.cls_pred = nn.Conv2d(channels, num_classes, 1)
        self.reg_pred = nn.Conv2d(channels, 4, 1)
        # CenterNet starts every class at a probability of 0.1.
        _init_bias(self.cls_pred, -2.19)

    def forward(self, features: Tensor, where: HeadPositions | None = None) -> LevelOutput:
        """Features [K,C,h,w] → predictions everywhere, or only at some positions."""
        x = self.stem(features)
        reg, cls, position = _two_branches(self, x, where, DENSE_ABOVE[self.stride])
        raw = torch.cat((predict_rows(self.reg_pred, reg), predict_rows(self.cls_pred, cls)), dim=1)
        return LevelOutput(raw.unsqueeze(1), position, self.stride, (x.shape[2], x.shape[3]))


class DistanceLevel(TwoBranchLevel):
    """One level of YOLOv8's head: per branch two 3×3 convolutions and a 1×1, for distances and for classes.

    raw [M, 1, 4·bins + classes]; see `DistanceCoder`.
    """

    needs_around = True

    def __init__(
        self, channels: int, hidden: tuple[int, int], num_classes: int, bins: int, stride: int, eps: float
    ) -> None:
        """Build the level.

        Args:
            channels: of the features.
            hidden: channels of the box branch and of the class branch.
            num_classes, bins: see `DistanceCoder`.
            stride: input pixels per grid step.
            eps: of BatchNorm.
        """
        super().__init__()
        self.stride = stride
        box, cls = hidden
        self.reg_conv = nn.Sequential(Conv(channels, box, 3, eps=eps), Conv(box, box, 3, eps=eps))
        self.cls_conv = nn.Sequential(Conv(channels, cls, 3, eps=eps), Conv(cls, cls, 3, eps=eps))
        self.reg_pred = nn.Conv2d(box, 4 * bins, 1)
        self.cls_pred = nn.Conv2d(cls, num_classes, 1)
        _init_bias(self.reg_pred, 1.0)
        _init_bias(self.cls_pred, math.log(5 / num_classes / (640 / stride) ** 2))

    def forward(self, features: Tensor, where: HeadPositions | None = None) -> LevelOutput:
        """Features [K,C,h,w] → predictions everywhere, or only at some positions."""
        reg, cls, position = _two_branches(self, features, where, DENSE_ABOVE_TWO)
        raw = torch.cat((predict_rows(self.reg_pred, reg), predict_rows(self.cls_pred, cls)), dim=1)
        return LevelOutput(raw.unsqueeze(1), position, self.stride, (features.shape[2], features.shape[3]))


class SingleLevel(nn.Module):
    """Plain YOLOv5's head: one 1×1 convolution that predicts everything. Always dense."""

    needs_around = False

    def __init__(self, channels: int, num_anchors: int, num_classes: int, stride: int) -> None:
        super().__init__()
        self.num_anchors, self.stride = num_anchors, stride
        self.predict = nn.Conv2d(channels, num_anchors * (5 + num_classes), 1)

    def forward(self, features: Tensor, where: HeadPositions | None = None) -> LevelOutput:
        """Features [K,C,h,w] → predictions everywhere."""
        if where is not None:
            raise ValueError(
                "the single-convolution head is always dense: use head.kind 'decoupled' for --head sparse"
            )
        grid_hw = (features.shape[2], features.shape[3])
        rows = self.predict(features).permute(0, 2, 3, 1).flatten(0, 2)
        raw = rows.unflatten(1, (self.num_anchors, -1))
        return LevelOutput(raw, all_positions(len(features), grid_hw, features.device), self.stride, grid_hw)


class DetectionHead(nn.Module):
    """One head per pyramid level, and how to read what they say."""

    def __init__(self, levels: Sequence[nn.Module], coder: BoxCoder) -> None:
        super().__init__()
        # The order of gathered neighbourhoods, so that `Conv.forward_rows` need not copy the weights.
        self.levels = nn.ModuleList(levels).to(memory_format=torch.channels_last)
        self.coder = coder

    @property
    def needs_around(self) -> bool:
        """Whether a sparse forward pass needs `HeadPositions.around`."""
        return bool(self.levels[0].needs_around)

    def see(self, surroundings: Surroundings) -> None:
        """From now on, positions that are computed alone read what lies beyond the border of a patch."""
        for level in self.levels:
            if isinstance(level, TwoBranchLevel):
                level.surroundings = surroundings

    def forward(
        self, pyramid: Sequence[Tensor], positions: Sequence[HeadPositions | None] | None = None
    ) -> list[LevelOutput]:
        """Pyramid of [K,C,h,w] → one `LevelOutput` per level; positions of None, or none at all, mean everywhere."""
        positions = [None] * len(self.levels) if positions is None else positions
        return [level(x, p) for level, x, p in zip(self.levels, pyramid, positions, strict=True)]


def predict_rows(conv: nn.Conv2d, features: Tensor) -> Tensor:
    """A 1×1 convolution on maps [K, in, h, w] or on gathered rows [M, in], as rows [M, out]."""
    if features.ndim == 4:
        return conv(features).permute(0, 2, 3, 1).flatten(0, 2)  # type: ignore[no-any-return]
    return F.linear(features, conv.weight.flatten(1), conv.bias)


def _two_branches(
    level: TwoBranchLevel, x: Tensor, where: HeadPositions | None, dense_above: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Box and class features, maps [K,C,h,w] or rows [M,C] at selected positions, and all positions [M,3].

    When more than the share ``dense_above`` is selected, whole maps are computed and rows picked. That is decided
    from sizes, which the host knows: no wait for the device.
    """
    patches, _, height, width = x.shape
    reg_conv, cls_conv = level.reg_conv, level.cls_conv
    if where is None:
        return reg_conv(x), cls_conv(x), all_positions(patches, (height, width), x.device)
    first = where.around if isinstance(reg_conv, nn.Sequential) else where.wanted
    assert first is not None
    if len(first) + len(where.wanted) > 2 * dense_above * patches * height * width:
        return gather_rows(reg_conv(x), where.wanted), gather_rows(cls_conv(x), where.wanted), where.wanted
    near = level.neighbourhoods(x, first)
    reg, cls = (_branch_rows(level, branch, near, where, x) for branch in (reg_conv, cls_conv))
    return reg, cls, where.wanted


def _branch_rows(
    level: TwoBranchLevel, branch: nn.Module, near: Tensor, where: HeadPositions, like: Tensor
) -> Tensor:
    """One or two 3×3 convolutions at selected positions only: [M,C].

    Args:
        level: whose branch it is.
        branch: a Conv, or two in a row.
        near: [M',3,3,in] neighbourhoods that the first one reads, of `HeadPositions.around` when there are two.
        where: positions.
        like: [K,in,h,w], what they are positions of.
    """
    if isinstance(branch, Conv):
        return branch.forward_rows(near)
    assert isinstance(branch, nn.Sequential) and where.around is not None
    first, second = branch
    assert isinstance(first, Conv) and isinstance(second, Conv)
    # All that the second convolution reads is computed, or beyond the border.
    between = scatter_rows(first.forward_rows(near), where.around, like)
    return second.forward_rows(level.neighbourhoods(between, where.wanted))


def _objectness_prior(stride: int) -> float:
    """Bias for about eight objects in a 640-pixel image before training (focal-loss paper, section 3.3)."""
    return math.log(8 / (640 / stride) ** 2)


def _class_prior(num_classes: int) -> float:
    return math.log(0.6 / (num_classes - 0.99))


def _init_bias(conv: nn.Conv2d, value: float) -> None:
    assert conv.bias is not None
    nn.init.constant_(conv.bias, value)
