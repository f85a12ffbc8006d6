"""COCO average precision and recall by class and size, through faster-coco-eval.

Only the tables of the protocol; what is averaged over them is written beside each metric.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from evaluate.arrays import FloatArray, IntArray, Objects

LOGGER = logging.getLogger(__name__)

AREAS = ("all", "small", "medium", "large")
"""COCO's areas in original pixels: small ≤ 32² ≤ medium ≤ 96² ≤ large (a box on a limit is in both)."""
IOU_LEVELS = 10
"""0.50, 0.55, … 0.95."""
RECALL_LEVELS = 101
"""0.00, 0.01, … 1.00."""


def coco_tables(
    detections: Objects,
    score: FloatArray,
    truths: Objects,
    image_hw: list[tuple[int, int]],
    classes: int,
    max_det: int,
) -> tuple[FloatArray, FloatArray]:
    """COCO's interpolated precision and its recall.

    Class by class, because a class's table does not depend on the others and the library's annotation
    dictionaries (about 1 KB per detection) of one class fit where those of all may not.

    Returns:
        precision [C, 10 IoUs, 101 recalls, 4 areas] and recall [C, 10, 4]; NaN where there is no label.
    """
    precision = np.full((classes, IOU_LEVELS, RECALL_LEVELS, len(AREAS)), np.nan)
    recall = np.full((classes, IOU_LEVELS, len(AREAS)), np.nan)
    for index in np.unique(truths.label).tolist():
        found, true = detections.label == index, truths.label == index
        annotations = _annotations(truths.image[true], truths.xyxy[true])
        results = _annotations(detections.image[found], detections.xyxy[found])
        for result, value in zip(results, score[found].tolist(), strict=True):
            result["score"] = value
        used = np.union1d(detections.image[found], truths.image[true]).tolist()
        images = [{"id": i, "height": image_hw[i][0], "width": image_hw[i][1]} for i in used]
        precision[index], recall[index] = _class_tables(images, annotations, results, max_det)
    return precision, recall


def _class_tables(
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    results: list[dict[str, Any]],
    max_det: int,
) -> tuple[FloatArray, FloatArray]:
    from faster_coco_eval import COCO, COCOeval_faster

    shared = {"info": {}, "images": images, "categories": [{"id": 1, "name": "object"}]}
    evaluation = COCOeval_faster(
        COCO({**shared, "annotations": annotations}),
        COCO({**shared, "annotations": results}),
        iouType="bbox",
        print_function=LOGGER.debug,
    )
    evaluation.params.maxDets = [max_det]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"], dtype=np.float64)
    recall = np.asarray(evaluation.eval["recall"], dtype=np.float64)
    precision = precision.reshape(IOU_LEVELS, RECALL_LEVELS, len(AREAS))
    recall = recall.reshape(IOU_LEVELS, len(AREAS))
    # The library says -1 for "no label of this area".
    return np.where(precision < 0, np.nan, precision), np.where(recall < 0, np.nan, recall)


def _annotations(image: IntArray, xyxy: FloatArray) -> list[dict[str, Any]]:
    """COCO annotation dictionaries; ids from 1, because COCO tools use 0 for "unmatched"."""
    size = xyxy[:, 2:] - xyxy[:, :2]
    boxes = np.concatenate([xyxy[:, :2], size], axis=1).tolist()
    rows = zip(image.tolist(), boxes, size.prod(axis=1).tolist(), strict=True)
    return [
        {"id": number, "image_id": image_id, "category_id": 1, "bbox": box, "area": area, "iscrowd": 0}
        for number, (image_id, box, area) in enumerate(rows, start=1)
    ]
