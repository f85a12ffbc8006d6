"""utils/sam_tiles.py: tiles cover the image, and every object is looked at in a window that holds it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.sam_tiles import OVERLAP_SHARE, objects_by_window, tile_windows

image_sizes = st.tuples(st.integers(1, 500), st.integers(1, 500))
tile_sides = st.integers(30, 300)


def test_a_small_image_is_one_tile() -> None:
    assert tile_windows((765, 1024), 1024).tolist() == [[0, 0, 1024, 765]]
    assert tile_windows((1, 1), 1024).tolist() == [[0, 0, 1, 1]]


def test_tiles_by_hand() -> None:
    assert tile_windows((1050, 1400), 1024).tolist() == [
        [0, 0, 1024, 1024], [376, 0, 1400, 1024], [0, 26, 1024, 1050], [376, 26, 1400, 1050],
    ]  # fmt: skip
    assert tile_windows((1024, 1793), 1024)[:, 0].tolist() == [
        0,
        384,
        769,
    ]  # 1792 = two tiles less an overlap
    assert tile_windows((1024, 1792), 1024)[:, 0].tolist() == [0, 768]


@settings(deadline=None)
@given(image_sizes, tile_sides)
def test_tiles_cover_the_image_and_overlap(hw: tuple[int, int], side: int) -> None:
    windows = tile_windows(hw, side)
    assert len(np.unique(windows, axis=0)) == len(windows)
    for axis, length in ((0, hw[1]), (1, hw[0])):
        spans = np.unique(windows[:, [axis, axis + 2]], axis=0)
        assert spans[0, 0] == 0 and spans[-1, 1] == length
        assert (spans[:, 1] - spans[:, 0] == min(side, length)).all()
        assert (spans[:-1, 1] - spans[1:, 0] >= math.ceil(side * OVERLAP_SHARE)).all()


@st.composite
def boxes_and_image(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, int], int]:
    hw, side = draw(image_sizes), draw(tile_sides)
    count, seed = draw(st.integers(0, 30)), draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-5, (hw[1], hw[0]), (count, 2))
    size = np.exp(rng.uniform(np.log(0.1), np.log(2 * side), (count, 2)))
    return np.hstack([corner, corner + size]), hw, side


@settings(deadline=None)
@given(boxes_and_image())
def test_every_box_is_in_exactly_one_window_that_holds_it(
    case: tuple[np.ndarray, tuple[int, int], int],
) -> None:
    boxes, hw, side = case
    groups = objects_by_window(boxes, hw, side)
    tiles = tile_windows(hw, side)
    everyone = np.concatenate([objects for _, objects in groups]) if groups else np.zeros(0)
    assert sorted(everyone.tolist()) == list(range(len(boxes)))
    inside = np.clip(boxes, 0, (hw[1], hw[0], hw[1], hw[0]))
    for window, objects in groups:
        assert len(objects), "a window without objects is not looked at"
        assert (inside[objects, :2] >= window[:2]).all() and (inside[objects, 2:] <= window[2:]).all()
        if (
            window.tolist() not in tiles.tolist()
        ):  # the whole image: only what no tile holds, and that is large
            assert window.tolist() == [0, 0, hw[1], hw[0]]
            size = inside[objects, 2:] - inside[objects, :2]
            assert (size.max(axis=1) > side * OVERLAP_SHARE).all()
            starts_in = (inside[objects, None, :2] >= tiles[:, :2]).all(axis=2)
            ends_in = (inside[objects, None, 2:] <= tiles[:, 2:]).all(axis=2)
            assert not (starts_in & ends_in).any()


@pytest.mark.parametrize("left, tile", [(0, 0), (380, 0), (690, 0), (691, 376), (1370, 376)])
def test_the_tile_that_shows_most_of_the_surroundings(left: float, tile: int) -> None:
    # The tiles are 0–1024 and 376–1400: a box of 20 is as far from 1024 as from 376 where its left is 690.
    ((window, objects),) = objects_by_window(np.array([[left, 100.0, left + 20, 120]]), (900, 1400), 1024)
    assert window.tolist() == [tile, 0, tile + 1024, 900] and objects.tolist() == [0]


def test_a_box_larger_than_a_tile_is_looked_at_in_the_whole_image() -> None:
    boxes = np.array([[10.0, 10, 1300, 500], [10, 10, 30, 30]])
    (whole, large), (tile, small) = objects_by_window(boxes, (900, 1400), 1024)
    assert whole.tolist() == [0, 0, 1400, 900] and large.tolist() == [0]
    assert tile.tolist() == [0, 0, 1024, 900] and small.tolist() == [1]


def test_no_boxes_no_windows() -> None:
    assert objects_by_window(np.zeros((0, 4)), (900, 1400), 1024) == []
