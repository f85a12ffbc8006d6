"""Necks: mix the pyramid levels, so that each knows what the others saw."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers import Conv

Block = Callable[[int, int], nn.Module]
"""Builds a block from its input and output channels."""


def upsample2(x: Tensor) -> Tensor:
    """Nearest-neighbour upsampling by two."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class PANNeck(nn.Module):
    """Path aggregation (arXiv 1803.01534), top-down and then bottom-up: (stride 8, 16, 32) → the same shapes.

    Args:
        channels: of the three levels.
        block: what follows each concatenation: C3 in YOLOv5, C2f in YOLOv8, a CSP layer in RTMDet.
        eps: of BatchNorm.
        laterals: reduce the channels by a 1×1 convolution on the way up (YOLOv5, RTMDet) or not (YOLOv8).
    """

    def __init__(
        self, channels: tuple[int, int, int], block: Block, eps: float, laterals: bool = True
    ) -> None:
        super().__init__()
        c3, c4, c5 = channels
        up5, up4 = (c4, c3) if laterals else (c5, c4)
        self.lateral5 = Conv(c5, up5, 1, eps=eps) if laterals else nn.Identity()
        self.top_down4 = block(up5 + c4, c4)
        self.lateral4 = Conv(c4, up4, 1, eps=eps) if laterals else nn.Identity()
        self.top_down3 = block(up4 + c3, c3)
        self.down3 = Conv(c3, c3, 3, 2, eps=eps)
        self.bottom_up4 = block(c3 + up4, c4)
        self.down4 = Conv(c4, c4, 3, 2, eps=eps)
        self.bottom_up5 = block(c4 + up5, c5)

    def forward(self, p3: Tensor, p4: Tensor, p5: Tensor) -> list[Tensor]:
        """Features at strides 8, 16, 32 of K patches → the same shapes."""
        lateral5 = self.lateral5(p5)
        top4 = self.top_down4(torch.cat((upsample2(lateral5), p4), dim=1))
        lateral4 = self.lateral4(top4)
        out3 = self.top_down3(torch.cat((upsample2(lateral4), p3), dim=1))
        out4 = self.bottom_up4(torch.cat((self.down3(out3), lateral4), dim=1))
        out5 = self.bottom_up5(torch.cat((self.down4(out4), lateral5), dim=1))
        return [out3, out4, out5]


class FinePANNeck(PANNeck):
    """Path aggregation over four levels: (stride 8, 16, 32, 4) → the same shapes.

    The parts that a `PANNeck` has are called as there, so that weights of a model without stride 4 fill them.

    Args:
        channels, block, eps, laterals: see `PANNeck`.
        fine: channels at stride 4.
    """

    def __init__(
        self,
        channels: tuple[int, int, int],
        block: Block,
        eps: float,
        laterals: bool = True,
        *,
        fine: int,
    ) -> None:
        super().__init__(channels, block, eps, laterals)
        c3 = channels[0]
        up3 = fine if laterals else c3
        self.lateral3 = Conv(c3, up3, 1, eps=eps) if laterals else nn.Identity()
        self.top_down2 = block(up3 + fine, fine)
        self.down2 = Conv(fine, fine, 3, 2, eps=eps)
        self.bottom_up3 = block(fine + up3, c3)

    def forward(self, p3: Tensor, p4: Tensor, p5: Tensor, p2: Tensor | None = None) -> list[Tensor]:
        """Features at strides 8, 16, 32 and 4 of K patches → the same shapes."""
        assert p2 is not None
        lateral5 = self.lateral5(p5)
        top4 = self.top_down4(torch.cat((upsample2(lateral5), p4), dim=1))
        lateral4 = self.lateral4(top4)
        top3 = self.top_down3(torch.cat((upsample2(lateral4), p3), dim=1))
        lateral3 = self.lateral3(top3)
        out2 = self.top_down2(torch.cat((upsample2(lateral3), p2), dim=1))
        out3 = self.bottom_up3(torch.cat((self.down2(out2), lateral3), dim=1))
        out4 = self.bottom_up4(torch.cat((self.down3(out3), lateral4), dim=1))
        out5 = self.bottom_up5(torch.cat((self.down4(out4), lateral5), dim=1))
        return [out3, out4, out5, out2]


def build_pan(
    channels: tuple[int, int, int], block: Block, eps: float, laterals: bool = True, fine: int | None = None
) -> PANNeck:
    """Path aggregation over strides 8, 16, 32 and, with the channels of that level, 4."""
    if fine is None:
        return PANNeck(channels, block, eps, laterals)
    return FinePANNeck(channels, block, eps, laterals, fine=fine)


class FPNNeck(nn.Module):
    """Feature pyramid (arXiv 1612.03144), top-down sums: three levels → `channels` channels each.

    Plain convolutions with bias, as in torchvision's RetinaNet, whose `fpn` they can be filled from.
    """

    def __init__(self, in_channels: tuple[int, int, int], channels: int) -> None:
        super().__init__()
        self.inner = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)

    def forward(self, p3: Tensor, p4: Tensor, p5: Tensor) -> list[Tensor]:
        """Features at strides 8, 16, 32 of K patches → [K, channels, h / 2^i, w / 2^i]."""
        inner5 = self.inner[2](p5)
        inner4 = self.inner[1](p4) + upsample2(inner5)
        inner3 = self.inner[0](p3) + upsample2(inner4)
        return [output(x) for output, x in zip(self.output, (inner3, inner4, inner5), strict=True)]
