"""The centre head's targets and loss: by hand, against loops written from the paper, and that it teaches."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou

from models.assign import PatchTargets, targets_in_patches
from models.assign_centre import (
    CentreAssignment,
    assign_centres,
    class_maps,
    gaussian_radius,
    levels_of,
    targets_of_level,
)
from models.build import build_model
from models.decode import PostprocessConfig, decode, postprocess
from models.esod import ESODOutput
from models.levels import LevelOutput, all_positions
from models.loss import DetectionLoss
from models.losses.centre import CentreLoss, penalty_reduced_focal_loss
from models.slicer import Patches, fixed_grid
from tests.models.conftest import BuildTiny
from utils.boxes import Letterbox
from utils.config import HeadConfig, HypConfig, ModelConfig

CPU = torch.device("cpu")
PARTS = ("heat", "offset", "size")


def whole_grid(logits: Tensor) -> Patches:
    return fixed_grid(len(logits), (logits.shape[2], logits.shape[3]), 8, logits.device)


def no_patch(logits: Tensor) -> Patches:
    return Patches(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4, dtype=torch.int64), (4, 4))


def found_at(row: list[int], label: list[int], size: list[list[float]]) -> CentreAssignment:
    return CentreAssignment(
        torch.tensor(row), torch.tensor(label), torch.zeros(len(row), 2), torch.tensor(size)
    )


def random_output(patches: Patches, classes: int) -> ESODOutput:
    """Random predictions of the three levels on these patches."""
    levels = []
    for stride in (8, 16, 32):
        grid = (patches.size_cell[0] * 8 // stride, patches.size_cell[1] * 8 // stride)
        position = all_positions(len(patches), grid, CPU)
        raw = torch.randn(len(position), 1, 4 + classes, requires_grad=True)
        levels.append(LevelOutput(raw, position, stride, grid))
    return ESODOutput(None, levels, patches)


# --- which level and cell --------------------------------------------------------------------------------------


def test_levels_by_the_longer_side() -> None:
    sides = [[1, 1], [64, 64], [64.1, 3], [3, 128], [128.5, 3], [3000, 20]]
    assert levels_of(torch.tensor(sides)).tolist() == [0, 0, 1, 1, 2, 2]


def test_every_object_is_in_one_level() -> None:
    wh = torch.rand(50, 2) * 300
    targets = PatchTargets(torch.arange(50), torch.zeros(50).long(), torch.rand(50, 2), wh, torch.arange(50))
    patches = torch.cat([targets_of_level(targets, number).patch for number in range(3)])
    assert sorted(patches.tolist()) == list(range(50))


def test_cells_by_hand() -> None:
    """Patches of 4×8 cells at stride 8: centre (20, 14) px is 2.5 steps right and 1.75 down."""
    targets = PatchTargets(
        torch.tensor([0, 2, 2]),
        torch.tensor([1, 0, 2]),
        torch.tensor([[20.0, 14.0], [0.0, 0.0], [64.0, 31.9]]),
        torch.tensor([[12.0, 40.0], [8.0, 8.0], [4.0, 4.0]]),
        torch.arange(3),
    )
    found = assign_centres(targets, 8, (4, 8))
    # A centre that rounding put onto the far border is in the last cell.
    assert found.row.tolist() == [1 * 8 + 2, 2 * 32, 2 * 32 + 3 * 8 + 7]
    assert found.label.tolist() == [1, 0, 2]
    torch.testing.assert_close(found.offset, torch.tensor([[0.5, 0.75], [0, 0], [1, 0.9875]]))
    torch.testing.assert_close(found.size, torch.tensor([[1.5, 5], [1, 1], [0.5, 0.5]]))


# --- the radius ------------------------------------------------------------------------------------------------


def least_overlap(size: Tensor, radius: Tensor) -> Tensor:
    """Least IoU of boxes (0, 0, w, h) and the same with their corners moved by a radius in CornerNet's three ways."""
    box = torch.cat((torch.zeros_like(size), size), dim=1)
    step = radius.unsqueeze(1) * torch.ones(4, dtype=size.dtype)
    ways = [(1, 1, 1, 1), (1, 1, -1, -1), (-1, -1, 1, 1)]
    moved = [box + step * torch.tensor(way) for way in ways]
    return torch.stack([box_iou(box, other).diagonal() for other in moved]).amin(dim=0)


