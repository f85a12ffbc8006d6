"""One picture of many images: what a training batch, or the predictions for a batch, look like."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from utils.draw import (
    FONT,
    PALETTE,
    Array,
    Image,
    PictureError,
    class_name,
    draw_boxes,
    overlay_heatmap,
    to_image,
    to_numpy,
)

GAP = 4
"""Pixels between the images, and around them."""
BACKGROUND = 24
MAX_LABELLED = 12
"""Labels are written on images with up to so many boxes; the legend below names the colours in any case."""
LEGEND_HEIGHT = 24


def mosaic_picture(
    images: Sequence[Array],
    boxes: Sequence[Array] | None = None,
    labels: Sequence[Array] | None = None,
    heatmaps: Sequence[Array | None] | None = None,
    names: Sequence[str] | None = None,
    max_images: int = 16,
    scores: Sequence[Array] | None = None,
    titles: Sequence[str] | None = None,
    max_size: int = 2400,
) -> Image:
    """A grid of images with their boxes and heatmaps, and a legend of the classes below.

    Args:
        images: uint8 RGB [H, W, 3], or tensors [3, H, W], uint8 or floating in 0–1; sizes may differ.
        boxes: per image [N, 4], corners in pixels of that image.
        labels: per image [N] class index.
        heatmaps: per image [h, w] or [1, h, w] in 0–1, or None.
        names: class names.
        max_images: the first so many are shown.
        scores: per image [N], for predictions.
        titles: per image a line of text, such as the file name.
        max_size: longest side of the grid in pixels; images are made smaller to fit, never larger than
            the largest of them.

    Raises:
        PictureError: no images, or lists of other lengths.
    """
    for name, values in {"boxes": boxes, "labels": labels, "heatmaps": heatmaps, "titles": titles}.items():
        if values is not None and len(values) != len(images):
            raise PictureError(f"{len(values)} {name} for {len(images)} images; expected one per image")
    if not images or max_images < 1:
        raise PictureError("no images to show; expected at least one")
    pictures = [to_image(image) for image in images[:max_images]]
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    cell_h, cell_w = _cell_hw(pictures, columns, rows, max_size)
    shape = (rows * (cell_h + GAP) + GAP, columns * (cell_w + GAP) + GAP, 3)
    grid: Image = np.full(shape, BACKGROUND, dtype=np.uint8)
    for number, picture in enumerate(pictures):
        scale = min(cell_h / picture.shape[0], cell_w / picture.shape[1])
        tile = _resized(picture, scale)
        if heatmaps is not None and (heatmap := heatmaps[number]) is not None:
            tile = overlay_heatmap(tile, heatmap)
        if boxes is not None and labels is not None:
            xyxy, score = to_numpy(boxes[number]) * scale, None if scores is None else scores[number]
            many = len(xyxy) > MAX_LABELLED
            tile = draw_boxes(tile, xyxy, labels[number], score, names, line_thickness=1, hide_labels=many)
        if titles is not None:
            tile = _titled(tile, titles[number])
        row, column = divmod(number, columns)
        top = GAP + row * (cell_h + GAP) + (cell_h - tile.shape[0]) // 2
        left = GAP + column * (cell_w + GAP) + (cell_w - tile.shape[1]) // 2
        grid[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    if names is None or labels is None:
        return grid
    used = {int(label) for values in labels[:max_images] for label in to_numpy(values).reshape(-1)}
    return np.concatenate([grid, _legend(grid.shape[1], names, sorted(used))])


def _cell_hw(pictures: Sequence[Image], columns: int, rows: int, max_size: int) -> tuple[int, int]:
    """Height and width of a cell: the largest image, made smaller until the grid fits."""
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    room_h, room_w = max_size - GAP * (rows + 1), max_size - GAP * (columns + 1)
    scale = min(1.0, room_h / (rows * height), room_w / (columns * width))
    return max(1, int(height * scale)), max(1, int(width * scale))


def _resized(picture: Image, scale: float) -> Image:
    if scale == 1.0:
        return picture
    size = (max(1, int(picture.shape[1] * scale)), max(1, int(picture.shape[0] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, size, interpolation=method), dtype=np.uint8)


def _titled(picture: Image, title: str) -> Image:
    """The picture with a line of text in its lower left corner, on a dark strip."""
    result: Image = picture.copy()
    (text_w, text_h), baseline = cv2.getTextSize(title, FONT, 0.4, 1)
    top = max(result.shape[0] - text_h - baseline - 4, 0)
    strip = result[top:, : text_w + 8]
    strip[...] = strip // 4
    cv2.putText(result, title, (4, top + 2 + text_h), FONT, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
    return result


def _legend(width: int, names: Sequence[str], used: Sequence[int]) -> Image:
    """[h, width, 3] the classes with their colours, in as many lines as it takes."""
    lines: list[list[tuple[int, int]]] = [[]]
    right = 2 * GAP
    for label in used:
        size = 16 + cv2.getTextSize(class_name(label, names), FONT, 0.45, 1)[0][0] + 20
        if right + size > width and lines[-1]:
            lines.append([])
            right = 2 * GAP
        lines[-1].append((label, right))
        right += size
    strip: Image = np.full((len(lines) * LEGEND_HEIGHT if used else 0, width, 3), BACKGROUND, dtype=np.uint8)
    for row, line in enumerate(lines):
        for label, left in line:
            middle = row * LEGEND_HEIGHT + LEGEND_HEIGHT // 2
            cv2.rectangle(
                strip, (left, middle - 5), (left + 10, middle + 5), PALETTE[label % len(PALETTE)], -1
            )
            place = (left + 16, middle + 5)
            cv2.putText(strip, class_name(label, names), place, FONT, 0.45, (235, 235, 235), 1, cv2.LINE_AA)
    return strip
