"""utils/mask_heatmap.py: which masks are usable and what they make of a label, on masks made by hand."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.heatmap import FILE_STRIDE, block_maximum, gaussian_heatmap_file, render_heatmap
from utils.mask_heatmap import (
    FallBack,
    MaskMode,
    ObjectMask,
    crop_mask,
    fall_back_reason,
    label_values,
    mask_heatmap,
    mask_heatmap_file,
)

Array = npt.NDArray[Any]
HW = (60, 80)
BOX = (20.0, 10.0, 40.0, 30.0)  # corners: 20×20 pixels, centre (30, 20)


def centred(corners: npt.ArrayLike) -> Array:
    """Corners as centre and size."""
    box = np.asarray(corners, dtype=np.float64).reshape(-1, 4)
    both = np.concatenate([(box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]], axis=1)
    return both if np.ndim(corners) == 2 else both[0]


def bitmap(*rectangles: tuple[int, int, int, int], hw: tuple[int, int] = HW) -> Array:
    """A mask of rectangles (left, top, right, bottom)."""
    values = np.zeros(hw, dtype=bool)
    for left, top, right, bottom in rectangles:
        values[top:bottom, left:right] = True
    return values


def reason(values: Array, box: npt.ArrayLike = BOX, tau: float = 0.5, mode: MaskMode = "hybrid") -> Any:
    return fall_back_reason(crop_mask(values, (0, 0), box), centred(box), tau, mode)


# --- cropping --------------------------------------------------------------------------------------------------


def test_a_crop_holds_the_box_and_counts_the_rest() -> None:
    mask = crop_mask(bitmap((25, 5, 50, 20)), (0, 0), BOX)
    assert (mask.left, mask.top, mask.values.shape) == (20, 10, (20, 20))
    assert mask.values[:10, 5:].all() and not mask.values[10:].any() and not mask.values[:, :5].any()
    assert mask.area_px == 25 * 15


def test_a_crop_of_a_window_is_placed_in_the_image() -> None:
    full = bitmap((25, 5, 50, 20))
    whole, part = crop_mask(full, (0, 0), BOX), crop_mask(full[7:50, 12:70], (12, 7), BOX)
    assert (part.left, part.top) == (whole.left, whole.top)
    assert np.array_equal(part.values, whole.values)


def test_a_crop_outlives_its_bitmap() -> None:
    full = bitmap((25, 5, 50, 20))
    mask = crop_mask(full, (0, 0), BOX)
    assert not np.shares_memory(mask.values, full)


@settings(deadline=None)
@given(st.lists(st.floats(-10, 90), min_size=4, max_size=4))
def test_a_crop_is_where_the_gaussian_is(numbers: list[float]) -> None:
    (x1, x2), (y1, y2) = sorted(numbers[:2]), sorted(numbers[2:])
    box = (x1, y1, x2, y2)
    mask = crop_mask(np.ones(HW, dtype=bool), (0, 0), box)
    rows, columns = np.nonzero(render_heatmap(centred(box), HW, stride=1))
    if not mask.values.size:
        assert len(rows) <= 1  # a box without a pixel centre puts its 1 into one cell
        return
    assert (mask.left, mask.top) == (columns.min(), rows.min())
    assert mask.values.shape == (np.ptp(rows) + 1, np.ptp(columns) + 1)


# --- what is wrong with a mask ---------------------------------------------------------------------------------


def test_a_good_mask_has_no_fault() -> None:
    assert reason(bitmap((21, 11, 39, 29))) is None
    assert reason(bitmap((20, 10, 40, 30))) is None
    assert reason(bitmap((18, 8, 42, 32))) is None, "a little over the border"


@pytest.mark.parametrize(
    "values, expected",
    [
        (bitmap(), FallBack.EMPTY),
        (bitmap((50, 40, 60, 50)), FallBack.OUTSIDE),  # elsewhere altogether
        (bitmap((20, 10, 40, 30), (0, 35, 80, 55)), FallBack.OUTSIDE),  # the object and the street
        (bitmap((20, 10, 40, 30), (0, 35, 80, 39)), None),  # 400 of 720 pixels inside
        (bitmap((25, 15, 34, 26)), FallBack.SMALL),  # 99 of 400
        (bitmap((25, 15, 35, 25)), None),  # 100 of 400
        (bitmap((20, 10, 40, 19), (20, 22, 40, 30)), FallBack.PIECES),
        (bitmap((20, 10, 40, 25), (20, 27, 40, 30)), None),  # 300 and 60: a pole before a car
        (bitmap((20, 10, 30, 20), (30, 20, 40, 30)), None),  # pieces that touch at a corner are one
        (bitmap((20, 10, 29, 30)), FallBack.OFF_CENTRE),  # less than the left half
        (bitmap((20, 10, 30, 30)), None),  # just the left half
        (bitmap((20, 10, 40, 19)), FallBack.OFF_CENTRE),
    ],
)
def test_faults_by_hand(values: Array, expected: FallBack | None) -> None:
    assert reason(values) is expected


def test_no_mask_is_a_fault_of_its_own() -> None:
    assert fall_back_reason(None, centred(BOX), 0.5, "sam") is FallBack.TINY


def test_a_ring_is_faint_only_where_the_gaussian_is() -> None:
    ring = bitmap((20, 10, 40, 30)) & ~bitmap((23, 13, 37, 27))
    assert reason(ring, tau=0.05) is FallBack.FAINT
    assert reason(ring, tau=0.05, mode="sam") is None
    assert reason(ring, tau=0.5) is None


def test_a_box_beyond_the_bitmap_is_empty() -> None:
    mask = crop_mask(bitmap((0, 0, 80, 60)), (0, 0), (200, 200, 210, 210))
    assert mask.values.size == 0
    assert fall_back_reason(mask, (205, 205, 10, 10), 0.5, "sam") is FallBack.OUTSIDE
    assert not mask_heatmap([mask], [(205, 205, 10, 10)], HW, 0.5, "sam").any()


def test_small_objects_are_judged_by_their_pixels() -> None:
    box = (20.4, 10.4, 24.4, 14.4)  # 4×4 pixel centres
    assert reason(bitmap((20, 10, 24, 14)), box) is None
    assert reason(bitmap((21, 11, 23, 13)), box) is None
    assert reason(bitmap((21, 11, 22, 14)), box) is FallBack.SMALL


# --- rendering -------------------------------------------------------------------------------------------------


def test_label_of_one_object_by_hand() -> None:
    mask = crop_mask(bitmap((25, 10, 40, 30)), (0, 0), BOX)
    hybrid = label_values(mask, centred(BOX), 0.5, "hybrid")
    assert hybrid[10, 10] == pytest.approx(0.5 ** (0.5 * 2 * 0.05**2))  # half a pixel off the centre, of 10
    assert hybrid[0, 19] == pytest.approx(0.5 ** (0.5 * 2 * 0.95**2))
    assert not hybrid[:, :5].any()
    assert np.array_equal(label_values(mask, centred(BOX), 0.5, "sam"), mask.values)


def test_other_modes_are_refused() -> None:
    mask = crop_mask(bitmap((25, 10, 40, 30)), (0, 0), BOX)
    with pytest.raises(ValueError, match="sam, hybrid, found 'gaussian'"):
        mask_heatmap([mask], [centred(BOX)], HW, 0.5, "gaussian")  # type: ignore[arg-type]


def test_masks_must_fit_boxes_and_image() -> None:
    mask = crop_mask(bitmap((25, 10, 40, 30)), (0, 0), BOX)
    with pytest.raises(ValueError, match="found 1 for 2 boxes"):
        mask_heatmap([mask], centred([BOX, BOX]), HW, 0.5, "sam")
    with pytest.raises(ValueError, match="leaves the image"):
        mask_heatmap([mask], [centred(BOX)], (20, 30), 0.5, "sam")


boxes_in_image = st.lists(
    st.tuples(
        st.floats(0, HW[1] - 0.1), st.floats(0, HW[0] - 0.1), st.floats(0.1, 40), st.floats(0.1, 40)
    ).map(lambda b: (b[0], b[1], min(b[0] + b[2], HW[1]), min(b[1] + b[3], HW[0]))),
    max_size=6,
)


@settings(deadline=None)
@given(boxes_in_image, st.sampled_from([0.1, 0.5, 0.8]), st.sampled_from([1, 3, 4, 8]))
def test_full_masks_give_the_heatmap_of_the_boxes(
    boxes: list[tuple[float, ...]], tau: float, stride: int
) -> None:
    corners = np.array(boxes).reshape(-1, 4)
    masks = [crop_mask(np.ones(HW, dtype=bool), (0, 0), box) for box in corners]
    usable = [mask if mask.values.size else None for mask in masks]
    expected = render_heatmap(centred(corners), HW, tau, stride)
    assert np.abs(mask_heatmap(usable, centred(corners), HW, tau, "hybrid", stride) - expected).max() < 1e-6
    no_masks: list[ObjectMask | None] = [None] * len(corners)
    assert np.array_equal(mask_heatmap(no_masks, centred(corners), HW, tau, "sam", stride), expected)


def per_pixel(
    masks: list[Array | None], boxes: Array, tau: float, mode: str, stride: int, hw: tuple[int, int] = HW
) -> Array:
    """The definition, pixel by pixel over the whole image."""
    y, x = np.arange(hw[0])[:, None] + 0.5, np.arange(hw[1])[None] + 0.5
    full = np.zeros(hw)
    for mask, (cx, cy, w, h) in zip(masks, boxes, strict=True):
        inside = (np.abs(x - cx) <= w / 2) & (np.abs(y - cy) <= h / 2)
        gaussian = inside * np.exp(
            0.5 * ((x - cx) ** 2 / (w / 2) ** 2 + (y - cy) ** 2 / (h / 2) ** 2) * np.log(tau)
        )
        value = gaussian if mask is None else mask * (gaussian if mode == "hybrid" else inside)
        full = np.maximum(full, value)
    return block_maximum(full, stride)


@pytest.mark.parametrize("mode", ["sam", "hybrid"])
@pytest.mark.parametrize("stride", [1, 4, 8])
def test_against_every_pixel(mode: MaskMode, stride: int) -> None:
    rng = np.random.default_rng(stride)
    for _ in range(20):
        corners = rng.uniform((-3, -3, 2, 2), (70, 50, 40, 40), (7, 4))
        corners[:, 2:] += corners[:, :2]
        corners = np.clip(corners, 0, (HW[1], HW[0], HW[1], HW[0]))
        bitmaps = [rng.random(HW) < 0.4 if rng.random() < 0.7 else None for _ in corners]
        masks = [
            None if bits is None else crop_mask(bits, (0, 0), box)
            for bits, box in zip(bitmaps, corners, strict=True)
        ]
        found = mask_heatmap(masks, centred(corners), HW, 0.3, mode, stride)
        expected = per_pixel(bitmaps, centred(corners), 0.3, mode, stride)
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() < 1e-6


def test_no_objects() -> None:
    heatmap = mask_heatmap([], np.zeros((0, 4)), HW, 0.5, "hybrid")
    assert heatmap.shape == (15, 20) and not heatmap.any()


# --- files -----------------------------------------------------------------------------------------------------


def test_file_reports_why_masks_were_left_out() -> None:
    other = (50.0, 30.0, 70.0, 50.0)
    boxes = centred([BOX, other, other, BOX])
    masks = [
        crop_mask(bitmap((20, 10, 40, 28)), (0, 0), BOX),
        crop_mask(bitmap((0, 0, 10, 10)), (0, 0), other),
        None,
        crop_mask(bitmap(), (0, 0), BOX),
    ]
    file, reasons = mask_heatmap_file(masks, boxes, (57, 79), 0.5, "sam", "print")
    assert reasons == Counter({FallBack.OUTSIDE: 1, FallBack.TINY: 1, FallBack.EMPTY: 1})
    assert (file.mode, file.tau, file.image_hw, file.fingerprint) == ("sam", 0.5, (57, 79), "print")
    assert file.values.shape == (15, 20) and file.values.max() == 255


def test_file_without_usable_masks_is_the_one_of_the_boxes() -> None:
    boxes = centred([BOX])
    file, _ = mask_heatmap_file([None], boxes, HW, 0.5, "hybrid", "")
    assert np.array_equal(file.values, gaussian_heatmap_file(boxes, HW, 0.5, "").values)


def random_bitmap(rng: np.random.Generator, box: Array) -> Array:
    """Noise, a rectangle somewhere about the box, a ring, nothing or everything."""
    left, top, right, bottom = box
    ring = bitmap((math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)))
    inner = (math.ceil(left) + 1, math.ceil(top) + 1, math.floor(right) - 1, math.floor(bottom) - 1)
    shift = rng.integers(-6, 7, 4)
    near = np.clip(np.rint(box).astype(int) + shift, 0, (HW[1], HW[0], HW[1], HW[0])).tolist()
    choices = [
        rng.random(HW) < rng.random(), bitmap(near), ring & ~bitmap(inner), bitmap(), np.ones(HW, bool),
    ]  # fmt: skip
    return choices[rng.integers(len(choices))]


@settings(deadline=None, max_examples=200)
@given(
    st.tuples(st.floats(0, 79), st.floats(0, 59), st.floats(0.1, 40), st.floats(0.1, 40)),
    st.integers(0, 2**32 - 1), st.sampled_from(["sam", "hybrid"]), st.floats(0.5, 0.95),
)  # fmt: skip
def test_every_object_keeps_a_cell_of_a_half_in_its_box(
    numbers: tuple[float, float, float, float], seed: int, mode: MaskMode, tau: float
) -> None:
    x, y, w, h = numbers
    box = np.array([x, y, min(x + w, HW[1]), min(y + h, HW[0])])
    mask = crop_mask(random_bitmap(np.random.default_rng(seed), box), (0, 0), box)
    file, _ = mask_heatmap_file([mask], [centred(box)], HW, tau, mode, "")
    cells = block_maximum(file.values, 8 // FILE_STRIDE) / 255
    rows, columns = np.nonzero(cells >= 0.5)
    assert len(rows)
    # All of the label is at the box: the cells of its pixels, or of its centre where it holds no pixel's.
    first, last = np.floor(box[:2] / 8), np.floor(box[2:] / 8)
    assert ((columns >= first[0]) & (columns <= last[0])).all()
    assert ((rows >= first[1]) & (rows <= last[1])).all()


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.5), st.sampled_from(["sam", "hybrid"]))
def test_low_tau_never_costs_an_object_its_cell(seed: int, tau: float, mode: MaskMode) -> None:
    """Below τ = 0.5 masks can leave only the low rim of a Gaussian; boxes of a few pixels and more are meant."""
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform((0, 0), (50, 30)), rng.uniform(8, 30, 2)
    box = np.concatenate([corner, corner + size])
    mask = crop_mask(random_bitmap(rng, box), (0, 0), box)
    file, _ = mask_heatmap_file([mask], [centred(box)], HW, tau, mode, "")
    assert file.values.max() / 255 >= 0.5
