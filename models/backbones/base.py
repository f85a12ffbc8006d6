"""What every family of detectors offers: a stem to stride 8, a deep part from there to stride 32, and a neck."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn


class Backbone(NamedTuple):
    """The parts of a family, to be put together by `models.build`.

    Attributes:
        stem: images [B, 3, H, W] in 0–1 → features [B, stem_channels, H/8, W/8]. Paid for every pixel. With
            ``fine_level`` those of stride 4 come behind them as further channels (`models.fine_level`).
        deep: (features of K patches as the stem gives them, `Patches`) → features at strides 8, 16 and 32, and 4.
            Convolutional ones look at each patch alone and do not need to know where it lies.
        neck: those → a list of as many, [K, head_channels[i], h / 2^i, w / 2^i], at stride 4 [K, head_channels[3], 2h, 2w].
        stem_channels: of the stem's stride-8 features.
        head_channels: of the neck's outputs.
        tokens: (features [B, C, H/8, W/8], active [B, H/8, W/8] bool or None for everything) → features of the
            same shape, computed where active only. For families that mix information across the whole map at
            stride 8, between slicing and cutting; None for the others.
    """

    stem: nn.Module
    deep: nn.Module
    neck: nn.Module
    stem_channels: int
    head_channels: tuple[int, ...]
    tokens: nn.Module | None = None
