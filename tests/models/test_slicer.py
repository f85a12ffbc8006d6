"""AdaSlicer: hand-computed cases, and properties of random maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.slicer import (
    Candidates,
    Patches,
    cut_patches,
    fixed_grid,
    local_maxima,
    max_3x3,
    patch_size,
    slice_greedy,
    slice_grid,
    whole_map,
)
from utils.config import SlicerConfig

ALGORITHMS = ["grid-edge", "grid-center", "greedy-edge", "greedy-center"]


def config_of(name: str, **options: object) -> SlicerConfig:
    algorithm, shift = name.split("-")
    return SlicerConfig(algorithm=algorithm, shift=shift, **options)  # type: ignore[arg-type]


def patches_of(prob: torch.Tensor, config: SlicerConfig) -> Patches:
    candidates = (slice_greedy if config.algorithm == "greedy" else slice_grid)(prob, config)
    return candidates.take(int(candidates.keep.sum()))


def map_with(cells: list[tuple[int, int]], hw: tuple[int, int], batch: int = 1) -> torch.Tensor:
    """A map of zeros with 0.9 at (x, y)."""
    prob = torch.zeros(batch, 1, *hw)
    for x, y in cells:
        prob[:, :, y, x] = 0.9
    return prob


@pytest.mark.parametrize(
    ("map_hw", "expected"),
    [
        ((80, 80), (12, 12)),
        ((48, 80), (8, 12)),
        ((56, 96), (8, 12)),
        ((4, 4), (4, 4)),
        ((108, 192), (16, 24)),
        ((32, 64), (4, 8)),
    ],
)
def test_patch_size_is_an_eighth_rounded_up_to_four(
    map_hw: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert patch_size(map_hw, 8) == expected


@pytest.mark.parametrize(
    ("cells", "shift", "expected"),
    [
        # One object cell at column 7, row 1 of the first 12×8 patch: margins 7|4 and 1|6.
        ([(7, 1)], "edge", [[7, 0, 19, 8]]),
        ([(7, 1)], "center", [[1, 0, 13, 8]]),
        # Symmetric margins 5|6: the released rule moves back by the trailing margin, and is clamped to the map.
        ([(5, 3)], "edge", [[0, 0, 12, 8]]),
        # Patch at column 1, row 1 (cells 12–23, 8–15); the object at (13, 9): margins 1|10 and 1|6.
        ([(13, 9)], "edge", [[2, 2, 14, 10]]),
        ([(13, 9)], "center", [[8, 6, 20, 14]]),
        # Last column of a 80-wide map starts at 72 and is cut at 80; the trailing margin counts to 84.
        ([(73, 41)], "edge", [[62, 34, 74, 42]]),
        # Two objects spanning the patch leave no margin.
        ([(12, 8), (23, 15)], "edge", [[12, 8, 24, 16]]),
    ],
)
def test_grid_shift_by_hand(cells: list[tuple[int, int]], shift: str, expected: list[list[int]]) -> None:
    patches = patches_of(map_with(cells, (48, 80)), SlicerConfig(shift=shift))  # type: ignore[arg-type]
    assert patches.xyxy_cell.tolist() == expected


def test_grid_order_is_image_row_column() -> None:
    prob = map_with([(2, 2), (40, 2), (2, 40)], (48, 80), batch=2)
    patches = patches_of(prob, SlicerConfig(shift="edge"))
    assert patches.image_index.tolist() == [0, 0, 0, 1, 1, 1]
    corners = patches.xyxy_cell[:3].tolist()
    assert corners[0][1] < corners[2][1] and corners[0][0] < corners[1][0]


def test_greedy_takes_the_densest_first() -> None:
    lonely, crowd = [(60, 30)], [(10 + 2 * i, 10) for i in range(5)]
    patches = patches_of(map_with(lonely + crowd, (48, 80)), SlicerConfig(algorithm="greedy"))
    first = patches.xyxy_cell[0].tolist()
    assert first[0] <= 10 and first[2] > 18, "the first patch holds the crowd"
    assert len(patches) == 2


@pytest.mark.parametrize("name", ALGORITHMS)
def test_budget_keeps_the_best(name: str) -> None:
    prob = map_with([(4, 4)], (48, 80), batch=2)
    prob[:, :, 30:34, 40:48] = 0.8
    prob[1] = 0
    patches = patches_of(prob, config_of(name, max_patches=1))
    assert patches.image_index.tolist() == [0]
    x1, y1, x2, y2 = patches.xyxy_cell[0].tolist()
    assert x1 <= 42 < x2 and y1 <= 32 < y2


@pytest.mark.parametrize("name", ALGORITHMS)
def test_nothing_active_gives_no_patch(name: str) -> None:
    patches = patches_of(torch.full((3, 1, 48, 80), 0.49), config_of(name))
    assert len(patches) == 0
    assert cut_patches(torch.rand(3, 5, 48, 80), patches).shape == (0, 5, 8, 12)


@pytest.mark.parametrize("hw", [(56, 96), (96, 56)])
def test_landscape_then_portrait_selects_every_one_cell_map_rightly(hw: tuple[int, int]) -> None:
    """The released code cached patch grids by area and confused the two."""
    for index in range(0, hw[0] * hw[1], 97):
        y, x = divmod(index, hw[1])
        patches = patches_of(map_with([(x, y)], hw), SlicerConfig(shift="edge"))
        x1, y1, x2, y2 = patches.xyxy_cell[0].tolist()
        assert len(patches) == 1 and x1 <= x < x2 and y1 <= y < y2


@st.composite
def heatmaps(draw: st.DrawFn) -> torch.Tensor:
    height, width = (draw(st.integers(1, 26)) * 4 for _ in range(2))
    batch = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    prob = rng.random((batch, 1, height, width)) ** draw(st.sampled_from([1, 4, 30]))
    if draw(st.booleans()):
        prob = np.round(prob, 1)  # plateaus
    return torch.from_numpy(prob.astype(np.float32))


@pytest.mark.parametrize("name", ALGORITHMS)
@settings(max_examples=60, deadline=None)
@given(prob=heatmaps())
def test_properties_of_random_maps(name: str, prob: torch.Tensor) -> None:
    config = config_of(name)
    patches = patches_of(prob, config)
    height, width = prob.shape[2:]
    box = patches.xyxy_cell
    size_y, size_x = patch_size((height, width), 8)
    assert ((box[:, 0] >= 0) & (box[:, 1] >= 0) & (box[:, 2] <= width) & (box[:, 3] <= height)).all(), (
        "inside"
    )
    assert ((box[:, 2] - box[:, 0] == size_x) & (box[:, 3] - box[:, 1] == size_y)).all(), "of one size"
    if name != "grid-edge":  # the released rule may place two patches on one spot, and is kept as it is
        rows = torch.cat((patches.image_index[:, None], box), dim=1).tolist()
        assert len({tuple(row) for row in rows}) == len(rows), "no duplicates"
    assert (patches.image_index.diff() >= 0).all(), "ordered by image"
    for image, _, y, x in local_maxima(prob, config.threshold).nonzero().tolist():
        own = box[patches.image_index == image]
        covered = (own[:, 0] <= x) & (x < own[:, 2]) & (own[:, 1] <= y) & (y < own[:, 3])
        assert covered.any(), f"peak ({x}, {y}) of image {image} is covered"


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 5, 7), (3, 2, 16, 24), (0, 1, 4, 4)])
def test_max_3x3_is_max_pooling(shape: tuple[int, ...]) -> None:
    maps = torch.randn(shape)
    assert torch.equal(max_3x3(maps), torch.nn.functional.max_pool2d(maps, 3, 1, 1))


def greedy_by_definition(prob: np.ndarray, config: SlicerConfig) -> list[list[int]]:
    """Paper algorithm 1 for one map [H, W], step by step: corners [x, y] in the order of choice."""
    height, width = prob.shape
    size_y, size_x = patch_size((height, width), config.patches_per_side)
    active = prob >= config.threshold

    def margins(occupied: np.ndarray) -> int:
        first, last = np.flatnonzero(occupied)[[0, -1]]
        leading, trailing = int(first), len(occupied) - 1 - int(last)
        if config.shift == "edge":
            return leading if leading > trailing else -trailing
        return int((leading - trailing) / 2)

    peaks: list[tuple[float, int, int]] = []
    for y, x in zip(*np.nonzero(active), strict=True):
        if prob[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].max() == prob[y, x]:
            top, left = y - size_y // 2, x - size_x // 2
            window = prob[max(top, 0) : max(top + size_y, 0), max(left, 0) : max(left + size_x, 0)]
            peaks.append((float(window.astype(np.float64).sum()), y, x))
    peaks.sort(key=lambda peak: -peak[0])
    corners: list[list[int]] = []
    while peaks and (config.max_patches is None or len(corners) < config.max_patches):
        _, y, x = peaks[0]
        y0, x0 = (min(max(v - s // 2, 0), m - s) for v, s, m in ((y, size_y, height), (x, size_x, width)))
        window = active[y0 : y0 + size_y, x0 : x0 + size_x]
        x0 = min(max(x0 + margins(np.any(window, axis=0)), 0), width - size_x)
        y0 = min(max(y0 + margins(np.any(window, axis=1)), 0), height - size_y)
        corners.append([x0, y0])
        peaks = [p for p in peaks if not (y0 <= p[1] < y0 + size_y and x0 <= p[2] < x0 + size_x)]
    return corners


@pytest.mark.parametrize("shift", ["edge", "center"])
@pytest.mark.parametrize("max_patches", [None, 2])
@settings(max_examples=40, deadline=None)
@given(prob=heatmaps())
def test_greedy_follows_its_definition(shift: str, max_patches: int | None, prob: torch.Tensor) -> None:
    """Probabilities in steps of 1/1024, whose sums are exact: many windows have the same."""
    prob = (prob * 1024).round() / 1024
    config = config_of(f"greedy-{shift}", max_patches=max_patches)
    patches = patches_of(prob, config)
    for image in range(len(prob)):
        found = patches.xyxy_cell[patches.image_index == image, :2].tolist()
        assert found == greedy_by_definition(prob[image, 0].numpy(), config)


def test_fixed_grid_covers_the_map_once_per_image() -> None:
    patches = fixed_grid(2, (48, 80), 8, torch.device("cpu"))
    assert len(patches) == 2 * 6 * 7
    covered = torch.zeros(2, 48, 80)
    for image, (x1, y1, x2, y2) in zip(patches.image_index.tolist(), patches.xyxy_cell.tolist(), strict=True):
        covered[image, y1:y2, x1:x2] += 1
    assert covered.min() == 1


def test_cut_patches_equals_slicing() -> None:
    features = torch.rand(2, 3, 16, 24)
    patches = Patches(
        torch.tensor([1, 0, 1]), torch.tensor([[3, 5, 7, 9], [20, 12, 24, 16], [0, 0, 4, 4]]), (4, 4)
    )
    cut = cut_patches(features, patches)
    for row, (image, (x1, y1, x2, y2)) in enumerate(
        zip(patches.image_index.tolist(), patches.xyxy_cell.tolist(), strict=True)
    ):
        torch.testing.assert_close(cut[row], features[image, :, y1:y2, x1:x2])


def test_whole_map_is_not_copied() -> None:
    features = torch.rand(2, 3, 16, 24)
    assert cut_patches(features, whole_map(2, (16, 24), torch.device("cpu"))) is features


def test_grid_takes_one_look_at_the_device() -> None:
    """Everything up to the count is of static shape: no operation there waits for a result."""
    candidates: Candidates = slice_grid(torch.rand(2, 1, 48, 80, device="meta"), SlicerConfig(max_patches=5))
    assert candidates.keep.shape == (2 * 6 * 7,)


def test_without_shift_a_patch_needs_no_peak() -> None:
    """An object on the border of two patches, its peak in the first: shifted, one patch holds it; else both are kept."""
    prob = torch.zeros(1, 1, 32, 32)
    prob[0, 0, 1, 2:6] = torch.tensor([0.7, 0.9, 0.8, 0.7])
    kept = {}
    for shift in ("center", "none"):
        candidates = slice_grid(prob, SlicerConfig(patches_per_side=8, shift=shift))
        kept[shift] = candidates.xyxy_cell[candidates.keep].tolist()
    assert len(kept["center"]) == 1
    assert kept["none"] == [[0, 0, 4, 4], [4, 0, 8, 4]]
