"""What every backbone family offers: a stem to stride 8, tokens, a deep part to strides 16 and 32, and a neck."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn


class Backbone(NamedTuple):
    """The parts of a network before its head.

    Attributes:
        stem: images [B,3,H,W] in 0–1 → stride-8 features [B, stem_channels, H/8, W/8].
        deep: deep(features [K, stem_channels, h, w], patches) → (stride 8, 16, 32) features on the K patches.
        neck: neck(p3, p4, p5) → list of three maps [K, head_channels[i], …].
        stem_channels: of the stem's features.
        head_channels: of the neck's features at strides 8, 16 and 32.
        tokens: tokens(features [B,C,H/8,W/8], active [B,H/8,W/8] bool or None for all) → features of the same
            shape, computed on active tokens only; runs between slicing and cutting. None: there is no such part.
    """

    stem: nn.Module
    deep: nn.Module
    neck: nn.Module
    stem_channels: int
    head_channels: tuple[int, int, int]
    tokens: nn.Module | None
