"""ObjSeeker (paper section III-B): from stride-8 features to a heatmap of "some object is here"."""

from __future__ import annotations

import math

from torch import Tensor, nn

from models.layers import SPP, WideDepthwise
from utils.config import SeekerConfig

SPP_KERNELS = (5, 9, 13)
PRIOR = 0.1
"""Probability of an object in every cell before training; near the best constant, so that the loss starts calm."""


class ObjSeeker(nn.Module):
    """Wide context by one large depth-wise convolution (or an SPP), then one logit per cell.

    [B, C, H/8, W/8] → logits [B, 1, H/8, W/8]; sigmoid gives the probability of an object. Of more channels than it was
    made for it reads the first ones (see `models.fine_level`).
    """

    def __init__(self, channels: int, config: SeekerConfig, eps: float) -> None:
        super().__init__()
        self.channels = channels
        if config.kind == "spp":
            self.context: nn.Module = SPP(channels, channels, SPP_KERNELS, eps=eps)
        else:
            self.context = WideDepthwise(channels, config.kernel, eps=eps)
        self.predict = nn.Conv2d(channels, 1, 1)
        nn.init.constant_(self.predict.bias, math.log(PRIOR / (1 - PRIOR)))  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        if features.shape[1] != self.channels:
            features = features[:, : self.channels]
        return self.predict(self.context(features))  # type: ignore[no-any-return]
