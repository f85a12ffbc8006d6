"""`evaluate.detection` against hand-computed cases, a second implementation of COCO AP, and its edge cases."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from evaluate.arrays import EvaluationError
from evaluate.detection import DetectionEvaluator, DetectionMetrics
from evaluate.matching import Pairs, box_iou, match_by_score
from utils.results import Detections

NAMES = ["car", "van", "person"]
HW = (600, 800)
Rows = list[tuple[float, ...]]


def detections(rows: Rows) -> Detections:
    """Rows (x1, y1, x2, y2, score, label)."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].long())


def truth(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (x1, y1, x2, y2, label)."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    return table[:, :4], table[:, 4].long()


def evaluate(
    images: list[tuple[Rows, Rows]], names: list[str] = NAMES, max_det: int = 500
) -> DetectionMetrics:
    """Metrics of images given as (detections, labels)."""
    evaluator = DetectionEvaluator(names, max_det)
    for number, (found, labelled) in enumerate(images):
        evaluator.update(number, detections(found), *truth(labelled), HW)
    return evaluator.compute()


def random_images(seed: int, count: int, classes: int = 3) -> list[tuple[Rows, Rows]]:
    """Crowded scenes: jittered, doubled, misclassified and invented detections, and missed objects."""
    rng = np.random.default_rng(seed)
    images: list[tuple[Rows, Rows]] = []
    for _ in range(count):
        labelled: Rows = []
        found: Rows = []
        for _ in range(int(rng.integers(0, 25))):
            side = float(rng.choice([8, 20, 32, 60, 96, 150]))
            corner = rng.uniform(0, 400, 2)
            box = np.concatenate([corner, corner + side * rng.uniform(0.7, 1.3, 2)])
            label = int(rng.integers(0, classes))
            labelled.append((*box.tolist(), label))
            for _ in range(int(rng.integers(0, 3))):
                moved = box + rng.normal(0, 0.08 * side, 4)
                moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
                predicted = label if rng.random() < 0.8 else int(rng.integers(0, classes))
                found.append((*moved.tolist(), float(rng.random()), predicted))
        for _ in range(int(rng.integers(0, 8))):
            corner = rng.uniform(0, 400, 2)
            box = np.concatenate([corner, corner + rng.uniform(5, 120, 2)])
            found.append((*box.tolist(), float(rng.random() * 0.6), int(rng.integers(0, classes))))
        images.append((found, labelled))
    return images


# ---- a second implementation of COCO AP, written from the protocol, one object at a time ----


def slow_iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    inter = width * height
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def slow_class_ap(
    images: list[tuple[Rows, Rows]], label: int, iou_threshold: float, area: tuple[float, float]
) -> float | None:
    """AP of one class, IoU and area: COCO's matching with ignored objects and 101-point interpolation."""
    outcomes: list[tuple[float, bool]] = []
    total = 0
    for found, labelled in images:
        boxes = [np.float32(row[:4]).astype(float) for row in labelled if row[4] == label]
        ignored = [not area[0] <= (b[2] - b[0]) * (b[3] - b[1]) <= area[1] for b in boxes]
        total += ignored.count(False)
        taken = [False] * len(boxes)
        for row in sorted((r for r in found if r[5] == label), key=lambda r: -np.float32(r[4])):
            box = np.float32(row[:4]).astype(float)
            best, choice = iou_threshold, -1
            # First the objects that count; the others only when none of those fits.
            for wanted in (False, True):
                for number, other in enumerate(boxes):
                    if ignored[number] == wanted and not taken[number] and slow_iou(box, other) >= best:
                        best, choice = slow_iou(box, other), number
                if choice >= 0:
                    break
            if choice >= 0:
                taken[choice] = True
                if not ignored[choice]:
                    outcomes.append((float(np.float32(row[4])), True))
            elif area[0] <= (box[2] - box[0]) * (box[3] - box[1]) <= area[1]:
                outcomes.append((float(np.float32(row[4])), False))
    if total == 0:
        return None
    hits, points = 0, []
    for number, (_, hit) in enumerate(sorted(outcomes, key=lambda pair: -pair[0]), start=1):
        hits += hit
        points.append((hits / total, hits / number))
    levels = [max((p for r, p in points if r >= level), default=0.0) for level in np.linspace(0, 1, 101)]
    return float(np.mean(levels))


def slow_ap(
    images: list[tuple[Rows, Rows]], classes: int, thresholds: list[float], area: tuple[float, float]
) -> float | None:
    values = [slow_class_ap(images, label, t, area) for label in range(classes) for t in thresholds]
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


ALL_IOUS = np.linspace(0.5, 0.95, 10).tolist()
EVERY, SMALL, MEDIUM, LARGE = (0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ap_equals_a_second_implementation(seed: int) -> None:
    images = random_images(seed, 12)
    metrics = evaluate(images)
    table: dict[str, tuple[list[float], tuple[float, float]]] = {
        "ap": (ALL_IOUS, EVERY),
        "ap50": (ALL_IOUS[:1], EVERY),
        "ap75": (ALL_IOUS[5:6], EVERY),
        "ap_small": (ALL_IOUS, SMALL),
        "ap_medium": (ALL_IOUS, MEDIUM),
        "ap_large": (ALL_IOUS, LARGE),
    }
    for name, (thresholds, area) in table.items():
        assert getattr(metrics, name) == pytest.approx(slow_ap(images, 3, thresholds, area), abs=1e-9), name
    for label, row in enumerate(metrics.per_class):
        alone = [slow_class_ap(images, label, t, EVERY) for t in ALL_IOUS]
        assert row.ap == pytest.approx(np.mean([a for a in alone if a is not None]), abs=1e-9)
        assert row.ap50 == pytest.approx(alone[0], abs=1e-9)
    assert metrics.ap is not None and 0.05 < metrics.ap < 0.9, (
        "the generated case must be neither trivial nor hopeless"
    )


# ---- hand-computed cases ----


A, B, C = (10, 10, 30, 30), (100, 100, 160, 160), (300, 300, 500, 500)  # small, medium, large
NEAR_A = (10, 10, 30, 26)  # IoU 0.8 with A
POOR_A = (10, 10, 30, 19)  # IoU 0.45 with A


@pytest.mark.parametrize(
    "found, labelled, expected",
    [
        pytest.param([(*A, 0.9, 0)], [(*A, 0)], {"ap": 1, "ap50": 1, "ap75": 1, "ar": 1}, id="perfect"),
        # IoU 0.8 counts at 0.50 … 0.80: 7 of the 10 thresholds.
        pytest.param(
            [(*NEAR_A, 0.9, 0)], [(*A, 0)], {"ap": 0.7, "ap50": 1, "ap75": 1, "ar": 0.7}, id="iou 0.8"
        ),
        pytest.param([(*POOR_A, 0.9, 0)], [(*A, 0)], {"ap": 0, "ap50": 0, "ar": 0}, id="iou 0.45"),
        # Recall 0.5 at precision 1: 51 of the 101 levels (0.00 … 0.50).
        pytest.param([(*A, 0.9, 0)], [(*A, 0), (*B, 0)], {"ap50": 51 / 101, "ar": 0.5}, id="one missed"),
        # False alarm first: precision 1/2 at every recall.
        pytest.param(
            [(*C, 0.9, 0), (*A, 0.8, 0)], [(*A, 0)], {"ap50": 0.5, "ap_small": 1}, id="false alarm first"
        ),
        pytest.param([(*A, 0.9, 0), (*A, 0.8, 0)], [(*A, 0)], {"ap50": 1}, id="double after the hit"),
        pytest.param([(*A, 0.9, 1)], [(*A, 0)], {"ap": 0, "ap50": 0}, id="wrong class"),
        pytest.param(
            [(*A, 0.9, 0), (*B, 0.8, 1)],
            [(*A, 0), (*B, 1), (*C, 2)],
            {"ap": 2 / 3, "ap_small": 1, "ap_medium": 1, "ap_large": 0},
            id="mean over classes and sizes",
        ),
        pytest.param([(*A, 0.9, 0), (*B, 0.8, 2)], [(*A, 0)], {"ap": 1}, id="class without labels left out"),
    ],
)
def test_average_precision_by_hand(found: Rows, labelled: Rows, expected: dict[str, float]) -> None:
    metrics = evaluate([(found, labelled)])
    for name, value in expected.items():
        assert getattr(metrics, name) == pytest.approx(value, abs=1e-9), name


def test_sizes_are_measured_in_original_pixels() -> None:
    just_small, just_medium = (0, 0, 31, 31), (100, 0, 133, 33)
    metrics = evaluate([([(*just_small, 0.9, 0)], [(*just_small, 0), (*just_medium, 0)])])
    assert (metrics.ap_small, metrics.ap_medium, metrics.ap_large) == (1.0, 0.0, None)


def test_curves_and_best_threshold_by_hand() -> None:
    found = [(*A, 0.9, 0), (*B, 0.6, 0), (*C, 0.3, 0)]
    metrics = evaluate([(found, [(*A, 0), (*B, 0)])])
    curves = metrics.curves
    at = {level: round(level * 1000) for level in (0.0, 0.3, 0.301, 0.6, 0.601, 0.9, 0.901)}
    expected = {  # level: precision, recall, F1
        0.0: (2 / 3, 1, 0.8),
        0.3: (2 / 3, 1, 0.8),
        0.301: (1, 1, 1),
        0.6: (1, 1, 1),
        0.601: (1, 0.5, 2 / 3),
        0.9: (1, 0.5, 2 / 3),
        0.901: (math.nan, 0, 0),
    }
    for level, values in expected.items():
        got = [curve[0, at[level]] for curve in (curves.precision, curves.recall, curves.f1)]
        np.testing.assert_allclose(got, values, err_msg=f"at confidence {level}")
    assert metrics.best_confidence == 0.301
    assert (metrics.precision, metrics.recall, metrics.f1) == (1.0, 1.0, 1.0)
    np.testing.assert_allclose(curves.precision_at_recall[0], 1.0)
    assert np.isnan(curves.recall[1:]).all(), "classes without labels have no curve"
    np.testing.assert_array_equal(curves.mean_recall, curves.recall[0])


def test_curves_equal_counting_one_by_one() -> None:
    images = random_images(5, 8)
    curves = evaluate(images).curves
    for label in range(3):
        for level in (0.0, 0.25, 0.5, 0.75):
            hits = detected = total = 0
            for found, labelled in images:
                boxes = [np.float32(row[:4]).astype(float) for row in labelled if row[4] == label]
                total += len(boxes)
                free = set(range(len(boxes)))
                for row in sorted((r for r in found if r[5] == label and r[4] >= level), key=lambda r: -r[4]):
                    detected += 1
                    box = np.float32(row[:4]).astype(float)
                    choice = max(free, key=lambda n: slow_iou(box, boxes[n]), default=None)
                    if choice is not None and slow_iou(box, boxes[choice]) >= 0.5:
                        free.remove(choice)
                        hits += 1
            column = int(level * 1000)
            assert curves.precision[label, column] == pytest.approx(hits / detected)
            assert curves.recall[label, column] == pytest.approx(hits / total)
            assert curves.f1[label, column] == pytest.approx(2 * hits / (detected + total))


@pytest.mark.parametrize("bottom, hit", [(20, 1), (19.9, 0)])
def test_curves_count_hits_from_iou_one_half(bottom: float, hit: int) -> None:
    metrics = evaluate([([(10, 10, 30, bottom, 0.9, 0)], [(*A, 0)])])
    assert (metrics.precision, metrics.recall, metrics.confusion[0, 0]) == (hit, hit, 1)


def test_confusion_matrix_by_hand() -> None:
    found = [
        (*A, 0.9, 0),  # car found as car
        (*B, 0.8, 1),  # car found as van
        (*B, 0.7, 0),  # second on the same object: false alarm
        (*C, 0.24, 2),  # below 0.25: not counted, so the person is missed
        (600, 10, 700, 90, 0.5, 2),  # on nothing
    ]
    metrics = evaluate([(found, [(*A, 0), (*B, 0), (*C, 2)])])
    expected = [
        # true: car, van, person, background
        [1, 0, 0, 1],
        [1, 0, 0, 0],
        [0, 0, 0, 1],
        [0, 0, 1, 0],
    ]
    np.testing.assert_array_equal(metrics.confusion, expected)


def test_confusion_columns_sum_to_labels_and_rows_to_detections() -> None:
    images = random_images(3, 10)
    metrics = evaluate(images)
    labels = np.bincount([int(row[4]) for _, rows in images for row in rows], minlength=3)
    confident = np.bincount(
        [int(r[5]) for rows, _ in images for r in rows if np.float32(r[4]) >= 0.25], minlength=3
    )
    np.testing.assert_array_equal(metrics.confusion[:, :3].sum(axis=0), labels)
    np.testing.assert_array_equal(metrics.confusion[:3].sum(axis=1), confident)


def greedy(pairs: Pairs) -> set[tuple[int, int]]:
    chosen: dict[int, int] = {}
    for detection in np.unique(pairs.detection).tolist():
        own = np.flatnonzero(pairs.detection == detection)
        for index in own[np.lexsort((pairs.truth[own], -pairs.iou[own]))].tolist():
            if int(pairs.truth[index]) not in chosen.values():
                chosen[detection] = int(pairs.truth[index])
                break
    return set(chosen.items())


@pytest.mark.parametrize("seed", range(20))
def test_matching_all_at_once_equals_one_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table: NDArray[np.float64] = rng.choice([0.0, 0.5, 0.6, 0.7, 0.8], (30, 15), p=[0.6, 0.1, 0.1, 0.1, 0.1])
    detection, label = np.nonzero(table)
    pairs = Pairs(detection, label, table[detection, label])
    matched = match_by_score(pairs, 15)
    assert set(zip(matched.detection.tolist(), matched.truth.tolist(), strict=True)) == greedy(pairs)


def test_box_iou_by_hand() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 0, 0], [5, 0, 15, 10], [20, 20, 30, 30]], dtype=float)
    expected = [[1, 0, 1 / 3, 0], [0, 0, 0, 0], [1 / 3, 0, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_allclose(box_iou(boxes, boxes), expected)


# ---- cases in which something is missing ----


VALUES = (
    "ap",
    "ap50",
    "ap75",
    "ap_small",
    "ap_medium",
    "ap_large",
    "ar",
    "precision",
    "recall",
    "f1",
    "best_confidence",
)


@pytest.mark.parametrize(
    "images", [pytest.param([], id="no images"), pytest.param([([], [])], id="empty image"),
               pytest.param([([(*A, 0.9, 0)], [])], id="detections without labels")],
)  # fmt: skip
def test_without_labels_nothing_is_defined(images: list[tuple[Rows, Rows]]) -> None:
    metrics = evaluate(images)
    assert {name: getattr(metrics, name) for name in VALUES} == dict.fromkeys(VALUES)
    assert (metrics.images, metrics.labels) == (len(images), 0)
    assert metrics.confusion.sum() == metrics.detections
    assert "n/a" in metrics.table() and "-1" not in metrics.table()


def test_without_predictions_ap_is_zero() -> None:
    metrics = evaluate([([], [(*A, 0), (*B, 1)]), ([], [(*A, 0)])])
    assert (metrics.ap, metrics.ap50, metrics.ap_small, metrics.ar, metrics.recall, metrics.f1) == (0,) * 6
    assert metrics.precision is None, "precision of no detection is not defined"
    assert metrics.best_confidence is None
    assert (metrics.images, metrics.labels) == (2, 3)
    assert [(row.labels, row.images, row.ap) for row in metrics.per_class] == [
        (2, 2, 0),
        (1, 1, 0),
        (0, 0, None),
    ]


def test_no_true_positive_keeps_the_label_counts() -> None:
    metrics = evaluate([([(*C, 0.9, 0)], [(*A, 0), (*B, 0)])])
    assert (metrics.labels, metrics.per_class[0].labels) == (2, 2)
    assert (metrics.ap, metrics.precision, metrics.recall, metrics.f1) == (0, 0, 0, 0)
    assert metrics.best_confidence is None
    assert metrics.confusion[-1, 0] == 2


def test_only_the_best_max_det_detections_count() -> None:
    found = [(*A, 0.1, 0), (*C, 0.9, 1), (*B, 0.8, 1)]
    labelled = [(*A, 0)]
    assert evaluate([(found, labelled)], max_det=3).ap50 == 1
    cut = evaluate([(found, labelled)], max_det=2)
    assert (cut.ap50, cut.detections) == (0, 2)
    assert cut.protocol == "COCO AP, 2 detections per image, 1 images, no ignore regions"


def test_more_than_coco_s_hundred_detections_count() -> None:
    boxes = [(20 * i, 20 * j, 20 * i + 10, 20 * j + 10) for i in range(20) for j in range(15)]
    found: Rows = [(*box, 0.9 - 0.001 * n, 0) for n, box in enumerate(boxes)]
    assert evaluate([(found, [(*box, 0) for box in boxes])]).ap == pytest.approx(1)


# ---- wrong input ----


def changed(**fields: Any) -> dict[str, Any]:
    good = detections([(*A, 0.9, 0)])
    labelled, labels = truth([(*A, 0)])
    arguments: dict[str, Any] = {
        "image_id": 7,
        "detections": good,
        "gt_xyxy_orig": labelled,
        "gt_label": labels,
        "image_hw": HW,
    }
    return {**arguments, **fields}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"detections": detections([(*A, math.nan, 0)])}, "image 7.*not in 0–1.*nan"),
        ({"detections": detections([(*A, 1.5, 0)])}, "not in 0–1.*1.5"),
        ({"detections": detections([(*A, 0.5, 3)])}, "class 3 is not in 0–2"),
        ({"detections": detections([(math.inf, 0, 1, 1, 0.5, 0)])}, "row 0.*expected finite"),
        ({"detections": detections([(30, 10, 10, 30, 0.5, 0)])}, "x1 ≤ x2"),
        (
            {"detections": Detections(torch.zeros(2, 4), torch.zeros(1), torch.zeros(1).long())},
            r"shape \(2, 4\)",
        ),
        ({"gt_label": torch.tensor([-1])}, "true labels: class -1"),
        ({"gt_xyxy_orig": torch.full((1, 4), math.nan)}, "true boxes: row 0"),
        ({"gt_label": torch.tensor([0, 1])}, "true boxes have shape"),
        ({"image_hw": (0, 5)}, "not positive"),
    ],
)
def test_wrong_input_is_named(fields: dict[str, Any], message: str) -> None:
    evaluator = DetectionEvaluator(NAMES)
    with pytest.raises(EvaluationError, match=message):
        evaluator.update(**changed(**fields))
    assert evaluator.compute().images == 0, "a refused image must not be counted"


