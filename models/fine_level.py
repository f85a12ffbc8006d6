"""Stride 4 beside strides 8, 16 and 32 (``fine_level``, called P2): its features on their way to the neck.

The stem computes stride-4 features anyway. They travel with the stride-8 ones as further channels, each 2×2 block of
them in the cell that it lies in, so that whatever cuts, copies or exports features need not know of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FineStem(nn.Sequential):
    """A stem that also gives what it has at stride 4: images [B, 3, H, W] → [B, c8 + 4·c4, H/8, W/8]; see `unpack`.

    Args:
        parts: the stem's, in order.
        at_stride4: how many of them lead to stride 4.
    """

    def __init__(self, *parts: nn.Module, at_stride4: int) -> None:
        super().__init__(*parts)
        self.at_stride4 = at_stride4

    def forward(self, images: Tensor) -> Tensor:
        parts = list(self)
        features = images
        for part in parts[: self.at_stride4]:
            features = part(features)
        coarse = features
        for part in parts[self.at_stride4 :]:
            coarse = part(coarse)
        return torch.cat((coarse, F.pixel_unshuffle(features, 2)), dim=1)


def unpack(features: Tensor, channels: int) -> tuple[Tensor, ...]:
    """Stride-8 features of these channels [K, channels, h, w], and the stride-4 ones [K, c4, 2h, 2w] where they came along."""
    if features.shape[1] == channels:
        return (features,)
    return features[:, :channels], F.pixel_shuffle(features[:, channels:], 2)


def build_stem(parts: Sequence[nn.Module], at_stride4: int, fine: bool) -> nn.Sequential:
    """The stem of these parts, with or without stride 4; the same weights under the same names."""
    return FineStem(*parts, at_stride4=at_stride4) if fine else nn.Sequential(*parts)
