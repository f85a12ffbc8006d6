"""The picture behind ``--view-cluster``: which patches were chosen, why, what was found, and what is there.

One panel with the predicted heatmap and the patches, one with the detections; where the image has labels,
two more below with the label heatmap and the labelled boxes. Layout and ground truth only: boxes, frames
and colours are drawn by utils/draw.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.boxes import Letterbox, cxcywh_to_xyxy, xyxy_to_cxcywh
from utils.draw import FONT, draw_boxes, draw_patches, overlay_heatmap
from utils.heatmap import FloatArray, render_heatmap
from utils.images import ByteImage
from utils.labels import Problem, label_path, parse_label_text
from utils.results import Detections, PredictionLike

PANEL_PX = (480, 1920)
"""Limits of the longer side of a panel: smaller images are enlarged (for the captions), larger shrunk."""
_GAP_PX = 6
_BACKGROUND = 24
_CAPTION_COLOUR = (235, 235, 235)


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The labels of one image: ``xyxy`` [N, 4] in its pixels, ``label`` [N] int64; and unusable lines."""

    xyxy: Tensor
    label: Tensor
    problems: list[Problem]


@dataclass(frozen=True)
class BoxStyle:
    """How boxes are drawn; line_thickness in pixels, None: by the size of the image."""

    line_thickness: int | None = None
    hide_labels: bool = False
    hide_conf: bool = False


def load_ground_truth(image_path: Path, image_hw: tuple[int, int], num_classes: int) -> GroundTruth | None:
    """The labels that belong to an image (the last folder ``images`` in its path becomes ``labels``).

    None when there is no label file, or one in which no line is a label: whatever it is, it is not ours.
    An empty file is a label, "nothing here".
    """
    try:
        text = label_path(image_path.absolute()).read_bytes().decode("utf-8-sig", errors="replace")
    except OSError:
        return None
    parsed = parse_label_text(text, num_classes, label_path(image_path).name)
    if parsed.problems and not len(parsed.rows):
        return None
    height, width = image_hw
    rows = torch.from_numpy(parsed.rows)
    xyxy = cxcywh_to_xyxy(rows[:, 1:]) * rows.new_tensor([width, height, width, height])
    return GroundTruth(xyxy, rows[:, 0].long(), parsed.problems)


def draw_cluster_picture(
    image: ByteImage,
    prediction: PredictionLike,
    names: Sequence[str],
    ground_truth: GroundTruth | None = None,
    style: BoxStyle | None = None,
) -> ByteImage:
    """Panels of one image: heatmap with patches in green, detections; below them, with labels, the truth.

    Works without a heatmap (dense model), without a patch and without a detection; the captions say so.

    Args:
        image: uint8 [H, W, 3] RGB, the original image.
        prediction: for this image.
        names: class names.
        ground_truth: its labels, if there are any.
        style: how boxes are drawn.

    Returns:
        uint8 [H', W', 3] RGB; for a given image size and presence of labels always the same size.
    """
    style = style or BoxStyle()
    small, scale = _fit(image)
    found = prediction.detections.to("cpu")
    rows = [[
        _captioned(_patches_panel(small, scale, prediction), patches_caption(prediction)),
        _captioned(
            draw_boxes(
                small, found.xyxy * scale, found.label, found.score, names,
                style.line_thickness, style.hide_labels, style.hide_conf,
            ),
            plural(len(found), "detection"),
        ),
    ]]  # fmt: skip
    if ground_truth is not None:
        truth_map = label_heatmap(ground_truth.xyxy, prediction.letterbox)
        boxes = ground_truth.xyxy * scale
        truth_boxes = draw_boxes(
            small, boxes, ground_truth.label, None, names, style.line_thickness, style.hide_labels
        )
        rows.append([
            _captioned(_heated(small, truth_map, prediction.letterbox), "label heatmap"),
            _captioned(truth_boxes, plural(len(boxes), "labelled object")),
        ])  # fmt: skip
    return _grid(rows)


@dataclass(frozen=True, eq=False)
class _Shrunk:
    """A prediction in the pixels of a smaller version of its picture; see `PredictionLike`."""

    detections: Detections
    heatmap: NDArray[np.float32] | None
    patches_orig: NDArray[Any]
    letterbox: Letterbox
    times_ms: Mapping[str, float]


def shrunk_prediction(prediction: PredictionLike, image_hw: tuple[int, int]) -> PredictionLike:
    """A prediction for drawing on its picture in another size, (height, width); itself where that is its own."""
    box = prediction.letterbox
    if box.original_hw == image_hw:
        return prediction
    scale = image_hw[1] / box.original_hw[1]
    found = prediction.detections
    return _Shrunk(
        Detections(found.xyxy * scale, found.score, found.label),
        prediction.heatmap,
        np.asarray(prediction.patches_orig) * scale,
        Letterbox(image_hw, box.input_hw, box.scale / scale, box.pad_xy),
        prediction.times_ms,
    )