@pytest.mark.parametrize("min_overlap", [0.3, 0.5, 0.7, 0.9])
def test_radius_is_the_largest_that_keeps_the_overlap(min_overlap: float) -> None:
    size = torch.rand(500, 2, dtype=torch.float64) * 50 + 0.1
    size[0], size[1] = torch.tensor([200.0, 0.2]), torch.tensor([9.0, 9.0])
    radius = gaussian_radius(size, min_overlap)
    assert least_overlap(size, radius).min() >= min_overlap - 1e-9
    assert least_overlap(size, radius * 1.01).max() < min_overlap


def test_radius_by_hand() -> None:
    """A square of side 1: (1 − 2r)² = 0.7 when both corners move inwards, the strictest way."""
    expected = (1 - math.sqrt(0.7)) / 2
    radius = gaussian_radius(torch.tensor([[1.0, 1.0], [20.0, 20.0], [0, 0], [0, 7]]), 0.7)
    torch.testing.assert_close(radius, torch.tensor([expected, 20 * expected, 0, 0]))


# --- the class maps --------------------------------------------------------------------------------------------


def test_class_maps_by_hand() -> None:
    """A 16×16 object has radius 1.3 → 1, σ = 0.5; a small one is a single cell; the patch's border cuts."""
    found = found_at([0 * 20 + 6, 1 * 20 + 0, 0 * 20 + 12], [1, 0, 0], [[16, 16], [16, 16], [2, 2]])
    maps = class_maps(found, 2, (4, 5), 2, 0.7).view(2, 4, 5, 2)
    side, corner = math.exp(-2), math.exp(-4)
    expected = torch.zeros(2, 4, 5, 2)
    expected[0, :3, :3, 1] = torch.tensor([[corner, side, corner], [side, 1, side], [corner, side, corner]])
    expected[1, :2, :2, 0] = torch.tensor([[1, side], [side, corner]])
    expected[0, 2, 2, 0] = 1
    torch.testing.assert_close(maps, expected)


def reference_maps(
    found: CentreAssignment, patches: int, grid: tuple[int, int], classes: int, min_overlap: float
) -> Tensor:
    """The class maps cell by cell, object by object."""
    height, width = grid
    maps = torch.zeros(patches, height, width, classes)
    for row, label, (w, h) in zip(found.row.tolist(), found.label.tolist(), found.size.tolist(), strict=True):
        radius = 0
        while least_overlap(torch.tensor([[w, h]]), torch.tensor([radius + 1.0])) >= min_overlap and (
            2 * (radius + 1) < min(w, h)
        ):
            radius += 1
        sigma = (2 * radius + 1) / 6
        patch, cy, cx = row // (height * width), row // width % height, row % width
        for y, x in product(range(height), range(width)):
            if abs(y - cy) <= radius and abs(x - cx) <= radius:
                value = math.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * sigma**2))
                maps[patch, y, x, label] = max(maps[patch, y, x, label].item(), value)
    return maps.view(-1, classes)


@pytest.mark.parametrize("min_overlap", [0.3, 0.7])
@pytest.mark.parametrize("grid", [(8, 12), (3, 2), (1, 1)])
def test_class_maps_equal_the_loops(grid: tuple[int, int], min_overlap: float) -> None:
    generator = torch.Generator().manual_seed(grid[0])
    row = torch.randint(0, 3 * grid[0] * grid[1], (40,), generator=generator)
    label = torch.randint(0, 2, (40,), generator=generator)
    found = CentreAssignment(row, label, torch.zeros(40, 2), torch.rand(40, 2, generator=generator) * 60)
    maps = class_maps(found, 3, grid, 2, min_overlap)
    torch.testing.assert_close(maps, reference_maps(found, 3, grid, 2, min_overlap))
    assert (maps[row, label] == 1).all()


def test_huge_objects_stay_in_their_patch() -> None:
    maps = class_maps(found_at([5], [0], [[1e4, 1e4]]), 3, (4, 4), 1, 0.7).view(3, 16)
    assert (maps[0] > 0.5).all() and maps[1:].sum() == 0
    assert (maps[0] == 1).sum() == 1


# --- the loss --------------------------------------------------------------------------------------------------


def test_focal_loss_by_hand() -> None:
    """Logits 0, p = ½: a centre costs ¼·log 2, a cell with 0.5 (½)⁴·¼·log 2, an empty one ¼·log 2."""
    loss = penalty_reduced_focal_loss(torch.zeros(3), torch.tensor([1.0, 0.5, 0.0]))
    assert loss.item() == pytest.approx((1 / 4 + 1 / 64 + 1 / 4) * math.log(2), rel=1e-6)


