"""Label heatmaps of objects with masks: which masks are usable, and mask × Gaussian (paper, section III-B).

Arithmetic on arrays only. Making masks is in utils/sam.py; heatmaps from boxes alone, the file format and its
warping are in utils/heatmap.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt

from utils.heatmap import FILE_STRIDE, FloatArray, HeatmapFile, block_maximum, render_heatmap, to_bytes

BoolArray = npt.NDArray[np.bool_]
MaskMode = Literal["sam", "hybrid"]
"""sam: 1 inside the mask; hybrid: mask × Gaussian of the box. In both an unusable mask leaves the Gaussian."""

MIN_INSIDE_SHARE = 0.5
"""Less of the mask than this inside the box: SAM took something else, or what the object stands on."""
MIN_BOX_SHARE = 0.25
"""Less of the box than this under the mask: SAM took a part of the object."""
MIN_LARGEST_PIECE = 0.75
"""Less than this in the largest piece: noise, or several things. A pole before a car leaves more."""
MAX_CENTRE_OFFSET = 0.5
"""Centroid of the mask from the centre of the box, in halves of the box side; one half of a box is at 0.5."""
MIN_PEAK = 0.5
"""Every object's label has a cell of at least this: the patches of training are chosen where the label has it."""

_BORDER_TOLERANCE = 1e-6  # pixels; as in `render_heatmap`: a border through a pixel centre counts as inside


class FallBack(str, Enum):
    """Why the label of an object is the Gaussian of its box although masks were asked for."""

    TINY = "tiny"
    """Too small for SAM, which was not asked."""
    EMPTY = "empty"
    """SAM found nothing."""
    OUTSIDE = "outside"
    """Mostly outside of the box."""
    SMALL = "small"
    """Covers too little of the box."""
    PIECES = "pieces"
    """Falls into pieces."""
    OFF_CENTRE = "off-centre"
    """Lies to one side of the box."""
    FAINT = "faint"
    """The label would nowhere reach `MIN_PEAK`: the mask leaves out the middle of the box."""


@dataclass(frozen=True, eq=False)
class ObjectMask:
    """The mask of one object, kept where its box is: a label never leaves the box.

    Attributes:
        values: bool [h, w], at the pixels whose centres lie in the box, borders included, and in the image.
        left, top: column and row of the first of them, pixels_orig.
        area_px: pixels of the whole mask, also outside of the box; original pixels.
    """

    values: BoolArray
    left: int
    top: int
    area_px: int


def crop_mask(bitmap: BoolArray, left_top: tuple[int, int], box_xyxy_orig: npt.ArrayLike) -> ObjectMask:
    """What of a mask lies in the box of its object; a copy, so the bitmap can go.

    Args:
        bitmap: bool [H, W], mask over the image or over a window of it.
        left_top: where in the image the bitmap begins, pixels_orig.
        box_xyxy_orig: [4] corners; what lies outside of the bitmap is left out.
    """
    corners = np.asarray(box_xyxy_orig, dtype=np.float64).reshape(2, 2) - left_top
    height, width = bitmap.shape
    limit = (width, height)
    first = np.clip(np.ceil(corners[0] - 0.5 - _BORDER_TOLERANCE), 0, limit).astype(np.int64)
    end = np.clip(np.floor(corners[1] + 0.5 + _BORDER_TOLERANCE), first, limit).astype(np.int64)
    values = bitmap[first[1] : end[1], first[0] : end[0]].copy()
    left, top = (int(side) for side in first + left_top)
    return ObjectMask(values, left, top, int(np.count_nonzero(bitmap)))


def fall_back_reason(
    mask: ObjectMask | None, box_cxcywh_orig: npt.ArrayLike, tau: float, mode: MaskMode
) -> FallBack | None:
    """What is wrong with the mask of an object; None: it is usable. The first that holds, in this order.

    - `TINY`: there is no mask (None).
    - `EMPTY`: the mask has no pixel.
    - `OUTSIDE`: less than half of it is in the box (`MIN_INSIDE_SHARE`).
    - `SMALL`: it covers less than a quarter of the box's pixels (`MIN_BOX_SHARE`).
    - `PIECES`: its largest piece, of pixels that touch at sides or corners, has less than three quarters of
      what is in the box (`MIN_LARGEST_PIECE`).
    - `OFF_CENTRE`: its centroid is more than a quarter of the box's width or height from the centre
      (`MAX_CENTRE_OFFSET`).
    - `FAINT`: no pixel of the label that it would give reaches 0.5 (`MIN_PEAK`), as with a thin ring. With
      τ ≥ 0.5, where the Gaussian is nowhere lower inside the box, this never happens.

    Args:
        mask: of the object, or None.
        box_cxcywh_orig: [4] centre and size, original pixels.
        tau: value at a corner of a box, in (0, 1).
        mode: what the label is made of.
    """
    if mask is None:
        return FallBack.TINY
    inside = np.count_nonzero(mask.values)
    if mask.area_px == 0:
        return FallBack.EMPTY
    if inside < MIN_INSIDE_SHARE * mask.area_px:
        return FallBack.OUTSIDE
    if inside < MIN_BOX_SHARE * mask.values.size:
        return FallBack.SMALL
    if _largest_piece(mask.values) < MIN_LARGEST_PIECE * inside:
        return FallBack.PIECES
    if _centre_offset(mask, box_cxcywh_orig) > MAX_CENTRE_OFFSET:
        return FallBack.OFF_CENTRE
    if label_values(mask, box_cxcywh_orig, tau, mode).max() < MIN_PEAK:
        return FallBack.FAINT
    return None


