"""AdaSlicer in NumPy: from the heatmap to patches, by the rules of models/slicer.py, to the last cell.

Sizes are in stride-8 cells. Tests compare every function with the one on tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

STRIDE = 8
"""Input pixels per cell."""
PATCH_MULTIPLE = 4
"""Patch sides are multiples of this many cells."""


@dataclass(frozen=True)
class SliceRule:
    """How patches are chosen.

    Attributes:
        algorithm: "grid", "greedy", or "none" for one patch over the whole map.
        patches_per_side: a patch is this share of the map's sides, rounded up to a multiple of 4 cells.
        threshold: a cell is active from this probability on.
        shift: "center" puts the active cells in the middle of their patch, "edge" is the released rule, "none": not at all.
        max_patches: per image, best first; None: no limit.
    """

    algorithm: str = "grid"
    patches_per_side: int = 8
    threshold: float = 0.5
    shift: str = "center"
    max_patches: int | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> SliceRule:
        """The rule in the ``slicer`` part of a model's configuration."""
        return cls(**{name: config[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True, eq=False)
class PatchTable:
    """Patches of a batch, all of one size, ordered by image.

    Attributes:
        image_index: [K] int64.
        xyxy_cell: [K, 4] int64, corners in cells, inside the map.
        size_cell: (height, width) of every patch.
    """

    image_index: IntArray
    xyxy_cell: IntArray
    size_cell: tuple[int, int]

    def __len__(self) -> int:
        return len(self.image_index)

    def corner_blocks(self) -> IntArray:
        """[K, 3] image, row and column of every corner, the latter two in blocks of 4×4 cells.

        Raises:
            ValueError: a corner lies within a block, as shifted patches do.
        """
        if (self.xyxy_cell % PATCH_MULTIPLE).any():
            raise ValueError("patches that see each other lie on the grid: choose them with shift 'none'")
        row, column = self.xyxy_cell[:, 1] // PATCH_MULTIPLE, self.xyxy_cell[:, 0] // PATCH_MULTIPLE
        return np.stack((self.image_index, row, column), axis=1)

    def block_owners(self, batch: int, map_hw: tuple[int, int]) -> IntArray:
        """[B, H/4, W/4]: which patch holds each block of 4×4 cells, the last of several; -1: none."""
        owners = np.full((batch, *(side // PATCH_MULTIPLE for side in map_hw)), -1, dtype=np.int64)
        blocks = self.xyxy_cell // PATCH_MULTIPLE
        for number, (image, (x1, y1, x2, y2)) in enumerate(zip(self.image_index, blocks, strict=True)):
            owners[image, y1:y2, x1:x2] = number
        return owners


def choose_patches(
    prob: FloatArray | None, batch: int, map_hw: tuple[int, int], rule: SliceRule
) -> PatchTable:
    """The patches of a batch.

    Args:
        prob: [B, 1, H, W] heatmap probabilities; None: a model without heatmap, whose one patch covers the map.
        batch: B.
        map_hw: (H, W).
        rule: which.
    """
    if prob is None or rule.algorithm == "none":
        corners = np.tile(np.array([0, 0, map_hw[1], map_hw[0]], dtype=np.int64), (batch, 1))
        return PatchTable(np.arange(batch, dtype=np.int64), corners, map_hw)
    return slice_greedy(prob, rule) if rule.algorithm == "greedy" else slice_grid(prob, rule)


def cut_patches(features: FloatArray, patches: PatchTable) -> FloatArray:
    """Cut patches out of feature maps: [B, C, H, W] → [K, C, h, w]."""
    if patches.size_cell == features.shape[2:] and len(patches) == len(features):
        return features
    cut = np.empty((len(patches), features.shape[1], *patches.size_cell), dtype=features.dtype)
    for out, image, (x1, y1, x2, y2) in zip(cut, patches.image_index, patches.xyxy_cell, strict=True):
        out[...] = features[image, :, y1:y2, x1:x2]
    return cut


def patch_size(map_hw: tuple[int, int], patches_per_side: int) -> tuple[int, int]:
    """Patch (height, width) in cells: a side's share of the map rounded up to a multiple of 4."""
    height, width = (-(-n // (patches_per_side * PATCH_MULTIPLE)) * PATCH_MULTIPLE for n in map_hw)
    return height, width


def local_maxima(prob: FloatArray, threshold: float) -> BoolArray:
    """Cells at or above threshold that equal their 3×3 maximum: [..., H, W] → bool of the same shape."""
    padded = np.pad(prob, [(0, 0)] * (prob.ndim - 2) + [(1, 1), (1, 1)], constant_values=-np.inf)
    rows = np.maximum(np.maximum(padded[..., :-2, :], padded[..., 1:-1, :]), padded[..., 2:, :])
    largest = np.maximum(np.maximum(rows[..., :-2], rows[..., 1:-1]), rows[..., 2:])
    maxima: BoolArray = (prob >= np.float32(threshold)) & (largest == prob)
    return maxima


def slice_grid(prob: FloatArray, rule: SliceRule) -> PatchTable:
    """Patches of the fixed grid that hold a peak, each shifted over its empty margin; order image, row, column.

    Without shift those that hold an active cell.
    """
    batch, _, height, width = prob.shape
    size_y, size_x = patch_size((height, width), rule.patches_per_side)
    active = _grid_cells(prob >= np.float32(rule.threshold), size_y, size_x)
    peaks = _grid_cells(local_maxima(prob, rule.threshold), size_y, size_x)
    keep = (active if rule.shift == "none" else peaks).any(axis=(3, 4))
    rows, columns = keep.shape[1:]
    shift_x, shift_y = _shift(active.max(axis=3), rule.shift), _shift(active.max(axis=4), rule.shift)
    corner_x = (np.arange(columns) * size_x + shift_x).clip(0, width - size_x).reshape(batch, -1)
    corner_y = (np.arange(rows)[:, None] * size_y + shift_y).clip(0, height - size_y).reshape(batch, -1)
    keep = keep.reshape(batch, -1)
    if rule.shift == "center":
        keep = keep & ~_repeats_earlier(corner_y * width + corner_x, keep)
    if rule.max_patches is not None and rule.max_patches < keep.shape[1]:
        mass = _grid_cells(prob, size_y, size_x).sum(axis=(3, 4)).reshape(batch, -1)
        keep = _keep_best(keep, mass, rule.max_patches)
    xyxy = np.stack((corner_x, corner_y, corner_x + size_x, corner_y + size_y), axis=-1)
    return PatchTable(np.nonzero(keep)[0], xyxy[keep].astype(np.int64), (size_y, size_x))


def slice_greedy(prob: FloatArray, rule: SliceRule) -> PatchTable:
    """Patches placed one by one on the peak with the largest local mass; order image, then of choice."""
    map_hw = (prob.shape[2], prob.shape[3])
    size = patch_size(map_hw, rule.patches_per_side)
    peak = np.argwhere(local_maxima(prob[:, 0], rule.threshold))
    mass = _window_sums(prob[:, 0], size)[tuple(peak.T)]
    by_mass = np.argsort(-mass, kind="stable")
    peak = peak[by_mass[np.argsort(peak[by_mass, 0], kind="stable")]]
    corner = _greedy_corners((prob >= np.float32(rule.threshold))[:, 0], peak, size, rule.shift)
    chosen = _uncovered(peak, corner, size, map_hw, rule.max_patches)
    corner = corner[chosen]
    xyxy = np.concatenate((corner, corner + np.array([size[1], size[0]])), axis=1)
    return PatchTable(peak[chosen, 0].astype(np.int64), xyxy.astype(np.int64), size)


def _grid_cells(cells: npt.NDArray[Any], size_y: int, size_x: int) -> npt.NDArray[Any]:
    """[B,1,H,W] → [B, rows, columns, size_y, size_x], cells outside the map zero."""
    batch, _, height, width = cells.shape
    cells = np.pad(cells[:, 0], ((0, 0), (0, -height % size_y), (0, -width % size_x)))
    rows, columns = cells.shape[1] // size_y, cells.shape[2] // size_x
    grid: npt.NDArray[Any] = cells.reshape(batch, rows, size_y, columns, size_x).transpose(0, 1, 3, 2, 4)
    return grid


def _shift(occupied: npt.NDArray[Any], mode: str) -> IntArray:
    """Shift along one side from the empty cells before the first and after the last occupied one, [..., n] → [...]."""
    leading, trailing = occupied.argmax(axis=-1), occupied[..., ::-1].argmax(axis=-1)
    if mode == "none":
        shift: IntArray = np.zeros_like(leading)
    elif mode == "edge":
        shift = np.where(leading > trailing, leading, -trailing)
    else:
        shift = np.fix((leading - trailing) / 2).astype(np.int64)
    return shift


def _repeats_earlier(corner: IntArray, keep: BoolArray) -> BoolArray:
    """Whether a kept candidate before this one has the same corner. [B, G] each → bool [B, G]."""
    same = (corner[:, :, None] == corner[:, None]) & keep[:, None]
    repeats: BoolArray = np.tril(same, -1).any(axis=2)
    return repeats


def _keep_best(keep: BoolArray, mass: FloatArray, limit: int) -> BoolArray:
    """Keep at most limit candidates per image, those with the largest mass. [B, G] each."""
    ranked = np.argsort(-np.where(keep, mass, -1.0), axis=1, kind="stable")[:, :limit]
    best = np.zeros_like(keep)
    np.put_along_axis(best, ranked, True, axis=1)
    return keep & best


def _window_sums(prob: FloatArray, size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Sum in the patch-sized window around every cell, cells outside the map zero: [B,H,W] → [B,H,W]."""
    _, height, width = prob.shape
    before_y, before_x = size[0] // 2, size[1] // 2
    # Multiples of 2^-24, as probabilities above 0.5 are: their sums are exact, and equal windows stay equal.
    exact = np.round(prob.astype(np.float64) * 2**24) / 2**24
    margins = ((0, 0), (before_y + 1, size[0] - before_y - 1), (before_x + 1, size[1] - before_x - 1))
    total = np.pad(exact, margins).cumsum(axis=1).cumsum(axis=2)
    sums: npt.NDArray[np.float64] = (
        total[:, size[0] :, size[1] :]
        - total[:, :height, size[1] :]
        - total[:, size[0] :, :width]
        + total[:, :height, :width]
    )
    return sums


def _greedy_corners(active: BoolArray, peak: IntArray, size: tuple[int, int], shift: str) -> IntArray:
    """Corners (x, y), [P, 2], of a patch around every peak [P, 3] (image, y, x), shifted over its empty margin."""
    most = np.array(active.shape[1:]) - size
    corner = (peak[:, 1:] - np.array(size) // 2).clip(0, most)
    windows = np.lib.stride_tricks.sliding_window_view(active, size, axis=(1, 2))  # type: ignore[call-overload]
    windows = windows[peak[:, 0], corner[:, 0], corner[:, 1]]
    margin = np.stack((_shift(windows.any(axis=2), shift), _shift(windows.any(axis=1), shift)), axis=1)
    placed: IntArray = (corner + margin).clip(0, most)[:, ::-1]
    return placed


def _uncovered(
    peak: IntArray, corner: IntArray, size: tuple[int, int], map_hw: tuple[int, int], limit: int | None
) -> list[int]:
    """Which peaks, ordered by image, get their patch: those that no earlier one covers, at most limit per image."""
    chosen: list[int] = []
    free, last, count = np.ones(map_hw, dtype=np.bool_), -1, 0
    for index, ((image, y, x), (x1, y1)) in enumerate(zip(peak.tolist(), corner.tolist(), strict=True)):
        if image != last:
            free[:], last, count = True, image, 0
        if free[y, x] and (limit is None or count < limit):
            chosen.append(index)
            count += 1
            free[y1 : y1 + size[0], x1 : x1 + size[1]] = False
    return chosen
