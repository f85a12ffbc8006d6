"""How well the patches are chosen: missing rate, empty rate, occupancy, heatmap recall and precision.

It sees tensors only and no model; whether what lies in the patches is then found is the business of
`evaluate.detection`. Source of the measures: the paper, section IV (BPR, occupancy) and docs/method.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evaluate.arrays import (
    EvaluationError,
    FloatArray,
    IntArray,
    checked_boxes,
    checked_labels,
    ratio,
    shown,
    to_array,
)

BoolArray = NDArray[np.bool_]

CELL_PX = 8
"""Network-input pixels per heatmap cell."""
LABEL_THRESHOLD = 0.5
"""A label cell belongs to an object from this value on (0.5 is the value at a box's corner, eq. 3)."""
COVERED_SHARE = 0.5
"""A box is kept when one patch covers more than this share of its area."""
SIZES = (("small", 0.0, 32.0**2), ("medium", 32.0**2, 96.0**2), ("large", 96.0**2, math.inf))
"""Name, and area in original pixels from (inclusive) and to (exclusive)."""


@dataclass(frozen=True)
class SelectorGroup:
    """Objects of one size or class. None: there is none.

    Attributes:
        heatmap_recall: share of the label cells in the boxes of the group that are active; a cell that two boxes
            share counts for each. There is no precision of a group: an active cell beside all objects is of no
            size and of no class.
    """

    name: str
    labels: int
    missing_rate: float | None
    bpr_center: float | None
    heatmap_recall: float | None


@dataclass(frozen=True)
class SelectorMetrics:
    """What `SelectorEvaluator` found, in 0–1. None means "not defined" (no labels, no images, no heatmap).

    Attributes:
        missing_rate: 1 − bpr_box.
        bpr_box: share of the labelled boxes of which some one patch covers more than half the area.
        bpr_center: share of the labelled boxes with their centre in some patch.
        occupancy: summed area of the patches / area of the map, mean over images. This is what is paid
            for; patches may overlap, so it can exceed `occupancy_union` and even 1.
        occupancy_union: share of the map that lies in some patch, mean over images.
        empty_rate: 1 − occupancy.
        patches_per_image: mean number of patches.
        heatmap_recall: share of the label cells (≥ 0.5) that are active, over all images together.
        heatmap_precision: share of the active cells that are label cells.
        by_size: small < 32² ≤ medium < 96² ≤ large original pixels; empty when areas were not given.
        by_class: one group per name; empty when labels were not given.
    """

    protocol: str
    images: int
    labels: int
    missing_rate: float | None
    bpr_box: float | None
    bpr_center: float | None
    occupancy: float | None
    occupancy_union: float | None
    empty_rate: float | None
    patches_per_image: float | None
    heatmap_recall: float | None
    heatmap_precision: float | None
    by_size: list[SelectorGroup]
    by_class: list[SelectorGroup]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, None where a value is not defined."""
        plain = vars(self).copy()
        for key in ("by_size", "by_class"):
            plain[key] = [vars(group).copy() for group in plain[key]]
        return plain

    def table(self) -> str:
        """The printed summary: protocol, the totals, and one row per size and class."""
        patches = (
            f"missing rate {shown(self.missing_rate)} (BPR box {shown(self.bpr_box)}, "
            f"centre {shown(self.bpr_center)}), empty rate {shown(self.empty_rate)}, "
            f"occupancy {shown(self.occupancy)} (union {shown(self.occupancy_union)}), "
            f"{shown(self.patches_per_image)} patches per image"
        )
        cells = f"heatmap recall {shown(self.heatmap_recall)}, precision {shown(self.heatmap_precision)}"
        groups = [*self.by_size, *self.by_class]
        width = max((len(group.name) for group in groups), default=0)
        rows = [
            f"{group.name:<{width}} {group.labels:>8} labels, missing rate {shown(group.missing_rate)}, "
            f"BPR centre {shown(group.bpr_center)}, heatmap recall {shown(group.heatmap_recall)}"
            for group in groups
        ]
        return "\n".join([self.protocol, patches, cells, *rows])


@dataclass
class _Collected:
    """What is kept: one entry per image, one per box, and counts of cells."""

    occupancy: list[float] = field(default_factory=list)
    occupancy_union: list[float] = field(default_factory=list)
    patches: list[int] = field(default_factory=list)
    box_kept: list[bool] = field(default_factory=list)
    centre_kept: list[bool] = field(default_factory=list)
    box_area: list[float] = field(default_factory=list)
    """NaN for a box whose area in original pixels was not given."""
    box_class: list[int] = field(default_factory=list)
    """-1 for a box whose class was not given."""
    box_cells_labelled: list[int] = field(default_factory=list)
    """Label cells in each box; 0 without a heatmap."""
    box_cells_both: list[int] = field(default_factory=list)
    """Those of them that are active."""
    cells_active: int = 0
    cells_labelled: int = 0
    cells_both: int = 0

    def add_cells(
        self, active: BoolArray | None, labelled: BoolArray | None, boxes: NDArray[np.float64]
    ) -> None:
        """Count the cells [h, w] of an image and those in its boxes [N, 4]; without either map, none."""
        if active is None or labelled is None:
            self.box_cells_labelled += [0] * len(boxes)
            self.box_cells_both += [0] * len(boxes)
            return
        both = active & labelled
        self.box_cells_labelled += cells_in_boxes(labelled, boxes).tolist()
        self.box_cells_both += cells_in_boxes(both, boxes).tolist()
        self.cells_active += int(active.sum())
        self.cells_labelled += int(labelled.sum())
        self.cells_both += int(both.sum())


class SelectorEvaluator:
    """Collects heatmaps and patches image by image and computes `SelectorMetrics`.

    Args:
        names: class names, for the rows by class; needed only when labels are given.
    """

    def __init__(self, names: list[str] | None = None) -> None:
        self.names = list(names or [])
        self._data = _Collected()

    def reset(self) -> None:
        """Forget every image."""
        self._data = _Collected()

    def update(
        self,
        heatmap_prob: Tensor | None,
        patches_xyxy_cell: Tensor,
        gt_boxes_px: Tensor,
        map_hw_cell: tuple[int, int],
        *,
        threshold: float = 0.5,
        label_heatmap: Tensor | None = None,
        gt_area_orig: Tensor | None = None,
        gt_label: Tensor | None = None,
    ) -> None:
        """Add one image.

        Args:
            heatmap_prob: [h, w] or [1, h, w] in 0–1 (after the sigmoid); None for a dense model.
            patches_xyxy_cell: [K, 4] the patches of this image in stride-8 cells, end exclusive; K may be 0.
                A dense model gives one patch over the whole map.
            gt_boxes_px: [N, 4] labelled corners in network-input pixels; N may be 0.
            map_hw_cell: height and width of the map in cells, padding of the batch included: it is paid for.
            threshold: a cell is active when its value is ≥ this.
            label_heatmap: as ``heatmap_prob``, the training target; without it the image does not count
                in the heatmap's recall and precision.
            gt_area_orig: [N] area of the boxes in original pixels, for the rows by size.
            gt_label: [N] class index, for the rows by class.

        Raises:
            EvaluationError: a patch outside the map, a heatmap of another size or not in 0–1, or lengths
                that differ. Nothing of the image is counted then.
        """
        height, width = int(map_hw_cell[0]), int(map_hw_cell[1])
        if min(height, width) < 1:
            raise EvaluationError(f"map_hw_cell is {(height, width)}; expected a positive height and width")
        patches = _checked_patches(patches_xyxy_cell, height, width)
        boxes = checked_boxes(gt_boxes_px, len(gt_boxes_px), "true boxes")
        areas = _checked_areas(gt_area_orig, len(boxes))
        classes = np.full(len(boxes), -1)
        if gt_label is not None:
            classes = checked_labels(gt_label, len(boxes), len(self.names), "true labels")
        active = _checked_map(heatmap_prob, height, width, threshold, "heatmap_prob")
        labelled = _checked_map(label_heatmap, height, width, LABEL_THRESHOLD, "label_heatmap")

        # Everything is checked: from here on nothing fails half-way.
        data = self._data
        box_kept, centre_kept = covered_boxes(boxes, patches)
        data.box_kept += box_kept.tolist()
        data.centre_kept += centre_kept.tolist()
        data.box_area += areas.tolist()
        data.box_class += classes.tolist()
        data.occupancy.append(float(patch_areas(patches).sum()) / (height * width))
        data.occupancy_union.append(float(covered_cells(patches, height, width).mean()))
        data.patches.append(len(patches))
        data.add_cells(active, labelled, boxes)

    def state(self) -> dict[str, Any]:
        """Everything collected, as plain data (numbers and lists) to send to another process."""
        plain = {"names": self.names, **vars(self._data)}
        return {key: list(value) if isinstance(value, list) else value for key, value in plain.items()}

    def merge(self, states: Iterable[dict[str, Any]]) -> None:
        """Add the images of other evaluators' states; the result equals one evaluator that saw them all.

        Raises:
            EvaluationError: other class names.
        """
        for state in states:
            if state["names"] != self.names:
                raise EvaluationError(f"cannot merge: names are {state['names']} there and {self.names} here")
            for key, value in vars(self._data).items():
                setattr(self._data, key, value + state[key])

    def compute(self) -> SelectorMetrics:
        """The metrics of all images added so far; does not depend on the order in which they were added."""
        data = self._data
        images = len(data.patches)
        boxes = _Boxes(
            np.array(data.box_kept, dtype=bool),
            np.array(data.centre_kept, dtype=bool),
            np.array(data.box_cells_labelled, dtype=np.int64),
            np.array(data.box_cells_both, dtype=np.int64),
        )
        area, of_class = np.array(data.box_area), np.array(data.box_class, dtype=np.int64)
        # fsum is exact, so that the order of the images (and the number of processes) cannot matter.
        occupancy = ratio(math.fsum(data.occupancy), images)
        total = _group("all", np.ones(len(boxes.kept), dtype=bool), boxes)
        sizes = [_group(name, (area >= low) & (area < high), boxes) for name, low, high in SIZES]
        classes = [_group(name, of_class == index, boxes) for index, name in enumerate(self.names)]
        return SelectorMetrics(
            protocol=f"patch selection, {images} images, no ignore regions, kept = one patch covers > 50 %",
            images=images,
            labels=total.labels,
            missing_rate=total.missing_rate,
            bpr_box=ratio(int(boxes.kept.sum()), total.labels),
            bpr_center=total.bpr_center,
            occupancy=occupancy,
            occupancy_union=ratio(math.fsum(data.occupancy_union), images),
            empty_rate=None if occupancy is None else 1 - occupancy,
            patches_per_image=ratio(sum(data.patches), images),
            heatmap_recall=ratio(data.cells_both, data.cells_labelled),
            heatmap_precision=ratio(data.cells_both, data.cells_active),
            by_size=sizes if np.isfinite(area).any() else [],
            by_class=classes if (of_class >= 0).any() else [],
        )


def covered_boxes(boxes_px: FloatArray, patches_xyxy_cell: IntArray) -> tuple[BoolArray, BoolArray]:
    """Which boxes [N, 4] (input pixels) some one of the patches [K, 4] (cells) keeps.

    Returns:
        [N] whether one patch covers more than half of the box's area (of a box without area: its centre),
        and [N] whether the centre is in one (left and top edge in, right and bottom edge out).
    """
    patches = patches_xyxy_cell * float(CELL_PX)
    far = np.minimum(boxes_px[:, None, 2:], patches[None, :, 2:])
    near = np.maximum(boxes_px[:, None, :2], patches[None, :, :2])
    share = (far - near).clip(min=0).prod(axis=2)
    area = (boxes_px[:, 2:] - boxes_px[:, :2]).prod(axis=1)
    centre = (boxes_px[:, None, :2] + boxes_px[:, None, 2:]) / 2
    inside: BoolArray = np.all((centre >= patches[None, :, :2]) & (centre < patches[None, :, 2:]), axis=2)
    centre_kept: BoolArray = np.any(inside, axis=1)
    box_kept: BoolArray = np.any(share > COVERED_SHARE * area[:, None], axis=1)
    return np.where(area > 0, box_kept, centre_kept), centre_kept


def patch_areas(patches: IntArray) -> IntArray:
    """[K] areas in cells."""
    return (patches[:, 2] - patches[:, 0]) * (patches[:, 3] - patches[:, 1])


def covered_cells(patches: IntArray, height: int, width: int) -> BoolArray:
    """[height, width] cells that lie in some patch, by summing the patches' corners in both directions."""
    corners = np.zeros((height + 1, width + 1), dtype=np.int64)
    for row, column, sign in ((1, 0, 1), (1, 2, -1), (3, 0, -1), (3, 2, 1)):
        np.add.at(corners, (patches[:, row], patches[:, column]), sign)
    return corners.cumsum(axis=0).cumsum(axis=1)[:height, :width] > 0


def cells_in_boxes(cells: BoolArray, boxes_px: FloatArray) -> IntArray:
    """[h, w] cells and [N, 4] boxes (input pixels) → [N] how many True cells each box touches."""
    height, width = cells.shape
    table = np.zeros((height + 1, width + 1), dtype=np.int64)
    table[1:, 1:] = cells.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    limit = np.array([width, height])
    near = np.floor(boxes_px[:, :2] / CELL_PX)
    # At least the cell of the corner: a box without area lies in one, too.
    far = np.maximum(np.ceil(boxes_px[:, 2:] / CELL_PX), near + 1)
    (x1, y1), (x2, y2) = (np.clip(corner, 0, limit).astype(np.int64).T for corner in (near, far))
    return np.asarray(table[y2, x2] - table[y1, x2] - table[y2, x1] + table[y1, x1])


@dataclass(frozen=True)
class _Boxes:
    """All boxes, [N] each; see `_Collected`."""

    kept: BoolArray
    centre: BoolArray
    cells_labelled: IntArray
    cells_both: IntArray


def _group(name: str, chosen: BoolArray, boxes: _Boxes) -> SelectorGroup:
    labels = int(chosen.sum())
    return SelectorGroup(
        name,
        labels,
        missing_rate=ratio(int((chosen & ~boxes.kept).sum()), labels),
        bpr_center=ratio(int((chosen & boxes.centre).sum()), labels),
        heatmap_recall=ratio(int(boxes.cells_both[chosen].sum()), int(boxes.cells_labelled[chosen].sum())),
    )


def _checked_patches(patches: Tensor, height: int, width: int) -> IntArray:
    array = checked_boxes(patches, len(patches), "patches")
    outside = (array < 0).any(axis=1) | (array[:, 2] > width) | (array[:, 3] > height)
    if outside.any():
        raise EvaluationError(
            f"patch {array[outside][0].tolist()} leaves the map of {height}×{width} cells (height × width)"
        )
    return array.astype(np.int64)


def _checked_areas(areas: Tensor | None, count: int) -> FloatArray:
    if areas is None:
        return np.full(count, np.nan)
    array = to_array(areas).reshape(-1).astype(np.float64)
    if len(array) != count:
        raise EvaluationError(f"gt_area_orig has {len(array)} areas for {count} boxes")
    if not bool((array >= 0).all()):
        raise EvaluationError("gt_area_orig has a value that is not ≥ 0; expected areas in original pixels")
    return array


def _checked_map(
    heatmap: Tensor | None, height: int, width: int, threshold: float, what: str
) -> BoolArray | None:
    """[height, width] cells of at least the threshold; None without a heatmap."""
    if heatmap is None:
        return None
    array = to_array(heatmap)
    if array.ndim not in (2, 3) or array.size != height * width or array.shape[-2:] != (height, width):
        raise EvaluationError(f"{what} has shape {array.shape}; expected ({height}, {width}) cells")
    # NaN fails both comparisons.
    if not bool(((array >= 0) & (array <= 1)).all()):
        raise EvaluationError(f"{what} is not in 0–1; expected probabilities (no logits, no NaN)")
    return array.reshape(height, width) >= threshold
