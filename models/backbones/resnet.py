"""RetinaNet's body: ResNet-50 of torchvision's own blocks, cut after stride 8, and a feature pyramid.

Blocks and names are torchvision's, so its ImageNet and COCO weights fit by renaming prefixes.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import Bottleneck

from models.backbones.base import Backbone
from models.layers import Conv, Fusable, scale_channels
from models.neck import FPNNeck
from models.slicer import Patches
from utils.config import ModelConfig

REPEATS = (3, 4, 6, 3)
"""Bottlenecks at strides 4, 8, 16 and 32 of ResNet-50 (arXiv 1512.03385, table 1). Not scaled by depth."""


class ResidualStage(nn.Sequential, Fusable):
    """Bottlenecks of one resolution, the first with the stride. [B,in,H,W] → [B,out,H/stride,W/stride]."""

    def __init__(self, in_channels: int, out_channels: int, repeats: int, stride: int, eps: float) -> None:
        norm = partial(nn.BatchNorm2d, eps=eps, momentum=0.03)
        planes = out_channels // Bottleneck.expansion
        downsample = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), norm(out_channels)
        )
        blocks = [Bottleneck(in_channels, planes, stride, downsample, norm_layer=norm)]
        blocks += [Bottleneck(out_channels, planes, norm_layer=norm) for _ in range(repeats - 1)]
        super().__init__(*blocks)

    @torch.no_grad()
    def fuse(self) -> None:
        """See `Fusable`."""
        for block in self:
            for number in (1, 2, 3):
                _fuse_pair(block, f"conv{number}", f"bn{number}")
            if isinstance(block.downsample, nn.Module):
                _fuse_pair(block.downsample, "0", "1")


class ResNetDeep(nn.Module):
    """Strides 16 and 32 from stride-8 features: [K,c3,h,w] → ([K,c3,h,w], [K,c4,h/2,w/2], [K,c5,h/4,w/4])."""

    def __init__(self, channels: tuple[int, int, int], eps: float) -> None:
        super().__init__()
        c3, c4, c5 = channels
        self.stage4 = ResidualStage(c3, c4, REPEATS[2], 2, eps)
        self.stage5 = ResidualStage(c4, c5, REPEATS[3], 2, eps)

    def forward(self, features: Tensor, patches: Patches) -> tuple[Tensor, Tensor, Tensor]:
        """Each patch alone; see `Backbone.deep`."""
        p4 = self.stage4(features)
        return features, p4, self.stage5(p4)


def build_retinanet(config: ModelConfig) -> Backbone:
    """ResNet-50 and FPN of the configured width; the depth is ResNet-50's."""
    c1, c2, c3, c4, c5 = (scale_channels(c, config.width) for c in (64, 256, 512, 1024, 2048))
    eps = config.bn_eps
    stem = nn.Sequential(
        Conv(3, c1, 7, 2, eps=eps, activation=nn.ReLU),
        nn.MaxPool2d(3, 2, 1),
        ResidualStage(c1, c2, REPEATS[0], 1, eps),
        ResidualStage(c2, c3, REPEATS[1], 2, eps),
    )
    pyramid = scale_channels(256, config.width)
    neck = FPNNeck((c3, c4, c5), pyramid)
    return Backbone(stem, ResNetDeep((c3, c4, c5), eps), neck, c3, (pyramid, pyramid, pyramid))


def _fuse_pair(parent: nn.Module, conv: str, bn: str) -> None:
    """Replace a convolution and the BatchNorm behind it by one convolution."""
    norm = getattr(parent, bn)
    if isinstance(norm, nn.Identity):
        return
    setattr(parent, conv, fuse_conv_bn_eval(getattr(parent, conv), norm))
    setattr(parent, bn, nn.Identity())