def patches_caption(prediction: PredictionLike) -> str:
    """How many patches were chosen and how much of the image they hold; overlaps count twice."""
    height, width = prediction.letterbox.original_hw
    patches = np.asarray(prediction.patches_orig, dtype=np.float64).reshape(-1, 4)
    sides = patches[:, 2:].clip(0, (width, height)) - patches[:, :2].clip(0, (width, height))
    share = float(sides.clip(min=0).prod(axis=1).sum()) / (height * width)
    count = f"{plural(len(patches), 'patch', 'patches')}, {share:.0%} of the image"
    return f"{count}; no heatmap (dense)" if prediction.heatmap is None else f"heatmap and {count}"


def plural(count: int, one: str, many: str | None = None) -> str:
    """A number with its noun: "1 patch", "2 patches"; many defaults to one + "s"."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def label_heatmap(xyxy_orig: Tensor, letterbox: Letterbox) -> FloatArray:
    """The heatmap that training asks for, [H/8, W/8] over the network input, of boxes_orig [N, 4]."""
    boxes_px = xyxy_to_cxcywh(letterbox.to_input(xyxy_orig))
    return render_heatmap(boxes_px.numpy(), letterbox.input_hw)


def heatmap_on_image(heatmap: NDArray[Any], letterbox: Letterbox, image_hw: tuple[int, int]) -> FloatArray:
    """A heatmap over the network input as it lies on the original image, at any size of that image.

    Args:
        heatmap: [h, w] in 0–1, stretched over the whole input.
        letterbox: where the image is in the input; its padding is cut off.
        image_hw: height and width to show the image at.

    Returns:
        float32 [image height, image width] in 0–1, linearly interpolated between the cells' centres.
    """
    cells_per_px = np.array(heatmap.shape[::-1]) / np.array(letterbox.input_hw[::-1])
    original = np.array(letterbox.original_hw[::-1])
    original_per_shown = original / np.array(image_hw[::-1])
    scale = original_per_shown * letterbox.scale * cells_per_px  # cells per shown pixel, x and y
    # Index i of either grid has its centre at i + 0.5.
    shift = 0.5 * scale + np.array(letterbox.pad_xy) * cells_per_px - 0.5
    matrix = np.array([[scale[0], 0.0, shift[0]], [0.0, scale[1], shift[1]]])
    shown = cv2.warpAffine(
        np.ascontiguousarray(heatmap, dtype=np.float32),
        matrix,
        (image_hw[1], image_hw[0]),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.asarray(shown, dtype=np.float32).clip(0.0, 1.0)


def _patches_panel(small: ByteImage, scale: float, prediction: PredictionLike) -> ByteImage:
    panel = small
    if prediction.heatmap is not None:
        panel = _heated(small, prediction.heatmap, prediction.letterbox)
    return draw_patches(panel, np.asarray(prediction.patches_orig).reshape(-1, 4) * scale)


def _heated(small: ByteImage, heatmap: NDArray[Any], letterbox: Letterbox) -> ByteImage:
    return overlay_heatmap(small, heatmap_on_image(heatmap, letterbox, (small.shape[0], small.shape[1])))


def _fit(image: ByteImage) -> tuple[ByteImage, float]:
    """The image in the size of a panel, and that size as a multiple of the image's."""
    longest = max(image.shape[:2])
    scale = min(max(longest, PANEL_PX[0]), PANEL_PX[1]) / longest
    if scale == 1.0:
        return image, scale
    size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size, interpolation=method), dtype=np.uint8), scale


def _captioned(panel: ByteImage, text: str) -> ByteImage:
    """The panel under a dark bar with a line of text, as large as the width allows."""
    height, width = panel.shape[:2]
    bar_height = max(14, round(max(height, width) / 40))
    thickness = 1 if bar_height < 30 else 2
    (text_width, text_height), _ = cv2.getTextSize(text, FONT, 1.0, thickness)
    size = min(0.55 * bar_height / text_height, 0.96 * width / text_width)
    bar = np.full((bar_height, width, 3), _BACKGROUND, dtype=np.uint8)
    baseline = round((bar_height + text_height * size) / 2)
    origin = (round(0.02 * min(width, bar_height * 10)), baseline)
    cv2.putText(bar, text, origin, FONT, size, _CAPTION_COLOUR, thickness, cv2.LINE_AA)
    return np.concatenate([bar, panel])


def _grid(rows: Sequence[Sequence[ByteImage]]) -> ByteImage:
    """Pictures of one size in rows, with gaps between them."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    shape = (len(rows) * (height + _GAP_PX) - _GAP_PX, columns * (width + _GAP_PX) - _GAP_PX, 3)
    grid = np.full(shape, _BACKGROUND, dtype=np.uint8)
    for row_number, row in enumerate(rows):
        for column, picture in enumerate(row):
            top, left = row_number * (height + _GAP_PX), column * (width + _GAP_PX)
            grid[top : top + height, left : left + width] = picture
    return grid
