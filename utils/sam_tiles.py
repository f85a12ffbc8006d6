"""Which part of a large image each object is shown to SAM in, so that small objects stay as large as they are.

SAM resizes whatever it gets to one fixed size. An image that is larger than that is cut into overlapping tiles of
that size. Only rectangles are dealt with here; utils/sam.py looks at pixels.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatBoxes = npt.NDArray[np.float64]

OVERLAP_SHARE = 0.25
"""Overlap of neighbouring tiles per side of a tile: 256 of 1024 px, more than all but a few aerial objects."""


def tile_windows(image_hw: tuple[int, int], tile_side: int) -> IntArray:
    """Overlapping tiles that cover an image, row by row.

    Along each axis as few tiles as overlap by at least ``OVERLAP_SHARE`` of a tile, evenly spread. So every box
    with sides up to that overlap lies wholly in one of them.

    Args:
        image_hw: height and width of the image.
        tile_side: pixels per side of a tile; where the image is smaller, so is the tile.

    Returns:
        int64 [T, 4] left, top, right, bottom, pixels_orig; a single one where the image is no larger than a tile.
    """
    lefts, tops = (_starts(length, tile_side) for length in (image_hw[1], image_hw[0]))
    top, left = (axis.reshape(-1) for axis in np.meshgrid(tops, lefts, indexing="ij"))
    right, bottom = np.minimum(left + tile_side, image_hw[1]), np.minimum(top + tile_side, image_hw[0])
    return np.stack([left, top, right, bottom], axis=1)


def _starts(length: int, tile_side: int) -> IntArray:
    """Where the tiles along one axis begin."""
    step = tile_side - math.ceil(tile_side * OVERLAP_SHARE)
    gaps = max(0, math.ceil((length - tile_side) / step))
    return np.linspace(0, max(0, length - tile_side), gaps + 1).astype(np.int64)


def objects_by_window(
    boxes_xyxy_orig: FloatBoxes, image_hw: tuple[int, int], tile_side: int
) -> list[tuple[IntArray, IntArray]]:
    """The windows of an image that SAM has to look at, each with the objects to ask for there.

    An object goes to the tile that holds its box and most of what is around it: where the least distance from
    the box to a border of the tile is greatest. (The borders of the image do not count: nothing is hidden there.)
    A box that no tile holds is large, and is looked at in the whole image, made smaller.

    Args:
        boxes_xyxy_orig: float64 [N, 4] corners; where they leave the image they are taken as cut off there.
        image_hw: height and width of the image.
        tile_side: pixels per side of a tile.

    Returns:
        (window, objects) pairs: int64 [4] left, top, right, bottom, pixels_orig; int64 [n] indices of boxes,
        ascending. Every box is in exactly one; windows without objects are left out.
    """
    height, width = image_hw
    whole = np.array([[0, 0, width, height]], dtype=np.int64)
    tiles = tile_windows(image_hw, tile_side)
    boxes = np.clip(boxes_xyxy_orig, 0, (width, height, width, height))
    windows = np.concatenate([whole, tiles])
    room = _room(boxes, tiles, image_hw)
    chosen = np.where(room.max(axis=1) >= 0, room.argmax(axis=1) + 1, 0)
    return [(windows[index], np.flatnonzero(chosen == index)) for index in np.unique(chosen)]


def _room(boxes: FloatBoxes, tiles: IntArray, image_hw: tuple[int, int]) -> FloatBoxes:
    """[N, T] least distance from each box to the inner borders of each tile; negative: it sticks out."""
    low = boxes[:, None, :2] - tiles[:, :2]
    high = tiles[:, 2:] - boxes[:, None, 2:]
    low = np.where(tiles[:, :2] == 0, np.inf, low)
    high = np.where(tiles[:, 2:] == (image_hw[1], image_hw[0]), np.inf, high)
    room: FloatBoxes = np.concatenate([low, high], axis=2).min(axis=2)
    return room
