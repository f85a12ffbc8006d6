"""What every backbone family offers: a stem to stride 8 and a deep part from there to strides 16 and 32."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn


class Backbone(NamedTuple):
    """The two halves of a backbone and the channels they produce.

    Attributes:
        stem: images [B,3,H,W] in 0–1 → stride-8 features [B, channels[0], H/8, W/8].
        deep: stride-8 features [K, channels[0], h, w] → (stride 16, stride 32) features.
        channels: of the features at strides 8, 16 and 32.
    """

    stem: nn.Module
    deep: nn.Module
    channels: tuple[int, int, int]
