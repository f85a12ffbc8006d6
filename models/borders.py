"""What the layers behind the slicer see beyond the border of a patch: zeros, or what the patch beside it holds there.

Cut out of the map, a patch has lost what lies around it. With zeros there (the paper), every 3×3 convolution carries
the border one position further in; at stride 32 a patch of 64 pixels is 2×2 positions, all of them at the border. But
objects come in groups: beside a kept patch there often is another one. With ``borders: neighbours`` each layer
reads beyond the border what it was given there in the other patch. An object on the border of two kept patches is seen
whole, and a network that was trained on whole images finds nearly what it knows. Where all patches are kept it is the
dense network.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.slicer import Patches
from models.sparse import gather_neighbourhoods, neighbourhood_cells
from utils.config import ModelConfig
from utils.typed_data import ConfigError

OUTSIDE = -1
"""Place of a position that lies in no patch."""


class Places:
    """`places_around`, ready to be used: positions of patches with what is around them, one behind the other.

    Args:
        around: [K, h + 2·rows, w + 2·columns] of `places_around`; N positions.
        padding: (rows, columns) of it.

    Attributes:
        place: [N] int64, where each position is found; 0 for those outside.
        outside: [N, 1] bool.
    """

    def __init__(self, around: Tensor, padding: tuple[int, int]) -> None:
        flat = around.flatten()
        self.place, self.outside = flat.clamp(min=0), (flat == OUTSIDE).view(-1, 1)
        self._around, self._padding = around, padding

    @cached_property
    def beyond(self) -> Tensor:
        """[M] int64, those of the N that are beyond the border of their patch, but in another."""
        rows, columns = self._padding
        beyond = self._around != OUTSIDE
        beyond[:, rows : beyond.shape[1] - rows, columns : beyond.shape[2] - columns] = False
        return beyond.flatten().nonzero().squeeze(1)

    @cached_property
    def source(self) -> Tensor:
        """[M] int64, where those are found."""
        return self.place[self.beyond]


class Placement:
    """Where the patches of one forward pass lie.

    Args:
        patches: their corners at multiples of 4 cells.
        batch: number of maps that they are cut from.
        map_hw: height and width of each in cells.
    """

    def __init__(self, patches: Patches, batch: int, map_hw: tuple[int, int]) -> None:
        self.patches, self.batch, self.map_hw = patches, batch, map_hw
        self.whole = patches.size_cell == map_hw
        self._places: dict[tuple[int, int, int, int], Places] = {}

    def extend(self, x: Tensor, padding: tuple[int, int], fill: float) -> Tensor:
        """See `Surroundings.extend`."""
        rows, columns = padding
        around = (columns, columns, rows, rows)
        if self.whole:
            return F.pad(x, around, value=fill)
        patches, channels, height, width = x.shape
        places = self.places((height, width), padding)
        last = x.is_contiguous(memory_format=torch.channels_last)
        if last and not (torch.is_grad_enabled() and x.requires_grad) and not x.is_meta:
            # Padding is a plain copy; only what is beyond must be looked up. (Its gradient would cost more. How much
            # there is cannot be known where only shapes are computed.)
            extended = F.pad(x, around, value=fill).contiguous(memory_format=torch.channels_last)
            found = _rows_of(x).index_select(0, places.source)
            _rows_of(extended).index_copy_(0, places.beyond, found)
            return extended
        values = _rows_of(x).index_select(0, places.place).masked_fill_(places.outside, fill)
        return values.view(patches, height + 2 * rows, width + 2 * columns, channels).permute(0, 3, 1, 2)

    def neighbourhoods(self, x: Tensor, position: Tensor) -> Tensor:
        """See `Surroundings.neighbourhoods`."""
        if self.whole:
            return gather_neighbourhoods(x, position)
        height, width = x.shape[2:]
        places = self.places((height, width), (1, 1))
        cells = neighbourhood_cells(position, (height + 2, width + 2))
        rows = _rows_of(x).index_select(0, places.place[cells]).masked_fill_(places.outside[cells], 0.0)
        return rows.view(-1, 3, 3, x.shape[1])

    def places(self, patch_hw: tuple[int, int], padding: tuple[int, int]) -> Places:
        """What lies around patches of so many positions; looked up once for all layers of a level."""
        key = (*patch_hw, *padding)
        if key not in self._places:
            around = places_around(self.patches, self.batch, self.map_hw, patch_hw, padding)
            self._places[key] = Places(around, padding)
        return self._places[key]


class Extending(Protocol):
    """What is needed of a `Placement` by layers that run everywhere."""

    def extend(self, x: Tensor, padding: tuple[int, int], fill: float) -> Tensor:
        """See `Surroundings.extend`."""


class Surroundings:
    """What all layers of one model know of the patches of the forward pass that they are in.

    Threads do not see each other's patches. A thread that runs layers without a forward pass of its own, as a
    backward pass may that computes activations once more, gets the last ones.
    """

    def __init__(self) -> None:
        self._of_thread = threading.local()
        self._last: Extending | None = None

    def __reduce__(self) -> tuple[type[Surroundings], tuple[()]]:
        return Surroundings, ()  # a copy of a model begins without patches

    def place(self, placement: Extending) -> None:
        """Before the layers run."""
        self._of_thread.placement = self._last = placement

    def extend(self, x: Tensor, padding: tuple[int, int], fill: float) -> Tensor:
        """Patches [K, C, h, w] with ``padding`` rows and columns around each: [K, C, h + 2·rows, w + 2·columns].

        There is what other patches of the same image hold there, and ``fill`` (0, or -infinity) where none lies.
        """
        placement = self._placement()
        if placement is None:
            rows, columns = padding
            return F.pad(x, (columns, columns, rows, rows), value=fill)
        return placement.extend(x, padding, fill)

    def neighbourhoods(self, x: Tensor, position: Tensor) -> Tensor:
        """3×3 neighbourhoods of positions [M, 3] (patch, row, column) of patches [K, C, h, w]: [M, 3, 3, C].

        They go on in other patches of the same image; where none lies there are zeros.
        """
        placement = self._placement()
        if placement is None:
            return gather_neighbourhoods(x, position)
        assert isinstance(placement, Placement)
        return placement.neighbourhoods(x, position)

    def _placement(self) -> Extending | None:
        return getattr(self._of_thread, "placement", self._last)


def _rows_of(maps: Tensor) -> Tensor:
    """Maps [K, C, h, w] as [K·h·w, C], without a copy where they are channels last in memory."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def places_around(
    patches: Patches, batch: int, map_hw: tuple[int, int], patch_hw: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Which position of which patch lies where around each patch, at one level.

    Args:
        patches: K, with corners at multiples of 4 cells.
        batch: number of maps.
        map_hw: of each, in cells.
        patch_hw: height and width (h, w) of a patch in positions of the level.
        padding: (rows, columns) around it.

    Returns:
        [K, h + 2·rows, w + 2·columns] int64: patch · h · w + row · w + column, or `OUTSIDE`. A position of its own is
        always that of the patch itself; of several others that overlap, the last one's.
    """
    (height, width), (rows, columns), size = patch_hw, padding, patches.size_cell
    device = patches.xyxy_cell.device
    map_height, map_width = map_hw[0] * height // size[0], map_hw[1] * width // size[1]
    own = torch.arange(len(patches) * height * width, device=device).view(-1, height, width)
    # Corners at the level, in a map with the padding around it.
    top = (patches.xyxy_cell[:, 1] * height // size[0]).view(-1, 1, 1)
    left = (patches.xyxy_cell[:, 0] * width // size[1]).view(-1, 1, 1)
    image = patches.image_index.view(-1, 1, 1)
    full_height, full_width = map_height + 2 * rows, map_width + 2 * columns

    def cells(y_from: int, y_count: int, x_from: int, x_count: int) -> Tensor:
        y = top + torch.arange(y_from, y_from + y_count, device=device).view(1, -1, 1)
        x = left + torch.arange(x_from, x_from + x_count, device=device).view(1, 1, -1)
        return (image * full_height + y) * full_width + x

    places = torch.full((batch * full_height * full_width,), OUTSIDE, dtype=torch.int64, device=device)
    places.scatter_reduce_(0, cells(rows, height, columns, width).flatten(), own.flatten(), "amax")
    around = places[cells(0, height + 2 * rows, 0, width + 2 * columns)]
    around[:, rows : rows + height, columns : columns + width] = own
    return around


class _Extend:
    """Before a layer runs: extends its input by what the layer would have padded."""

    def __init__(self, surroundings: Surroundings, padding: tuple[int, int], fill: float) -> None:
        self.surroundings, self.padding, self.fill = surroundings, padding, fill

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        return self.surroundings.extend(inputs[0], self.padding, self.fill)


def see_neighbours(parts: Iterable[nn.Module]) -> Surroundings:
    """Let all convolutions and poolings of these parts, in place, see what lies around patches."""
    surroundings = Surroundings()
    for layer in (layer for part in parts for layer in part.modules()):
        if not isinstance(layer, (nn.Conv2d, nn.MaxPool2d)):
            continue
        padding = _pair(layer.padding)
        if any(padding):
            fill = 0.0 if isinstance(layer, nn.Conv2d) else -torch.inf
            layer.register_forward_pre_hook(_Extend(surroundings, padding, fill))
            layer.padding = (0, 0)
    return surroundings


def _pair(value: object) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    assert isinstance(value, tuple) and len(value) == 2
    return int(value[0]), int(value[1])


def check_neighbours(config: ModelConfig) -> None:
    """Refuse a model whose patches cannot see each other.

    Raises:
        ConfigError: says what to use instead.
    """
    if config.family not in ("yolov5", "yolov8") or config.transformer:
        kind = "one with transformer" if config.transformer else repr(config.family)
        raise ConfigError(
            f"borders neighbours: for the families 'yolov5' and 'yolov8' without transformer, not for {kind}; use "
            "borders zeros"
        )
    if config.slicer.algorithm == "greedy" or (
        config.slicer.algorithm == "grid" and config.slicer.shift != "none"
    ):
        raise ConfigError(
            "borders neighbours: patches must lie side by side, as those of --slicer grid with slicer.shift none in "
            f"the model's file; here it is {config.slicer.algorithm} with shift {config.slicer.shift}: change it, or use "
            "borders zeros"
        )
    if config.head.kind == "center":
        raise ConfigError(
            "borders neighbours: a centre answers in its patch alone; use any head.kind but 'center'"
        )
