"""Grouped overlaps in chunks, and greedy matching with objects that may be shared, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from evaluate import candidates as module
from evaluate.candidates import (
    GroupedBoxes,
    best_first,
    by_preference,
    grouped_pairs,
    overlaps_of,
    place_in_group,
)
from evaluate.matching import accept_in_order


@pytest.mark.parametrize("chunk", [1, 3, 7, 1 << 16])
def test_pairs_of_the_same_group(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_PAIRS", chunk)
    rng = np.random.default_rng(0)
    detections, truths = rng.integers(0, 6, 30), np.sort(rng.choice([0, 1, 1, 3, 5, 9], 12))
    found = [pair for parts in grouped_pairs(detections, truths) for pair in zip(*parts, strict=True)]
    expected = [(d, t) for d in range(30) for t in range(12) if detections[d] == truths[t]]
    assert found == expected
    assert list(grouped_pairs(detections, np.zeros(0, np.int64))) == []


def test_overlaps() -> None:
    detections = GroupedBoxes(
        np.array([[0, 0, 10, 10], [0, 0, 10, 10], [20, 0, -5, 5]], float), np.array([0, 1, 1])
    )
    truths = GroupedBoxes(
        np.array([[5, 0, 10, 10], [10, 0, 5, 5], [0, 0, 20, 20]], float), np.array([0, 0, 1])
    )
    pairs = overlaps_of(detections, truths)
    assert (pairs.detection.tolist(), pairs.truth.tolist()) == ([0, 1], [0, 2])
    assert pairs.iou.tolist() == pytest.approx([1 / 3, 1 / 4])
    assert pairs.iod.tolist() == [0.5, 1]
    assert overlaps_of(detections, truths, least=0.6).truth.tolist() == [2]


def test_order_of_preference_and_of_scores() -> None:
    boxes = GroupedBoxes(np.array([[0, 0, 10, 10]], float), np.array([0]))
    truths = GroupedBoxes(
        np.array([[0, 0, 9, 10], [0, 0, 10, 9], [0, 0, 10, 10], [0, 0, 10, 10]], float), np.zeros(4, int)
    )
    pairs = overlaps_of(boxes, truths)
    ignored = np.array([False, False, False, True])
    assert by_preference(pairs, pairs.iou, ignored, ignored).truth.tolist() == [2, 1, 0, 3]
    assert best_first(np.array([1, 0, 1, 0]), np.array([0.5, 0.5, 0.7, 0.5])).tolist() == [1, 3, 2, 0]
    assert place_in_group(np.array([2, 2, 5, 7, 7, 7])).tolist() == [0, 1, 0, 0, 1, 2]


@pytest.mark.parametrize("seed", range(20))
def test_matching_agrees_with_the_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    detections, truths = 40, 15
    count = rng.integers(0, 6, detections)
    detection = np.repeat(np.arange(detections), count)
    truth = np.concatenate([rng.choice(truths, n, replace=False) for n in count])
    shared = rng.uniform(size=len(truth)) < 0.2
    taken, expected = set(), []
    for number in range(detections):
        for pair in np.flatnonzero(detection == number):
            if shared[pair] or truth[pair] not in taken:
                taken.add(truth[pair])
                expected.append(pair)
                break
    assert accept_in_order(detection, truth, truths, shared).tolist() == expected
