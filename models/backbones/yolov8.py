"""YOLOv8's body, cut after stride 8 into stem and deep part, and its PAN without lateral convolutions."""

from __future__ import annotations

from torch import Tensor, nn

from models.backbones.base import Backbone
from models.fine_level import build_stem, unpack
from models.layers import SPPF, C2f, Conv, scale_channels, scale_repeats
from models.neck import build_pan
from models.slicer import Patches
from utils.config import ModelConfig


class YOLOv8Deep(nn.Module):
    """Strides 16 and 32 from stride-8 features: [K,c3,h,w] → ([K,c3,h,w], [K,c4,h/2,w/2], [K,c5,h/4,w/4]).

    Stride-4 features that came along go on as a fourth one.
    """

    def __init__(self, channels: tuple[int, int, int], repeats: tuple[int, int], eps: float) -> None:
        super().__init__()
        c3, c4, c5 = channels
        self.channels = c3
        self.stage4 = nn.Sequential(Conv(c3, c4, 3, 2, eps=eps), C2f(c4, c4, repeats[0], eps=eps))
        self.stage5 = nn.Sequential(
            Conv(c4, c5, 3, 2, eps=eps), C2f(c5, c5, repeats[1], eps=eps), SPPF(c5, c5, eps=eps)
        )

    def forward(self, features: Tensor, patches: Patches) -> tuple[Tensor, ...]:
        """Each patch alone; see `Backbone.deep`."""
        p3, *fine = unpack(features, self.channels)
        p4 = self.stage4(p3)
        return p3, p4, self.stage5(p4), *fine


def build_yolov8(config: ModelConfig) -> Backbone:
    """YOLOv8 of the configured depth, width and largest number of channels."""
    c1, c2, c3, c4, c5 = (
        scale_channels(min(c, config.max_channels), config.width) for c in (64, 128, 256, 512, 1024)
    )
    few, many, eps = scale_repeats(3, config.depth), scale_repeats(6, config.depth), config.bn_eps
    parts = [
        Conv(3, c1, 3, 2, eps=eps),
        Conv(c1, c2, 3, 2, eps=eps),
        C2f(c2, c2, few, eps=eps),
        Conv(c2, c3, 3, 2, eps=eps),
        C2f(c3, c3, many, eps=eps),
    ]
    channels, fine = (c3, c4, c5), (c2,) if config.fine_level else ()
    stem = build_stem(parts, at_stride4=3, fine=config.fine_level)
    neck = build_pan(channels, lambda i, o: C2f(i, o, few, shortcut=False, eps=eps), eps, False, *fine)
    return Backbone(stem, YOLOv8Deep(channels, (many, few), eps), neck, c3, (*channels, *fine))
