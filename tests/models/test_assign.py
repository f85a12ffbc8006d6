"""Anchor assignment by hand."""

from __future__ import annotations

import pytest
import torch

from models.assign import PatchTargets, assign_level, targets_in_patches
from models.slicer import Patches

ONE_ANCHOR = torch.tensor([[16.0, 16.0]])


def target_at(x: float, y: float, w: float = 16, h: float = 16, patch: int = 0) -> PatchTargets:
    return PatchTargets(
        torch.tensor([patch]),
        torch.tensor([2]),
        torch.tensor([[x, y]]),
        torch.tensor([[w, h]]),
        torch.tensor([0]),
    )


@pytest.mark.parametrize(
    ("x", "y", "cells"),
    [
        (20, 20, [(2, 2), (3, 2), (2, 3)]),  # 2.5, 2.5: right and below on a tie
        (18, 26, [(2, 3), (1, 3), (2, 2)]),  # 2.25, 3.25: left and above
        (22, 30, [(2, 3), (3, 3)]),  # below is outside the patch
        (1, 1, [(0, 0)]),  # neighbours outside the patch do not exist
        (63, 31, [(7, 3)]),
        (63.9, 17, [(7, 2), (7, 1)]),
    ],
)
def test_cells_of_a_target(x: float, y: float, cells: list[tuple[int, int]]) -> None:
    found = assign_level(target_at(x, y), ONE_ANCHOR, 8, (4, 8), 4.0)
    assert [(int(r) % 8, int(r) // 8) for r in found.row] == cells
    for (cx, cy), offset in zip(cells, found.offset.tolist(), strict=True):
        assert offset == pytest.approx([x / 8 - cx, y / 8 - cy], abs=1e-5)
        assert min(offset) >= -0.5 and max(offset) <= 1.5
    assert found.label.tolist() == [2] * len(cells)


@pytest.mark.parametrize(
    ("w", "h", "matches"),
    [(16, 16, True), (63, 16, True), (64, 16, False), (4, 16, False), (4.1, 63.9, True)],
)
def test_anchor_ratio(w: float, h: float, matches: bool) -> None:
    found = assign_level(target_at(30, 14, w, h), ONE_ANCHOR, 8, (4, 8), 4.0)
    assert bool(len(found.row)) is matches


def test_row_counts_patches() -> None:
    found = assign_level(target_at(1, 1, patch=3), ONE_ANCHOR, 8, (4, 8), 4.0)
    assert found.row.tolist() == [3 * 32]


def test_targets_in_patches() -> None:
    patches = Patches(
        torch.tensor([0, 0, 1]), torch.tensor([[0, 0, 4, 4], [2, 2, 6, 6], [0, 0, 4, 4]]), (4, 4)
    )
    # Input 64×64. Centre (24, 24) px of image 0 is in both its patches; (40, 40) in the second; (60, 60) in none.
    targets = torch.tensor(
        [
            [0, 1, 24 / 64, 24 / 64, 0.1, 0.2],
            [0, 2, 40 / 64, 40 / 64, 0.1, 0.2],
            [0, 3, 60 / 64, 60 / 64, 0.1, 0.2],
            [1, 4, 8 / 64, 16 / 64, 0.1, 0.2],
        ]
    )
    seen = targets_in_patches(targets, patches, (64, 64))
    assert seen.patch.tolist() == [0, 1, 1, 2]
    assert seen.label.tolist() == [1, 1, 2, 4]
    torch.testing.assert_close(seen.xy_px, torch.tensor([[24.0, 24], [8, 8], [24, 24], [8, 16]]))
    torch.testing.assert_close(seen.wh_px[0], torch.tensor([6.4, 12.8]))


def test_no_targets_no_patches() -> None:
    nothing = Patches(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4, dtype=torch.int64), (4, 4))
    seen = targets_in_patches(torch.rand(3, 6), nothing, (64, 64))
    assert len(seen.patch) == 0
    assert len(assign_level(seen, ONE_ANCHOR, 8, (4, 8), 4.0).row) == 0
    some = Patches(torch.tensor([0]), torch.tensor([[0, 0, 4, 4]]), (4, 4))
    assert len(targets_in_patches(torch.zeros(0, 6), some, (64, 64)).patch) == 0
