"""YOLOv5 v5.0 body (Focus, C3, SPP), cut after stride 8 into stem and deep part."""

from __future__ import annotations

from torch import Tensor, nn

from models.backbones.base import Backbone
from models.layers import C3, SPP, Conv, Focus, scale_channels, scale_repeats
from utils.config import ModelConfig


class YOLOv5Deep(nn.Module):
    """Strides 16 and 32 from stride-8 features: [K,c3,h,w] → ([K,c4,h/2,w/2], [K,c5,h/4,w/4])."""

    def __init__(self, channels: tuple[int, int, int], repeats: tuple[int, int], config: ModelConfig) -> None:
        super().__init__()
        c3, c4, c5 = channels
        eps = config.bn_eps
        self.stage4 = nn.Sequential(Conv(c3, c4, 3, 2, eps=eps), C3(c4, c4, repeats[0], eps=eps))
        self.stage5 = nn.Sequential(
            Conv(c4, c5, 3, 2, eps=eps),
            SPP(c5, c5, config.spp_kernels, eps=eps),
            C3(c5, c5, repeats[1], shortcut=False, eps=eps),
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        p4 = self.stage4(features)
        return p4, self.stage5(p4)


def build_yolov5(config: ModelConfig) -> Backbone:
    """YOLOv5 v5.0 backbone of the configured depth and width."""
    c1, c2, c3, c4, c5 = (scale_channels(c, config.width) for c in (64, 128, 256, 512, 1024))
    short, long = scale_repeats(3, config.depth), scale_repeats(9, config.depth)
    eps = config.bn_eps
    stem = nn.Sequential(
        Focus(3, c1, 3, eps=eps),
        Conv(c1, c2, 3, 2, eps=eps),
        C3(c2, c2, short, eps=eps),
        Conv(c2, c3, 3, 2, eps=eps),
        C3(c3, c3, long, eps=eps),
    )
    deep = YOLOv5Deep((c3, c4, c5), (long, short), config)
    return Backbone(stem, deep, (c3, c4, c5))
