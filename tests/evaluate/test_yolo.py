"""`evaluate.yolo`: mAP by hand, and against a second implementation, one object at a time."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest

from evaluate.arrays import Objects
from evaluate.matching import Pairs, box_iou, match_by_overlap, overlapping_pairs
from evaluate.yolo import YoloMetrics, average_precision, yolo_metrics

NAMES = ["car", "van"]
Rows = list[tuple[float, ...]]
A, B = (0.0, 0.0, 20.0, 20.0), (100.0, 0.0, 120.0, 20.0)
NEAR_A = (2.0, 0.0, 22.0, 20.0)  # IoU with A: 18 / 22 = 0.82


def objects(rows: Rows) -> Objects:
    """Rows (image, x1, y1, x2, y2, label)."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    return Objects(table[:, 0].astype(np.int64), table[:, 1:5], table[:, 5].astype(np.int64))


def measure(found: Rows, labelled: Rows) -> YoloMetrics:
    """Metrics of detections (image, x1, y1, x2, y2, label, score), best of an image first, and labels."""
    detections, truths = objects([row[:6] for row in found]), objects(labelled)
    score = np.array([row[6] for row in found], dtype=np.float32)
    pairs = overlapping_pairs(detections, truths, 0.5)
    pairs = pairs.select(detections.label[pairs.detection] == truths.label[pairs.truth])
    return yolo_metrics(detections, score, truths, pairs, NAMES, "YOLOv5-style mAP")


@pytest.mark.parametrize(
    "found, labelled, map50, mean",
    [
        pytest.param([(0, *A, 0, 0.9)], [(0, *A, 0)], 0.995, 0.995, id="faultless: the last trapezoid is half"),
        pytest.param([(0, *NEAR_A, 0, 0.9)], [(0, *A, 0)], 0.995, 0.7 * 0.995, id="IoU 0.82: 7 of 10 thresholds"),
        # Both hit, but the better box takes the label: of COCO's rule the better score would have.
        pytest.param(
            [(0, *NEAR_A, 0, 0.9), (0, *A, 0, 0.8)], [(0, *A, 0)], 0.5 * 0.995, 0.5 * 0.995, id="by overlap, not by score",
        ),
        pytest.param([(0, *A, 0, 0.9)], [(0, *A, 0), (0, *B, 0)], 0.75, 0.75, id="half found: then straight to (1, 0)"),
        pytest.param([(0, *A, 1, 0.9)], [(0, *A, 0)], 0, 0, id="wrong class"),
        pytest.param([(1, *A, 0, 0.9)], [(0, *A, 0)], 0, 0, id="another image"),
        pytest.param([], [(0, *A, 0)], 0, 0, id="no detections"),
    ],
)  # fmt: skip
def test_by_hand(found: Rows, labelled: Rows, map50: float, mean: float) -> None:
    metrics = measure(found, labelled)
    assert metrics.map50 == pytest.approx(map50)
    assert metrics.map == pytest.approx(mean)


def test_the_mean_is_over_the_classes_with_labels() -> None:
    metrics = measure([(0, *A, 0, 0.9), (0, *B, 1, 0.8)], [(0, *A, 0)])
    assert metrics.map50 == pytest.approx(0.995)
    assert [(row.name, row.labels, row.ap50) for row in metrics.per_class] == [
        ("car", 1, pytest.approx(0.995)), ("van", 0, None),
    ]  # fmt: skip
    missed = measure([(0, *A, 0, 0.9)], [(0, *A, 0), (0, *B, 1)])
    assert missed.map50 == pytest.approx(0.995 / 2)


def test_nothing_is_not_defined() -> None:
    for metrics in (measure([], []), measure([(0, *A, 0, 0.9)], [])):
        assert (metrics.map50, metrics.map) == (None, None)
        assert "n/a" in metrics.table()
        json.dumps(metrics.to_dict(), allow_nan=False)


def slow_average_precision(hit: list[bool], labels: int) -> float:
    """From the definition, level by level."""
    points = [(0.0, 1.0)]
    for rank in range(1, len(hit) + 1):
        points.append((sum(hit[:rank]) / labels, sum(hit[:rank]) / rank))
    points.append((1.0, 0.0))
    raised = [(recall, max(p for _, p in points[i:])) for i, (recall, _) in enumerate(points)]

    def read(level: float) -> float:
        last = max(i for i, (recall, _) in enumerate(raised) if recall <= level)
        if last + 1 == len(raised):
            return raised[last][1]
        (r0, p0), (r1, p1) = raised[last], raised[last + 1]
        return p0 + (p1 - p0) * (level - r0) / (r1 - r0)

    values = [read(level) for level in np.linspace(0, 1, 101).tolist()]
    return sum((a + b) / 2 * 0.01 for a, b in pairwise(values))


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_equals_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    hit = rng.random(30) < 0.6
    labels = int(hit.sum()) + 3
    assert average_precision(hit, labels) == pytest.approx(slow_average_precision(hit.tolist(), labels))


@pytest.mark.parametrize("seed", range(5))
def test_matching_by_overlap_equals_one_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 40, (25, 2))
    boxes = np.concatenate([corner, corner + 20], axis=1)
    iou = box_iou(boxes[:15], boxes[15:]).round(1)  # equal values, too
    detection, truth = np.nonzero(iou > 0)
    matched = match_by_overlap(Pairs(detection, truth, iou[detection, truth]), 15, 10)
    expected: dict[int, int] = {}
    for i, j in sorted(zip(detection.tolist(), truth.tolist(), strict=True), key=lambda p: (-iou[p], *p)):
        if i not in expected and j not in expected.values():
            expected[i] = j
    assert dict(zip(matched.detection.tolist(), matched.truth.tolist(), strict=True)) == expected
