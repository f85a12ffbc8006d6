"""`evaluate.missed`: a hand-made case for every cause, their precedence, and that the counts add up."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from evaluate.arrays import EvaluationError
from evaluate.detection import DetectionEvaluator
from evaluate.matching import box_iou
from evaluate.missed import (
    CAUSES,
    MissedEvaluator,
    MissedMetrics,
    best_raw_scores,
    in_some_patch,
    near_positions,
)
from utils.results import Detections

NAMES = ["car", "van"]
CAR, VAN = 0, 1
THRESHOLD = 0.5
Rows = list[tuple[float, ...]]

OBJECT = (100, 100, 120, 120)
GOOD = (101, 101, 121, 121)  # IoU 0.82
POOR = (108, 100, 128, 120)  # IoU 0.43
OFF = (113, 100, 133, 120)  # IoU 0.21


def detections(rows: Rows) -> Detections:
    """Rows (x1, y1, x2, y2, score, label)."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].long())


def add(evaluator: MissedEvaluator, image: int, found: Rows, raw: Rows, truth: Rows, **more: Any) -> None:
    """Add an image; raw rows (x1, y1, x2, y2, score of car, score of van), truth rows (x1, y1, x2, y2, label)."""
    labelled = torch.tensor(truth, dtype=torch.float32).reshape(-1, 5)
    table = torch.tensor(raw, dtype=torch.float32).reshape(-1, 6)
    flags = {key: np.array(value, dtype=bool) for key, value in more.items()}
    evaluator.update(
        image, detections(found), labelled[:, :4], labelled[:, 4].long(), table[:, :4], table[:, 4:], **flags
    )


def analyse(found: Rows, raw: Rows, truth: Rows, **more: Any) -> MissedMetrics:
    evaluator = MissedEvaluator(NAMES)
    add(evaluator, 0, found, raw, truth, **more)
    return evaluator.compute(THRESHOLD)


@pytest.mark.parametrize(
    "found, raw, more, cause",
    [
        pytest.param([(*GOOD, 0.9, VAN)], [(*GOOD, 0, 0.9)], {}, None, id="found"),
        pytest.param([(*GOOD, 0.5, VAN)], [(*GOOD, 0, 0.5)], {}, None, id="found at the threshold exactly"),
        pytest.param([(*GOOD, 0.9, VAN)], [], {"in_patch": [False]}, None, id="found without a patch"),
        pytest.param([], [], {"in_patch": [False]}, "no_patch", id="no patch"),
        pytest.param(
            [(*GOOD, 0.9, CAR), (*POOR, 0.9, VAN)], [(*GOOD, 0.9, 0.9)],
            {"in_patch": [False], "has_position": [False]}, "no_patch", id="no patch comes first",
        ),
        pytest.param([], [], {"in_patch": [True], "has_position": [False]}, "no_head_position", id="no position"),
        pytest.param(
            [(*GOOD, 0.9, CAR)], [(*GOOD, 0.9, 0.9)], {"has_position": [False]}, "no_head_position",
            id="no position comes second",
        ),
        pytest.param([], [(*GOOD, 0, 0.5)], {}, "suppressed", id="predicted at the threshold and removed"),
        pytest.param([(*GOOD, 0.9, CAR)], [(*GOOD, 0.9, 0.6)], {}, "suppressed", id="suppressed before wrong class"),
        pytest.param([(*GOOD, 0.9, CAR)], [(*GOOD, 0.9, 0.1)], {}, "wrong_class", id="wrong class"),
        pytest.param([(*GOOD, 0.9, CAR), (*POOR, 0.9, VAN)], [], {}, "wrong_class", id="wrong class before poor box"),
        pytest.param([(*GOOD, 0.4, CAR)], [(*GOOD, 0.4, 0.1)], {}, "below_threshold", id="wrong class, but faint"),
        pytest.param([(*POOR, 0.9, CAR)], [], {}, "nothing_near", id="wrong class and poor box: neither"),
        pytest.param([(*POOR, 0.9, VAN)], [], {}, "poor_box", id="poor box"),
        pytest.param([(*POOR, 0.9, VAN)], [(*GOOD, 0, 0.4)], {}, "poor_box", id="poor box before below threshold"),
        pytest.param([(*POOR, 0.4, VAN)], [], {}, "nothing_near", id="poor box, but faint"),
        pytest.param([(*GOOD, 0.4, VAN)], [(*GOOD, 0, 0.4)], {}, "below_threshold", id="below threshold"),
        pytest.param([], [(*GOOD, 0, 0.001)], {}, "below_threshold", id="below threshold, barely there"),
        pytest.param([], [(*GOOD, 0.9, 0.0009)], {}, "near_zero", id="score near zero"),
        pytest.param([(*OFF, 0.9, VAN)], [(*OFF, 0, 0.9), (*POOR, 0, 0.9)], {}, "nothing_near", id="nothing near"),
        pytest.param([], [], {}, "nothing_near", id="nothing at all"),
    ],
)  # fmt: skip
def test_every_cause_by_hand(found: Rows, raw: Rows, more: dict[str, Any], cause: str | None) -> None:
    metrics = analyse(found, raw, [(*OBJECT, VAN)], **more)
    assert [key for key, count in metrics.total.causes.items() if count] == ([] if cause is None else [cause])
    assert (metrics.total.labels, metrics.total.missed) == (1, 0 if cause is None else 1)


