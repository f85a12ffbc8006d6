"""Which cells of a feature map a transformer computes, and how to attend and convolve over those alone.

Kept tokens are rows [N, C] over the whole batch: linear layers and norms need no padding and no mask. What mixes
tokens is here: attention inside segments (a stripe, an image), in which different numbers of tokens are kept, and
depth-wise convolution, for which dropped cells are zero. No weights, nothing remembered between calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

ALIGNMENT = 8
"""CUDA's fast attention kernels want heads of a multiple of this many channels."""


@dataclass(frozen=True)
class Bucket:
    """Segments of similar length, padded to the longest of them.

    Attributes:
        owner: [S] int64, numbers of the segments.
        slots: [S, L] int64, the rows of a segment's tokens; behind its last token, that token again.
        mask: [S, L] bool, False where a slot is padding; None when no slot is.
    """

    owner: Tensor
    slots: Tensor
    mask: Tensor | None

    def gather(self, rows: Tensor) -> Tensor:
        """[N, ...] → [S, L, ...]."""
        return rows.index_select(0, self.slots.flatten()).view(*self.slots.shape, *rows.shape[1:])

    def key_mask(self) -> Tensor | None:
        """The mask as `attend` takes it: [S, 1, 1, L]."""
        return None if self.mask is None else self.mask[:, None, None, :]


@dataclass(frozen=True)
class Segments:
    """A partition of the kept tokens into segments; segments without a token do not occur.

    Attributes:
        buckets: longest segments first; inside a bucket none is shorter than half of the longest, so that
            padding less than doubles the work.
        place: [N] int64, where each row is among the slots of all buckets, flattened one behind the other.
    """

    buckets: list[Bucket]
    place: Tensor

    def back_to_rows(self, slotted: Sequence[Tensor]) -> Tensor:
        """One [S, L, C] per bucket → [N, C]; what is in padding slots is left behind."""
        return torch.cat([part.flatten(0, 1) for part in slotted]).index_select(0, self.place)


