"""From a configuration to a detector: which parts belong together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from models.backbones.base import Backbone
from models.backbones.cspnext import build_rtmdet
from models.backbones.gpvit import build_gpvit
from models.backbones.resnet import build_retinanet
from models.backbones.yolov5 import build_yolov5
from models.backbones.yolov8 import build_yolov8
from models.coders import AnchorCoder, BoxCoder, CentreCoder, DistanceCoder
from models.esod import ESOD
from models.head import CentreLevel, DecoupledLevel, DetectionHead, DistanceLevel, SingleLevel
from models.seeker import ObjSeeker
from utils.config import ModelConfig

FAMILIES: dict[str, Callable[[ModelConfig], Backbone]] = {
    "yolov5": build_yolov5,
    "yolov8": build_yolov8,
    "retinanet": build_retinanet,
    "rtmdet": build_rtmdet,
    "gpvit": build_gpvit,
}


def build_model(config: ModelConfig) -> ESOD:
    """Build the configured detector with random weights."""
    backbone = FAMILIES[config.family](config)
    seeker = None
    if config.seeker.kind != "none":
        seeker = ObjSeeker(backbone.stem_channels, config.seeker, config.bn_eps)
    return ESOD(config, backbone, build_head(backbone.head_channels, config), seeker)


def build_head(channels: tuple[int, ...], config: ModelConfig) -> DetectionHead:
    """The configured head on pyramid levels with these channels."""
    levels = [_build_level(c, channels[0], s, config) for c, s in zip(channels, config.strides, strict=True)]
    return DetectionHead(levels, build_coder(config))


def build_coder(config: ModelConfig) -> BoxCoder:
    """How to read the raw numbers of the configured head."""
    if config.head.kind == "dfl":
        return DistanceCoder(config.head.bins)
    if config.head.kind == "center":
        return CentreCoder()
    return AnchorCoder(torch.tensor(config.anchors, dtype=torch.float32))


def _build_level(channels: int, finest: int, stride: int, config: ModelConfig) -> nn.Module:
    """One level of the head; ``finest`` is the number of channels at stride 8."""
    classes, bins, eps = config.num_classes, config.head.bins, config.bn_eps
    num_anchors = len(config.anchors[0])
    if config.head.kind == "single":
        return SingleLevel(channels, num_anchors, classes, stride)
    if config.head.kind == "center":
        return CentreLevel(channels, classes, stride, eps)
    if config.head.kind == "dfl":
        # Widths of YOLOv8's branches.
        hidden = (max(16, finest // 4, 4 * bins), max(finest, min(classes, 100)))
        return DistanceLevel(channels, hidden, classes, bins, stride, eps)
    return DecoupledLevel(channels, num_anchors, classes, stride, eps)
