"""AdaSlicer (paper section III-C): from the heatmap to the patches that the deep part runs on.

Pure functions on probabilities, no weights. All sizes are in stride-8 cells. The grid algorithm is
vectorised over images and patches and leaves its result in a statically sized `Candidates`, so that
the caller decides when (once) to wait for the device; the greedy one chooses on the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.config import SlicerConfig

STRIDE = 8
"""Input pixels per cell."""
PATCH_MULTIPLE = 4
"""Patch sides are multiples of this many cells, so that stride 32 divides them."""


@dataclass
class Patches:
    """Patches of a batch, all of one size, ordered by image.

    Attributes:
        image_index: [K] int64, the image each patch is cut from.
        xyxy_cell: [K, 4] int64, corners in stride-8 cells, inside the map; x2 − x1 and y2 − y1 are equal for all.
        size_cell: (height, width) of every patch in cells.
    """

    image_index: Tensor
    xyxy_cell: Tensor
    size_cell: tuple[int, int]

    def __len__(self) -> int:
        return int(self.image_index.numel())

    def to(self, device: torch.device) -> Patches:
        """The same patches on another device."""
        return Patches(
            self.image_index.to(device, non_blocking=True),
            self.xyxy_cell.to(device, non_blocking=True),
            self.size_cell,
        )


@dataclass
class Candidates:
    """Possible patches of a batch, of static number G, and which of them are kept.

    Attributes:
        image_index: [G] int64.
        xyxy_cell: [G, 4] int64.
        keep: [G] bool.
        size_cell: (height, width) of every patch in cells.
    """

    image_index: Tensor
    xyxy_cell: Tensor
    keep: Tensor
    size_cell: tuple[int, int]

    def take(self, count: int) -> Patches:
        """The kept patches in order; count is the number of True in keep (known to the caller, so no wait here)."""
        index = torch.nonzero_static(self.keep, size=count).squeeze(1)
        return Patches(self.image_index[index], self.xyxy_cell[index], self.size_cell)


def patch_size(map_hw: tuple[int, int], patches_per_side: int) -> tuple[int, int]:
    """Patch (height, width) in cells: a side's share of the map rounded up to a multiple of 4."""

    def side(cells: int) -> int:
        return -(-cells // (patches_per_side * PATCH_MULTIPLE)) * PATCH_MULTIPLE

    return side(map_hw[0]), side(map_hw[1])


def local_maxima(prob: Tensor, threshold: float) -> Tensor:
    """Cells at or above threshold that equal their 3×3 maximum: [B,1,H,W] in 0–1 → bool of the same shape."""
    return (prob >= threshold) & (max_3x3(prob) == prob)


def max_3x3(maps: Tensor) -> Tensor:
    """The largest of every cell and its neighbours inside the map; [..., H, W] floats of the same shape."""
    if maps.is_cuda:
        return F.max_pool2d(maps, 3, 1, 1)
    # torch's pooling of a single channel is scalar code on a CPU, six to ten times slower than four maxima.
    padded = F.pad(maps, (1, 1, 1, 1), value=-torch.inf)
    rows = torch.maximum(torch.maximum(padded[..., :-2, :], padded[..., 1:-1, :]), padded[..., 2:, :])
    return torch.maximum(torch.maximum(rows[..., :-2], rows[..., 1:-1]), rows[..., 2:])


def whole_map(batch: int, map_hw: tuple[int, int], device: torch.device) -> Patches:
    """One patch per image that covers everything: the dense detector as a special case."""
    height, width = map_hw
    corners = torch.zeros((batch, 4), dtype=torch.int64, device=device)
    corners[:, 2] = width
    corners[:, 3] = height
    return Patches(torch.arange(batch, device=device), corners, map_hw)


def covered_cells(patches: Patches, batch: int, map_hw: tuple[int, int]) -> Tensor:
    """Which cells lie in some patch: bool [batch, H, W]."""
    device = patches.image_index.device
    height, width = map_hw
    # Corners of the patches as steps up and down, summed up along both axes.
    steps = torch.zeros((batch, height + 1, width + 1), dtype=torch.int32, device=device)
    x1, y1, x2, y2 = patches.xyxy_cell.unbind(dim=1)
    one = torch.ones_like(x1, dtype=torch.int32)
    for y, x, step in ((y1, x1, one), (y1, x2, -one), (y2, x1, -one), (y2, x2, one)):
        steps.index_put_((patches.image_index, y, x), step, accumulate=True)
    return steps.cumsum(1).cumsum(2)[:, :height, :width] > 0


def fixed_grid(batch: int, map_hw: tuple[int, int], patches_per_side: int, device: torch.device) -> Patches:
    """Every patch of the fixed grid, the last row and column moved inside the map. Order: image, row, column."""
    height, width = map_hw
    size_y, size_x = patch_size(map_hw, patches_per_side)
    y1 = (torch.arange(-(-height // size_y), device=device) * size_y).clamp(max=height - size_y)
    x1 = (torch.arange(-(-width // size_x), device=device) * size_x).clamp(max=width - size_x)
    corner_y, corner_x = torch.meshgrid(y1, x1, indexing="ij")
    xyxy = torch.stack((corner_x, corner_y, corner_x + size_x, corner_y + size_y), dim=-1).view(-1, 4)
    image_index = torch.arange(batch, device=device).repeat_interleave(len(xyxy))
    return Patches(image_index, xyxy.repeat(batch, 1), (size_y, size_x))


def slice_grid(prob: Tensor, config: SlicerConfig) -> Candidates:
    """Patches of the fixed grid that hold a peak, each shifted over its empty margin (paper algorithm 2).

    Without shift those that hold an active cell.

    Args:
        prob: [B, 1, H, W] heatmap probabilities.

    Returns candidates in the order image, row, column.
    """
    batch, _, height, width = prob.shape
    size_y, size_x = patch_size((height, width), config.patches_per_side)
    active = _grid_cells(prob >= config.threshold, size_y, size_x)
    # A patch that stays where it is does not follow its peak: all that hold some of an object are needed.
    wanted = (
        active
        if config.shift == "none"
        else _grid_cells(local_maxima(prob, config.threshold), size_y, size_x)
    )
    keep = wanted.flatten(3).any(dim=3)

    _, rows, columns, _, _ = active.shape
    shift_x = _shift(active.any(dim=3), config.shift)
    shift_y = _shift(active.any(dim=4), config.shift)
    corner_x = (torch.arange(columns, device=prob.device) * size_x + shift_x).clamp(0, width - size_x)
    corner_y = (torch.arange(rows, device=prob.device).view(-1, 1) * size_y + shift_y).clamp(
        0, height - size_y
    )

    corner_x, corner_y, keep = corner_x.flatten(1), corner_y.flatten(1), keep.flatten(1)
    if config.shift == "center":
        keep = keep & ~_repeats_earlier(corner_y * width + corner_x, keep)
    if config.max_patches is not None:
        mass = _grid_cells(prob, size_y, size_x).flatten(3).sum(dim=3).flatten(1)
        keep = _keep_best(keep, mass, config.max_patches)
    xyxy = torch.stack((corner_x, corner_y, corner_x + size_x, corner_y + size_y), dim=-1).view(-1, 4)
    image_index = torch.arange(batch, device=prob.device).repeat_interleave(rows * columns)
    return Candidates(image_index, xyxy, keep.flatten(), (size_y, size_x))


def slice_greedy(prob: Tensor, config: SlicerConfig) -> Candidates:
    """Patches placed one by one on the peak with the largest local mass (paper algorithm 1).

    A patch is placed around the peak, shifted over its empty margin, and removes the peaks it covers.
    Works on the host: give it a CPU tensor. Order: image, then the order of choice.

    Args:
        prob: [B, 1, H, W] heatmap probabilities on the CPU.
    """
    height, width = prob.shape[2:]
    size = patch_size((height, width), config.patches_per_side)
    image, y, x = local_maxima(prob, config.threshold).squeeze(1).nonzero().unbind(dim=1)
    by_mass = _window_sums(prob.squeeze(1), size)[image, y, x].argsort(descending=True, stable=True)
    order = by_mass[image[by_mass].argsort(stable=True)]
    peak = torch.stack((image, y, x), dim=1)[order]
    corner = _greedy_corners((prob >= config.threshold).squeeze(1), peak, size, config.shift)
    chosen = _uncovered(peak, corner, size, (height, width), config.max_patches)
    corner = corner[chosen]
    xyxy = torch.cat((corner, corner + torch.tensor([size[1], size[0]])), dim=1)
    keep = torch.ones(len(corner), dtype=torch.bool)
    return Candidates(peak[chosen, 0], xyxy, keep, size)


def cut_patches(features: Tensor, patches: Patches) -> Tensor:
    """Cut patches out of a feature map: [B, C, H, W] → [K, C, h, w], channels last in memory."""
    height, width = features.shape[2:]
    if patches.size_cell == (height, width) and len(patches) == len(features):
        return features
    index = patch_cells(patches, (height, width))
    cells = features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])
    return cells.index_select(0, index.flatten()).view(*index.shape, features.shape[1]).permute(0, 3, 1, 2)


def patch_cells(patches: Patches, map_hw: tuple[int, int]) -> Tensor:
    """Flat cell index (image, row, column) of every patch cell: [K, h, w] int64."""
    size_y, size_x = patches.size_cell
    device = patches.xyxy_cell.device
    rows = patches.xyxy_cell[:, 1:2] + torch.arange(size_y, device=device)
    columns = patches.xyxy_cell[:, 0:1] + torch.arange(size_x, device=device)
    rows = rows + patches.image_index.unsqueeze(1) * map_hw[0]
    return rows.unsqueeze(2) * map_hw[1] + columns.unsqueeze(1)


def _grid_cells(cells: Tensor, size_y: int, size_x: int) -> Tensor:
    """[B,1,H,W] → [B, rows, columns, size_y, size_x], cells outside the map zero."""
    batch, _, height, width = cells.shape
    cells = F.pad(cells, (0, -width % size_x, 0, -height % size_y))
    rows, columns = cells.shape[2] // size_y, cells.shape[3] // size_x
    return cells.view(batch, rows, size_y, columns, size_x).permute(0, 1, 3, 2, 4)


def _shift(occupied: Tensor, mode: str) -> Tensor:
    """Shift along one side from the empty cells before the first and after the last occupied one.

    Args:
        occupied: [..., n] bool.

    Returns int64 [...]: positive is away from the origin. "edge": by the leading margin when it is
    strictly larger, else back by the trailing one. "center": by half their difference. "none": 0.
    """
    occupied = occupied.int()
    leading = occupied.argmax(dim=-1)
    trailing = occupied.flip(-1).argmax(dim=-1)
    if mode == "none":
        return torch.zeros_like(leading)
    if mode == "edge":
        return torch.where(leading > trailing, leading, -trailing)
    return torch.div(leading - trailing, 2, rounding_mode="trunc")


def _repeats_earlier(corner: Tensor, keep: Tensor) -> Tensor:
    """Whether a kept candidate before this one has the same corner. corner, keep: [B, G] → bool [B, G]."""
    same = (corner.unsqueeze(2) == corner.unsqueeze(1)) & keep.unsqueeze(1)
    return same.tril(diagonal=-1).any(dim=2)


def _keep_best(keep: Tensor, mass: Tensor, limit: int) -> Tensor:
    """Keep at most limit candidates per image, those with the largest mass. [B, G] each."""
    if limit >= keep.shape[1]:
        return keep
    ranked = mass.masked_fill(~keep, -1.0)
    best = torch.zeros_like(keep).scatter_(1, ranked.topk(limit, dim=1).indices, True)
    return keep & best


def _window_sums(prob: Tensor, size: tuple[int, int]) -> Tensor:
    """Sum in the patch-sized window around every cell, cells outside the map zero: [B,H,W] → [B,H,W] float64."""
    _, height, width = prob.shape
    before_y, before_x = size[0] // 2, size[1] // 2
    # Multiples of 2^-24, as probabilities above 0.5 are: their sums are exact, and equal windows stay equal.
    exact = (prob.double() * 2**24).round() / 2**24
    padded = F.pad(exact, (before_x + 1, size[1] - before_x - 1, before_y + 1, size[0] - before_y - 1))
    total = padded.cumsum(1).cumsum(2)
    return (
        total[:, size[0] :, size[1] :]
        - total[:, :height, size[1] :]
        - total[:, size[0] :, :width]
        + total[:, :height, :width]
    )


def _greedy_corners(active: Tensor, peak: Tensor, size: tuple[int, int], shift: str) -> Tensor:
    """Corners (x, y), [P, 2], of a patch around every peak, shifted over its empty margin.

    Args:
        active: [B, H, W] bool.
        peak: [P, 3] (image, y, x).
        size: (height, width) of a patch.
        shift: see `_shift`.
    """
    least, most = torch.zeros(2, dtype=torch.int64), torch.tensor(active.shape[1:]) - torch.tensor(size)
    corner = (peak[:, 1:] - torch.tensor(size) // 2).clamp(least, most)
    windows = active.unfold(1, size[0], 1).unfold(2, size[1], 1)[peak[:, 0], corner[:, 0], corner[:, 1]]
    margin = torch.stack((_shift(windows.any(dim=2), shift), _shift(windows.any(dim=1), shift)), dim=1)
    return (corner + margin).clamp(least, most).flip(1)


def _uncovered(
    peak: Tensor, corner: Tensor, size: tuple[int, int], map_hw: tuple[int, int], limit: int | None
) -> list[int]:
    """Which peaks [P, 3] (image, y, x), ordered by image, get their patch: those that no earlier one covers.

    At most ``limit`` per image.
    """
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
