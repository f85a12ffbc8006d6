"""YOLOv5 bodies, cut after stride 8 into stem and deep part: v5.0 (Focus, SPP) and v6 (6×6 convolution, SPPF)."""

from __future__ import annotations

from torch import Tensor, nn

from models.backbones.base import Backbone
from models.fine_level import build_stem, unpack
from models.layers import C3, SPP, SPPF, Conv, Focus, scale_channels, scale_repeats
from models.neck import build_pan
from models.slicer import Patches
from models.transformer import PatchSequential, TransformerC3
from utils.config import ModelConfig

REPEATS = {"v5.0": (3, 9, 9, 3), "v6": (3, 6, 9, 3)}
"""Repeats of the C3 stages at strides 4, 8, 16 and 32, before scaling by depth."""


class YOLOv5Deep(nn.Module):
    """Strides 16 and 32 from stride-8 features: [K,c3,h,w] → ([K,c3,h,w], [K,c4,h/2,w/2], [K,c5,h/4,w/4]).

    Stride-4 features that came along go on as a fourth one.
    Each patch alone; only with ``config.transformer`` do those of an image meet, in the last C3.
    """

    def __init__(self, channels: tuple[int, int, int], repeats: tuple[int, int], config: ModelConfig) -> None:
        super().__init__()
        c3, c4, c5 = channels
        self.channels, eps = c3, config.bn_eps
        self.stage4 = nn.Sequential(Conv(c3, c4, 3, 2, eps=eps), C3(c4, c4, repeats[0], eps=eps))
        if config.body == "v6":
            last: list[nn.Module] = [_last_csp(c5, repeats[1], config), SPPF(c5, c5, eps=eps)]
        else:
            last = [SPP(c5, c5, config.spp_kernels, eps=eps), _last_csp(c5, repeats[1], config)]
        self.stage5 = PatchSequential(Conv(c4, c5, 3, 2, eps=eps), *last)

    def forward(self, features: Tensor, patches: Patches) -> tuple[Tensor, ...]:
        """See `Backbone.deep`."""
        p3, *fine = unpack(features, self.channels)
        p4 = self.stage4(p3)
        return p3, p4, self.stage5(p4, patches), *fine


def _last_csp(channels: int, repeats: int, config: ModelConfig) -> nn.Module:
    if config.transformer:
        return TransformerC3(channels, channels, repeats, eps=config.bn_eps)
    return C3(channels, channels, repeats, shortcut=config.body == "v6", eps=config.bn_eps)


def build_yolov5(config: ModelConfig) -> Backbone:
    """YOLOv5 of the configured release, depth and width."""
    c1, c2, c3, c4, c5 = (scale_channels(c, config.width) for c in (64, 128, 256, 512, 1024))
    at4, at8, at16, at32 = (scale_repeats(count, config.depth) for count in REPEATS[config.body])
    eps, in_neck = config.bn_eps, scale_repeats(3, config.depth)
    first = Conv(3, c1, 6, 2, eps=eps, padding=2) if config.body == "v6" else Focus(3, c1, 3, eps=eps)
    parts = [
        first,
        Conv(c1, c2, 3, 2, eps=eps),
        C3(c2, c2, at4, eps=eps),
        Conv(c2, c3, 3, 2, eps=eps),
        C3(c3, c3, at8, eps=eps),
    ]
    channels, fine = (c3, c4, c5), (c2,) if config.fine_level else ()
    stem = build_stem(parts, at_stride4=3, fine=config.fine_level)
    neck = build_pan(channels, lambda i, o: C3(i, o, in_neck, shortcut=False, eps=eps), eps, True, *fine)
    return Backbone(stem, YOLOv5Deep(channels, (at16, at32), config), neck, c3, (*channels, *fine))