@dataclass(frozen=True)
class KeptTokens:
    """The tokens of a batch of maps that are computed, in the order image, row, column.

    Attributes:
        shape: (B, H, W) of the maps.
        window: side in cells of the blocks that are kept or dropped whole, and the width of a stripe.
        cells: [N] int64, flat cell (image, row, column) of each token.
        image: [N] int64, image of each token.
        columns, rows, images: the tokens by vertical stripe (H × window), by horizontal stripe (window × W)
            and by image.
    """

    shape: tuple[int, int, int]
    window: int
    cells: Tensor
    image: Tensor
    columns: Segments
    rows: Segments
    images: Segments

    def __len__(self) -> int:
        return int(self.cells.numel())

    @property
    def complete(self) -> bool:
        """Whether every cell is kept."""
        batch, height, width = self.shape
        return len(self) == batch * height * width

    @staticmethod
    @torch.no_grad()
    def of(
        shape: tuple[int, int, int], window: int, active: Tensor | None, device: torch.device
    ) -> KeptTokens:
        """The tokens of every window that has an active cell. Waits for the device twice.

        Windows lie on the fixed grid of the map, from its top left corner. Where window does not divide a side,
        the last ones are cut off at the border: cells outside are no tokens and nobody attends to them.

        Args:
            shape: (B, H, W) of the maps.
            window: side in cells.
            active: [B, H, W] bool; None: everything.
            device: of the maps.
        """
        batch, height, width = shape
        keep = torch.ones(shape, dtype=torch.bool, device=device)
        if active is not None:
            keep = _whole_windows(active, window)
        cells = keep.flatten().nonzero().squeeze(1)
        image = cells // (height * width)
        down, across = -(-height // window), -(-width // window)
        numbers = [
            (image * across + cells % width // window, batch * across),
            (image * down + cells // width % height // window, batch * down),
            (image, batch),
        ]
        counts = [_count(number, total) for number, total in numbers]
        lengths = torch.cat(counts).tolist()
        parts = []
        for number, total in numbers:
            parts.append(_segments(number, lengths[:total]))
            lengths = lengths[total:]
        return KeptTokens(shape, window, cells, image, *parts)

    def gather(self, features: Tensor) -> Tensor:
        """[B, C, H, W] → rows [N, C]."""
        cells = features.permute(0, 2, 3, 1).flatten(0, 2)
        return cells if self.complete else cells.index_select(0, self.cells)

    def scatter(self, rows: Tensor) -> Tensor:
        """Rows [N, C] → [B, C, H, W] (channels last in memory), dropped cells zero."""
        return self._cells(rows).view(*self.shape, -1).permute(0, 3, 1, 2)

    def depthwise(self, rows: Tensor, conv: nn.Conv2d, tile_hw: tuple[int, int] | None = None) -> Tensor:
        """A depth-wise convolution with "same" zero padding on the map, at the kept cells: [N, C] → [N, C].

        Dropped cells count as zero, as cells beyond the map do. That is exact while everything is kept; at the
        rim of what is kept it is an approximation.

        Args:
            rows: [N, C].
            conv: depth-wise, kernel 2·padding + 1.
            tile_hw: convolve inside tiles of this many cells, each with zeros around it; None: the whole map.
        """
        inputs = (rows, conv.weight, conv.bias, tile_hw or self.shape[1:])
        if self.complete or not torch.is_grad_enabled():
            return self._depthwise(*inputs)
        # The map is as large as the dense one: it is made again for the backward pass instead of being kept.
        result: Tensor = checkpoint(self._depthwise, *inputs, use_reentrant=False, preserve_rng_state=False)
        return result

    def _depthwise(
        self, rows: Tensor, weight: Tensor, bias: Tensor | None, tile_hw: tuple[int, int]
    ) -> Tensor:
        batch, height, width = self.shape
        tile_y, tile_x = tile_hw
        pad_y, pad_x = -height % tile_y, -width % tile_x
        cells = F.pad(self._cells(rows).view(*self.shape, -1), (0, 0, 0, pad_x, 0, pad_y))
        down, across = (height + pad_y) // tile_y, (width + pad_x) // tile_x
        tiles = cells.view(batch, down, tile_y, across, tile_x, -1).transpose(2, 3).flatten(0, 2)
        padding = (weight.shape[2] // 2, weight.shape[3] // 2)
        mixed: Tensor = F.conv2d(tiles.permute(0, 3, 1, 2), weight, bias, padding=padding, groups=len(weight))
        mixed = mixed.permute(0, 2, 3, 1).unflatten(0, (batch, down, across)).transpose(2, 3)
        mixed = mixed.reshape(batch, height + pad_y, width + pad_x, -1)[:, :height, :width].flatten(0, 2)
        return mixed if self.complete else mixed.index_select(0, self.cells)

    def _cells(self, rows: Tensor) -> Tensor:
        """Rows [N, C] → [B·H·W, C], dropped cells zero."""
        if self.complete:
            return rows
        batch, height, width = self.shape
        return rows.new_zeros(batch * height * width, rows.shape[1]).index_copy(0, self.cells, rows)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention of several heads.

    Args:
        query: [S, Q, heads, d]; key, value: [S, L, heads, d].
        mask: bool, broadcast to [S, heads, Q, L]: who may look at whom; every query sees at least one key.

    Returns [S, Q, heads · d].
    """
    size = query.shape[-1]
    if query.is_cuda and size % ALIGNMENT:
        # Zero channels change no product; without them CUDA falls back to holding all pairs in memory.
        query, key, value = (F.pad(x, (0, -size % ALIGNMENT)) for x in (query, key, value))
    mixed = F.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask, scale=size**-0.5
    )
    return mixed.transpose(1, 2)[..., :size].flatten(2)


def _whole_windows(active: Tensor, window: int) -> Tensor:
    """Every cell of each window that has an active one: bool [B, H, W] → the same shape."""
    _, height, width = active.shape
    padded = F.pad(active, (0, -width % window, 0, -height % window))
    windows = padded.unflatten(2, (-1, window)).unflatten(1, (-1, window)).any(dim=4).any(dim=2)
    cells: Tensor = windows.repeat_interleave(window, dim=1).repeat_interleave(window, dim=2)
    return cells[:, :height, :width]


def _count(number: Tensor, total: int) -> Tensor:
    """How often 0 … total − 1 occur, without waiting for the device."""
    return number.new_zeros(total).scatter_add_(0, number, torch.ones_like(number))


def _segments(number: Tensor, lengths: list[int]) -> Segments:
    """Segments from each token's segment number [N] and from how many tokens each number has."""
    device = number.device
    order = number.argsort(stable=True)
    length = torch.tensor(lengths, device=device)
    start = length.cumsum(0) - length
    base = [0] * len(lengths)
    used = 0
    buckets = []
    for owners in _similar(lengths):
        longest = lengths[owners[0]]
        for owner in owners:
            base[owner] = used
            used += longest
        owner_index = torch.tensor(owners, device=device)
        step = torch.arange(longest, device=device)
        own = length[owner_index].unsqueeze(1)
        slots = order[start[owner_index].unsqueeze(1) + torch.minimum(step, own - 1)]
        equal = lengths[owners[-1]] == longest
        buckets.append(Bucket(owner_index, slots, None if equal else step < own))
    sorted_number = number[order]
    rank = torch.arange(len(number), device=device) - start[sorted_number]
    place = torch.empty_like(order)
    place[order] = torch.tensor(base, device=device)[sorted_number] + rank
    return Segments(buckets, place)


def _similar(lengths: list[int]) -> list[list[int]]:
    """Numbers of the non-empty segments, longest first, cut where a length falls below half of the longest."""
    groups: list[list[int]] = []
    for number in sorted((i for i, n in enumerate(lengths) if n), key=lambda i: -lengths[i]):
        if not groups or 2 * lengths[number] < lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(number)
    return groups
