"""Pasting objects of rare classes: which, where, and what of them is seen."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from utils.config import HypConfig
from utils.copy_paste import CopyPaste, covered_areas, crowded, cut_object, find_place, lay, mirrored
from utils.images import ByteImage
from utils.transforms import BACKGROUND, Picture, Source


def labels(*classes: int) -> np.ndarray:
    return np.array([[c, 0.5, 0.5, 0.1, 0.1] for c in classes], np.float32).reshape(-1, 5)


def ground(height: int = 64, width: int = 96, value: int = 50) -> ByteImage:
    return np.full((height, width, 3), value, dtype=np.uint8)


def donor(index: int) -> Source:
    """96×64 pixels of 50 with one object of 200, 12×8 pixels; its class is the index."""
    image = ground()
    image[20:28, 30:42] = 200
    box = np.array([[30, 20, 42, 28]], dtype=np.float32)
    return Source((64, 96), box, np.array([index], dtype=np.int64), None, lambda *_: (image, 1.0))


def picture() -> Picture:
    return Picture(
        ground(), np.array([[0, 0, 48, 64]], np.float32), np.zeros(1, np.int64), np.zeros((8, 12), np.float32)
    )


def test_rare_classes_are_drawn_more_often_than_they_occur() -> None:
    paste = CopyPaste([labels(*[0] * 16), labels(1), labels(2, 2, 2, 2)], HypConfig(copy_paste=1))
    assert paste.classes.tolist() == [0, 1, 2]
    assert paste.share.tolist() == pytest.approx([1 / 7, 4 / 7, 2 / 7])


def test_objects_come_with_box_label_heatmap_and_pixels() -> None:
    hyp = HypConfig(copy_paste=2, scale=0.0)
    paste = CopyPaste([labels(0), labels(1), labels(2)], hyp)
    seen: Counter[int] = Counter()
    for seed in range(40):
        result, donors = paste(picture(), donor, np.random.default_rng(seed))
        new = result.xyxy[1:]
        assert bool(donors) == bool(len(new))
        assert not covered_areas(new, np.array([[0, 0, 48, 64]])).any(), "not on another object"
        assert len(new) < 2 or np.count_nonzero(covered_areas(new, new)) == len(new), "not on each other"
        for box, label in zip(new, result.labels[1:], strict=True):
            assert (box[2:] - box[:2]).tolist() == pytest.approx([12, 8], abs=0.01)
            assert label == donors[0]
            left, top, right, bottom = np.rint(box).astype(int)
            assert (result.image[top:bottom, left:right] == 200).all()
            centre = ((box[:2] + box[2:]) / 16).astype(int)
            assert result.heatmap[centre[1], centre[0]] >= 0.5
        seen[len(new)] += 1
    assert set(seen) >= {0, 1, 2}


def test_sizes_vary_as_the_hyper_parameter_says() -> None:
    paste = CopyPaste([labels(0)], HypConfig(copy_paste=3, scale=0.5))
    widths = []
    for seed in range(40):
        result, _ = paste(picture(), donor, np.random.default_rng(seed))
        widths += (result.xyxy[1:, 2] - result.xyxy[1:, 0]).tolist()
    assert 5 <= min(widths) < 8 and 15 < max(widths) <= 19


def test_nothing_is_pasted_where_the_class_is_crowded() -> None:
    """A part of the neighbour would come along without a label."""
    boxes = np.array([[0, 0, 10, 10], [7, 0, 17, 10], [40, 0, 50, 10], [9, 9, 11, 11]], np.float32)
    assert crowded(boxes).tolist() == [True, True, False, True]
    source = donor(0)
    overlapping = np.array([[30, 20, 42, 28], [36, 20, 48, 28]], np.float32)
    crowd = Source(source.hw, overlapping, np.zeros(2, np.int64), None, source.read)
    paste = CopyPaste([labels(0)], HypConfig(copy_paste=5))
    result, donors = paste(picture(), lambda _: crowd, np.random.default_rng(0))
    assert donors == [] and len(result.xyxy) == 1


def test_cut_objects_have_a_margin_unless_the_image_ends() -> None:
    image = np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)
    patch, inner = cut_object(image, np.array([20.0, 10, 40, 20]), 1.0)
    assert patch.shape == (14, 26, 3)  # 3 pixels on the left and right, 1.5 (so 2) above and below
    assert inner.tolist() == [3, 2, 23, 12]
    np.testing.assert_array_equal(patch, image[8:22, 17:43])
    patch, inner = cut_object(image, np.array([0.0, 0, 20, 10]), 0.5)
    assert patch.shape == (6, 12, 3)
    assert inner.tolist() == pytest.approx([0, 0, 20 * 12 / 23, 10 * 6 / 12], abs=1e-5)


def test_mirrored_boxes_mark_the_same_pixels() -> None:
    image = ground(10, 20)
    image[2:8, 3:9] = 255
    patch, inner = mirrored(image, np.array([3, 2, 9, 8], np.float32))
    left, top, right, bottom = inner.astype(int)
    assert (patch[top:bottom, left:right] == 255).all() and (patch == 255).sum() == 6 * 6 * 3


def test_margins_fade_out() -> None:
    canvas, patch = ground(20, 20, 0), ground(12, 12, 100)
    lay(canvas, patch, np.array([4, 4, 8, 8], np.float32), np.array([8, 8, 12, 12], np.float32))
    row = canvas[10, :, 0].tolist()
    assert row[:4] == [0] * 4 and row[16:] == [0] * 4 and row[8:12] == [100] * 4
    assert 0 < row[4] < row[5] < row[6] < row[7] < 100 and row[4:8] == row[15:11:-1]


def test_no_place_on_grey_on_objects_or_for_what_is_too_large() -> None:
    rng = np.random.default_rng(0)
    patch, inner = ground(8, 8), np.array([1, 1, 7, 7], np.float32)
    nothing = np.zeros((0, 4), np.float32)
    assert find_place(ground(value=BACKGROUND), patch, inner, nothing, rng) is None
    everything = np.array([[0, 0, 96, 64]], np.float32)
    assert find_place(ground(), patch, inner, everything, rng) is None
    assert find_place(ground(), ground(40, 40), np.array([4, 4, 36, 36], np.float32), nothing, rng) is None
    assert find_place(ground(), patch, np.array([1, 1, 7, 2], np.float32), nothing, rng) is None
    box = find_place(ground(), patch, inner, nothing, rng)
    assert box is not None and (box[2:] - box[:2]).tolist() == [6, 6]
