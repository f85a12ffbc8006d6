"""utils/warp.py: images land where their matrix says, in whichever way they are resampled."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from utils.transforms import BACKGROUND
from utils.warp import channels_first, draw, resized, scaling, transform_boxes, translation

Image = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]


def picture(height: int = 120, width: int = 200) -> Image:
    """Smooth, and different everywhere: a shift of a pixel shows."""
    y, x = np.mgrid[:height, :width]
    planes = [x * 255 / width, y * 255 / height, 127 + 100 * np.sin(x / 17) * np.cos(y / 13)]
    return np.dstack(planes).astype(np.uint8)


def rotation(degrees: float) -> Matrix:
    angle = math.radians(degrees)
    return np.array(
        [[math.cos(angle), math.sin(angle), 0], [-math.sin(angle), math.cos(angle), 0], [0, 0, 1]]
    )


def placed(
    image: Image, matrix: Matrix, canvas_hw: tuple[int, int], image_scale: float = 1.0
) -> tuple[Image, Matrix]:
    canvas = np.full((*canvas_hw, 3), BACKGROUND, np.uint8)
    small = image
    if image_scale != 1:
        resized = cv2.resize(image, None, fx=image_scale, fy=image_scale, interpolation=cv2.INTER_AREA)
        small = np.asarray(resized, np.uint8)
    return canvas, draw(canvas, (image.shape[0], image.shape[1]), lambda *_: (small, image_scale), matrix)


def expected(
    image: Image, matrix: Matrix, canvas_hw: tuple[int, int]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Every canvas pixel's colour, from the inverse matrix, and which of them are in the image."""
    y, x = np.mgrid[: canvas_hw[0], : canvas_hw[1]] + 0.5
    inverse = np.linalg.inv(matrix)
    source_x = inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2]
    source_y = inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2]
    inside = (source_x > 0) & (source_y > 0) & (source_x < image.shape[1]) & (source_y < image.shape[0])
    maps = (source_x - 0.5).astype(np.float32), (source_y - 0.5).astype(np.float32)
    return cv2.remap(image, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), inside


MATRICES = {
    "as it is": np.eye(3),
    "moved out": translation(-31.3, 40.7),
    "enlarged": translation(-20.4, -10.2) @ scaling(1.7, 1.7),
    "reduced": translation(13.6, 9.1) @ scaling(0.6, 0.6),
    "much reduced": translation(13.6, 9.1) @ scaling(0.21, 0.21),
    "flipped": translation(190.3, 0) @ scaling(-0.9, 0.9),
    "upside down": translation(7.7, 130.2) @ scaling(1.1, -1.1),
    "both": translation(150.5, 100.5) @ scaling(-0.8, -0.8),
    "flipped and cut": translation(110.2, -12) @ scaling(-1.3, 1.3),
    "turned": translation(40, 60) @ rotation(25) @ scaling(0.7, 0.7),
    "turned by a right angle": translation(20, 140) @ rotation(90) @ scaling(0.5, 0.5),
    "turned and much reduced": translation(60, 60) @ rotation(-40) @ scaling(0.3, 0.3),
    "sheared": translation(5, 5) @ np.array([[0.8, 0.2, 0], [0.1, 0.7, 0], [0, 0, 1.0]]),
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("image_scale", [1.0, 0.5])
def test_every_pixel_is_where_the_matrix_says(name: str, image_scale: float) -> None:
    image, hw = picture(), (150, 180)
    canvas, used = placed(image, MATRICES[name], hw, image_scale)
    colours, inside = expected(image, used, hw)
    core = cv2.erode(inside.astype(np.uint8), np.ones((5, 5)), borderValue=1) > 0
    assert core.sum() > 500
    difference = np.abs(canvas.astype(int) - colours)[core]
    assert difference.mean() < 1.5 and difference.max() < 20
    outside = cv2.dilate(inside.astype(np.uint8), np.ones((5, 5))) == 0
    assert (canvas[outside] == BACKGROUND).all()


@pytest.mark.parametrize("name", MATRICES)
def test_the_matrix_changes_by_half_a_pixel_at_most(name: str) -> None:
    _, used = placed(picture(), MATRICES[name], (150, 180))
    assert np.array_equal(used[:2, :2], MATRICES[name][:2, :2])
    assert np.abs(used[:2, 2] - MATRICES[name][:2, 2]).max() <= 0.5


def test_random_upright_placements() -> None:
    rng = np.random.default_rng(0)
    image = picture(60, 90)
    for _ in range(150):
        scale = float(np.exp(rng.uniform(np.log(0.2), np.log(3))))
        signs = rng.choice([-1, 1], 2)
        matrix = translation(*rng.uniform(-60, 160, 2)) @ scaling(*(scale * signs))
        canvas, used = placed(image, matrix, (100, 100))
        colours, inside = expected(image, used, (100, 100))
        core = cv2.erode(inside.astype(np.uint8), np.ones((3, 3)), borderValue=1) > 0
        if core.any():
            assert np.abs(canvas.astype(int) - colours)[core].mean() < 4, matrix


def test_nothing_is_read_when_nothing_shows() -> None:
    def read(*_: object) -> tuple[Image, float]:
        raise AssertionError("read for nothing")

    canvas = np.zeros((32, 32, 3), np.uint8)
    for matrix in (
        translation(40, 0),
        translation(0, -60),
        translation(-20, 0) @ scaling(-1, 1),
        scaling(0.01, 0.01),
    ):
        assert draw(canvas, (40, 40), read, matrix) is matrix


def test_reader_is_told_the_scale() -> None:
    asked = []

    def read(scale: float, rows: int | None) -> tuple[Image, float]:
        asked.append(scale)
        return picture(), 1.0

    draw(np.zeros((64, 64, 3), np.uint8), (120, 200), read, rotation(30) @ scaling(0.25, 0.25))
    assert asked == [pytest.approx(0.25)]


@pytest.mark.parametrize("matrix", [scaling(0.2, 0.2), rotation(-20) @ scaling(0.2, 0.2)])
def test_no_aliasing_when_much_reduced(matrix: Matrix) -> None:
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::5] = 255  # every sample would hit, or every one miss
    canvas, used = placed(stripes, matrix, (40, 40))
    inside = cv2.erode(expected(stripes, used, (40, 40))[1].astype(np.uint8), np.ones((5, 5))) > 0
    assert np.abs(canvas[inside].astype(float) - 51).max() < 12