def test_an_image_cannot_count_twice() -> None:
    evaluator = DetectionEvaluator(NAMES)
    evaluator.update(**changed())
    with pytest.raises(EvaluationError, match="image 7 was added twice"):
        evaluator.update(**changed())
    evaluator.reset()
    evaluator.update(**changed())
    assert evaluator.compute().images == 1


@pytest.mark.parametrize("names, max_det, message", [([], 500, "names is empty"), (NAMES, 0, "max_det is 0")])
def test_wrong_settings_are_named(names: list[str], max_det: int, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        DetectionEvaluator(names, max_det)


# ---- several processes, output ----


def test_merged_processes_equal_one() -> None:
    images = random_images(9, 15)
    images[4][0].extend((*A, 0.5, 0) for _ in range(3))  # equal scores, in several images
    images[9][0].extend((*B, 0.5, 0) for _ in range(3))
    whole = DetectionEvaluator(NAMES)
    parts = [DetectionEvaluator(NAMES) for _ in range(3)]
    for number, (found, labelled) in enumerate(images):
        for evaluator in (whole, parts[number % 3]):
            evaluator.update(number, detections(found), *truth(labelled), HW)
    merged = DetectionEvaluator(NAMES)
    merged.merge([part.state() for part in reversed(parts)])
    assert merged.compute().to_dict() == whole.compute().to_dict()

    parts[0].merge([part.state() for part in parts[1:]])
    assert parts[0].compute().to_dict() == whole.compute().to_dict()
    with pytest.raises(EvaluationError, match="in two merged states"):
        merged.merge([parts[1].state()])
    with pytest.raises(EvaluationError, match="cannot merge"):
        merged.merge([DetectionEvaluator(["other"]).state()])


def test_equal_scores_count_in_the_order_of_the_image_ids() -> None:
    """A hit and a false alarm of the same score: the result must not depend on who was added first."""
    results = []
    for order in [(0, 1), (1, 0)]:
        evaluator = DetectionEvaluator(NAMES)
        for number in order:
            labelled = truth([(*A, 0)] if number == 1 else [])
            evaluator.update(number, detections([(*A, 0.5, 0)]), *labelled, HW)
        results.append(evaluator.compute().ap50)
    assert results == [0.5, 0.5]


def test_result_is_json_without_nan() -> None:
    metrics = evaluate([*random_images(2, 3), ([], [])])
    text = json.dumps(metrics.to_dict(), allow_nan=False)
    back = json.loads(text)
    assert back["ap"] == metrics.ap and back["per_class"][0]["name"] == "car"
    assert len(back["curves"]["precision"]) == 3 and len(back["confusion"]) == 4
    assert "curves" not in metrics.to_dict(curves=False)


def test_table_names_protocol_and_classes() -> None:
    metrics = evaluate([([(*A, 0.9, 0)], [(*A, 0), (*B, 1)])])
    lines = metrics.table().splitlines()
    assert lines[0] == "COCO AP, 500 detections per image, 1 images, no ignore regions"
    assert lines[2].split() == ["all", "1", "2", "0.500", "0.500", "1.000", "0.500", "0.500"]
    assert lines[3].split() == ["car", "1", "1", "1.000", "1.000", "1.000", "1.000", "1.000"]
    assert lines[5].split() == ["person", "0", "0", "n/a", "n/a", "n/a", "n/a", "n/a"]


def test_half_precision_and_any_order_are_accepted() -> None:
    found = detections([(*C, 0.25, 0), (*A, 0.75, 0)])
    evaluator = DetectionEvaluator(NAMES)
    half = Detections(found.xyxy.bfloat16(), found.score.bfloat16(), found.label.int())
    labelled, labels = truth([(*A, 0)])
    evaluator.update(0, half, labelled.half(), labels.int(), HW)
    assert evaluator.compute().ap50 == 1