def test_a_detection_that_has_found_another_object_explains_nothing() -> None:
    """A car on a van, and two vans of which one is found: the detections belong to what they have found."""
    on_it = (*OBJECT, CAR)
    assert analyse([(*OBJECT, 0.9, CAR)], [], [(*OBJECT, VAN), on_it]).total.causes["wrong_class"] == 0
    neighbour = (*POOR, VAN)
    assert analyse([(*POOR, 0.9, VAN)], [], [(*OBJECT, VAN), neighbour]).total.causes["poor_box"] == 0


def test_one_box_for_two_objects_counts_as_suppressed() -> None:
    close = (102, 100, 122, 120)
    metrics = analyse([(*OBJECT, 0.9, VAN)], [(*OBJECT, 0, 0.9)], [(*OBJECT, VAN), (*close, VAN)])
    assert (metrics.total.missed, metrics.total.causes["suppressed"]) == (1, 1)


def test_groups_by_size_and_class_in_original_pixels() -> None:
    sides = (7.9, 8, 16, 31.9, 32, 95, 96, 300)
    truth = [(0, 200 * i, side, 200 * i + side, i % 2) for i, side in enumerate(sides)]
    metrics = analyse([], [], [(float(a), float(b), c, d, e) for a, b, c, d, e in truth])
    assert {group.name: group.labels for group in metrics.by_size} == {
        "small": 4, "medium": 2, "large": 2, "under 8": 1, "8 to 16": 1, "16 to 32": 2,
    }  # fmt: skip
    assert {group.name: group.missed for group in metrics.by_class} == {"car": 4, "van": 4}


def scene(seed: int) -> tuple[Rows, Rows, Rows]:
    """Detections, raw boxes and labels of a crowded image."""
    rng = np.random.default_rng(seed)
    truth: Rows = []
    raw: Rows = []
    for _ in range(40):
        side = float(rng.choice([6, 12, 24, 60, 120]))
        corner = rng.uniform(0, 400, 2)
        truth.append((*corner, *(corner + side), int(rng.integers(0, 2))))
        for _ in range(int(rng.integers(0, 4))):
            moved = np.concatenate([corner, corner + side]) + rng.normal(0, 0.15 * side, 4)
            moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
            raw.append((*moved, *(rng.random(2) * rng.choice([1e-4, 0.3, 1]))))
    best = [(*row[:4], max(row[4:]), int(row[5] > row[4])) for row in raw]
    found = [row for row in best if rng.random() < 0.6]
    return found, raw, truth


@pytest.mark.parametrize("seed", range(4))
def test_counts_add_up_and_found_objects_are_those_of_recall(seed: int) -> None:
    rng = np.random.default_rng(seed)
    missed, detected = MissedEvaluator(NAMES), DetectionEvaluator(NAMES)
    for image in range(3):
        found, raw, truth = scene(10 * seed + image)
        add(
            missed, image, found, raw, truth, in_patch=rng.random(40) < 0.8, has_position=rng.random(40) < 0.8
        )
        labelled = torch.tensor(truth, dtype=torch.float32)
        detected.update(image, detections(found), labelled[:, :4], labelled[:, 4].long(), (600, 600))
    reference = detected.compute()
    assert reference.best_confidence is not None
    metrics = missed.compute(reference.best_confidence)
    for group in [metrics.total, *metrics.by_size, *metrics.by_class]:
        assert sum(group.causes.values()) == group.missed <= group.labels
    assert sum(group.missed for group in metrics.by_size[:3]) == metrics.total.missed
    small = metrics.by_size[0]
    for key in CAUSES:
        assert sum(group.causes[key] for group in metrics.by_size[3:]) == small.causes[key]
    for group, row in zip(metrics.by_class, reference.per_class, strict=True):
        assert 1 - group.missed / group.labels == pytest.approx(row.recall)


@pytest.mark.parametrize("seed", range(3))
def test_best_raw_score_equals_comparing_with_every_box(seed: int) -> None:
    _, raw, truth = scene(seed)
    boxes, labelled = np.array(raw), np.array(truth)
    iou = box_iou(labelled[:, :4], boxes[:, :4])
    expected = [
        max((boxes[j, 4 + int(labelled[i, 4])] for j in np.flatnonzero(iou[i] >= 0.5)), default=math.nan)
        for i in range(len(labelled))
    ]
    labels = labelled[:, 4].astype(np.int64)
    np.testing.assert_array_equal(
        best_raw_scores(labelled[:, :4], labels, boxes[:, :4], boxes[:, 4:]), expected
    )


