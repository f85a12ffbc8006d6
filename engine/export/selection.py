"""Patch selection inside a graph: models/slicer.py's grid rule for one map size, in operations that TensorRT has.

Only float arithmetic, comparisons, reductions, TopK and gathering; whole numbers are held as floats, exact below 2²⁴.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.slicer import patch_size
from utils.config import SlicerConfig


class GridSelection(nn.Module):
    """The best patches of each image, always the same number; what is too much is marked as not valid.

    Args:
        config: of the slicer, algorithm "grid".
        map_hw: height and width of the heatmap.
        patches: to choose per image.
    """

    columns: Tensor
    rows: Tensor
    corner_x: Tensor
    corner_y: Tensor
    earlier: Tensor

    def __init__(self, config: SlicerConfig, map_hw: tuple[int, int], patches: int) -> None:
        super().__init__()
        self.config, self.map_hw = config, map_hw
        self.size = patch_size(map_hw, config.patches_per_side)
        down, across = (-(-n // s) for n, s in zip(map_hw, self.size, strict=True))
        self.grid_hw = (down, across)
        self.count = min(patches, down * across)
        self.register_buffer("rows", torch.arange(self.size[0]).float())
        self.register_buffer("columns", torch.arange(self.size[1]).float())
        self.register_buffer("corner_y", (torch.arange(down).float() * self.size[0]).view(-1, 1))
        self.register_buffer("corner_x", torch.arange(across).float() * self.size[1])
        total = down * across
        self.register_buffer("earlier", torch.ones(total, total).tril(diagonal=-1))

    def forward(self, prob: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities [B, 1, H, W] → corners [B, K, 2] (x, y) in cells and whether each is used [B, K], as floats."""
        height, width = self.map_hw
        above = (prob >= self.config.threshold).float()
        peaks = self._cells(above * (F.max_pool2d(prob, 3, 1, 1) <= prob).float())
        active = self._cells(above)
        keep = (active if self.config.shift == "none" else peaks).amax(dim=(3, 4)).flatten(1)
        shift_x = self._shift(active.amax(dim=3), self.columns)
        shift_y = self._shift(active.amax(dim=4), self.rows)
        x = (self.corner_x + shift_x).clamp(0, width - self.size[1]).flatten(1)
        y = (self.corner_y + shift_y).clamp(0, height - self.size[0]).flatten(1)
        if self.config.shift == "center":
            place = y * width + x
            same = (place.unsqueeze(2) == place.unsqueeze(1)).float() * keep.unsqueeze(1) * self.earlier
            keep = keep * (1 - same.amax(dim=2))
        mass = self._cells(prob).sum(dim=(3, 4)).flatten(1)
        # −1 where nothing is kept, at least 0 elsewhere.
        rank, index = (keep * (mass + 1) - 1).topk(self.count, dim=1)
        corners = torch.stack((x.gather(1, index), y.gather(1, index)), dim=2)
        return corners, (rank > -0.5).float()

    def _cells(self, maps: Tensor) -> Tensor:
        """[B, 1, H, W] → [B, rows, columns, height, width] of the grid's patches, zero outside the map."""
        (down, across), (size_y, size_x) = self.grid_hw, self.size
        maps = F.pad(maps, (0, across * size_x - self.map_hw[1], 0, down * size_y - self.map_hw[0]))
        return maps.view(-1, down, size_y, across, size_x).permute(0, 1, 3, 2, 4)

    def _shift(self, occupied: Tensor, index: Tensor) -> Tensor:
        """`models.slicer._shift` of 0–1 floats [..., n] with index 0 … n − 1."""
        if self.config.shift == "none":
            return torch.zeros_like(occupied[..., 0])
        last = index.numel() - 1
        anything = occupied.amax(dim=-1)
        nothing = (1 - occupied) * (last + 1)
        leading = (index + nothing).amin(dim=-1) * anything
        trailing = ((last - index) + nothing).amin(dim=-1) * anything
        if self.config.shift == "edge":
            return torch.where(leading > trailing, leading, -trailing)
        difference = leading - trailing
        return difference.sign() * (difference.abs() / 2).floor()


def gather_patches(features: Tensor, corners: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut patches out: features [B, C, H, W], corners [B, K, 2] (x, y) → [B·K, C, h, w]."""
    batch, channels, height, width = features.shape
    patches = corners.shape[1]
    image = torch.arange(batch).float().view(-1, 1, 1) * height
    rows = corners[..., 1:] + torch.arange(size[0]).float() + image
    columns = corners[..., :1] + torch.arange(size[1]).float()
    # In whole numbers: a batch's cells may be more than floats can count.
    cell = (rows.long() * width).unsqueeze(3) + columns.long().unsqueeze(2)
    flat = features.permute(0, 2, 3, 1).reshape(-1, channels)
    cut = flat.index_select(0, cell.flatten()).view(batch * patches, *size, channels)
    return cut.permute(0, 3, 1, 2)
