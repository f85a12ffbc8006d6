"""engine/setup.py: anchors that fit the labels."""

from __future__ import annotations

import numpy as np
import pytest

from engine.setup import check_anchors
from utils.config import COCO_ANCHORS, HypConfig, ModelConfig

SIZES = np.exp(np.random.default_rng(0).normal(3, 0.6, (400, 2)))
"""Width and height of boxes in pixels, around 20."""


def test_anchors_that_fit_stay_and_others_are_replaced() -> None:
    assert check_anchors(COCO_ANCHORS, SIZES, HypConfig(), True) == COCO_ANCHORS
    large = [[[200.0, 200.0]] * 3] * 3
    assert check_anchors(large, SIZES, HypConfig(), False) == large
    found = check_anchors(large, SIZES, HypConfig(), True)
    assert [len(level) for level in found] == [3, 3, 3] and max(max(found[2])) < 100


def test_stride_4_gets_anchors_of_its_own_and_the_smallest() -> None:
    given = ModelConfig(fine_level=True).anchors
    assert check_anchors(given, SIZES, HypConfig(), False) == given
    found = check_anchors(given, SIZES, HypConfig(), True)
    areas = [np.prod(level, axis=1) for level in found]
    assert [len(level) for level in found] == [3, 3, 3, 3] and found != given
    assert areas[3].max() <= areas[0].min() and areas[0].max() <= areas[1].min() <= areas[2].min()


@pytest.mark.parametrize("fine", [False, True])
def test_too_few_labels_keep_the_anchors(fine: bool) -> None:
    given = ModelConfig(fine_level=fine).anchors
    sizes = np.full((5, 2), 300.0)
    assert check_anchors(given, sizes * 10, HypConfig(), True) == given
    assert check_anchors(given, sizes[:0], HypConfig(), True) == given