def test_in_some_patch_takes_the_centre_or_more_than_half() -> None:
    patches = np.array([[0, 0, 4, 4]])  # 0–32 px
    boxes = np.array(
        [[4, 4, 8, 8], [40, 4, 48, 12], [-90, -90, 110, 110], [27, 4, 37, 14], [26, 4, 36, 14.0]]
    )
    assert in_some_patch(boxes, patches).tolist() == [True, False, True, False, True]
    assert not in_some_patch(boxes, patches[:0]).any()


def test_near_positions_reach_one_grid_step() -> None:
    centres = np.array([[20.0, 20], [28, 12], [28.1, 20], [20, 11.9], [200, 200]])
    assert near_positions(centres, np.array([[20.0, 20]]), 8).tolist() == [True, True, False, False, False]
    assert not near_positions(centres, np.zeros((0, 2)), 8).any()


@pytest.mark.parametrize(
    "best, least, confidence, why",
    [
        (0.4, 0.001, 0.4, "best F1"),
        (None, 0.001, 0.25, "nothing is found at any confidence"),
        (0.0, 0.001, 0.001, "the least score of the detections"),
        (None, 0.3, 0.3, "the least score of the detections"),
    ],
)
def test_the_threshold_is_told(best: float | None, least: float, confidence: float, why: str) -> None:
    metrics = MissedEvaluator(NAMES).compute(best, least)
    assert metrics.confidence == confidence
    assert why in metrics.table().splitlines()[0]


def test_table_and_json() -> None:
    metrics = analyse([], [(*GOOD, 0, 0.1)], [(*OBJECT, VAN)])
    lines = metrics.table().splitlines()
    assert lines[0].startswith(
        "missed objects, 1 images, no ignore regions; found = a detection of the right class"
    )
    rows = {line[:28].strip(): line[28:].split() for line in lines}
    assert rows["head below threshold"] == ["1", "1", "0", "0", "0", "0", "1"]
    content = json.loads(json.dumps(metrics.to_dict(), allow_nan=False))
    assert content["total"]["causes"]["below_threshold"] == 1
    assert content["meaning"].keys() == content["total"]["causes"].keys()


@pytest.mark.parametrize("images", [0, 2])
def test_without_labels_there_is_nothing_to_miss(images: int) -> None:
    evaluator = MissedEvaluator(NAMES)
    for image in range(images):
        add(evaluator, image, [(*GOOD, 0.9, CAR)], [(*GOOD, 0.9, 0)], [])
    metrics = evaluator.compute(None)
    assert (metrics.images, metrics.total.labels, metrics.total.missed) == (images, 0, 0)
    assert metrics.table()


@pytest.mark.parametrize(
    "found, raw, more, message",
    [
        ([(*GOOD, math.nan, VAN)], [], {}, "image 0: detection scores.*diverged"),
        ([(*GOOD, 0.9, 2)], [], {}, "class 2 is not in 0–1"),
        ([], [(*GOOD, math.nan, 0)], {}, "predicted scores.*diverged"),
        ([], [(math.nan, 0, 1, 1, 0, 0)], {}, "predicted boxes: row 0"),
        ([], [], {"in_patch": [True, True]}, "in_patch is bool"),
    ],
)
def test_wrong_input_is_named_and_not_counted(
    found: Rows, raw: Rows, more: dict[str, Any], message: str
) -> None:
    evaluator = MissedEvaluator(NAMES)
    with pytest.raises(EvaluationError, match=message):
        add(evaluator, 0, found, raw, [(*OBJECT, VAN)], **more)
    assert evaluator.compute(None).images == 0


def test_scores_of_other_classes_are_refused() -> None:
    boxes, labels = torch.tensor([OBJECT]).float(), torch.tensor([VAN])
    with pytest.raises(EvaluationError, match=r"predicted scores have shape \(1, 3\); expected \(1, 2\)"):
        MissedEvaluator(NAMES).update(0, detections([]), boxes, labels, boxes, torch.zeros(1, 3))


def test_merged_processes_equal_one() -> None:
    whole, parts = MissedEvaluator(NAMES), [MissedEvaluator(NAMES) for _ in range(2)]
    for image in range(5):
        for evaluator in (whole, parts[image % 2]):
            add(evaluator, image, *scene(image))
    merged = MissedEvaluator(NAMES)
    merged.merge(part.state() for part in reversed(parts))
    assert merged.compute(0.3) == whole.compute(0.3)
    with pytest.raises(EvaluationError, match="in two merged states"):
        merged.merge([parts[0].state()])
    with pytest.raises(EvaluationError, match="cannot merge"):
        merged.merge([MissedEvaluator(["other"]).state()])
    with pytest.raises(EvaluationError, match="added twice"):
        add(whole, 0, *scene(0))
    merged.reset()
    assert merged.compute(None).images == 0
