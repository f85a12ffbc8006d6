"""Raw predictions to boxes and scores in NumPy: what models/coders.py does on tensors, for every kind of head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deploy.metadata import ExportedFileError
from deploy.slicing import STRIDE, FloatArray, IntArray, PatchTable


class LevelArray(NamedTuple):
    """Raw predictions of one pyramid level.

    Attributes:
        raw: [K, rows·columns, boxes, values] of K patches.
        stride: input pixels per grid step.
        grid_hw: rows and columns of a patch.
        number: of the level, from 0.
    """

    raw: FloatArray
    stride: int
    grid_hw: tuple[int, int]
    number: int


class Boxes(NamedTuple):
    """Decoded boxes of a batch: image_index [N], xyxy_px [N, 4] in input pixels, scores [N, classes]."""

    image_index: IntArray
    xyxy_px: FloatArray
    scores: FloatArray


def box_shape(config: Mapping[str, Any]) -> tuple[int, int]:
    """Boxes per position, and values per box, of the head in a model's configuration."""
    head, classes = config["head"], int(config["num_classes"])
    if head["kind"] == "dfl":
        return 1, 4 * int(head["bins"]) + classes
    if head["kind"] == "center":
        return 1, 4 + classes
    return len(config["anchors"][0]), 5 + classes


def decode(
    levels: list[LevelArray], patches: PatchTable, config: Mapping[str, Any], conf_thres: float
) -> Boxes:
    """The boxes that can have a score above conf_thres."""
    parts = [_decode_level(level, patches, config, conf_thres) for level in levels]
    image, xyxy, scores = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Boxes(image, xyxy, scores)


def _decode_level(
    level: LevelArray, patches: PatchTable, config: Mapping[str, Any], conf_thres: float
) -> tuple[IntArray, FloatArray, FloatArray]:
    kind, classes = config["head"]["kind"], int(config["num_classes"])
    logit = level.raw[..., 4] if kind in ("decoupled", "single") else level.raw[..., -classes:].max(axis=-1)
    patch, position, box = np.nonzero(_sigmoid(logit) > conf_thres)
    raw = level.raw[patch, position, box]
    grid = np.stack((position % level.grid_hw[1], position // level.grid_hw[1]), axis=1).astype(np.float32)
    corner = (patches.xyxy_cell[patch, :2] * STRIDE).astype(np.float32)
    prob = _sigmoid(raw[:, -classes:])
    xyxy: npt.NDArray[Any]
    centre: npt.NDArray[Any]
    size: npt.NDArray[Any]
    if kind in ("decoupled", "single"):
        anchors = np.array(config["anchors"][level.number], dtype=np.float32)
        t = _sigmoid(raw[:, :4]) * 2
        centre, size = (t[:, :2] - 0.5 + grid) * level.stride + corner, t[:, 2:] ** 2 * anchors[box]
        xyxy = np.concatenate((centre - size / 2, centre + size / 2), axis=1)
        prob = prob * _sigmoid(raw[:, 4:5])
    elif kind == "dfl":
        distance = (
            _expected(raw[:, :-classes].reshape(len(raw), 4, int(config["head"]["bins"]))) * level.stride
        )
        middle = (grid + 0.5) * level.stride + corner
        xyxy = np.concatenate((middle - distance[:, :2], middle + distance[:, 2:]), axis=1)
    elif kind == "center":
        centre = (grid + raw[:, :2]) * level.stride + corner
        size = raw[:, 2:4].clip(min=0) * level.stride
        xyxy = np.concatenate((centre - size / 2, centre + size / 2), axis=1)
    else:
        raise ExportedFileError(f"head kind {kind!r} is not known here")
    return patches.image_index[patch], xyxy.astype(np.float32), prob.astype(np.float32)


def suppress(
    xyxy: FloatArray,
    scores: FloatArray,
    conf_thres: float,
    iou_thres: float,
    max_det: int,
    max_candidates: int = 5000,
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Non-maximum suppression class by class; a box stands for its best class.

    Args:
        xyxy: [N, 4]; scores: [N, classes].
        conf_thres: candidates have a score above it.
        iou_thres: a box goes when it overlaps a kept one of its class by more.
        max_det: at most so many are returned.
        max_candidates: so many best-scored boxes take part.

    Returns boxes [M, 4], scores [M], labels [M], best first.
    """
    label = scores.argmax(axis=1) if len(scores) else np.zeros(0, dtype=np.int64)
    best = scores.max(axis=1, initial=0)
    order = np.argsort(-best, kind="stable")
    order = order[best[order] > conf_thres][:max_candidates]
    xyxy, best, label = xyxy[order], best[order], label[order]
    left = np.arange(len(order))
    kept: list[int] = []
    while len(left) and len(kept) < max_det:
        first, rest = left[0], left[1:]
        kept.append(int(first))
        removed = (_iou(xyxy[first], xyxy[rest]) > iou_thres) & (label[rest] == label[first])
        left = rest[~removed]
    return xyxy[kept], best[kept], label[kept]


def _iou(box: FloatArray, others: FloatArray) -> FloatArray:
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    both = sides.clip(min=0).prod(axis=1)
    area, areas = (box[2:] - box[:2]).prod(), (others[:, 2:] - others[:, :2]).prod(axis=1)
    with np.errstate(invalid="ignore"):  # two boxes without an area overlap by nothing
        iou: FloatArray = both / (area + areas - both)
    return iou


def _expected(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Σ k·softmax(logits)_k over the last axis."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    total: npt.NDArray[Any] = (weights * np.arange(logits.shape[-1])).sum(axis=-1) / weights.sum(axis=-1)
    return total


def _sigmoid(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    with np.errstate(over="ignore"):
        result: npt.NDArray[Any] = 1 / (1 + np.exp(-x))
    return result