def test_focal_loss_of_certain_predictions_is_finite() -> None:
    logits = torch.tensor([200.0, -200.0, 200.0, -200.0], requires_grad=True)
    loss = penalty_reduced_focal_loss(logits, torch.tensor([1.0, 1.0, 0.0, 0.0]))
    loss.backward()
    assert loss.item() == pytest.approx(400) and logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def reference_terms(output: ESODOutput, targets: PatchTargets, min_overlap: float) -> dict[str, float]:
    """Eqs. 1 to 3 of the paper, undivided, with probabilities instead of logits and one object after the other."""
    sums = dict.fromkeys(PARTS, 0.0)
    for level in output.levels:
        height, width = level.grid_hw
        rows, labels, sizes = [], [], []
        for patch, label, (x, y), (w, h) in zip(
            *(t.tolist() for t in (targets.patch, targets.label, targets.xy_px, targets.wh_px)), strict=True
        ):
            if level.stride != (8 if max(w, h) <= 64 else 16 if max(w, h) <= 128 else 32):
                continue
            column, line = int(x // level.stride), int(y // level.stride)
            where = int((level.position == torch.tensor([patch, line, column])).all(dim=1).nonzero())
            px, py, pw, ph = level.raw[where, 0, :4].tolist()
            sums["offset"] += abs(px - (x / level.stride - column)) + abs(py - (y / level.stride - line))
            sums["size"] += abs(pw - w / level.stride) + abs(ph - h / level.stride)
            rows.append((patch * height + line) * width + column)
            labels.append(label)
            sizes.append([w / level.stride, h / level.stride])
        found = CentreAssignment(
            torch.tensor(rows), torch.tensor(labels), torch.zeros(0, 2), torch.tensor(sizes).view(-1, 2)
        )
        wanted = reference_maps(
            found, len(output.patches), level.grid_hw, level.raw.shape[2] - 4, min_overlap
        )
        prob = level.raw[:, 0, 4:].sigmoid()
        for p, y_true in zip(prob.flatten().tolist(), wanted.flatten().tolist(), strict=True):
            if y_true == 1:
                sums["heat"] -= (1 - p) ** 2 * math.log(p)
            else:
                sums["heat"] -= (1 - y_true) ** 4 * p**2 * math.log(1 - p)
    return sums


@pytest.mark.parametrize("min_overlap", [0.3, 0.7])
def test_loss_equals_the_loops(min_overlap: float) -> None:
    """Overlapping patches, two images, objects of every size, several in one cell."""
    torch.manual_seed(5)
    corners = torch.tensor([[0, 0, 16, 12], [4, 4, 20, 16], [0, 4, 16, 16]])
    patches = Patches(torch.tensor([0, 0, 1]), corners, (12, 16))
    objects = torch.cat((torch.randint(0, 2, (30, 1)), torch.randint(0, 3, (30, 1)), torch.rand(30, 4)), 1)
    objects[5] = objects[6] = objects[7]
    objects[6, 1] = (objects[5, 1] + 1) % 3
    targets = targets_in_patches(objects, patches, (128, 160))
    assert levels_of(targets.wh_px).unique().tolist() == [0, 1, 2] and len(targets.patch) > 20
    output = random_output(patches, 3)
    terms = CentreLoss(HypConfig(center_overlap=min_overlap))(output, targets, 2)
    expected = reference_terms(output, targets, min_overlap)
    assert [(term.name, term.weight) for term in terms] == [("heat", 1.0), ("offset", 1.0), ("size", 0.1)]
    for term in terms:
        assert term.mean.total.item() == pytest.approx(expected[term.name], rel=1e-4)
        assert term.mean.count.item() == len(targets.patch)


def test_a_perfect_prediction_costs_next_to_nothing_and_decodes_to_the_object(tiny: BuildTiny) -> None:
    """Raw numbers written by hand: what the loss wants is what the coder reads."""
    patches = Patches(torch.tensor([0]), torch.tensor([[4, 8, 12, 16]]), (8, 8))
    output = random_output(patches, 2)
    for level in output.levels:
        level.raw = torch.full_like(level.raw, -20.0)
    # Centre (70, 100) px is (38, 36) px from the patch's corner (32, 64) px; 90×40 px belongs to stride 16.
    output.levels[1].raw[2 * 4 + 2, 0] = torch.tensor([38 / 16 - 2, 36 / 16 - 2, 90 / 16, 40 / 16, -20, 20])
    objects = torch.tensor([[0, 1, 70 / 256, 100 / 128, 90 / 256, 40 / 128]])
    losses = DetectionLoss(ModelConfig(num_classes=2, head=HeadConfig(kind="center")), HypConfig())(
        output, objects, torch.zeros(1, 1, 16, 32)
    )
    assert losses["total"].item() < 1e-4
    boxes = decode(output, tiny(kind="center").head.coder, 0.5)
    torch.testing.assert_close(boxes.cxcywh_px, torch.tensor([[70.0, 100, 90, 40]]))


@pytest.mark.parametrize("objects", [0, 3])
@pytest.mark.parametrize("select", [whole_grid, no_patch])
def test_nothing_to_learn_from(tiny: BuildTiny, objects: int, select: object) -> None:
    """No object, no patch, neither: as many terms, finite, and every parameter takes part."""
    model = tiny(kind="center").eval()
    targets = torch.tensor(
        [[0, 1, 0.3, 0.4, 0.1, 0.12], [1, 2, 0.7, 0.6, 0.2, 0.1], [1, 0, 0.2, 0.2, 0.05, 0.05]]
    )[:objects]
    output = model(torch.rand(2, 3, 128, 128), select)
    in_patch = targets_in_patches(targets, output.patches, (128, 128))
    terms = CentreLoss(HypConfig())(output, in_patch, 2)
    assert [term.name for term in terms] == list(PARTS)
    losses = DetectionLoss(model.config, HypConfig())(output, targets, torch.zeros(2, 1, 16, 16))
    assert all(torch.isfinite(value) for value in losses.values())
    assert (losses["heat"] > 0) == (select is whole_grid)
    assert (losses["size"] > 0) == (select is whole_grid and objects > 0)
    losses["total"].backward()
    assert [
        n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()
    ] == []


def test_counts_shared_by_processes_scale_the_losses(tiny: BuildTiny) -> None:
    """Two processes with half a batch each give, averaged, the gradient of one with the joint batch."""
    model = tiny(kind="center").eval()
    images, heatmaps = torch.rand(2, 3, 96, 96), torch.rand(2, 1, 12, 12)
    targets = torch.tensor(
        [[0, 1, 0.3, 0.4, 0.2, 0.2], [1, 2, 0.7, 0.6, 0.2, 0.2], [1, 0, 0.3, 0.3, 0.9, 0.2]]
    )

    def gradient(criterion: DetectionLoss, x: Tensor, t: Tensor, heat: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        criterion(model(x, whole_grid), t, heat)["total"].backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    joint = gradient(DetectionLoss(model.config, HypConfig()), images, targets, heatmaps)
    counts: list[Tensor] = []

    def remember(mine: Tensor) -> Tensor:
        counts.append(mine)
        return mine

    record = DetectionLoss(model.config, HypConfig(), reduce_counts=remember)
    first = (images[:1], targets[:1], heatmaps[:1])
    second = (images[1:], targets[1:] - torch.tensor([1.0, 0, 0, 0, 0, 0]), heatmaps[1:])
    for part in (first, second):
        gradient(record, *part)
    total = counts[0] + counts[1]
    shared = DetectionLoss(model.config, HypConfig(), reduce_counts=lambda _: total, world_size=2)
    halves = [gradient(shared, *part) for part in (first, second)]
    for name, expected in joint.items():
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, expected, atol=1e-4, rtol=1e-3)


def test_training_finds_the_object_of_one_image() -> None:
    """From random weights to a detection in 80 steps."""
    torch.manual_seed(0)
    config = ModelConfig(depth=0.33, width=0.125, num_classes=2, head=HeadConfig(kind="center"))
    model = build_model(config).train()
    image = torch.rand(1, 3, 96, 128) * 0.2
    image[:, :, 44:60, 58:76] = 1.0
    targets = torch.tensor([[0, 1, 67 / 128, 52 / 96, 18 / 128, 16 / 96]])
    heatmaps = F.max_pool2d((image[:, :1] > 0.9).float(), 8)
    # Sizes need more steps at their usual weight.
    criterion = DetectionLoss(config, HypConfig(center_size=0.5))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=80)

    def one_grid(logits: Tensor) -> Patches:
        return fixed_grid(1, (12, 16), 1, logits.device)

    for _ in range(80):
        optimizer.zero_grad()
        criterion(model(image, one_grid), targets, heatmaps)["total"].backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        # With the statistics of this image, as in training: averages over eighty different networks are no one's.
        output = model(image, one_grid)
    box = Letterbox.fit((96, 128), (96, 128))
    found = postprocess(output, model.head.coder, [box], PostprocessConfig(conf_thres=0.3))[0]
    assert len(found.score) >= 1 and found.label[0] == 1
    assert box_iou(found.xyxy[:1], torch.tensor([[58.0, 44, 76, 60]])).item() > 0.5
