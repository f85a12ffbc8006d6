"""From raw predictions to boxes: decoding, and post-processing into `Detections`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.coders import BoxCoder
from models.esod import ESODOutput
from models.levels import LevelOutput
from models.slicer import STRIDE, Patches
from utils.boxes import Letterbox, cxcywh_to_xyxy, non_max_suppression, ranked_candidates
from utils.config import Suppression
from utils.fixed_suppression import suppress_fixed, unpack
from utils.results import Detections
from utils.suppression import soft_suppression, weighted_fusion


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
    """How decoded boxes become detections; see `utils.boxes.non_max_suppression` and `utils.suppression`."""

    conf_thres: float = 0.25
    iou_thres: float = 0.45
    max_det: int = 500
    multi_label: bool = False
    agnostic: bool = False
    classes: tuple[int, ...] | None = None
    nms: Suppression = "hard"
    max_candidates: int = 5000


def decode_level(number: int, level: LevelOutput, coder: BoxCoder, patches: Patches) -> DecodedBoxes:
    """Decode one level, the number-th; rows in the order position, box. Computed in float32."""
    patch = level.position[:, 0]
    boxes = coder.decode(number, level, patches.xyxy_cell[patch, :2] * STRIDE)
    return DecodedBoxes(
        patches.image_index[patch].repeat_interleave(level.raw.shape[1]),
        boxes.cxcywh_px.flatten(0, 1),
        boxes.objectness.flatten(),
        boxes.class_prob.flatten(0, 1),
    )


def decode(output: ESODOutput, coder: BoxCoder, conf_thres: float | None = None) -> DecodedBoxes:
    """Decode all levels, one after the other.

    Args:
        output: of the model.
        coder: of the model's head.
        conf_thres: leave out positions none of whose boxes can have a score above this, by
            `BoxCoder.best_logit`. None keeps everything; so does CUDA, where asking how many there are would wait for
            the device.
    """
    parts = []
    for number, level in enumerate(output.levels):
        if conf_thres is not None and not level.raw.is_cuda:
            best = coder.best_logit(level.raw).amax(dim=1)
            # As numbers, which is one wait for the device; indexing with the mask would be one per tensor.
            hopeful = (best > _logit_below(conf_thres)).nonzero().squeeze(1)
            level = LevelOutput(level.raw[hopeful], level.position[hopeful], level.stride, level.grid_hw)
        parts.append(decode_level(number, level, coder, output.patches))
    return DecodedBoxes(
        torch.cat([p.image_index for p in parts]),
        torch.cat([p.cxcywh_px for p in parts]),
        torch.cat([p.objectness for p in parts]),
        torch.cat([p.class_prob for p in parts]),
    )


def _logit_below(probability: float) -> float:
    """Logit of a slightly smaller probability: no rounding of a sigmoid puts what is above on its other side."""
    smaller = min(probability, 1.0) * (1 - 1e-5)
    return math.log(smaller / (1 - smaller)) if smaller > 0 else -math.inf


def postprocess(
    output: ESODOutput, coder: BoxCoder, letterboxes: Sequence[Letterbox], config: PostprocessConfig
) -> list[Detections]:
    """Detections of every image of the batch, in original pixels, also for images without any patch."""
    return suppress_all(decode(output, coder, config.conf_thres), letterboxes, config)


def suppress_all(
    decoded: DecodedBoxes, letterboxes: Sequence[Letterbox], config: PostprocessConfig
) -> list[Detections]:
    """Detections of every image, on the CPU.

    On CUDA hard suppression waits for the device once, but for rare crowds; the other kinds once per image and more.
    """
    if decoded.cxcywh_px.is_cuda and config.nms == "hard":
        return suppress_at_once(decoded, letterboxes, config)
    return [suppress(decoded, index, box, config).to("cpu") for index, box in enumerate(letterboxes)]


def suppress_at_once(
    decoded: DecodedBoxes, letterboxes: Sequence[Letterbox], config: PostprocessConfig
) -> list[Detections]:
    """As `suppress` for every image, but all is computed before anything is read; see `utils.fixed_suppression`."""
    packed = torch.stack(
        [
            suppress_fixed(
                cxcywh_to_xyxy(decoded.cxcywh_px),
                decoded.objectness.unsqueeze(1) * decoded.class_prob,
                (decoded.image_index == image) & (decoded.objectness > config.conf_thres),
                conf_thres=config.conf_thres, iou_thres=config.iou_thres, max_det=config.max_det,
                multi_label=config.multi_label, agnostic=config.agnostic, classes=config.classes,
            )
            for image in range(len(letterboxes))
        ]
    ).cpu()  # fmt: skip
    found = []
    for image, (rows, letterbox) in enumerate(zip(packed, letterboxes, strict=True)):
        kept = unpack(rows)
        if kept is None:  # not settled: the slow way
            found.append(suppress(decoded, image, letterbox, config).to("cpu"))
        else:
            boxes_px, score, label = kept
            found.append(Detections(letterbox.to_original(boxes_px), score, label))
    return found


def suppress(
    decoded: DecodedBoxes, image: int, letterbox: Letterbox, config: PostprocessConfig
) -> Detections:
    """Suppression among one image's boxes, and back to original pixels, clipped to the image."""
    boxes_px, score, label = suppress_px(decoded, image, config)
    return Detections(letterbox.to_original(boxes_px), score, label)


def suppress_px(
    decoded: DecodedBoxes, image: int, config: PostprocessConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Suppression among one image's boxes: xyxy [N, 4] in input pixels, scores [N], labels [N]."""
    rows = ((decoded.image_index == image) & (decoded.objectness > config.conf_thres)).nonzero().squeeze(1)
    xyxy = cxcywh_to_xyxy(decoded.cxcywh_px[rows])
    scores = decoded.objectness[rows].unsqueeze(1) * decoded.class_prob[rows]
    return suppress_boxes(xyxy, scores, config)


def suppress_boxes(xyxy: Tensor, scores: Tensor, config: PostprocessConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [N, 4] with the scores [N, C] of every class → boxes [M, 4], scores [M], labels [M], as configured."""
    classes = None if config.classes is None else list(config.classes)
    conf_thres, multi_label, agnostic = config.conf_thres, config.multi_label, config.agnostic
    if config.nms == "hard":
        return non_max_suppression(
            xyxy, scores, conf_thres=conf_thres, iou_thres=config.iou_thres, max_det=config.max_det,
            max_candidates=config.max_candidates, multi_label=multi_label, agnostic=agnostic, classes=classes,
        )  # fmt: skip
    ranked = ranked_candidates(
        xyxy,
        scores,
        conf_thres=conf_thres,
        max_candidates=config.max_candidates,
        multi_label=multi_label,
        classes=classes,
    )
    if config.nms == "soft":
        return soft_suppression(*ranked, conf_thres=conf_thres, max_det=config.max_det, agnostic=agnostic)
    return weighted_fusion(*ranked, iou_thres=config.iou_thres, max_det=config.max_det, agnostic=agnostic)
