"""Resampling: one image under an affine matrix into its place in a canvas, with as little work as possible.

Which matrix, and what else moves with the image, is decided in utils/transforms.py. Matrices map pixels
(x, y, 1); pixel i covers [i, i+1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from utils.images import ByteImage

Matrix = npt.NDArray[np.float64]
"""[3, 3], affine: the last row is 0, 0, 1."""
Reader = Callable[[float, int | None], tuple[ByteImage, float]]
"""Gives an image's pixels, uint8 RGB [h, w, 3], and how many of them there are per original pixel. Its first
argument is that ratio as far as it will be used, so that a smaller version may be read; the second how many of the
original rows will be looked at, None: all; those below may be missing."""


def translation(x: float, y: float) -> Matrix:
    """Move by x, y pixels."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def scaling(x: float, y: float) -> Matrix:
    """Multiply the coordinates by x and y."""
    return np.diag([x, y, 1.0])


def transform_boxes(xyxy: npt.NDArray[Any], matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Smallest upright boxes around the moved corners of boxes; [N, 4] to float64 [N, 4], not clipped."""
    x, y = xyxy[:, [0, 2, 0, 2]], xyxy[:, [1, 1, 3, 3]]
    moved_x = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2]
    moved_y = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]
    return np.stack([moved_x.min(1), moved_y.min(1), moved_x.max(1), moved_y.max(1)], axis=1)


def channels_first(image: ByteImage, out: ByteImage | None = None) -> ByteImage:
    """[H, W, 3] as a contiguous [3, H, W], a new one or the given one; quicker than numpy's transposition."""
    planes = np.empty((image.shape[2], *image.shape[:2]), dtype=np.uint8) if out is None else out
    written = cv2.split(image, mv=[*planes])
    if not np.may_share_memory(written[0], planes):
        planes[...] = written
    return planes


def draw(canvas: ByteImage, hw: tuple[int, int], read: Reader, matrix: Matrix) -> Matrix:
    """Read an image and put it in its place in the canvas, in place; nothing is read if none of it shows.

    Args:
        canvas: uint8 RGB [H, W, 3].
        hw: original height and width of the image.
        read: gives its pixels.
        matrix: original pixels to canvas pixels.

    Returns:
        The matrix that was really used: without rotation and shear the image is shifted by up to half a
        pixel on each axis, which allows resizing, several times faster than warping.
    """
    outline = _outline(hw, matrix)
    # A pixel belongs to the source when its centre does: neighbours in a mosaic neither overlap nor gap.
    first, last = np.ceil(outline.min(axis=0) - 0.5), np.ceil(outline.max(axis=0) - 0.5)
    left, top = np.clip(first, 0, canvas.shape[1::-1]).astype(int).tolist()
    right, bottom = np.clip(last, 0, canvas.shape[1::-1]).astype(int).tolist()
    rows = _rows_needed(hw, matrix, (canvas.shape[0], canvas.shape[1]))
    if left >= right or top >= bottom or not rows:
        return matrix
    image, image_scale = read(_largest_scale(matrix), rows)
    from_image = matrix @ scaling(1 / image_scale, 1 / image_scale)
    if np.abs(matrix[[0, 1], [1, 0]]).max() < 1e-9:
        shift = _paste(canvas, image, from_image)
        return translation(*shift) @ matrix
    window = canvas[top:bottom, left:right]
    warped = _warp(image, translation(-left, -top) @ from_image, (bottom - top, right - left))
    inside = np.zeros(window.shape[:2], dtype=np.uint8)
    corners = np.rint((outline - (left, top) - 0.5) * 256).astype(np.int32)
    cv2.fillConvexPoly(inside, corners, 255, shift=8)
    window[...] = cv2.copyTo(warped, inside, window.copy())
    return matrix


def _outline(hw: tuple[int, int], matrix: Matrix) -> npt.NDArray[Any]:
    """Corners (x, y) of an image under a matrix, going round; [4, 2]."""
    corners = np.array([[0, 0], [hw[1], 0], [hw[1], hw[0]], [0, hw[0]]], dtype=np.float64)
    moved: npt.NDArray[Any] = corners @ matrix[:2, :2].T + matrix[:2, 2]
    return moved


def _largest_scale(matrix: npt.NDArray[Any]) -> float:
    """Output pixels per input pixel in the direction in which there are most."""
    return float(np.linalg.svd(matrix[:2, :2], compute_uv=False)[0])


def _rows_needed(hw: tuple[int, int], matrix: Matrix, canvas_hw: tuple[int, int]) -> int:
    """How many first rows of an image a canvas shows, with what resampling needs below; 0: no pixel shows."""
    inverse = np.linalg.inv(matrix)
    canvas = np.array([[0.0, 0.0, canvas_hw[1], canvas_hw[0]]])
    left, top, right, bottom = transform_boxes(canvas, inverse)[0].tolist()
    if right <= 0 or bottom <= 0 or left >= hw[1] or top >= hw[0]:
        return 0
    # Up to 2 pixels of a version that is no smaller than the canvas needs, and 2 of the canvas, in original pixels.
    rows: int = math.ceil(bottom + 6 * max(1.0, _largest_scale(inverse)))
    return rows


def _block_side(image: ByteImage, scale: float) -> int:
    """Pixels on each side of the blocks that are averaged before an image is sampled at a scale; 1: none are."""
    side: int = min(int(1 / scale + 1e-6), *image.shape[:2])
    return max(1, side)


def _average_blocks(image: ByteImage, scale: float) -> tuple[ByteImage, int]:
    """The image made smaller by a whole factor, and the factor: bilinear sampling at scale would skip pixels."""
    step = _block_side(image, scale)
    if step == 1:
        return image, 1
    small = cv2.resize(image, None, fx=1 / step, fy=1 / step, interpolation=cv2.INTER_AREA)
    return np.asarray(small, dtype=np.uint8), step


def resized(image: ByteImage, scale: float) -> ByteImage:
    """The image [H, W, C] with its sides times scale, rounded; pixel x lands at x · scale exactly.

    Bilinear, behind averages of whole blocks where it becomes smaller than half: averaging over fractions of pixels
    (OpenCV's INTER_AREA) takes several times as long (docs/notes/inference.md).
    """
    height, width = (round(side * scale) for side in image.shape[:2])
    side = _block_side(image, scale)
    more = (-image.shape[0] % side, -image.shape[1] % side)
    if any(more):  # whole blocks at the far borders too, or the last pixels would be lost
        image = np.asarray(cv2.copyMakeBorder(image, 0, more[0], 0, more[1], cv2.BORDER_REPLICATE), np.uint8)
    image, step = _average_blocks(image, scale)
    factor = scale * step
    out = _by_factors(image, factor, factor) if factor != 1 else image
    return np.asarray(out[: max(height, 1), : max(width, 1)], dtype=np.uint8)


def _by_factors(image: ByteImage, x: float, y: float) -> ByteImage:
    """Resized by factors, not to a size, for which OpenCV would stretch the image by up to half a pixel.

    A side that would become 0 pixels becomes 1.
    """
    height, width = round(image.shape[0] * y), round(image.shape[1] * x)
    size = None if height and width else (max(width, 1), max(height, 1))
    return np.asarray(cv2.resize(image, size, fx=x, fy=y, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def _paste(canvas: ByteImage, image: ByteImage, matrix: Matrix) -> tuple[float, float]:
    """Put an upright or flipped image into the canvas; returns by how much (x, y) it had to be shifted."""
    x = _span(matrix[0, 0], matrix[0, 2], image.shape[1], canvas.shape[1])
    y = _span(matrix[1, 1], matrix[1, 2], image.shape[0], canvas.shape[0])
    part, step = _average_blocks(image[y.source, x.source], max(x.scale, y.scale))
    patch: npt.NDArray[Any] = _by_factors(part, x.scale * step, y.scale * step)
    height = min(patch.shape[0] + y.start, canvas.shape[0])
    width = min(patch.shape[1] + x.start, canvas.shape[1])
    patch = patch[max(-y.start, 0) : height - y.start, max(-x.start, 0) : width - x.start]
    rows, columns = slice(max(y.start, 0), height), slice(max(x.start, 0), width)
    place = canvas[_mirror(rows, canvas.shape[0], y.mirrored), _mirror(columns, canvas.shape[1], x.mirrored)]
    if x.mirrored or y.mirrored:
        patch = cv2.flip(patch, -1 if x.mirrored and y.mirrored else int(x.mirrored), dst=place)
    if not np.may_share_memory(patch, place):
        place[...] = patch
    return (-x.shift if x.mirrored else x.shift), (-y.shift if y.mirrored else y.shift)


@dataclass(frozen=True)
class _Span:
    """One axis of an upright placement, in a canvas that is mirrored when the image is."""

    source: slice
    """The part of the image that shows, and two pixels around it."""
    start: int
    """Canvas pixel at which that part begins; may be outside."""
    scale: float
    shift: float
    """By how much the image is moved so that ``start`` is a whole pixel."""
    mirrored: bool


def _span(slope: float, offset: float, image_length: int, canvas_length: int) -> _Span:
    mirrored = slope < 0
    scale, offset = (-slope, canvas_length - offset) if mirrored else (slope, offset)
    first = max(0, math.floor(-offset / scale) - 2)
    last = min(image_length, math.ceil((canvas_length - offset) / scale) + 2)
    exact = scale * first + offset
    return _Span(slice(first, last), round(exact), scale, round(exact) - exact, mirrored)


def _mirror(part: slice, length: int, mirrored: bool) -> slice:
    return slice(length - part.stop, length - part.start) if mirrored else part


def _warp(image: ByteImage, matrix: Matrix, hw: tuple[int, int]) -> ByteImage:
    """The image under a matrix as seen in a window of hw; beyond its border the border's colour."""
    image, offset = _visible_part(image, matrix, hw)
    image, step = _average_blocks(image, _largest_scale(matrix))
    matrix = matrix @ translation(*offset) @ scaling(step, step)
    at_centres = translation(-0.5, -0.5) @ matrix @ translation(0.5, 0.5)
    size = (hw[1], hw[0])
    border = cv2.BORDER_REPLICATE
    warped = cv2.warpAffine(image, at_centres[:2], size, flags=cv2.INTER_LINEAR, borderMode=border)
    return np.asarray(warped, dtype=np.uint8)


def _visible_part(image: ByteImage, matrix: Matrix, hw: tuple[int, int]) -> tuple[ByteImage, tuple[int, int]]:
    """The part of the image that lands in a window of hw, with what resampling needs around it, and its x, y."""
    inverse = np.linalg.inv(matrix)
    margin = 2 + math.ceil(2 * _largest_scale(inverse))
    left, top, right, bottom = transform_boxes(np.array([[0.0, 0.0, hw[1], hw[0]]]), inverse)[0]
    x1, y1 = max(0, math.floor(left) - margin), max(0, math.floor(top) - margin)
    x2, y2 = min(image.shape[1], math.ceil(right) + margin), min(image.shape[0], math.ceil(bottom) + margin)
    return image[y1:y2, x1:x2], (x1, y1)
