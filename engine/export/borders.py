"""What lies beyond the borders of patches, as operations of a graph: `models.borders.Placement` for tracing.

A graph is told where patches lie in blocks of 4×4 cells, at whose borders all patches begin and end: the corner of each,
and which patch owns each block of the map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.slicer import PATCH_MULTIPLE


class GraphPlacement:
    """Where the patches of a traced forward pass lie.

    Args:
        corners: [K, 3] int64, image, row and column of every patch's corner, the latter two in blocks.
        owners: [B, Hb, Wb] int64, by image and block the number of the patch that holds it, -1: none.
        rows_cell: height of a patch in cells; with the height of a level it says how many positions a block has there.
    """

    def __init__(self, corners: Tensor, owners: Tensor, rows_cell: int) -> None:
        self.corners, self.owners, self.rows_cell = corners, owners, rows_cell
        self._found: dict[tuple[int, tuple[int, int]], tuple[Tensor, Tensor]] = {}

    def extend(self, x: Tensor, padding: tuple[int, int], fill: float) -> Tensor:
        """See `models.borders.Surroundings.extend`.

        With a fill of -infinity, for poolings, there is the nearest position of the patch itself instead, where no
        patch lies: every window that reaches out there holds it too, and no infinity is left in the graph.
        """
        step = int(x.shape[2]) * PATCH_MULTIPLE // self.rows_cell  # a constant of the graph, by level
        if (step, padding) not in self._found:
            self._found[step, padding] = self._places(x, padding, step)
        place, known = self._found[step, padding]
        rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).index_select(0, place.flatten())
        if fill == 0:
            rows = rows * known.reshape(-1, 1).to(rows.dtype)
        return rows.reshape(*place.shape, x.shape[1]).permute(0, 3, 1, 2)

    def _places(self, x: Tensor, padding: tuple[int, int], step: int) -> tuple[Tensor, Tensor]:
        """For the positions of patches and those around: [K, h', w'] where they are found, and whether they are."""
        height, width = x.shape[2], x.shape[3]
        down, own_y, block_y, inside_y = self._axis(height, padding[0], 1, step)
        right, own_x, block_x, inside_x = self._axis(width, padding[1], 2, step)
        image, (rows, columns) = self.corners[:, :1], (self.owners.shape[1], self.owners.shape[2])
        cell = (image * rows + block_y).unsqueeze(2) * columns + block_x.unsqueeze(1)
        owner = self.owners.reshape(-1).index_select(0, cell.flatten()).reshape(cell.shape)
        mine = torch.arange(self.corners.shape[0]).view(-1, 1, 1).expand(cell.shape)
        own = own_y.unsqueeze(2) & own_x.unsqueeze(1)
        known = own | ((owner >= 0) & inside_y.unsqueeze(2) & inside_x.unsqueeze(1))
        owner = torch.where(known & ~own, owner, mine)
        row = _within(down.unsqueeze(2) - self._corner_of(owner, 1) * step, height)
        column = _within(right.unsqueeze(1) - self._corner_of(owner, 2) * step, width)
        return (owner * height + row) * width + column, known

    def _axis(self, length: int, padding: int, axis: int, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Positions in the map [K, n] along one side, and: inside of the patch, their blocks, inside of the map."""
        place = torch.arange(length + 2 * padding) - padding
        own = ((place >= 0) & (place < length)).unsqueeze(0)
        place = self.corners[:, axis : axis + 1] * step + place
        most = self.owners.shape[axis] * step
        # In floats: division of whole numbers, rounded down, becomes a dozen nodes.
        block = ((_within(place, most).float() + 0.5) / step).floor().long()
        return place, own, block, (place >= 0) & (place < most)

    def _corner_of(self, patch: Tensor, axis: int) -> Tensor:
        return self.corners[:, axis].index_select(0, patch.flatten()).reshape(patch.shape)


def _within(place: Tensor, length: int | Tensor) -> Tensor:
    """Clamped to 0 … length − 1, where a tracer may have made the length a tensor."""
    most = length - 1 if isinstance(length, Tensor) else torch.tensor(length - 1)
    return torch.minimum(place.clamp(min=0), most)


def block_owners(corners: Tensor, used: Tensor, map_hw: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Who owns the blocks, for patches chosen inside of the graph.

    Where several overlap it is the last in the order of rows and columns, as in `models.borders.places_around`.

    Args:
        corners: [B, K, 2] floats, (x, y) in cells.
        used: [B, K] floats, 0 for patches that are there to fill up.
        map_hw: of the map in cells.
        size: height and width of a patch in cells.

    Returns:
        [B, Hb, Wb] int64: a patch's number among all B·K, -1 where none lies.
    """
    rows, columns = (torch.arange(side // PATCH_MULTIPLE).float() * PATCH_MULTIPLE for side in map_hw)
    left, top = corners[..., :1], corners[..., 1:]
    covered_y = ((rows >= top) & (rows < top + size[0])).float()
    covered_x = ((columns >= left) & (columns < left + size[1])).float()
    order = used.unsqueeze(2) * (top * map_hw[1] + left + 1)
    rank = covered_y.unsqueeze(3) * covered_x.unsqueeze(2) * order.unsqueeze(3)
    best, patch = rank.max(dim=1)
    number = patch + torch.arange(corners.shape[0]).view(-1, 1, 1) * corners.shape[1]
    return torch.where(best > 0, number, torch.full_like(number, -1))