def _largest_piece(values: BoolArray) -> int:
    """Pixels of the largest 8-connected component."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(values.astype(np.uint8), connectivity=8)
    return int(stats[1:, cv2.CC_STAT_AREA].max(initial=0))


def _centre_offset(mask: ObjectMask, box_cxcywh_orig: npt.ArrayLike) -> float:
    """Centroid of a mask from the centre of the box, the worse axis, in halves of the box's side."""
    box = np.asarray(box_cxcywh_orig, dtype=np.float64)
    rows, columns = np.nonzero(mask.values)
    centroid = np.array([columns.mean() + mask.left + 0.5, rows.mean() + mask.top + 0.5])
    return float((np.abs(centroid - box[:2]) / (box[2:] / 2)).max())


def label_values(mask: ObjectMask, box_cxcywh_orig: npt.ArrayLike, tau: float, mode: MaskMode) -> FloatArray:
    """Label of one object at the pixels of its mask: float32 [h, w] in 0–1, at pixel centres.

    The Gaussian is that of `render_heatmap` (paper eq. 3), 0 outside of the box.
    """
    if mode not in get_args(MaskMode):
        raise ValueError(f"masks are for the heatmap modes {', '.join(get_args(MaskMode))}, found {mode!r}")
    box = np.asarray(box_cxcywh_orig, dtype=np.float64) - (mask.left, mask.top, 0, 0)
    height, width = mask.values.shape
    gaussian = render_heatmap(box, (height, width), tau, stride=1)
    if mode == "sam":
        gaussian = (gaussian > 0).astype(np.float32)
    return gaussian * mask.values


def mask_heatmap(
    masks: Sequence[ObjectMask | None],
    boxes_cxcywh_orig: npt.ArrayLike,
    image_hw: tuple[int, int],
    tau: float,
    mode: MaskMode,
    stride: int = FILE_STRIDE,
) -> FloatArray:
    """Label heatmap of objects with masks and without: maximum over blocks of pixels and over objects.

    Nothing is judged here: a mask that `fall_back_reason` objects to should come as None. With masks that it
    lets pass, and τ ≥ 0.5, every object whose centre lies in the image has a cell ≥ 0.5 at any stride.

    Args:
        masks: N; where None, the label is the Gaussian of the box, exactly as `render_heatmap` has it.
        boxes_cxcywh_orig: [N, 4] centre and size, original pixels.
        image_hw: height and width of the original image.
        tau: value at a corner of a box, in (0, 1).
        mode: "sam": 1 inside a mask; "hybrid": mask × Gaussian.
        stride: original pixels per side of a cell.

    Returns:
        float32 [ceil(H/stride), ceil(W/stride)] in 0–1.

    Raises:
        ValueError: another mode, τ out of range, not one mask per box, or a mask that leaves the image.
    """
    boxes = np.asarray(boxes_cxcywh_orig, dtype=np.float64).reshape(-1, 4)
    _check_masks(masks, len(boxes), image_hw)
    without = np.array([mask is None for mask in masks], dtype=bool)
    heatmap = render_heatmap(boxes[without], image_hw, tau, stride)
    for mask, box in zip(masks, boxes, strict=True):
        if mask is not None and mask.values.size:
            _raise_to(heatmap, label_values(mask, box, tau, mode), mask.left, mask.top, stride)
    return heatmap


def _check_masks(masks: Sequence[ObjectMask | None], boxes: int, image_hw: tuple[int, int]) -> None:
    if len(masks) != boxes:
        raise ValueError(f"expected one mask or None per box, found {len(masks)} for {boxes} boxes")
    for mask in masks:
        if mask is None:
            continue
        bottom, right = mask.top + mask.values.shape[0], mask.left + mask.values.shape[1]
        if min(mask.left, mask.top) < 0 or bottom > image_hw[0] or right > image_hw[1]:
            span = f"columns {mask.left}–{right}, rows {mask.top}–{bottom}"
            raise ValueError(f"a mask ({span}) leaves the image (height, width = {image_hw})")


def _raise_to(heatmap: FloatArray, values: FloatArray, left: int, top: int, stride: int) -> None:
    """Maximum of a heatmap and of values [h, w] at pixels that begin at (left, top), in place."""
    # Zeros before the first pixel let the blocks begin where the cells do.
    aligned = np.pad(values, ((top % stride, 0), (left % stride, 0)))
    blocks = block_maximum(aligned, stride)
    row, column = top // stride, left // stride
    cells = heatmap[row : row + blocks.shape[0], column : column + blocks.shape[1]]
    np.maximum(cells, blocks, out=cells)


def mask_heatmap_file(
    masks: Sequence[ObjectMask | None],
    boxes_cxcywh_orig: npt.ArrayLike,
    image_hw: tuple[int, int],
    tau: float,
    mode: MaskMode,
    fingerprint: str,
) -> tuple[HeatmapFile, Counter[FallBack]]:
    """The heatmap file of an image, unusable masks left out, and how many were so for which reason.

    Args and errors: as for `mask_heatmap`, but the masks come as SAM made them (None: not asked).
    fingerprint: of what the file is made from, see `heatmap_fingerprint`; SAM's own belongs to it.
    """
    boxes = np.asarray(boxes_cxcywh_orig, dtype=np.float64).reshape(-1, 4)
    _check_masks(masks, len(boxes), image_hw)
    reasons = [fall_back_reason(mask, box, tau, mode) for mask, box in zip(masks, boxes, strict=True)]
    usable = [mask if reason is None else None for mask, reason in zip(masks, reasons, strict=True)]
    values = to_bytes(mask_heatmap(usable, boxes, image_hw, tau, mode, FILE_STRIDE))
    return HeatmapFile(values, mode, tau, image_hw, fingerprint), Counter(r for r in reasons if r)
