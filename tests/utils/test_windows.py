"""Windows over large pictures: they cover it, and objects on seams are found once, whole, and not glued together."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.results import Detections
from utils.windows import Window, cut_into_windows, cut_sides, merge_windows

Box = tuple[float, float, float, float]
HW = (1000, 1500)
SIZE, OVERLAP = 512, 128
WINDOWS = cut_into_windows(HW, SIZE, OVERLAP)
SEAM_X = (WINDOWS[1].left, WINDOWS[0].right)
SEAM_Y = (WINDOWS[len({w.left for w in WINDOWS})].top, WINDOWS[0].bottom)


def look(
    objects: list[tuple[Box, int]],
    windows: list[Window] = WINDOWS,
    noise: random.Random | None = None,
    least_px: float = 3.0,
    missed: frozenset[tuple[int, int]] = frozenset(),
) -> list[Detections]:
    """What a good detector finds: each object as far as a window shows it, if that is at least ``least_px`` wide."""
    found = []
    for number, window in enumerate(windows):
        rows = []
        for index, ((x1, y1, x2, y2), label) in enumerate(objects):
            box = (max(x1, window.left), max(y1, window.top), min(x2, window.right), min(y2, window.bottom))
            if min(box[2] - box[0], box[3] - box[1]) < least_px or (index, number) in missed:
                continue
            shift = [noise.uniform(-1, 1) if noise else 0.0 for _ in range(4)]
            whole = (box[2] - box[0]) * (box[3] - box[1]) / ((x2 - x1) * (y2 - y1))
            score = (noise.uniform(0.3, 0.9) if noise else 0.9) * (0.5 + whole / 2)
            rows.append(([value + error for value, error in zip(box, shift, strict=True)], score, label))
        found.append(
            Detections(
                torch.tensor([row[0] for row in rows]).reshape(-1, 4),
                torch.tensor([row[1] for row in rows]),
                torch.tensor([row[2] for row in rows], dtype=torch.int64),
            )
        )
    return found


def check(objects: list[tuple[Box, int]], merged: Detections, within_px: float = 0.01) -> None:
    """One detection per object, where it is, of its class; nothing else."""
    expected = sorted((label, *box) for box, label in objects)
    actual = sorted(
        (label, *box) for box, label in zip(merged.xyxy.tolist(), merged.label.tolist(), strict=True)
    )
    assert len(actual) == len(expected), f"{len(expected)} objects became {len(actual)}: {actual}"
    left = list(actual)
    for one in expected:
        nearest = min(left, key=lambda other: sum(abs(a - b) for a, b in zip(one, other, strict=True)))
        assert nearest == pytest.approx(one, abs=within_px)
        left.remove(nearest)
    assert merged.score.tolist() == sorted(merged.score.tolist(), reverse=True)


# ------------------------------------------------------------------------------------------------- layout


@given(
    st.tuples(st.integers(1, 9000), st.integers(1, 9000)),
    st.integers(2, 40).flatmap(
        lambda n: st.tuples(st.just(32 * n), st.integers(0, n // 2).map(lambda k: 32 * k))
    ),
)
@settings(max_examples=150, deadline=None)
def test_windows_cover_the_picture_and_overlap_as_asked(hw: tuple[int, int], sizes: tuple[int, int]) -> None:
    size, overlap = sizes
    windows = cut_into_windows(hw, size, overlap)
    for axis, length in ((0, hw[1]), (1, hw[0])):
        spans = sorted({window.span(axis) for window in windows})
        assert spans[0][0] == 0 and spans[-1][1] == length
        assert all(begin % 32 == 0 and 0 < end - begin <= size for begin, end in spans)
        assert all(a[1] - b[0] == overlap for a, b in pairwise(spans))
        assert len(spans) == 1 or len(spans) == -(-(length - overlap) // (size - overlap)), (
            "no more than needed"
        )
    assert len(windows) == len({w.span(0) for w in windows}) * len({w.span(1) for w in windows})


def test_windows_are_no_larger_than_needed() -> None:
    assert [w.span(0) for w in cut_into_windows((100, 1100), 1024, 128)] == [(0, 640), (512, 1100)]
    assert cut_into_windows((600, 1024), 1024, 128) == [Window(0, 0, 1024, 600)]
    assert len(cut_into_windows((30000, 30000), 4096, 128)) == 64


@pytest.mark.parametrize("size, overlap", [(500, 128), (512, 100), (512, 288), (0, 0), (512, -32)])
def test_impossible_windows(size: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        cut_into_windows(HW, size, overlap)


def test_only_inner_borders_cut() -> None:
    boxes = np.array([[0.0, 0, 10, 10], [500, 600, 512, 640], [3, 500, 9, 509.5], [480, 400, 505, 430]])
    assert cut_sides(boxes, Window(0, 0, 512, 512), HW).tolist() == [
        [False] * 4,
        [False, False, True, False],
        [False, False, False, True],
        [False] * 4,
    ]


# ------------------------------------------------------------------------------------------- small objects


def small_objects() -> list[tuple[Box, int]]:
    """Objects of 6 to 100 pixels on both borders of every seam, on the middle of it, and on the corners of four."""
    objects: list[tuple[Box, int]] = []
    (x1, x2), (y1, y2) = SEAM_X, SEAM_Y
    for number, size in enumerate((6, 20, 60, 100)):
        for place, x in enumerate((x1, x2)):
            top = 20 + 200 * place + 40 * number
            objects.append(((x - size / 2, top, x + size / 2, top + 30), number % 2))
        for place, y in enumerate((y1, y2)):
            left = 600 + 300 * place + 70 * number
            objects.append(((left, y - size / 2, left + 40, y + size / 2), number % 2))
    for x in SEAM_X:
        for y in SEAM_Y:
            objects.append(((x - 9, y - 12, x + 9, y + 12), 1))
    return objects


def test_small_objects_on_seams_and_corners_are_found_once_and_whole() -> None:
    objects = small_objects()
    found = look(objects)
    assert sum(len(one) for one in found) > 2 * len(objects), "most of them are seen several times"
    check(objects, merge_windows(found, WINDOWS, HW))


@pytest.mark.parametrize("seed", range(10))
def test_objects_anywhere_with_inexact_boxes(seed: int) -> None:
    rng = random.Random(seed)
    objects: list[tuple[Box, int]] = []
    for _ in range(1000):  # those that touch no other one
        w, h = rng.uniform(8, 120), rng.uniform(8, 120)
        x, y = rng.uniform(0, HW[1] - w), rng.uniform(0, HW[0] - h)
        if all(x > b[2] + 1 or x + w < b[0] - 1 or y > b[3] + 1 or y + h < b[1] - 1 for b, _ in objects):
            objects.append(((x, y, x + w, y + h), rng.randrange(3)))
    assert len(objects) > 60
    check(objects, merge_windows(look(objects, noise=rng), WINDOWS, HW), within_px=1.01)


def test_a_piece_stays_where_no_window_has_found_the_whole() -> None:
    box = (SEAM_X[1] - 30.0, 50.0, SEAM_X[1] + 10.0, 80.0)
    merged = merge_windows(look([(box, 0)], missed=frozenset({(0, 1)})), WINDOWS, HW)
    check([((box[0], 50.0, SEAM_X[1], 80.0), 0)], merged)


def test_a_cut_object_taken_for_another_class_gives_way() -> None:
    """Half a van looks like a car."""
    whole = (SEAM_X[1] - 30.0, 50.0, SEAM_X[1] + 30.0, 80.0)
    found = look([(whole, 1)])
    found[0].label[:] = 0
    found[0].score[:] = 0.99
    check([(whole, 1)], merge_windows(found, WINDOWS, HW))


# ------------------------------------------------------------------- neighbours that must stay two objects


def test_adjacent_objects_are_not_merged() -> None:
    (x1, x2), (y1, y2) = SEAM_X, SEAM_Y
    objects: list[tuple[Box, int]] = []
    for row, x in enumerate((x1, (x1 + x2) / 2, x2)):  # one ends where the next begins, exactly on the border
        top = 20.0 + 60 * row
        objects += [((x - 30, top, x, top + 20), 0), ((x, top, x + 30, top + 20), 0)]
    for column, y in enumerate((y1, y2)):
        left = 600.0 + 60 * column
        objects += [((left, y - 30, left + 20, y), 0), ((left, y, left + 20, y + 30), 0)]
    check(objects, merge_windows(look(objects), WINDOWS, HW))


def test_a_queue_of_people_on_a_seam() -> None:
    objects = [
        ((x, 100.0, x + 10, 130.0), 0) for x in np.arange(SEAM_X[0] - 60.0, SEAM_X[1] + 60.0, 8.0).tolist()
    ]
    found = look(objects)
    check(objects, merge_windows(found, WINDOWS, HW, iou_thres=0.45))


def test_objects_that_overlap_by_more_than_doubles_are_not_taken_for_doubles() -> None:
    """In both windows two people, IoU 0.43: as many afterwards."""
    x = SEAM_X[0] + 50.0
    objects: list[tuple[Box, int]] = [((x, 100.0, x + 20, 140.0), 0), ((x + 8, 100.0, x + 28, 140.0), 0)]
    check(objects, merge_windows(look(objects), WINDOWS, HW))


def test_large_neighbours_end_to_end_and_side_by_side() -> None:
    (x1, x2), _ = SEAM_X, SEAM_Y
    middle = (x1 + x2) / 2
    objects: list[tuple[Box, int]] = [
        ((x1 - 200.0, 20.0, middle - 1, 60.0), 0),
        ((middle + 1, 20.0, x2 + 180.0, 60.0), 0),
        ((x1 - 190.0, 80.0, x2 + 150.0, 120.0), 0),
        ((x1 - 190.0, 121.0, x2 + 150.0, 160.0), 0),
        ((x1 - 190.0, 162.0, x2, 200.0), 0),
        ((x2 + 1.0, 162.0, x2 + 200.0, 200.0), 0),
    ]
    check(objects, merge_windows(look(objects), WINDOWS, HW))


# -------------------------------------------------------------------------- larger than the overlap


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_pieces_of_large_objects_are_joined(seed: int | None) -> None:
    (x1, x2), (y1, y2) = SEAM_X, SEAM_Y
    objects: list[tuple[Box, int]] = [
        ((x1 - 100.0, 30.0, x2 + 90.0, 110.0), 0),  # over one seam
        ((20.0, y1 - 80.0, 120.0, y2 + 70.0), 1),
        ((x1 - 60.0, y1 - 70.0, x2 + 80.0, y2 + 60.0), 1),  # over the corner of four
        ((x2 + 40.0, 5.0, 1480.0, 25.0), 0),  # over all columns behind the first
        ((x2 - 12.0, y1 - 60.0, x2 + 20.0, y1 - 20.0), 0),
    ]
    noise = None if seed is None else random.Random(seed)
    check(
        objects,
        merge_windows(look(objects, noise=noise), WINDOWS, HW),
        within_px=0.01 if seed is None else 1.01,
    )


def test_narrow_and_long_over_the_corner_of_four() -> None:
    """Cut at the right in two windows, whole in width but cut at top and bottom in the two others."""
    box = (SEAM_X[1] - 20.0, SEAM_Y[0] - 100.0, SEAM_X[1] + 20.0, SEAM_Y[1] + 100.0)
    check([(box, 0)], merge_windows(look([(box, 0)]), WINDOWS, HW))


def test_pieces_of_different_classes_are_one_object_of_the_better() -> None:
    box = (SEAM_X[0] - 20.0, 50.0, SEAM_X[1] + 150.0, 90.0)
    found = look([(box, 1)])
    found[0].label[:] = 0
    merged = merge_windows(found, WINDOWS, HW)
    assert merged.label.tolist() == [1], "its larger, better-scored piece is left"


def test_larger_than_a_window() -> None:
    box = (100.0, 300.0, 1400.0, 340.0)
    check([(box, 0)], merge_windows(look([(box, 0)]), WINDOWS, HW))


def test_without_overlap_pieces_meet_at_the_border() -> None:
    windows = cut_into_windows((500, 1000), 512, 0)
    x = windows[0].right
    objects: list[tuple[Box, int]] = [
        ((x - 30.0, 10.0, x + 40.0, 40.0), 0),
        ((x - 30.0, 60.0, x + 40.0, 90.0), 0),
    ]
    check(objects, merge_windows(look(objects, windows), windows, (500, 1000)))


# ----------------------------------------------------------------------------------------- ordinary cases


def test_nothing_found_and_one_window() -> None:
    assert len(merge_windows(look([]), WINDOWS, HW)) == 0
    (window,) = windows = cut_into_windows((100, 200), SIZE, OVERLAP)
    objects: list[tuple[Box, int]] = [((0.0, 0.0, 20.0, 20.0), 0), ((150.0, 40.0, 200.0, 100.0), 1)]
    assert window.hw == (100, 200)
    check(objects, merge_windows(look(objects, windows), windows, (100, 200)))


def test_agnostic_suppression_is_over_all_classes() -> None:
    objects: list[tuple[Box, int]] = [((100.0, 100.0, 140.0, 140.0), 0), ((102.0, 100.0, 142.0, 140.0), 1)]
    assert len(merge_windows(look(objects), WINDOWS, HW)) == 2
    assert len(merge_windows(look(objects), WINDOWS, HW, agnostic=True)) == 1
