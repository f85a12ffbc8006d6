"""utils/transforms.py: image, boxes and heatmap move together."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from utils.boxes import Letterbox
from utils.config import HypConfig
from utils.heatmap import HeatmapFile, block_maximum, render_heatmap, to_bytes
from utils.transforms import (
    BACKGROUND,
    STRIP_ROWS,
    ColourJitter,
    Picture,
    RandomAffine,
    RandomFlip,
    Source,
    TrainPolicy,
    blend,
    colour_matrix,
    compose,
    letterbox_image,
    letterbox_matrix,
    mosaic_matrices,
    to_centres,
    worth_keeping,
)
from utils.warp import scaling, translation

Array = npt.NDArray[Any]
CALM = HypConfig(hsv_h=0, hsv_s=0, hsv_v=0, degrees=0, translate=0, scale=0, shear=0, flipud=0, fliplr=0)


def source_with(boxes: Array, hw: tuple[int, int] = (240, 400), mask: bool = False) -> Source:
    """A black image in which each box is one white rectangle."""
    image = np.zeros((*hw, 3), np.uint8)
    for x1, y1, x2, y2 in boxes.astype(int).tolist():
        image[y1:y2, x1:x2] = 255
    file = HeatmapFile(to_bytes(block_maximum(image[..., 0], 4) / 255), "sam", 0.5, hw, "")
    labels = np.arange(len(boxes), dtype=np.int64)
    return Source(
        hw, boxes.astype(np.float32), labels, (lambda: file) if mask else None, lambda *_: (image, 1.0)
    )


def scattered_boxes(rng: np.random.Generator, hw: tuple[int, int] = (240, 400)) -> Array:
    """One box in each cell of a coarse grid, so that none touch."""
    corners = np.array([[x, y] for x in range(20, hw[1] - 60, 80) for y in range(20, hw[0] - 60, 80)])
    size = rng.integers(12, 45, (len(corners), 2))
    return np.concatenate([corners, corners + size], axis=1).astype(np.float64)


def check_alignment(picture: Picture, slack: float) -> None:
    """Every white blob lies in a box, and every box holds one; all have their heatmap cell."""
    white = picture.image[..., 0] > 170
    covered = np.zeros(white.shape, bool)
    for x1, y1, x2, y2 in picture.xyxy:
        covered[max(0, int(y1 - 1)) : int(y2 + 2), max(0, int(x1 - 1)) : int(x2 + 2)] = True
        rows, columns = (
            slice(int(y1 + slack), int(y2 - slack) + 1),
            slice(int(x1 + slack), int(x2 - slack) + 1),
        )
        assert white[rows, columns].mean() > 0.4
        cells = picture.heatmap[
            int(y1) // 8 : int(y2 - 1e-3) // 8 + 1, int(x1) // 8 : int(x2 - 1e-3) // 8 + 1
        ]
        assert cells.max() >= 0.5
    for boxless in (white & ~covered,):  # only slivers of dropped boxes
        assert boxless.sum() <= 0.02 * max(white.sum(), 1) + 60


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("hw", [(256, 256), (192, 320), (320, 192)])
def test_boxes_surround_their_pixels(mask: bool, count: int, turned: bool, hw: tuple[int, int]) -> None:
    hyp = HypConfig(
        hsv_h=0, hsv_s=0, hsv_v=0, flipud=0.5, degrees=8.0 if turned else 0, shear=3.0 if turned else 0
    )
    policy = TrainPolicy(hyp)
    total = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        sources = [source_with(scattered_boxes(rng), mask=mask) for _ in range(count)]
        picture = policy(sources, hw, rng)
        assert picture.image.shape == (*hw, 3) and picture.image.dtype == np.uint8
        assert picture.heatmap.shape == (hw[0] // 8, hw[1] // 8) and picture.heatmap.dtype == np.float32
        assert picture.xyxy.dtype == np.float32 and picture.labels.dtype == np.int64
        assert (picture.xyxy >= 0).all() and (picture.xyxy <= (hw[1], hw[0]) * 2).all()
        check_alignment(picture, slack=1.0)
        total += len(picture.xyxy)
    assert total > 40


def test_labels_stay_with_their_boxes() -> None:
    boxes = np.array([[10, 10, 30, 30], [100, 10, 160, 30], [10, 100, 30, 180]], np.float64)
    matrix = translation(400, 0) @ scaling(-1, 1)
    picture = compose([source_with(boxes)], [matrix], (240, 400), 0.5)
    assert picture.labels.tolist() == [0, 1, 2]
    assert picture.xyxy.tolist() == [[370, 10, 390, 30], [240, 10, 300, 30], [370, 100, 390, 180]]
    assert np.allclose(picture.heatmap, render_heatmap(to_centres(picture.xyxy), (240, 400)))


def test_what_is_dropped() -> None:
    whole = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 1.9, 40], [0, 0, 40, 2.0], [-99, 0, 11, 50]])
    clipped = np.array([[0, 0, 10, 1.99], [0, 0, 10, 2.0], [0, 0, 1.9, 40], [0, 0, 40, 2.0], [0, 0, 10, 50]])
    assert worth_keeping(whole, clipped).tolist() == [
        False,
        True,
        False,
        True,
        False,
    ]  # the last: 9 % is left
    assert worth_keeping(np.zeros((0, 4)), np.zeros((0, 4))).shape == (0,)


def test_dropped_boxes_are_not_in_the_heatmap() -> None:
    boxes = np.array([[200, 100, 203, 103]], np.float64)
    shrunk = compose([source_with(boxes)], [scaling(0.5, 0.5)], (128, 256), 0.5)
    assert len(shrunk.xyxy) == 0 and not shrunk.heatmap.any()
    kept = compose([source_with(boxes)], [np.eye(3)], (256, 416), 0.5)
    assert len(kept.xyxy) == 1 and kept.heatmap.max() == 1


def test_masks_win_over_boxes() -> None:
    boxes = np.array([[40, 40, 120, 120]], np.float64)
    source = source_with(boxes, mask=True)
    corner_only = np.zeros((60, 100), np.uint8)
    corner_only[10:14, 10:14] = 255
    file = HeatmapFile(corner_only, "sam", 0.5, (240, 400), "")
    picture = compose([replace(source, heatmap=lambda: file)], [np.eye(3)], (240, 400), 0.5)
    assert picture.heatmap.sum() == 4 and picture.heatmap[5:7, 5:7].min() == 1


def test_no_boxes_at_all() -> None:
    picture = compose([source_with(np.zeros((0, 4)))] * 4, [np.eye(3)] * 4, (64, 96), 0.5)
    assert picture.xyxy.shape == (0, 4) and picture.labels.shape == (0,) and picture.heatmap.shape == (8, 12)


def test_calm_policy_is_the_letterbox() -> None:
    boxes = np.array([[100, 60, 180, 100]], np.float64)
    picture = TrainPolicy(CALM)([source_with(boxes)], (320, 320), np.random.default_rng(0))
    letterbox = Letterbox.fit((240, 400), (320, 320))
    assert picture.xyxy.tolist() == [[80, 112, 144, 144]]
    assert (picture.image[: int(letterbox.pad_xy[1])] == BACKGROUND).all()
    assert np.array_equal(picture.image[130, 100], [255] * 3)


@pytest.mark.parametrize("canvas", [(256, 256), (128, 384)])
def test_mosaic_meets_at_one_point(canvas: tuple[int, int]) -> None:
    sizes = [(100, 200), (200, 100), (300, 300), (50, 400)]
    for seed in range(20):
        matrices = mosaic_matrices(sizes, canvas, np.random.default_rng(seed))
        inner = [(w if n % 2 == 0 else 0, h if n < 2 else 0) for n, (h, w) in enumerate(sizes)]
        joints = [m[:2] @ (x, y, 1) for m, (x, y) in zip(matrices, inner, strict=True)]
        assert np.allclose(joints, joints[0])
        assert 0.25 * canvas[1] <= joints[0][0] <= 0.75 * canvas[1]
        assert 0.25 * canvas[0] <= joints[0][1] <= 0.75 * canvas[0]
        for matrix, (height, width) in zip(matrices, sizes, strict=True):
            assert matrix[0, 0] == matrix[1, 1] == min(canvas[0] / height, canvas[1] / width)


def test_mosaic_has_no_gap_at_the_joint() -> None:
    white = replace(
        source_with(np.zeros((0, 4)), (200, 200)),
        read=lambda *_: (np.full((200, 200, 3), 255, np.uint8), 1.0),
    )
    hyp = replace(CALM, scale=0.3, fliplr=0.5, flipud=0.5, translate=0.1)
    for seed in range(40):
        picture = TrainPolicy(hyp)([white] * 4, (128, 128), np.random.default_rng(seed))
        grey = picture.image[..., 0] != 255
        rows, columns = np.flatnonzero(~grey.all(axis=1)), np.flatnonzero(~grey.all(axis=0))
        assert not grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].any(), seed


def test_random_affine_stays_in_its_ranges() -> None:
    rng = np.random.default_rng(0)
    affine = RandomAffine(degrees=10, translate=0.1, scale=0.5, shear=0)
    scales, angles, shifts = [], [], []
    for _ in range(300):
        matrix = affine((100, 200), rng)
        scales.append(math.sqrt(np.linalg.det(matrix[:2, :2])))
        angles.append(math.degrees(math.atan2(matrix[0, 1], matrix[0, 0])))
        shifts.append((matrix[:2] @ (100, 50, 1) - (100, 50)) / (200, 100))  # of the centre
    assert 0.5 <= min(scales) < 0.55 and 1.45 < max(scales) <= 1.5
    assert -10 <= min(angles) < -9 and 9 < max(angles) <= 10
    assert -0.1 <= np.min(shifts) < -0.09 and 0.09 < np.max(shifts) <= 0.1


def test_shear_slants_but_keeps_the_centre() -> None:
    matrix = RandomAffine(0, 0, 0, shear=10)((100, 200), np.random.default_rng(1))
    assert np.allclose(matrix[:2] @ (100, 50, 1), (100, 50))
    assert 0 < abs(matrix[0, 1]) <= math.tan(math.radians(10))


def test_flips() -> None:
    rng = np.random.default_rng(0)
    assert np.allclose(RandomFlip(1, 0)((100, 200), rng)[:2] @ (10, 20, 1), (190, 20))
    assert np.allclose(RandomFlip(0, 1)((100, 200), rng)[:2] @ (10, 20, 1), (10, 80))
    assert np.array_equal(RandomFlip(0, 0)((100, 200), rng), np.eye(3))
    often = sum(RandomFlip(0.5, 0)((1, 1), rng)[0, 0] < 0 for _ in range(400))
    assert 150 < often < 250


def test_colour_off_is_the_same_image() -> None:
    image = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    planes = ColourJitter(0, 0, 0)(image, np.random.default_rng(0))
    assert np.array_equal(planes, image.transpose(2, 0, 1))


def test_colours_lose_all_saturation_at_most() -> None:
    turned = [jittered(ColourJitter(0, 1.8, 0), (200, 50, 50), seed) for seed in range(30)]
    assert all(red >= green - 1 for red, green, _ in turned) and any(
        red - green < 2 for red, green, _ in turned
    )


def jittered(jitter: ColourJitter, colour: tuple[int, int, int], seed: int) -> Array:
    """What becomes of one colour, [3]."""
    image = np.full((4, 4, 3), colour, np.uint8)
    changed = jitter(image, np.random.default_rng(seed))[:, 0, 0].astype(float)
    assert (image == colour).all()  # the input is left alone
    return changed


def luma(colour: Array | tuple[int, int, int]) -> float:
    return float(cv2.cvtColor(np.array([[colour]], np.float32), cv2.COLOR_RGB2GRAY)[0, 0])


@pytest.mark.parametrize("seed", range(10))
def test_value_and_saturation(seed: int) -> None:
    draws = np.random.default_rng(seed).uniform(-1, 1, 3)
    colour = (140, 100, 70)
    brighter = jittered(ColourJitter(0, 0, 0.4), colour, seed)
    assert np.allclose(brighter, np.array(colour) * (1 + draws[2] * 0.4), atol=1)
    paler = jittered(ColourJitter(0, 0.7, 0), colour, seed)
    grey = luma(colour)
    assert np.allclose(paler - grey, (np.array(colour) - grey) * (1 + draws[1] * 0.7), atol=1)


@pytest.mark.parametrize("seed", range(10))
def test_hue_turns_and_greys_stay(seed: int) -> None:
    jitter, turn = ColourJitter(0.2, 0, 0), np.random.default_rng(seed).uniform(-1, 1, 3)[0] * 0.2
    turned = jittered(jitter, (140, 100, 100), seed)
    assert luma(turned) == pytest.approx(luma((140, 100, 100)), abs=1)
    # Forwards, red goes to yellow, where green is more than blue, and backwards to magenta.
    assert (turned[1] > turned[2]) == (turn > 0)
    assert jittered(jitter, (90, 90, 90), seed).tolist() == [90, 90, 90]


def test_all_ways_round_is_no_turn() -> None:
    assert np.allclose(colour_matrix(2 * math.pi, 1, 1), np.eye(3))
    quarter = colour_matrix(math.radians(90), 1, 1)
    assert np.allclose(np.linalg.matrix_power(quarter, 4), np.eye(3))


def test_colour_does_not_depend_on_the_strips() -> None:
    image = np.random.default_rng(0).integers(0, 255, (STRIP_ROWS * 2 + 3, 20, 3), dtype=np.uint8)
    jitter = ColourJitter(0.1, 0.5, 0.5)
    whole = jitter(image, np.random.default_rng(1))
    assert whole.shape == (3, STRIP_ROWS * 2 + 3, 20)
    last = jitter(image[-5:], np.random.default_rng(1))
    assert np.array_equal(whole[:, -5:], last)


def test_blending() -> None:
    def grey(value: int, box: list[float], peak: tuple[int, int]) -> Picture:
        heatmap = np.zeros((4, 4), np.float32)
        heatmap[peak] = value / 255
        return Picture(
            np.full((32, 32, 3), value, np.uint8), np.array([box], np.float32), np.array([value]), heatmap
        )

    mixed = blend(grey(50, [1, 1, 5, 5], (0, 0)), grey(150, [8, 8, 20, 20], (2, 2)), np.random.default_rng(0))
    share = np.random.default_rng(0).beta(8, 8)
    assert np.abs(mixed.image.astype(float) - (50 * share + 150 * (1 - share))).max() <= 1
    assert mixed.labels.tolist() == [50, 150] and len(mixed.xyxy) == 2
    assert mixed.heatmap[0, 0] == pytest.approx(50 / 255) and mixed.heatmap[2, 2] == pytest.approx(150 / 255)


@pytest.mark.parametrize("original", [(77, 113), (300, 200), (64, 96)])
@pytest.mark.parametrize("image_scale", [1.0, 0.5])
def test_letterboxed_pixels_are_where_the_letterbox_says(
    original: tuple[int, int], image_scale: float
) -> None:
    y, x = np.mgrid[: original[0], : original[1]]
    image = np.dstack([x * 200 / original[1], y * 200 / original[0], x * 0]).astype(np.uint8)
    if image_scale != 1:
        image = np.asarray(
            cv2.resize(image, None, fx=image_scale, fy=image_scale, interpolation=cv2.INTER_AREA)
        )
    letterbox = Letterbox.fit(original, (128, 160))
    canvas = letterbox_image(image, letterbox, image_scale)
    assert canvas.shape == (128, 160, 3)
    matrix = np.linalg.inv(letterbox_matrix(letterbox))
    rows, columns = np.nonzero((canvas != BACKGROUND).any(axis=2))
    source_x, source_y = (
        matrix[0, 0] * (columns + 0.5) + matrix[0, 2],
        matrix[1, 1] * (rows + 0.5) + matrix[1, 2],
    )
    core = (source_x > 3) & (source_y > 3) & (source_x < original[1] - 3) & (source_y < original[0] - 3)
    found = canvas[rows, columns][core]
    assert np.abs(found[:, 0] - (source_x[core] - 0.5) * 200 / original[1]).max() < 3
    assert np.abs(found[:, 1] - (source_y[core] - 0.5) * 200 / original[0]).max() < 3
    covered = len(rows) / (original[0] * original[1] * letterbox.scale**2)
    assert 0.97 < covered < 1.03


def test_an_image_of_the_right_size_is_not_touched() -> None:
    image = np.zeros((64, 96, 3), np.uint8)
    assert letterbox_image(image, Letterbox.fit((64, 96), (64, 96))) is not None
    assert np.shares_memory(letterbox_image(image, Letterbox.fit((64, 96), (64, 96))), image)
