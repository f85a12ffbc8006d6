"""mAP@0.5 and mAP@0.5:0.95 in the manner of YOLOv5's val, for people who compare with its tables.

Written from the published definition, not from its code, and under a name of its own, because the same detections
give other numbers than COCO's AP: labels are matched by overlap instead of by score, and the curve is integrated
with trapezoids, so that a faultless detector has 0.995 and not 1. No crowds, no ignore regions, no size ranges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluate.arrays import BoolArray, FloatArray, Objects, mean_defined, shown
from evaluate.matching import Pairs, match_by_overlap

IOU_THRESHOLDS: NDArray[np.float64] = np.linspace(0.5, 0.95, 10).round(2)
RECALL_LEVELS: NDArray[np.float64] = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class YoloClass:
    """One class; AP in 0–1, None without labels."""

    name: str
    labels: int
    ap50: float | None
    ap: float | None


@dataclass(frozen=True)
class YoloMetrics:
    """Means over the classes with labels, in 0–1; None when no class has any.

    Attributes:
        protocol: what was counted, and on how many images.
        map50: mAP@0.5.
        map: mAP@0.5:0.95, the mean over ten IoU thresholds.
        per_class: one row per name.
    """

    protocol: str
    map50: float | None
    map: float | None
    per_class: list[YoloClass]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, None where a value is not defined."""
        return {**vars(self), "per_class": [vars(row).copy() for row in self.per_class]}

    def table(self) -> str:
        """One line: protocol and means."""
        return f"{self.protocol}: mAP@0.5 {shown(self.map50)}, mAP@0.5:0.95 {shown(self.map)}"


def yolo_metrics(
    detections: Objects,
    score: NDArray[np.float32],
    truths: Objects,
    pairs: Pairs,
    names: list[str],
    protocol: str,
) -> YoloMetrics:
    """Score all images.

    Args:
        detections: of all images, best score of an image first.
        score: [D] of the detections.
        truths: the labels.
        pairs: of a detection and a label of the same image and class with IoU ≥ 0.5.
        names: class names by index.
        protocol: for the printed line.
    """
    matched = match_by_overlap(pairs, len(score), len(truths.label))
    hit = np.zeros((len(score), len(IOU_THRESHOLDS)), dtype=bool)
    # Matching by overlap at a higher threshold keeps the same pairs, as far as they reach it.
    hit[matched.detection] = matched.iou[:, None] >= IOU_THRESHOLDS
    ap = np.full((len(names), len(IOU_THRESHOLDS)), np.nan)
    for index in np.unique(truths.label).tolist():
        rows = np.flatnonzero(detections.label == index)
        ranked = rows[np.argsort(-score[rows], kind="stable")]
        labels = int((truths.label == index).sum())
        ap[index] = [average_precision(column, labels) for column in hit[ranked].T]
    count = np.bincount(truths.label, minlength=len(names))
    return YoloMetrics(
        protocol,
        mean_defined(ap[:, 0]),
        mean_defined(ap),
        [
            YoloClass(name, int(count[index]), mean_defined(ap[index, 0]), mean_defined(ap[index]))
            for index, name in enumerate(names)
        ],
    )


def average_precision(hit: BoolArray, labels: int) -> float:
    """Area below the precision envelope, 0–1.

    Precision is replaced by the largest one at any higher recall, read off at recall 0, 0.01, … 1 by linear
    interpolation, and integrated with trapezoids. The curve begins at (0, 1) and ends at (1, 0).

    Args:
        hit: [K] whether each detection of the class is a true positive, best score of all images first.
        labels: of the class, at least 1.
    """
    if not len(hit):
        return 0.0
    hits = np.cumsum(hit)
    recall: FloatArray = np.concatenate(([0.0], hits / labels, [1.0]))
    precision: FloatArray = np.concatenate(([1.0], hits / np.arange(1, len(hit) + 1), [0.0]))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    read = np.interp(RECALL_LEVELS, recall, envelope)
    return float(((read[1:] + read[:-1]) / 2 * np.diff(RECALL_LEVELS)).sum())
