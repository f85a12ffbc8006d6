"""Detection accuracy: COCO AP by size and class, YOLOv5's mAP, P/R/F1 over confidence, confusion matrix.

This is the everyday protocol of ``test.py``: all labels count, there are no ignore regions. It is not
one of the official dataset protocols, and the numbers of the two must not be compared; every result
carries the name of its protocol for that reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evaluate.arrays import (
    EvaluationError,
    FloatArray,
    IntArray,
    Objects,
    checked_boxes,
    checked_labels,
    json_list,
    mean_defined,
    shown,
    to_array,
)
from evaluate.coco import coco_tables
from evaluate.curves import (
    CONFUSION_IOU,
    DetectionCurves,
    confusion_matrix,
    detection_curves,
    same_class_pairs,
)
from evaluate.matching import overlapping_pairs
from evaluate.yolo import YoloMetrics, yolo_metrics
from utils.results import Detections


@dataclass(frozen=True)
class ClassMetrics:
    """One row of the table. None: not defined (no labels, or for precision no detections)."""

    name: str
    images: int
    """Images with at least one label of the class."""
    labels: int
    ap: float | None
    ap50: float | None
    precision: float | None
    """Precision, recall and F1 at IoU 0.5 and the confidence of the best mean F1."""
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class DetectionMetrics:
    """What `DetectionEvaluator` found, in 0–1. None means "not defined" (AP without labels), never -1.

    Attributes:
        ap, ap50, ap75: COCO AP at IoU 0.50:0.95, 0.50, 0.75, mean over the classes with labels.
        ap_small, ap_medium, ap_large: AP of objects by area in original pixels.
        ar: COCO AR, the largest recall at `max_det`, mean over IoU 0.50:0.95 and classes with labels.
        ar_small, ar_medium, ar_large: AR of objects by area in original pixels.
        precision, recall, f1: class means at IoU 0.5 and `best_confidence` (at 0 when that is None).
        best_confidence: the lowest of 0, 0.001, … 1 with the best mean F1; None without any true positive.
        confusion: [C + 1, C + 1] counts, row = predicted class, column = true class, the last of each is
            background: [p, C] false alarms of class p, [C, t] missed objects of class t. Detections of
            score ≥ 0.25 take, best score first, the free object of IoU ≥ 0.45 that they overlap most,
            whatever its class.
        yolo: mAP@0.5 and mAP@0.5:0.95 of the same detections and labels, counted as YOLOv5 counts them.
    """

    protocol: str
    images: int
    labels: int
    detections: int
    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    best_confidence: float | None
    per_class: list[ClassMetrics]
    curves: DetectionCurves
    confusion: IntArray
    yolo: YoloMetrics

    def to_dict(self, curves: bool = True) -> dict[str, Any]:
        """Plain data for JSON: lists and numbers, None where a value is not defined."""
        plain = vars(self).copy()
        del plain["curves"]
        plain["per_class"] = [vars(row).copy() for row in self.per_class]
        plain["confusion"] = self.confusion.tolist()
        plain["yolo"] = self.yolo.to_dict()
        if curves:
            plain["curves"] = {key: json_list(value) for key, value in vars(self.curves).items()}
        return plain

    def table(self, per_class: bool = True) -> str:
        """The printed table: protocol, one row for all classes, and one per class."""
        names = ["all", *(row.name for row in self.per_class if per_class)]
        width = max(5, *(len(name) for name in names))
        heads = "".join(f"{head:>8}" for head in ("AP", "AP50", "P", "R", "F1"))
        lines = [self.protocol, f"{'class':<{width}} {'images':>7} {'labels':>8}{heads}"]
        total = ClassMetrics(
            "all", self.images, self.labels, self.ap, self.ap50, self.precision, self.recall, self.f1
        )
        for row in [total, *(self.per_class if per_class else [])]:
            values = (row.ap, row.ap50, row.precision, row.recall, row.f1)
            cells = "".join(f"{shown(value):>8}" for value in values)
            lines.append(f"{row.name:<{width}} {row.images:>7} {row.labels:>8}{cells}")
        lines.append(
            f"AP75 {shown(self.ap75)}, AP small {shown(self.ap_small)}, medium {shown(self.ap_medium)}, "
            f"large {shown(self.ap_large)}, AR {shown(self.ar)}, AR small {shown(self.ar_small)}, "
            f"medium {shown(self.ar_medium)}, large {shown(self.ar_large)}; "
            f"P, R, F1 at IoU 0.5 and confidence {shown(self.best_confidence)}"
        )
        lines.append(self.yolo.table())
        return "\n".join(lines)


@dataclass(frozen=True)
class _ImageRecord:
    """One image as it is kept: arrays on the CPU, detections best first and at most ``max_det``."""

    image_id: int
    image_hw: tuple[int, int]
    xyxy: FloatArray
    score: NDArray[np.float32]
    label: IntArray
    truth_xyxy: FloatArray
    truth_label: IntArray


class DetectionEvaluator:
    """Collects detections and labels image by image and computes `DetectionMetrics`.

    Args:
        names: class names; the position is the class index.
        max_det: detections kept per image, best scores first over all classes (COCO's own limit, which
            is per image and class, then never cuts).
    """

    def __init__(self, names: list[str], max_det: int = 500) -> None:
        if not names:
            raise EvaluationError("names is empty; expected the dataset's class names, by class index")
        if max_det < 1:
            raise EvaluationError(f"max_det is {max_det}; expected at least 1 detection per image")
        self.names = list(names)
        self.max_det = max_det
        self._records: dict[int, _ImageRecord] = {}

    def reset(self) -> None:
        """Forget every image."""
        self._records.clear()

    def update(
        self,
        image_id: int,
        detections: Detections,
        gt_xyxy_orig: Tensor,
        gt_label: Tensor,
        image_hw: tuple[int, int],
    ) -> None:
        """Add one image.

        Args:
            image_id: any integer, once per image.
            detections: in original pixels, in any order, on any device.
            gt_xyxy_orig: [N, 4] labelled corners in original pixels.
            gt_label: [N] class index.
            image_hw: height and width of the original image.

        Raises:
            EvaluationError: the image came before, or a value is not finite, out of range or misshapen.
        """
        if image_id in self._records:
            raise EvaluationError(
                f"image {image_id} was added twice; give each image once, or call reset() between rounds"
            )
        where = f"image {image_id}: "
        height, width = int(image_hw[0]), int(image_hw[1])
        if min(height, width) < 1:
            raise EvaluationError(f"{where}size {height}×{width} (height × width) is not positive")
        score = _checked_scores(detections.score, where)
        xyxy = checked_boxes(detections.xyxy, len(score), f"{where}detection boxes")
        label = checked_labels(detections.label, len(score), len(self.names), f"{where}detection labels")
        truth_label = checked_labels(gt_label, len(gt_label), len(self.names), f"{where}true labels")
        truth_xyxy = checked_boxes(gt_xyxy_orig, len(truth_label), f"{where}true boxes")
        best = np.argsort(-score, kind="stable")[: self.max_det]
        self._records[image_id] = _ImageRecord(
            image_id, (height, width), xyxy[best], score[best], label[best], truth_xyxy, truth_label
        )

    def state(self) -> dict[str, Any]:
        """Everything collected, as plain data (numbers, lists, numpy arrays) to send to another process."""
        images = [vars(record).copy() for record in self._records.values()]
        return {"names": list(self.names), "max_det": self.max_det, "images": images}

    def merge(self, states: Iterable[dict[str, Any]]) -> None:
        """Add the images of other evaluators' states; the result equals one evaluator that saw them all.

        Raises:
            EvaluationError: other class names or limit, or an image that is here already.
        """
        for state in states:
            if state["names"] != self.names or state["max_det"] != self.max_det:
                raise EvaluationError(
                    f"cannot merge: state has names {state['names']} and max_det {state['max_det']}, "
                    f"this evaluator {self.names} and {self.max_det}"
                )
            for image in state["images"]:
                if image["image_id"] in self._records:
                    raise EvaluationError(
                        f"image {image['image_id']} is in two merged states; split the images without "
                        "overlap (a sampler that pads the last batch repeats images)"
                    )
                self._records[image["image_id"]] = _ImageRecord(**image)

    def compute(self) -> DetectionMetrics:
        """The metrics of all images added so far; does not depend on the order in which they were added."""
        data = _Collected([self._records[key] for key in sorted(self._records)])
        classes = len(self.names)
        precision, recall = coco_tables(
            data.detections, data.score, data.truths, data.image_hw, classes, self.max_det
        )
        collected = data.detections, data.score, data.truths
        candidates = overlapping_pairs(data.detections, data.truths, CONFUSION_IOU)
        pairs = same_class_pairs(data.detections, data.truths, candidates)
        curves = detection_curves(*collected, pairs, precision[:, 0, :, 0])
        has_hit = bool((curves.mean_f1 > 0).any())
        best = int(np.nanargmax(curves.mean_f1)) if has_hit else 0
        images = len(data.image_hw)
        counted = f"{self.max_det} detections per image, {images} images, no ignore regions"
        return DetectionMetrics(
            protocol=f"COCO AP, {counted}",
            images=images,
            labels=len(data.truths.label),
            detections=len(data.score),
            ap=mean_defined(precision[..., 0]),
            ap50=mean_defined(precision[:, 0, :, 0]),
            ap75=mean_defined(precision[:, 5, :, 0]),
            ap_small=mean_defined(precision[..., 1]),
            ap_medium=mean_defined(precision[..., 2]),
            ap_large=mean_defined(precision[..., 3]),
            ar=mean_defined(recall[..., 0]),
            ar_small=mean_defined(recall[..., 1]),
            ar_medium=mean_defined(recall[..., 2]),
            ar_large=mean_defined(recall[..., 3]),
            precision=mean_defined(curves.mean_precision[best]),
            recall=mean_defined(curves.mean_recall[best]),
            f1=mean_defined(curves.mean_f1[best]),
            best_confidence=float(curves.confidence[best]) if has_hit else None,
            per_class=[
                _class_metrics(name, data.truths, index, precision[index, ..., 0], curves, best)
                for index, name in enumerate(self.names)
            ],
            curves=curves,
            confusion=confusion_matrix(*collected, candidates, classes),
            yolo=yolo_metrics(*collected, pairs, self.names, f"YOLOv5-style mAP, {counted}"),
        )


def _checked_scores(score: Tensor, where: str) -> NDArray[np.float32]:
    array = to_array(score).astype(np.float32).reshape(-1)
    # Written so that NaN, which fails every comparison, is caught as well.
    wrong = array[~((array >= 0) & (array <= 1))]
    if wrong.size:
        raise EvaluationError(
            f"{where}{wrong.size} of {array.size} detection scores are not in 0–1 (first: {wrong[0]}); "
            "NaN means that the model has diverged"
        )
    return array


class _Collected:
    """All images flattened: images numbered by rank of their id, detections of an image best first."""

    def __init__(self, records: list[_ImageRecord]) -> None:
        self.image_hw = [record.image_hw for record in records]
        self.detections = Objects(
            np.repeat(np.arange(len(records)), [len(record.label) for record in records]),
            np.concatenate([np.zeros((0, 4)), *(record.xyxy for record in records)]),
            np.concatenate([np.zeros(0, np.int64), *(record.label for record in records)]),
        )
        self.score = np.concatenate([np.zeros(0, np.float32), *(record.score for record in records)])
        self.truths = Objects(
            np.repeat(np.arange(len(records)), [len(record.truth_label) for record in records]),
            np.concatenate([np.zeros((0, 4)), *(record.truth_xyxy for record in records)]),
            np.concatenate([np.zeros(0, np.int64), *(record.truth_label for record in records)]),
        )


def _class_metrics(
    name: str, truths: Objects, index: int, precision: FloatArray, curves: DetectionCurves, best: int
) -> ClassMetrics:
    """The row of one class; ``precision`` is COCO's [10, 101] of it, ``best`` the position in the curves."""
    of_class = truths.label == index
    return ClassMetrics(
        name=name,
        images=len(np.unique(truths.image[of_class])),
        labels=int(of_class.sum()),
        ap=mean_defined(precision),
        ap50=mean_defined(precision[0]),
        precision=mean_defined(curves.precision[index, best]),
        recall=mean_defined(curves.recall[index, best]),
        f1=mean_defined(curves.f1[index, best]),
    )
