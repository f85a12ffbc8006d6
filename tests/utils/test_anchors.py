"""utils/anchors.py: how anchors fit, and k-means."""

from __future__ import annotations

import numpy as np
import pytest

from utils.anchors import best_possible_recall, kmeans_anchors
from utils.config import COCO_ANCHORS


def test_recall_by_hand() -> None:
    anchors = [[[10.0, 10.0]], [[20.0, 40.0]], [[100.0, 100.0]]]
    sizes = [[10, 10], [39, 39], [41, 10], [2, 2], [30, 80]]
    # at a factor of 4: 1st two anchors (10,10), (20,40: 2 and 4 is not below 4) -> one; 2nd: all three; …
    recall, above = best_possible_recall(sizes, anchors, 4.0)
    matches = [1, 3, 0, 0, 2]
    assert recall == pytest.approx(3 / 5) and above == pytest.approx(sum(matches) / 5)


def test_a_factor_of_exactly_the_limit_does_not_match() -> None:
    assert best_possible_recall([[40.0, 10.0]], [[[10.0, 10.0]]], 4.0) == (0.0, 0.0)
    assert best_possible_recall([[39.9, 10.0]], [[[10.0, 10.0]]], 4.0) == (1.0, 1.0)


def test_no_boxes() -> None:
    assert best_possible_recall(np.zeros((0, 2)), COCO_ANCHORS, 4.0) == (0.0, 0.0)


def test_clusters_are_found() -> None:
    rng = np.random.default_rng(0)
    true = np.array(
        [[4, 6], [6, 12], [14, 8], [20, 30], [45, 25], [40, 70], [110, 60], [90, 160], [220, 200]]
    )
    sizes = np.concatenate([size * np.exp(rng.normal(0, 0.03, (200, 2))) for size in true])
    found = np.array(kmeans_anchors(sizes)).reshape(9, 2)
    order = np.argsort(true.prod(axis=1), kind="stable")
    assert np.abs(found / true[order] - 1).max() < 0.05
    assert best_possible_recall(sizes, kmeans_anchors(sizes), 1.3)[0] == 1.0


def test_form_of_the_result() -> None:
    sizes = np.exp(np.random.default_rng(1).normal(3, 0.8, (500, 2)))
    levels = kmeans_anchors(sizes)
    assert [len(level) for level in levels] == [3, 3, 3] and kmeans_anchors(sizes) == levels
    areas = [w * h for level in levels for w, h in level]
    assert areas == sorted(areas) and all(isinstance(w, float) for level in levels for w, _ in level)
    assert [len(level) for level in kmeans_anchors(sizes, 6)] == [2, 2, 2]


def test_small_boxes_are_left_out_and_one_shape_is_no_trouble() -> None:
    squares = np.repeat(np.arange(4, 40, 2.0)[:, None], 2, axis=1)
    noise = np.full((1000, 2), 0.5)
    found = np.array(kmeans_anchors(np.concatenate([squares, noise]))).reshape(9, 2)
    assert found.min() >= 4
    upright = np.column_stack([np.full(20, 5.0), np.arange(10, 30)])  # no spread of widths
    assert set(np.array(kmeans_anchors(upright)).reshape(9, 2)[:, 0]) == {5.0}


@pytest.mark.parametrize("n", [0, 1, 4, -3])
def test_number_must_divide_into_levels(n: int) -> None:
    with pytest.raises(ValueError, match="multiple of 3"):
        kmeans_anchors([[5.0, 5.0]] * 30, n)


def test_too_few_sizes() -> None:
    with pytest.raises(ValueError, match="9 anchors need at least as many different box sizes, found 1"):
        kmeans_anchors([[5.0, 5.0]] * 30)
