"""Path-aggregation neck: mixes the three pyramid levels, top-down and bottom-up."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers import C3, Conv, scale_repeats
from utils.config import ModelConfig


def upsample2(x: Tensor) -> Tensor:
    """Nearest-neighbour upsampling by two."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class PANNeck(nn.Module):
    """YOLOv5's PAN. (stride 8, 16, 32) features → the same shapes, each aware of the others."""

    def __init__(self, channels: tuple[int, int, int], config: ModelConfig) -> None:
        super().__init__()
        c3, c4, c5 = channels
        repeats, eps = scale_repeats(3, config.depth), config.bn_eps
        self.lateral5 = Conv(c5, c4, 1, eps=eps)
        self.top_down4 = C3(2 * c4, c4, repeats, shortcut=False, eps=eps)
        self.lateral4 = Conv(c4, c3, 1, eps=eps)
        self.top_down3 = C3(2 * c3, c3, repeats, shortcut=False, eps=eps)
        self.down3 = Conv(c3, c3, 3, 2, eps=eps)
        self.bottom_up4 = C3(2 * c3, c4, repeats, shortcut=False, eps=eps)
        self.down4 = Conv(c4, c4, 3, 2, eps=eps)
        self.bottom_up5 = C3(2 * c4, c5, repeats, shortcut=False, eps=eps)

    def forward(self, p3: Tensor, p4: Tensor, p5: Tensor) -> list[Tensor]:
        lateral5 = self.lateral5(p5)
        top4 = self.top_down4(torch.cat((upsample2(lateral5), p4), dim=1))
        lateral4 = self.lateral4(top4)
        out3 = self.top_down3(torch.cat((upsample2(lateral4), p3), dim=1))
        out4 = self.bottom_up4(torch.cat((self.down3(out3), lateral4), dim=1))
        out5 = self.bottom_up5(torch.cat((self.down4(out4), lateral5), dim=1))
        return [out3, out4, out5]
