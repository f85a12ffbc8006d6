"""CSPNeXt bodies and necks of RTMDet (arXiv 2212.07784, section 3.1), cut after stride 8 into stem and deep part.

Parameter names inside a block (`main_conv`, `blocks.0.conv2.depthwise_conv`, …) are those of the published files, so
that converting one is a matter of renaming prefixes only (see models/convert/rtmdet.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones.base import Backbone
from models.layers import SPP, Conv, scale_channels, scale_repeats
from models.neck import PANNeck
from models.slicer import Patches
from utils.config import ModelConfig

CHANNELS = (32, 64, 128, 256, 512, 1024)
"""Of the first two convolutions and of the strides 2, 4, 8, 16 and 32, before scaling by width."""
REPEATS = (3, 6, 6, 3)
"""Blocks of the stages at strides 4, 8, 16 and 32, before scaling by depth."""
NECK_REPEATS = 3
KERNEL = 5
"""Of the depth-wise convolutions: large kernels are what the paper adds to the CSP block."""
SPP_KERNELS = (5, 9, 13)


class SeparableConv(nn.Module):
    """Depth-wise convolution per channel, then a 1×1 across channels. [B,C,H,W] → [B,C,H,W]."""

    def __init__(self, channels: int, kernel: int, eps: float) -> None:
        super().__init__()
        self.depthwise_conv = Conv(channels, channels, kernel, groups=channels, eps=eps)
        self.pointwise_conv = Conv(channels, channels, 1, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise_conv(self.depthwise_conv(x))  # type: ignore[no-any-return]


class CSPNeXtBlock(nn.Module):
    """3×3 then separable 5×5 convolution, with an identity shortcut when asked for. [B,C,H,W] → [B,C,H,W]."""

    def __init__(self, channels: int, shortcut: bool, eps: float) -> None:
        super().__init__()
        self.conv1 = Conv(channels, channels, 3, eps=eps)
        self.conv2 = SeparableConv(channels, KERNEL, eps)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        return x + y if self.shortcut else y  # type: ignore[no-any-return]


class ChannelAttention(nn.Module):
    """Weighs each channel by a hard sigmoid of a linear function of all channels' means. [B,C,H,W] → [B,C,H,W].

    The mean is over the map it is given: over each patch where the deep part runs on patches.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.fc(x.mean(dim=(2, 3), keepdim=True)))


class CSPLayer(nn.Module):
    """Cross-stage-partial layer: half of the channels through the blocks, half past them. [B,in,H,W] → [B,out,H,W].

    Args:
        in_channels, out_channels: of the layer; inside, each half has out_channels / 2.
        repeats: number of `CSPNeXtBlock`.
        shortcut: of the blocks.
        attention: weigh the channels of the concatenation before the last convolution.
        eps: of BatchNorm.
    """

    def __init__(
        self, in_channels: int, out_channels: int, repeats: int, shortcut: bool, attention: bool, eps: float
    ) -> None:
        super().__init__()
        hidden = out_channels // 2
        self.main_conv = Conv(in_channels, hidden, 1, eps=eps)
        self.short_conv = Conv(in_channels, hidden, 1, eps=eps)
        self.final_conv = Conv(2 * hidden, out_channels, 1, eps=eps)
        self.blocks = nn.Sequential(*(CSPNeXtBlock(hidden, shortcut, eps) for _ in range(repeats)))
        self.attention: nn.Module = ChannelAttention(2 * hidden) if attention else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat((self.blocks(self.main_conv(x)), self.short_conv(x)), dim=1)
        return self.final_conv(self.attention(both))  # type: ignore[no-any-return]


class CSPNeXtDeep(nn.Module):
    """Strides 16 and 32 from stride-8 features: [K,c3,h,w] → ([K,c3,h,w], [K,c4,h/2,w/2], [K,c5,h/4,w/4])."""

    def __init__(self, channels: tuple[int, int, int], repeats: tuple[int, int], eps: float) -> None:
        super().__init__()
        c3, c4, c5 = channels
        self.stage4 = nn.Sequential(
            Conv(c3, c4, 3, 2, eps=eps),
            CSPLayer(c4, c4, repeats[0], shortcut=True, attention=True, eps=eps),
        )
        self.stage5 = nn.Sequential(
            Conv(c4, c5, 3, 2, eps=eps),
            SPP(c5, c5, SPP_KERNELS, eps=eps),
            CSPLayer(c5, c5, repeats[1], shortcut=False, attention=True, eps=eps),
        )

    def forward(self, features: Tensor, patches: Patches) -> tuple[Tensor, Tensor, Tensor]:
        """Each patch alone; see `Backbone.deep`."""
        p4 = self.stage4(features)
        return features, p4, self.stage5(p4)


def build_rtmdet(config: ModelConfig) -> Backbone:
    """RTMDet of the configured depth and width."""
    c0, c1, c2, c3, c4, c5 = (scale_channels(c, config.width, config.channel_multiple) for c in CHANNELS)
    at4, at8, at16, at32 = (scale_repeats(count, config.depth) for count in REPEATS)
    eps, in_neck = config.bn_eps, scale_repeats(NECK_REPEATS, config.depth)
    stem = nn.Sequential(
        Conv(3, c0, 3, 2, eps=eps),
        Conv(c0, c0, 3, eps=eps),
        Conv(c0, c1, 3, eps=eps),
        Conv(c1, c2, 3, 2, eps=eps),
        CSPLayer(c2, c2, at4, shortcut=True, attention=True, eps=eps),
        Conv(c2, c3, 3, 2, eps=eps),
        CSPLayer(c3, c3, at8, shortcut=True, attention=True, eps=eps),
    )
    channels = (c3, c4, c5)
    neck = PANNeck(
        channels, lambda i, o: CSPLayer(i, o, in_neck, shortcut=False, attention=False, eps=eps), eps
    )
    return Backbone(stem, CSPNeXtDeep(channels, (at16, at32), eps), neck, c3, channels)
