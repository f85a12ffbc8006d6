"""Boxes of one image out of many, numbers in lines, the fixed choice for validation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.datasets.base import BoxRows, few_messages, held_out, parse_numbers

HW = (80, 160)


def rows(boxes: list[list[float]], ignored: list[list[float]], drop: bool = True) -> BoxRows:
    return BoxRows(
        "frame 7",
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.arange(len(boxes)),
        np.array(ignored, dtype=np.float64).reshape(-1, 4),
        drop,
        {"malformed": 2},
        ["line 3"],
    )


def test_boxes_are_clipped_counted_and_cleaned() -> None:
    boxes = [[-5, 10, 20, 20], [40, 40, 10, 10], [40, 40, 0, 10], [300, 0, 5, 5], [100, 60, 20, 20]]
    found = rows(boxes, [[95, 50, 30, 20], [95, 50, 30, 20], [200, 0, 5, 5]]).read(HW)
    np.testing.assert_array_equal(found.boxes, [[0, 10, 15, 30], [40, 40, 50, 50]])
    np.testing.assert_array_equal(found.labels, [0, 1])
    np.testing.assert_array_equal(found.ignored, [[95, 50, 125, 70]])
    assert found.dropped == {
        "malformed": 2,
        "zero or negative size": 1,
        "outside the image": 1,
        "centre in an ignored region": 1,
    }
    assert found.clipped == 1
    assert found.messages[0] == "line 3"
    assert "frame 7: outside the image" in found.messages[2]


def test_objects_in_ignored_regions_stay_where_the_dataset_says_so() -> None:
    assert len(rows([[100, 60, 20, 20]], [[95, 50, 30, 30]], drop=False).read(HW).labels) == 1
    assert len(rows([[100, 60, 20, 20]], [[95, 50, 30, 30]], drop=True).read(HW).labels) == 0


def test_the_same_box_of_another_class_stays() -> None:
    found = BoxRows("x", np.array([[1.0, 1, 5, 5]] * 3), np.array([0, 0, 1]), np.zeros((0, 4))).read(HW)
    np.testing.assert_array_equal(found.labels, [0, 1])
    assert found.dropped == {"duplicate": 1}


@pytest.mark.parametrize(
    "line, expected",
    [
        ("1,2,3", [1, 2, 3]),
        (" 1 ,\t2 ,3,, ", [1, 2, 3]),
        ("1e2,-.5,+3.", [100, -0.5, 3]),
        ("1,2", None),
        ("1,2,3,4", None),
        ("1,2,x", None),
        ("1,2,nan", None),
        ("1,2,inf", None),
        ("1,2,1e999", None),
        ("1,2,٣", None),
    ],
)
def test_parse_numbers(line: str, expected: list[float] | None) -> None:
    assert parse_numbers(line, 3) == expected


def test_few_messages() -> None:
    assert few_messages(["a"] * 5, "f") == ["a"] * 5
    assert few_messages(["a"] * 9, "f") == ["a"] * 5 + ["f: 4 more lines are wrong"]


@given(st.sets(st.text(), max_size=40), st.floats(0, 1))
def test_the_choice_for_validation_is_fixed_and_leaves_both_something(names: set[str], share: float) -> None:
    chosen = held_out(names, share)
    assert chosen <= names
    assert chosen == held_out(sorted(names, reverse=True), share)
    if len(names) > 1 and share > 0:
        assert 0 < len(chosen) < len(names)
    else:
        assert not chosen
