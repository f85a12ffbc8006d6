"""Task-aligned assignment: by hand, against loops over everything, and what it may cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.assign import PatchTargets, targets_in_patches
from models.assign_aligned import (
    AlignedAssignment,
    LevelGrid,
    assign_aligned,
    candidate_pairs,
    candidate_positions,
    level_grids,
    target_scores,
    top_of_each,
)
from models.iou import plain_iou
from models.levels import LevelOutput, all_positions
from models.slicer import Patches
from tests.models.aligned_reference import all_places, crowd, grids_of, is_candidate, reference_assignment

SIZE = (64, 96)


def objects(boxes: Sequence[Sequence[float]], patch: int = 0, label: int = 0) -> PatchTargets:
    """Objects (cx, cy, w, h) of one class in one patch."""
    rows = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    same = torch.ones(len(rows), dtype=torch.int64)
    return PatchTargets(same * patch, same * label, rows[:, :2], rows[:, 2:], torch.arange(len(rows)))


def number_of_positions(grids: list[LevelGrid], patches: int) -> int:
    return len(all_places(grids, patches))


def guesses(targets: PatchTargets, grids: list[LevelGrid], patches: int, seed: int) -> tuple[Tensor, Tensor]:
    """Class probabilities, and boxes at the objects, shaken; where several objects are, a random one's."""
    g = torch.Generator().manual_seed(seed)
    number = number_of_positions(grids, patches)
    boxes = torch.rand(number, 4, generator=g) * 40 + 1
    for grid in grids:
        target, position = candidate_positions(targets, grid)
        order = torch.randperm(len(target), generator=g)
        target, position = target[order], position[order]
        true = torch.cat((targets.xy_px, targets.wh_px), dim=1)[target]
        shaken = true + torch.randn(len(true), 4, generator=g) * true[:, 2:].repeat(1, 2) * 0.2
        boxes[position] = torch.cat((shaken[:, :2], shaken[:, 2:].abs()), dim=1)
    return torch.rand(number, 3, generator=g), boxes


