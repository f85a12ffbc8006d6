"""Precision, recall and F1 over confidence, and the confusion matrix, from matched detections.

Counting only: what overlaps what is found in `evaluate.matching`, which images take part in `evaluate.detection`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluate.arrays import FloatArray, IntArray, Objects, mean_defined_rows
from evaluate.matching import Pairs, match_by_score

CURVE_IOU = 0.5
CONFUSION_CONFIDENCE = 0.25
CONFUSION_IOU = 0.45
# float32, like the scores, so that a score of 0.7 counts at the threshold 0.7.
CONFIDENCE_LEVELS: NDArray[np.float32] = np.linspace(0, 1, 1001, dtype=np.float32)


@dataclass(frozen=True)
class DetectionCurves:
    """Curves at IoU 0.5; NaN where a value is not defined, and in the whole row of a class without labels.

    Attributes:
        confidence: [1001] thresholds, 0 to 1; a detection counts when score ≥ threshold.
        precision: [C, 1001] TP / (TP + FP); NaN where nothing is detected at that threshold.
        recall: [C, 1001] TP / labels.
        f1: [C, 1001] 2 TP / (detections + labels), so 0 and not NaN where nothing is detected.
        recall_levels: [101], COCO's, 0 to 1.
        precision_at_recall: [C, 101] COCO's interpolated precision (the PR curve; its mean is AP50).
        mean_*: the mean over the classes where the value is defined.
    """

    confidence: FloatArray
    precision: FloatArray
    recall: FloatArray
    f1: FloatArray
    mean_precision: FloatArray
    mean_recall: FloatArray
    mean_f1: FloatArray
    recall_levels: FloatArray
    precision_at_recall: FloatArray
    mean_precision_at_recall: FloatArray


def same_class_pairs(detections: Objects, truths: Objects, candidates: Pairs) -> Pairs:
    """The candidates whose detection and label are of one class and overlap by an IoU of at least 0.5."""
    same_class = detections.label[candidates.detection] == truths.label[candidates.truth]
    return candidates.select(same_class & (candidates.iou >= CURVE_IOU))


def detection_curves(
    detections: Objects,
    score: NDArray[np.float32],
    truths: Objects,
    pairs: Pairs,
    precision_at_recall: FloatArray,
) -> DetectionCurves:
    """The curves of all images.

    Args:
        detections: of all images, best score of an image first.
        score: [D] of the detections.
        truths: the labels.
        pairs: of one class with IoU ≥ 0.5, see `same_class_pairs`.
        precision_at_recall: [C, 101] COCO's PR curves at IoU 0.5.
    """
    true_positive = np.zeros(len(score), dtype=bool)
    true_positive[match_by_score(pairs, len(truths.label)).detection] = True
    shape = (len(precision_at_recall), len(CONFIDENCE_LEVELS))
    precision, recall, f1 = (np.full(shape, np.nan) for _ in range(3))
    for index in np.unique(truths.label).tolist():
        of_class = detections.label == index
        labels = int((truths.label == index).sum())
        detected = _count_at_least(score[of_class])
        correct = _count_at_least(score[of_class & true_positive])
        np.divide(correct, detected, out=precision[index], where=detected > 0)
        recall[index] = correct / labels
        f1[index] = 2 * correct / (detected + labels)
    return DetectionCurves(
        # Three digits are exact for the 1001 levels.
        confidence=CONFIDENCE_LEVELS.astype(np.float64).round(3),
        precision=precision,
        recall=recall,
        f1=f1,
        mean_precision=mean_defined_rows(precision),
        mean_recall=mean_defined_rows(recall),
        mean_f1=mean_defined_rows(f1),
        recall_levels=np.linspace(0, 1, precision_at_recall.shape[1]),
        precision_at_recall=precision_at_recall,
        mean_precision_at_recall=mean_defined_rows(precision_at_recall),
    )


def _count_at_least(score: NDArray[np.float32]) -> IntArray:
    """[1001] how many scores reach each confidence level."""
    return (len(score) - np.searchsorted(np.sort(score), CONFIDENCE_LEVELS, side="left")).astype(np.int64)


def confusion_matrix(
    detections: Objects, score: NDArray[np.float32], truths: Objects, candidates: Pairs, classes: int
) -> IntArray:
    """[C + 1, C + 1] confusion counts; see `evaluate.detection.DetectionMetrics`.

    Args:
        detections, score, truths: as for `detection_curves`.
        candidates: of any classes, with IoU ≥ `CONFUSION_IOU`.
        classes: C.
    """
    confident = score >= np.float32(CONFUSION_CONFIDENCE)
    matched = match_by_score(candidates.select(confident[candidates.detection]), len(truths.label))
    false_alarm = confident.copy()
    false_alarm[matched.detection] = False
    missed = np.ones(len(truths.label), dtype=bool)
    missed[matched.truth] = False
    confusion = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    np.add.at(confusion, (detections.label[matched.detection], truths.label[matched.truth]), 1)
    confusion[:-1, -1] = np.bincount(detections.label[false_alarm], minlength=classes)
    confusion[-1, :-1] = np.bincount(truths.label[missed], minlength=classes)
    return confusion
