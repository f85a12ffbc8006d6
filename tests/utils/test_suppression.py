"""Soft suppression and weighted fusion on cases that can be computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models.decode import PostprocessConfig, suppress_all, suppress_boxes
from tests.utils.test_fixed_suppression import LETTERBOX, crowd
from utils.config import Suppression
from utils.suppression import SOFT_SIGMA, overlaps, soft_suppression, weighted_fusion

# Of 10×10 pixels; the second one overlaps the first by 10/3 columns of 10: IoU 0.5; the third one is far away.
BOXES = torch.tensor([[0, 0, 10, 10], [10 / 3, 0, 40 / 3, 10], [50.0, 50, 60, 60]])


def candidates(*scores: float) -> tuple[Tensor, Tensor]:
    """Scores, best first, and labels of one class."""
    return torch.tensor(scores), torch.zeros(len(scores), dtype=torch.int64)


def test_overlaps_are_intersection_over_union() -> None:
    box, others = np.array([0.0, 0, 10, 10]), np.array([[0.0, 0, 10, 10], [5, 5, 15, 15], [20, 0, 30, 10]])
    assert overlaps(box, others).tolist() == pytest.approx([1, 25 / 175, 0])
    assert overlaps(np.zeros(4), np.zeros((1, 4))).tolist() == [0]


def test_soft_suppression_lowers_the_score_by_the_square_of_the_overlap() -> None:
    boxes, scores, labels = soft_suppression(BOXES, *candidates(0.9, 0.8, 0.6), conf_thres=0.001)
    decayed = 0.8 * math.exp(-(0.5**2) / SOFT_SIGMA)
    assert scores.tolist() == pytest.approx([0.9, 0.6, decayed])
    torch.testing.assert_close(boxes, BOXES[[0, 2, 1]])
    assert labels.tolist() == [0, 0, 0]


def test_soft_suppression_decays_once_for_every_better_box() -> None:
    same = BOXES[[0, 0, 0]]
    scores = soft_suppression(same, *candidates(0.9, 0.8, 0.7), conf_thres=0.001)[1]
    assert scores.tolist() == pytest.approx([0.9, 0.8 * math.exp(-2), 0.7 * math.exp(-4)])


def test_soft_suppression_drops_what_has_too_little_left_and_stops_at_the_limit() -> None:
    same, scores = BOXES[[0, 0, 2]], candidates(0.9, 0.8, 0.7)
    kept = soft_suppression(same, *scores, conf_thres=0.2)[1]
    assert kept.tolist() == pytest.approx([0.9, 0.7])
    kept = soft_suppression(same, *scores, conf_thres=0.001, max_det=1)[1]
    assert kept.tolist() == pytest.approx([0.9])


def test_fusion_is_the_mean_weighted_by_scores_with_the_best_score() -> None:
    boxes, scores, labels = weighted_fusion(BOXES[[0, 2, 1]], *candidates(0.9, 0.6, 0.3), iou_thres=0.45)
    mean = (0.9 * BOXES[0] + 0.3 * BOXES[1]) / 1.2
    torch.testing.assert_close(boxes, torch.stack((mean, BOXES[2])))
    assert scores.tolist() == pytest.approx([0.9, 0.6])
    assert labels.tolist() == [0, 0]


def test_fusion_compares_with_the_mean_not_with_the_first_box() -> None:
    # IoU of the third with the first is 0.38, with the mean of the first two (2 px to the right) 0.6.
    row = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [4.5, 0, 14.5, 10]])
    assert len(weighted_fusion(row, *candidates(0.8, 0.8, 0.1), iou_thres=0.42)[0]) == 1
    found = weighted_fusion(row, *candidates(0.8, 0.8, 0.1), iou_thres=0.5)
    # The first two stay apart (IoU 0.43), and the third one joins the second.
    torch.testing.assert_close(found[0], torch.stack((row[0], (0.8 * row[1] + 0.1 * row[2]) / 0.9)))


@pytest.mark.parametrize("method", ["soft", "fusion"])
def test_classes_do_not_meet_unless_asked(method: Suppression) -> None:
    boxes, scores = BOXES[[0, 0]], torch.tensor([[0.9, 0.0], [0.0, 0.8]])
    kept = suppress_boxes(boxes, scores, PostprocessConfig(0.001, 0.5, nms=method))
    assert kept[1].tolist() == pytest.approx([0.9, 0.8])
    assert kept[2].tolist() == [0, 1]
    kept = suppress_boxes(boxes, scores, PostprocessConfig(0.001, 0.5, agnostic=True, nms=method))
    expected = [0.9, 0.8 * math.exp(-2)] if method == "soft" else [0.9]
    assert kept[1].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("method", ["soft", "fusion"])
def test_nothing_in_nothing_out(method: Suppression) -> None:
    config = PostprocessConfig(0.2, 0.5, multi_label=True, nms=method)
    for count, score in ((0, 0.5), (3, 0.1)):
        boxes, scores, labels = suppress_boxes(torch.rand(count, 4), torch.full((count, 2), score), config)
        assert boxes.shape == (0, 4)
        assert scores.shape == labels.shape == (0,)


@pytest.mark.parametrize("method", ["soft", "fusion"])
def test_boxes_apart_come_out_as_they_are(method: Suppression) -> None:
    boxes = torch.tensor([[i * 20.0, 0, i * 20 + 10, 10] for i in range(6)])
    scores = torch.rand(6, 3, generator=torch.Generator().manual_seed(0))
    hard = PostprocessConfig(0.1, 0.5, max_det=7, multi_label=True)
    found = suppress_boxes(boxes, scores, replace(hard, nms=method))
    for ours, expected in zip(found, suppress_boxes(boxes, scores, hard), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("method", ["soft", "fusion"])
def test_in_a_crowd_the_best_box_of_all_and_the_order_are_kept(method: Suppression) -> None:
    decoded = crowd(400, 3)
    found = suppress_all(decoded, [LETTERBOX, LETTERBOX], PostprocessConfig(0.05, 0.5, 40, nms=method))
    hard = suppress_all(decoded, [LETTERBOX, LETTERBOX], PostprocessConfig(0.05, 0.5, 40))
    for ours, reference in zip(found, hard, strict=True):
        assert len(ours) == 40
        assert ours.score[0] == pytest.approx(float(reference.score[0]))
        assert ours.label[0] == reference.label[0]
        assert (ours.score.diff() <= 0).all()
        assert (ours.xyxy[:, 2:] >= ours.xyxy[:, :2]).all()