@pytest.mark.parametrize("size", [1, 2, 3])
def test_images_of_a_few_pixels(size: int) -> None:
    image = np.full((size, size, 3), 200, np.uint8)
    canvas, _ = placed(image, scaling(10, 10), (32, 32))
    assert (canvas[: size * 10, : size * 10] == 200).all()
    for matrix in (scaling(0.3, 0.3), rotation(10) @ scaling(0.4, 0.4)):
        placed(image, matrix, (32, 32))


def test_a_side_that_would_vanish_is_a_pixel() -> None:
    image = np.full((3, 4096, 3), 200, np.uint8)
    assert resized(image, 640 / 4096).shape == (1, 640, 3)
    canvas, _ = placed(image, scaling(0.1, 0.1), (32, 640))  # a third of a pixel high: it may show or not
    assert set(np.unique(canvas)) <= {BACKGROUND, 200}


def test_boxes_by_hand() -> None:
    box = np.array([[10.0, 20.0, 30.0, 60.0]], np.float32)
    assert transform_boxes(box, translation(5, -5) @ scaling(2, 3)).tolist() == [[25, 55, 65, 175]]
    assert transform_boxes(box, translation(100, 0) @ scaling(-1, 1)).tolist() == [[70, 20, 90, 60]]
    assert transform_boxes(box, rotation(90))[0].tolist() == pytest.approx([20, -30, 60, -10])
    assert transform_boxes(np.zeros((0, 4)), np.eye(3)).shape == (0, 4)


def test_channels_first() -> None:
    image = picture(31, 45)
    planes = channels_first(image)
    assert planes.flags.c_contiguous and np.array_equal(planes, image.transpose(2, 0, 1))


def all_rows(image: Image, reduce: int, scale: float, rows: int | None) -> tuple[Image, float]:
    return image, 1 / reduce


def some_rows(image: Image, reduce: int, scale: float, rows: int | None) -> tuple[Image, float]:
    assert rows is not None
    return image[: -(-rows // reduce)], 1 / reduce


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("canvas_hw", [(150, 180), (40, 60)])
def test_rows_that_do_not_show_may_be_missing(name: str, canvas_hw: tuple[int, int]) -> None:
    image = picture()
    for reduce in (1, 2, 4):
        small = np.asarray(cv2.resize(image, None, fx=1 / reduce, fy=1 / reduce), np.uint8)
        for shift in range(-80, 90, 10):
            matrix = translation(0, shift) @ MATRICES[name]
            whole, cut = (np.full((*canvas_hw, 3), BACKGROUND, np.uint8) for _ in range(2))
            if reduce > 1 and np.linalg.svd(matrix[:2, :2], compute_uv=False)[0] * reduce > 1:
                continue  # nobody reads less than is shown
            draw(whole, (120, 200), partial(all_rows, small, reduce), matrix)
            draw(cut, (120, 200), partial(some_rows, small, reduce), matrix)
            assert np.array_equal(whole, cut)


def test_few_rows_are_read_where_few_show() -> None:
    asked: list[int | None] = []

    def read(scale: float, rows: int | None) -> tuple[Image, float]:
        asked.append(rows)
        return picture(), 1.0

    draw(np.zeros((60, 200, 3), np.uint8), (120, 200), read, np.eye(3))
    draw(np.zeros((60, 200, 3), np.uint8), (120, 200), read, translation(0, 60) @ scaling(1, -1))
    assert asked == [66, 66]
