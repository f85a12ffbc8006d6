"""From raw predictions to boxes: decoding, and post-processing into `Detections`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.esod import ESODOutput
from models.head import LevelOutput
from models.slicer import STRIDE, Patches
from utils.boxes import Letterbox, cxcywh_to_xyxy, non_max_suppression
from utils.results import Detections


@dataclass
class DecodedBoxes:
    """Every predicted box of a batch, before suppression.

    Attributes:
        image_index: [N] int64.
        cxcywh_px: [N, 4] in network-input pixels.
        objectness: [N] in 0–1 (ones for heads without objectness).
        class_prob: [N, classes] in 0–1.
    """

    image_index: Tensor
    cxcywh_px: Tensor
    objectness: Tensor
    class_prob: Tensor


@dataclass(frozen=True)
class PostprocessConfig:
    """How decoded boxes become detections; see `utils.boxes.non_max_suppression`."""

    conf_thres: float = 0.25
    iou_thres: float = 0.45
    max_det: int = 500
    multi_label: bool = False
    agnostic: bool = False
    classes: tuple[int, ...] | None = None


def decode_boxes(
    raw_box: Tensor, position: Tensor, corner_px: Tensor, anchors_px: Tensor, stride: int
) -> Tensor:
    """YOLOv5's box decoding, with the patch corner added.

    xy = (2σ(t) − 0.5 + grid)·stride + corner, wh = (2σ(t))²·anchor.

    Args:
        raw_box: [M, A, 4] logits.
        position: [M, 3] (patch, row, column).
        corner_px: [M, 2] left and top of the position's patch in input pixels.
        anchors_px: [A, 2] or [M, A, 2].

    Returns cxcywh [M, A, 4] in input pixels.
    """
    t = raw_box.sigmoid() * 2
    grid = position[:, [2, 1]].to(t.dtype).unsqueeze(1)
    xy = (t[..., :2] - 0.5 + grid) * stride + corner_px.to(t.dtype).unsqueeze(1)
    wh = t[..., 2:].square() * anchors_px
    return torch.cat((xy, wh), dim=-1)


def decode_level(level: LevelOutput, anchors_px: Tensor, patches: Patches) -> DecodedBoxes:
    """Decode one level; rows in the order position, anchor. Computed in float32."""
    raw = level.raw.float()
    patch = level.position[:, 0]
    corner_px = patches.xyxy_cell[patch, :2] * STRIDE
    cxcywh = decode_boxes(raw[..., :4], level.position, corner_px, anchors_px, level.stride)
    prob = raw[..., 4:].sigmoid()
    image_index = patches.image_index[patch].repeat_interleave(raw.shape[1])
    return DecodedBoxes(
        image_index, cxcywh.flatten(0, 1), prob[..., 0].flatten(), prob[..., 1:].flatten(0, 1)
    )


def decode(output: ESODOutput, anchors: Tensor, conf_thres: float | None = None) -> DecodedBoxes:
    """Decode all levels, one after the other.

    Args:
        output: of the model.
        anchors: [levels, A, 2] (w, h) in input pixels.
        conf_thres: leave out positions none of whose anchors has an objectness above this: as the score
            is objectness × class, they cannot give a candidate. None keeps everything.
    """
    parts = []
    for level, anchors_px in zip(output.levels, anchors, strict=True):
        if conf_thres is not None:
            kept = (level.raw[..., 4].float().sigmoid() > conf_thres).any(dim=1)
            level = LevelOutput(level.raw[kept], level.position[kept], level.stride, level.grid_hw)
        parts.append(decode_level(level, anchors_px, output.patches))
    return DecodedBoxes(
        torch.cat([p.image_index for p in parts]),
        torch.cat([p.cxcywh_px for p in parts]),
        torch.cat([p.objectness for p in parts]),
        torch.cat([p.class_prob for p in parts]),
    )


def postprocess(
    output: ESODOutput, anchors: Tensor, letterboxes: Sequence[Letterbox], config: PostprocessConfig
) -> list[Detections]:
    """Detections of every image of the batch, in original pixels, also for images without any patch."""
    decoded = decode(output, anchors, config.conf_thres)
    return [suppress(decoded, index, letterbox, config) for index, letterbox in enumerate(letterboxes)]


def suppress(
    decoded: DecodedBoxes, image: int, letterbox: Letterbox, config: PostprocessConfig
) -> Detections:
    """Non-maximum suppression of one image's boxes, and back to original pixels, clipped to the image."""
    boxes_px, score, label = suppress_px(decoded, image, config)
    return Detections(letterbox.to_original(boxes_px), score, label)


def suppress_px(
    decoded: DecodedBoxes, image: int, config: PostprocessConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Non-maximum suppression of one image's boxes: xyxy [N, 4] in input pixels, scores [N], labels [N]."""
    rows = (decoded.image_index == image) & (decoded.objectness > config.conf_thres)
    return non_max_suppression(
        cxcywh_to_xyxy(decoded.cxcywh_px[rows]),
        decoded.objectness[rows].unsqueeze(1) * decoded.class_prob[rows],
        conf_thres=config.conf_thres,
        iou_thres=config.iou_thres,
        max_det=config.max_det,
        multi_label=config.multi_label,
        agnostic=config.agnostic,
        classes=None if config.classes is None else list(config.classes),
    )