# --- candidates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "cells"),
    [
        ((20, 28, 2, 2), [(2, 3)]),  # in the middle of a cell
        ((17, 25, 2, 2), [(2, 3)]),  # holds no middle, counts as 8×8
        ((16, 28, 2, 2), [(1, 3), (2, 3)]),  # on a border: both sides
        ((16, 24, 0, 0), [(1, 2), (2, 2), (1, 3), (2, 3)]),  # on a corner
        ((20, 28, 16, 2), [(1, 3), (2, 3), (3, 3)]),  # middles exactly on the sides
        ((20, 28, 15.9, 2), [(2, 3)]),
        ((20, 28, 2, 24.2), [(2, 2), (2, 3), (2, 4)]),
        ((0, 0, 2, 2), [(0, 0)]),
        ((96, 64, 2, 2), [(11, 7)]),
        ((3, 3, 40, 8), [(0, 0), (1, 0), (2, 0)]),  # what is outside of the patch has no positions
    ],
)
def test_candidates_by_hand(box: tuple[float, ...], cells: list[tuple[int, int]]) -> None:
    target, position = candidate_positions(objects([box]), LevelGrid(8, (8, 12), 0))
    assert [(int(p) % 12, int(p) // 12) for p in position] == cells
    assert target.tolist() == [0] * len(cells)


def test_positions_count_patches_and_levels() -> None:
    _, position = candidate_positions(objects([(20, 28, 2, 2)], patch=2), LevelGrid(8, (8, 12), 1000))
    assert position.tolist() == [1000 + 2 * 96 + 3 * 12 + 2]


def test_level_grids_count_positions_as_the_head_does() -> None:
    levels = [
        LevelOutput(torch.zeros(2 * h * w, 1, 1), all_positions(2, (h, w), torch.device("cpu")), s, (h, w))
        for s, h, w in ((8, 8, 12), (16, 4, 6), (32, 2, 3))
    ]
    assert level_grids(levels) == grids_of(SIZE, 2)
    middles = torch.cat([(level.position[:, [2, 1]] + 0.5) * level.stride for level in levels])
    patch = torch.cat([level.position[:, 0] for level in levels])
    places = all_places(grids_of(SIZE, 2), 2)
    assert [(p.patch, p.x, p.y) for p in places] == [
        (int(k), *m) for k, m in zip(patch, middles.tolist(), strict=True)
    ]


sides = st.one_of(st.floats(0, 120, width=32), st.sampled_from([0.0, 8.0, 16.0, 32.0, 64.0]))
borders = st.integers(0, 16).map(lambda k: 4.0 * k)


@settings(max_examples=150, deadline=None)
@given(
    x=st.one_of(st.floats(0, SIZE[1], width=32), borders),
    y=st.one_of(st.floats(0, SIZE[0], width=32), borders),
    w=sides,
    h=sides,
    patch=st.integers(0, 1),
)
def test_candidates_are_those_of_all_positions(x: float, y: float, w: float, h: float, patch: int) -> None:
    """The rectangle of cells leaves nothing out; every object has a position at every level."""
    targets, grids = objects([(x, y, w, h)], patch), grids_of(SIZE, 2)
    places = all_places(grids, 2)
    found = [candidate_positions(targets, grid)[1].tolist() for grid in grids]
    assert all(found)
    expected = [m for m, place in enumerate(places) if is_candidate(place, patch, [x, y, w, h])]
    assert [m for level in found for m in level] == expected


# --- choice --------------------------------------------------------------------------------------------------------


def test_top_of_each() -> None:
    group = torch.tensor([5, 2, 5, 2, 5, 2, 9])
    value = torch.tensor([1.0, 7.0, 3.0, 7.0, 3.0, 8.0, -torch.inf])
    assert top_of_each(group, value, 2).tolist() == [5, 1, 2, 4, 6]
    assert top_of_each(group[:0], value[:0], 2).tolist() == []


def test_target_scores_by_hand() -> None:
    """Object 0: t = 0.2, 0.1; u = 0.5, 0.6 → scores 0.6, 0.3. Object 1: all t 0. Object 2 has no position."""
    log_t = torch.tensor([0.2, 0.1, 0.0]).log()
    scores = target_scores(torch.tensor([0, 0, 1]), log_t, torch.tensor([0.5, 0.6, 0.0]), 3)
    torch.testing.assert_close(scores, torch.tensor([0.6, 0.3, 0.0]))


def test_scores_of_tiny_overlaps_do_not_vanish() -> None:
    """u⁶ of 1e-8 is less than float32 holds: the better of two positions has its full overlap all the same."""
    log_t = torch.tensor([1e-8, 5e-9]).log() * 6
    scores = target_scores(torch.tensor([0, 0]), log_t, torch.tensor([1e-8, 5e-9]), 1)
    torch.testing.assert_close(scores, torch.tensor([1e-8, 1e-8 / 64]), rtol=1e-4, atol=0)


def assign_from(
    targets: PatchTargets, grids: list[LevelGrid], prob: Tensor, cxcywh_px: Tensor
) -> AlignedAssignment:
    """From predictions [M, classes] and [M, 4] at all positions."""
    pairs = candidate_pairs(targets, grids)
    score = prob[pairs.position, targets.label[pairs.target]]
    return assign_aligned(targets, pairs, score, cxcywh_px[pairs.position])


def assign(targets: PatchTargets, boxes: dict[int, Sequence[float]], prob: float = 0.5) -> AlignedAssignment:
    """On one patch with one level of 8 rows and 12 columns; boxes that are not given are far away."""
    predicted = torch.tensor([[-500.0, -500.0, 1.0, 1.0]]).repeat(96, 1)
    for position, box in boxes.items():
        predicted[position] = torch.tensor(box, dtype=torch.float32)
    return assign_from(targets, [LevelGrid(8, (8, 12), 0)], torch.full((96, 1), prob), predicted)


def test_only_the_ten_best_positions() -> None:
    """A 5×5 square of candidates; the boxes of the first three rows overlap, better and better."""
    box = (28.0, 28.0, 32.0, 32.0)
    cells = [row * 12 + column for row in range(1, 4) for column in range(1, 6)]
    boxes = {cell: (28.0, 28.0, 20.0 + i / 2, 32.0) for i, cell in enumerate(cells)}
    found = assign(objects([box]), boxes)
    assert found.position.tolist() == cells[5:]
    best = plain_iou(torch.tensor([boxes[cells[-1]]]), torch.tensor([box])).item()
    assert found.score[-1].item() == pytest.approx(best) and found.score.max() == found.score[-1]
    assert found.score.tolist() == sorted(found.score.tolist())


def test_shared_position_goes_to_the_larger_overlap() -> None:
    first, second = (20.0, 28.0, 8.0, 8.0), (21.0, 28.0, 8.0, 8.0)
    both = objects([first, second])
    for boxes, owner in (({38: first}, 0), ({38: second}, 1)):
        found = assign(both, boxes)
        assert (found.position.tolist(), found.target.tolist()) == ([38], [owner])
        assert found.score.item() == pytest.approx(1, abs=1e-4)


def test_shared_position_goes_to_the_first_object_on_a_tie() -> None:
    twins = objects([(20.0, 28.0, 8.0, 8.0)] * 2)
    for boxes in ({38: (20.0, 28.0, 6.0, 8.0)}, {}):  # equal overlaps, also of 0
        found = assign(twins, boxes)
        assert (found.position.tolist(), found.target.tolist()) == ([38], [0])


def test_class_probability_decides_between_equal_boxes() -> None:
    box = (24.0, 28.0, 8.0, 8.0)  # on the border of two cells
    predicted = torch.tensor([[24.0, 28.0, 6.0, 8.0]]).repeat(96, 1)
    prob = torch.full((96, 2), 0.81)
    prob[39, 1] = 0.09
    found = assign_from(objects([box], label=1), [LevelGrid(8, (8, 12), 0)], prob, predicted)
    assert found.position.tolist() == [38, 39]
    assert (found.score[1] / found.score[0]).item() == pytest.approx((0.09 / 0.81) ** 0.5)


def test_nothing_reaches_the_object() -> None:
    """All overlaps 0: positive positions in name, of score 0; not NaN."""
    found = assign(objects([(20.0, 28.0, 8.0, 8.0)]), {})
    assert found.position.tolist() == [38] and found.score.tolist() == [0.0]
    assert assign(objects([(20.0, 28.0, 8.0, 8.0)]), {38: (20, 28, 8, 8)}, prob=0.0).score.tolist() == [0.0]


@pytest.mark.parametrize("seed", range(12))
def test_equals_loops_over_everything(seed: int) -> None:
    patches = 1 + seed % 3
    grids, targets = grids_of(SIZE, patches), crowd(4 + 3 * seed, patches, SIZE, seed)
    prob, boxes = guesses(targets, grids, patches, seed)
    found = assign_from(targets, grids, prob, boxes)
    expected = reference_assignment(targets, all_places(grids, patches), prob, boxes)
    assert found.position.tolist() == sorted(expected)
    assert found.target.tolist() == [expected[m][0] for m in sorted(expected)]
    scores = torch.tensor([expected[m][1] for m in sorted(expected)])
    torch.testing.assert_close(found.score, scores, atol=1e-5, rtol=1e-3)
    assert len(set(found.target.tolist())) > 1 and found.score.max() > 0.1, "a case worth looking at"


def test_order_of_objects_changes_only_their_names() -> None:
    grids, targets = grids_of(SIZE, 1), crowd(20, 1, SIZE, 3)
    prob, boxes = guesses(targets, grids, 1, 3)
    found = assign_from(targets, grids, prob, boxes)
    back = torch.arange(19, -1, -1)
    turned = PatchTargets(
        targets.patch[back], targets.label[back], targets.xy_px[back], targets.wh_px[back], targets.object
    )
    again = assign_from(turned, grids, prob, boxes)
    assert torch.equal(found.position, again.position) and torch.equal(found.score, again.score)
    assert torch.equal(found.target, back[again.target])


# --- patches and ends ----------------------------------------------------------------------------------------------


def test_object_in_two_overlapping_patches_has_positions_in_both() -> None:
    patches = Patches(torch.tensor([0, 0]), torch.tensor([[0, 0, 8, 8], [4, 0, 12, 8]]), (8, 8))
    seen = targets_in_patches(torch.tensor([[0, 0, 0.5, 0.5, 0.1, 0.1]]), patches, (64, 96))
    grids = grids_of((64, 64), 2)
    boxes = torch.cat((seen.xy_px, seen.wh_px), dim=1)
    patch = torch.tensor([place.patch for place in all_places(grids, 2)])
    found = assign_from(seen, grids, torch.full((len(patch), 3), 0.5), boxes[patch])
    for index in (0, 1):
        mine = found.target == index
        assert mine.any() and (patch[found.position[mine]] == index).all()
        assert found.score[mine].max().item() == pytest.approx(1, abs=1e-4)


def test_no_objects_and_no_patches() -> None:
    for patches in (0, 2):
        grids = grids_of(SIZE, patches)
        number = number_of_positions(grids, patches)
        found = assign_from(objects([]), grids, torch.rand(number, 3), torch.rand(number, 4))
        assert len(found.position) == len(found.target) == len(found.score) == 0
        assert found.position.dtype == found.target.dtype == torch.int64


def test_predictions_that_are_not_numbers_are_not_hidden() -> None:
    grids, targets = grids_of(SIZE, 1), crowd(5, 1, SIZE, 0)
    number = number_of_positions(grids, 1)
    found = assign_from(targets, grids, torch.rand(number, 3), torch.full((number, 4), torch.nan))
    assert len(found.position) > 0 and found.score.isnan().all()


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any result has had."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(x.numel() for x in tree_leaves(result) if isinstance(x, Tensor))])
        return result


def test_memory_grows_with_objects_near_positions_only() -> None:
    """8 images of 864×1536 with 800 objects: 217 728 positions, where objects × positions were 174 million."""
    grids = grids_of((864, 1536), 8)
    number = sum(8 * grid.grid_hw[0] * grid.grid_hw[1] for grid in grids)
    targets = crowd(800, 8, (864, 1536), 0)
    prob, boxes = torch.rand(number, 3), torch.rand(number, 4) * 30
    with LargestTensor() as largest:
        found = assign_from(targets, grids, prob, boxes)
    assert len(found.position) > 800
    assert largest.numel < number
