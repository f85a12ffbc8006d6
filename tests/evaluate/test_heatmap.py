"""`evaluate.heatmap` against hand-computed patches, heatmaps and boxes, and its edge cases."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluate.arrays import EvaluationError
from evaluate.heatmap import (
    SelectorEvaluator,
    SelectorMetrics,
    cells_in_boxes,
    covered_boxes,
    covered_cells,
)

MAP = (10, 20)  # cells: an input of 80 × 160 pixels
Rows = list[tuple[float, ...]]


def table(rows: Rows) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def cells(rows: Rows) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)


def heat(values: dict[tuple[int, int], float], shape: tuple[int, int] = MAP) -> Tensor:
    heatmap = torch.zeros(shape)
    for position, value in values.items():
        heatmap[position] = value
    return heatmap


def measure(patches: Rows, boxes: Rows, **more: Any) -> SelectorMetrics:
    evaluator = SelectorEvaluator(more.pop("names", None))
    evaluator.update(more.pop("heatmap", None), cells(patches), table(boxes), MAP, **more)
    return evaluator.compute()


LEFT, RIGHT, SHIFTED = (0, 0, 4, 4), (4, 0, 8, 4), (2, 0, 6, 4)  # in cells; 0–32, 32–64, 16–48 px wide


@pytest.mark.parametrize(
    "patches, boxes, missing, centre_kept",
    [
        pytest.param([LEFT], [(4, 4, 12, 12)], 0, 1, id="inside"),
        pytest.param([LEFT], [(40, 4, 48, 12)], 1, 0, id="outside"),
        pytest.param([LEFT], [(26, 4, 36, 14)], 0, 1, id="60 % inside"),
        # Exactly half is not "more than half"; the centre on the right edge is out.
        pytest.param([LEFT], [(27, 4, 37, 14)], 1, 0, id="half inside"),
        pytest.param([RIGHT], [(27, 4, 37, 14)], 1, 1, id="half inside, centre on the left edge"),
        # Both patches cover half of it each, none of them more: one patch must do it alone.
        pytest.param([LEFT, RIGHT], [(27, 4, 37, 14)], 1, 1, id="two halves"),
        pytest.param([LEFT, RIGHT, SHIFTED], [(27, 4, 37, 14)], 0, 1, id="two halves and an overlapping patch"),
        pytest.param([LEFT], [(-4, -4, 44, 44)], 1, 1, id="larger than the patch"),
        pytest.param([LEFT], [(5, 5, 5, 9), (50, 5, 50, 9)], 0.5, 0.5, id="no area: by centre"),
        pytest.param([], [(4, 4, 12, 12), (9, 9, 20, 20)], 1, 0, id="no patches"),
        pytest.param([(0, 0, 20, 10)], [(4, 4, 12, 12), (150, 70, 160, 80)], 0, 1, id="dense: one patch over all"),
    ],
)  # fmt: skip
def test_missing_rate_by_hand(patches: Rows, boxes: Rows, missing: float, centre_kept: float) -> None:
    metrics = measure(patches, boxes)
    assert metrics.missing_rate == missing
    assert metrics.bpr_box == 1 - missing
    assert metrics.bpr_center == centre_kept
    assert metrics.labels == len(boxes)


@pytest.mark.parametrize(
    "patches, occupancy, union",
    [
        pytest.param([], 0, 0, id="nothing activated"),
        pytest.param([LEFT], 16 / 200, 16 / 200, id="one"),
        pytest.param([LEFT, RIGHT], 32 / 200, 32 / 200, id="side by side"),
        pytest.param([LEFT, SHIFTED], 32 / 200, 24 / 200, id="overlapping: paid twice"),
        pytest.param([(16, 6, 20, 10)], 16 / 200, 16 / 200, id="in the far corner"),
        pytest.param([(0, 0, 20, 10)], 1, 1, id="dense"),
    ],
)
def test_occupancy_by_hand(patches: Rows, occupancy: float, union: float) -> None:
    metrics = measure(patches, [])
    assert metrics.occupancy == pytest.approx(occupancy)
    assert metrics.occupancy_union == pytest.approx(union)
    assert metrics.empty_rate == pytest.approx(1 - occupancy)
    assert metrics.patches_per_image == len(patches)


def test_union_equals_painting_the_patches() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        corner = rng.integers(0, [17, 7], (6, 2))
        patches = np.concatenate([corner, corner + rng.integers(1, 4, (6, 2))], axis=1)
        painted = np.zeros(MAP, dtype=bool)
        for x1, y1, x2, y2 in patches:
            painted[y1:y2, x1:x2] = True
        np.testing.assert_array_equal(covered_cells(patches, *MAP), painted)


def test_images_count_alike_whatever_their_size() -> None:
    evaluator = SelectorEvaluator()
    evaluator.update(None, cells([(0, 0, 4, 4)]), table([]), (4, 4))
    evaluator.update(None, cells([]), table([]), (100, 100))
    metrics = evaluator.compute()
    assert (metrics.occupancy, metrics.patches_per_image, metrics.images) == (0.5, 0.5, 2)


def test_heatmap_recall_and_precision_by_hand() -> None:
    predicted = heat({(0, 0): 0.9, (0, 1): 0.5, (3, 3): 0.49, (9, 19): 0.7})
    label = heat({(0, 0): 1.0, (0, 1): 0.49, (3, 3): 0.5, (5, 5): 0.8})
    metrics = measure([LEFT], [], heatmap=predicted, label_heatmap=label)
    assert (metrics.heatmap_recall, metrics.heatmap_precision) == (1 / 3, 1 / 3)
    lower = measure([LEFT], [], heatmap=predicted[None], label_heatmap=label[None], threshold=0.49)
    assert (lower.heatmap_recall, lower.heatmap_precision) == (2 / 3, 1 / 2)


def test_cells_are_summed_over_images() -> None:
    evaluator = SelectorEvaluator()
    full, empty = torch.ones(MAP), torch.zeros(MAP)
    evaluator.update(full, cells([]), table([]), MAP, label_heatmap=full)
    evaluator.update(full, cells([]), table([]), MAP, label_heatmap=empty)
    evaluator.update(full, cells([]), table([]), MAP)  # without a label it is not judged
    assert (evaluator.compute().heatmap_recall, evaluator.compute().heatmap_precision) == (1, 0.5)


def test_rows_by_size_and_class() -> None:
    inside, outside = (4, 4, 12, 12), (100, 4, 108, 12)
    metrics = measure(
        [LEFT],
        [inside, outside, inside, outside],
        names=["car", "van"],
        gt_area_orig=torch.tensor([1023.9, 1024.0, 9215.0, 9216.0]),
        gt_label=torch.tensor([0, 0, 0, 0]),
    )
    sizes = {group.name: (group.labels, group.missing_rate) for group in metrics.by_size}
    assert sizes == {"small": (1, 0), "medium": (2, 0.5), "large": (1, 1)}
    classes = {group.name: (group.labels, group.missing_rate, group.bpr_center) for group in metrics.by_class}
    assert classes == {"car": (4, 0.5, 0.5), "van": (0, None, None)}
    assert "medium" in metrics.table() and "n/a" in metrics.table()


def test_heatmap_recall_by_group_counts_the_label_cells_in_its_boxes() -> None:
    label = heat({(0, 0): 1.0, (0, 1): 0.6, (1, 0): 0.4, (5, 5): 1.0, (5, 6): 1.0, (9, 19): 1.0})
    predicted = heat({(0, 0): 0.9, (5, 5): 0.9, (5, 6): 0.9, (3, 3): 0.9})
    metrics = measure(
        [LEFT],
        [(0, 0, 16, 16), (40, 40, 56, 48), (100, 4, 100, 4)],
        heatmap=predicted,
        label_heatmap=label,
        names=["car", "van", "bus"],
        gt_area_orig=torch.tensor([256.0, 2000.0, 0.0]),
        gt_label=torch.tensor([0, 1, 2]),
    )
    assert [(group.name, group.heatmap_recall) for group in [*metrics.by_size, *metrics.by_class]] == [
        ("small", 0.5), ("medium", 1), ("large", None), ("car", 0.5), ("van", 1), ("bus", None),
    ]  # fmt: skip
    assert (metrics.heatmap_recall, metrics.heatmap_precision) == (3 / 5, 3 / 4)
    assert "heatmap recall 0.500" in metrics.table()


def test_cells_in_boxes_equals_counting_them() -> None:
    rng = np.random.default_rng(4)
    cells_set = rng.random(MAP) < 0.4
    corner = rng.uniform(-10, 150, (40, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 40, (40, 2))], axis=1)
    expected = []
    for x1, y1, x2, y2 in boxes:
        touched = [
            cells_set[row, column]
            for row in range(MAP[0])
            for column in range(MAP[1])
            if column * 8 < x2 and (column + 1) * 8 > x1 and row * 8 < y2 and (row + 1) * 8 > y1
        ]
        expected.append(sum(touched))
    np.testing.assert_array_equal(cells_in_boxes(cells_set, boxes), expected)


def test_nothing_at_all_is_not_defined() -> None:
    metrics = SelectorEvaluator().compute()
    undefined = {key for key, value in metrics.to_dict().items() if value is None}
    assert undefined == {
        "missing_rate", "bpr_box", "bpr_center", "occupancy", "occupancy_union", "empty_rate",
        "patches_per_image", "heatmap_recall", "heatmap_precision",
    }  # fmt: skip
    assert (metrics.images, metrics.labels) == (0, 0)


def test_no_labels_and_nothing_activated() -> None:
    metrics = measure([], [], heatmap=torch.zeros(MAP), label_heatmap=torch.zeros(MAP))
    assert (metrics.missing_rate, metrics.bpr_center) == (None, None)
    assert (metrics.heatmap_recall, metrics.heatmap_precision) == (None, None)
    assert (metrics.occupancy, metrics.empty_rate) == (0, 1)
    assert metrics.by_size == [] and metrics.by_class == []
    json.dumps(metrics.to_dict(), allow_nan=False)


def test_no_label_found_keeps_the_counts() -> None:
    label = heat({(0, 0): 1.0})
    metrics = measure([], [(0, 0, 8, 8)], heatmap=torch.zeros(MAP), label_heatmap=label)
    assert (metrics.labels, metrics.missing_rate, metrics.heatmap_recall) == (1, 1, 0)
    assert metrics.heatmap_precision is None


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"patches_xyxy_cell": cells([(18, 0, 22, 4)])}, "leaves the map of 10×20 cells"),
        ({"patches_xyxy_cell": cells([(-1, 0, 3, 4)])}, "leaves the map"),
        ({"map_hw_cell": (0, 20)}, "positive height and width"),
        ({"heatmap_prob": torch.full(MAP, math.nan)}, "heatmap_prob is not in 0–1"),
        ({"heatmap_prob": torch.full(MAP, 3.0)}, "after the sigmoid|no logits"),
        ({"heatmap_prob": torch.zeros(20, 10)}, r"heatmap_prob has shape \(20, 10\); expected \(10, 20\)"),
        ({"label_heatmap": torch.zeros(1, 1, 10, 20)}, "label_heatmap has shape"),
        ({"gt_boxes_px": torch.full((1, 4), math.nan)}, "true boxes: row 0"),
        ({"gt_boxes_px": table([(9, 0, 1, 5)])}, "x1 ≤ x2"),
        ({"gt_area_orig": torch.ones(2)}, "2 areas for 1 boxes"),
        ({"gt_area_orig": torch.tensor([math.nan])}, "not ≥ 0"),
        ({"gt_label": torch.tensor([1])}, "class 1 is not in 0–0"),
    ],
)
def test_wrong_input_is_named_and_not_counted(changes: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "heatmap_prob": torch.zeros(MAP),
        "patches_xyxy_cell": cells([LEFT]),
        "gt_boxes_px": table([(0, 0, 8, 8)]),
        "map_hw_cell": MAP,
    }
    evaluator = SelectorEvaluator(["car"])
    evaluator.update(**good)
    before = evaluator.compute()
    with pytest.raises(EvaluationError, match=message):
        evaluator.update(**{**good, **changes})
    assert evaluator.compute() == before


def test_merged_processes_equal_one() -> None:
    generator = torch.Generator().manual_seed(3)
    whole = SelectorEvaluator(["car", "van"])
    parts = [SelectorEvaluator(["car", "van"]) for _ in range(3)]
    for number in range(17):
        corner = torch.rand(5, 2, generator=generator) * 100
        boxes = torch.cat([corner, corner + torch.rand(5, 2, generator=generator) * 30], dim=1)
        start = torch.randint(0, 6, (number % 4, 2), generator=generator)
        label = torch.rand(7 + number, 13, generator=generator)
        for evaluator in (whole, parts[number % 3]):
            evaluator.update(
                label,
                torch.cat([start, start + 1], dim=1),
                boxes,
                (7 + number, 13),
                label_heatmap=label.flip(0),
                gt_area_orig=boxes[:, 2] * 100,
                gt_label=torch.arange(5) % 2,
            )
    merged = SelectorEvaluator(["car", "van"])
    merged.merge(part.state() for part in reversed(parts))
    assert merged.compute() == whole.compute()
    assert sum(part.compute().images for part in parts) == 17, "merging must leave the parts as they were"
    with pytest.raises(EvaluationError, match="cannot merge"):
        merged.merge([SelectorEvaluator(["other"]).state()])
    merged.reset()
    assert merged.compute().images == 0


def test_covered_boxes_without_boxes() -> None:
    kept, centre = covered_boxes(np.zeros((0, 4)), np.zeros((0, 4), dtype=np.int64))
    assert kept.shape == centre.shape == (0,)
