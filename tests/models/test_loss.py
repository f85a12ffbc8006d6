"""The criterion: hand-computed parts, the cases with nothing in them, and that it teaches."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import complete_box_iou_loss

from models.decode import decode
from models.esod import ESOD
from models.iou import complete_iou
from models.loss import DetectionLoss
from models.losses.anchor import LEVEL_BALANCE
from models.losses.heatmap import cell_weights, focal_dice_loss, weighted_bce_loss
from models.slicer import Patches, fixed_grid
from models.training_patches import TrainingSelector
from tests.models.conftest import BuildTiny
from utils.boxes import cxcywh_to_xyxy
from utils.config import HypConfig, SlicerConfig

PARTS = ["box", "obj", "cls", "heatmap"]
TARGETS = torch.tensor(
    [[0, 1, 0.3, 0.4, 0.1, 0.12], [1, 2, 0.7, 0.6, 0.2, 0.1], [1, 0, 0.2, 0.2, 0.05, 0.05]]
)


def whole_grid(logits: Tensor) -> Patches:
    return fixed_grid(len(logits), (logits.shape[2], logits.shape[3]), 8, logits.device)


def run(
    model: ESOD, hyp: HypConfig, targets: Tensor = TARGETS, patches: object = whole_grid
) -> dict[str, Tensor]:
    output = model(torch.rand(2, 3, 128, 128), patches)
    heatmaps = torch.zeros(2, 1, 16, 16)
    if len(targets):
        heatmaps[0, 0, 6, 4] = 1.0
    criterion = DetectionLoss(model.config, hyp, torch.tensor([100, 10, 1]))
    return criterion(output, targets, heatmaps)


@pytest.mark.parametrize("heatmap_loss", ["bce", "focal_dice"])
def test_all_parts_are_finite_and_add_up(tiny: BuildTiny, heatmap_loss: str) -> None:
    losses = run(tiny().train(), HypConfig(heatmap_loss=heatmap_loss))  # type: ignore[arg-type]
    assert all(torch.isfinite(losses[name]) and losses[name] > 0 for name in PARTS)
    torch.testing.assert_close(losses["total"], 2 * sum(losses[name] for name in PARTS))


@pytest.mark.parametrize("heatmap_loss", ["bce", "focal_dice"])
def test_no_targets(tiny: BuildTiny, heatmap_loss: str) -> None:
    losses = run(tiny().train(), HypConfig(heatmap_loss=heatmap_loss), torch.zeros(0, 6))  # type: ignore[arg-type]
    assert losses["box"] == 0 and losses["cls"] == 0
    assert losses["obj"] > 0 and losses["heatmap"] > 0
    losses["total"].backward()


def test_no_patches(tiny: BuildTiny) -> None:
    def nothing(logits: Tensor) -> Patches:
        return Patches(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4, dtype=torch.int64), (4, 4))

    model = tiny().eval()
    losses = run(model, HypConfig(), patches=nothing)
    assert losses["box"] == losses["obj"] == losses["cls"] == 0
    losses["total"].backward()
    assert [
        n for n, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()
    ] == []


def test_objectness_of_disjoint_patches_adds_up(tiny: BuildTiny) -> None:
    """What an object weighs does not depend on how many patches are trained beside its own."""

    def every_second(start: int, logits: Tensor) -> Patches:
        grid = whole_grid(logits)
        return Patches(grid.image_index[start::2], grid.xyxy_cell[start::2], grid.size_cell)

    model = tiny().eval()
    images = torch.rand(2, 3, 128, 128)
    criterion = DetectionLoss(model.config, HypConfig())
    whole, even, odd = (
        criterion(model(images, choose), TARGETS, torch.zeros(2, 1, 16, 16))["obj"]
        for choose in (whole_grid, partial(every_second, 0), partial(every_second, 1))
    )
    torch.testing.assert_close(whole, even + odd)


def test_objectness_and_classes_by_hand(tiny: BuildTiny) -> None:
    """All logits 0: every position costs log 2 in objectness, every class of a matched anchor log 2 too."""
    model = tiny().eval()
    output = model(torch.rand(1, 3, 128, 128), whole_grid)
    for level in output.levels:
        level.raw = torch.zeros_like(level.raw)
    losses = DetectionLoss(model.config, HypConfig())(output, TARGETS[:1], torch.zeros(1, 1, 16, 16))
    anchors_per_cell = model.head.coder.anchors.shape[1]
    weights = (LEVEL_BALANCE[s] * (128 / s) ** 2 / (640 / s) ** 2 for s in (8, 16, 32))
    expected = sum(weights) * math.log(2)
    assert anchors_per_cell == 3 and losses["obj"].item() == pytest.approx(expected, rel=1e-5)
    matched_levels = round(losses["cls"].item() / (0.5 * 3 / 80 * math.log(2)), 4)
    assert matched_levels in (1, 2, 3)


def test_perfect_prediction_has_no_box_loss(tiny: BuildTiny) -> None:
    """Objects placed exactly on the predictions of the model cost nothing, and their objectness target is 1."""
    model = tiny().eval()
    images = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        output = model(images, whole_grid)
        boxes = decode(output, model.head.coder)
    cx, cy, w, h = boxes.cxcywh_px[0].tolist()
    target = torch.tensor([[0, 1, cx / 128, cy / 128, w / 128, h / 128]])
    model.zero_grad()
    worst = DetectionLoss(model.config, replace(HypConfig(), box=1.0))(
        output, target, torch.zeros(1, 1, 16, 16)
    )
    moved = target.clone()
    moved[:, 4:] *= 2
    off = DetectionLoss(model.config, replace(HypConfig(), box=1.0))(output, moved, torch.zeros(1, 1, 16, 16))
    assert worst["box"] < off["box"]


def test_counts_shared_by_processes_scale_the_losses(tiny: BuildTiny) -> None:
    """Two processes with half a batch each give, averaged, the gradient of one with the joint batch."""
    model = tiny().eval()
    images = torch.rand(2, 3, 96, 96)
    heatmaps = torch.rand(2, 1, 12, 12)
    targets = torch.tensor(
        [[0, 1, 0.3, 0.4, 0.2, 0.2], [1, 2, 0.7, 0.6, 0.2, 0.2], [1, 0, 0.3, 0.3, 0.3, 0.2]]
    )

    def gradient(criterion: DetectionLoss, x: Tensor, t: Tensor, heat: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        criterion(model(x, whole_grid), t, heat)["total"].backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    joint = gradient(DetectionLoss(model.config, HypConfig()), images, targets, heatmaps)
    counts: list[Tensor] = []
    record = DetectionLoss(model.config, HypConfig(), reduce_counts=lambda c: counts.append(c) or c)
    parts = [
        (images[:1], targets[:1], heatmaps[:1]),
        (images[1:], targets[1:] - torch.tensor([1.0, 0, 0, 0, 0, 0]), heatmaps[1:]),
    ]
    for part in parts:
        gradient(record, *part)
    total = counts[0] + counts[1]
    shared = DetectionLoss(model.config, HypConfig(), reduce_counts=lambda _: total, world_size=2)
    halves = [gradient(shared, *part) for part in parts]
    for name, expected in joint.items():
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, expected, atol=1e-4, rtol=1e-3)


def test_weighted_bce_by_hand() -> None:
    logits, label = torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, 0.0]]]])
    loss = weighted_bce_loss(logits, label, torch.tensor([[[[3.0, 1.0]]]]))
    assert math.isclose(loss.total.item(), 4 * math.log(2), rel_tol=1e-6)
    assert math.isclose(loss.count.item(), 1 + 0.02, rel_tol=1e-6)


def test_focal_dice_is_zero_for_a_perfect_heatmap() -> None:
    label = torch.tensor([[[[1.0, 0.0, 0.0, 1.0]]]])
    right = sum((m.total / m.count).item() for m in focal_dice_loss((label - 0.5) * 40, label))
    wrong = sum((m.total / m.count).item() for m in focal_dice_loss((0.5 - label) * 40, label))
    assert right < 1e-3 < 1 < wrong


def test_complete_iou_by_hand() -> None:
    box = torch.tensor([[10.0, 20.0, 4.0, 8.0]])
    assert complete_iou(box, box).item() == pytest.approx(1, abs=1e-5)
    # Moved by half its width: IoU 1/3; centre distance² 4, outer box 6×8 with diagonal² 100; same shape.
    moved = torch.tensor([[12.0, 20.0, 4.0, 8.0]])
    assert complete_iou(box, moved).item() == pytest.approx(1 / 3 - 4 / 100, abs=1e-5)
    # Same centre, sides exchanged: IoU 16/48, v = 4/π²·(atan 2 − atan ½)².
    turned = torch.tensor([[10.0, 20.0, 8.0, 4.0]])
    v = 4 / math.pi**2 * (math.atan(2) - math.atan(0.5)) ** 2
    assert complete_iou(box, turned).item() == pytest.approx(1 / 3 - v * v / (2 / 3 + v), abs=1e-5)


def test_complete_iou_equals_torchvision() -> None:
    first, second = torch.rand(2, 200, 4) * 50 + 1
    expected = 1 - complete_box_iou_loss(cxcywh_to_xyxy(first), cxcywh_to_xyxy(second))
    torch.testing.assert_close(complete_iou(first, second), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", [0.0, 1e-12, 1e-6, 1e-3])
def test_complete_iou_has_finite_gradients_for_vanishing_boxes(side: float) -> None:
    first = torch.tensor([[500.3, 700.7, side, side], [500.3, 700.7, 9.0, side]], requires_grad=True)
    complete_iou(first, torch.tensor([[501.0, 700.0, 4.0, 8.0], [501.0, 700.0, 4.0, 8.0]])).sum().backward()
    assert first.grad is not None and torch.isfinite(first.grad).all()


def test_cell_weights_by_hand() -> None:
    rarity = torch.tensor([1.0, math.e])
    # 64×64 input, 8×8 cells: an 8×8 px object of class 0 in cell (2, 3): r = (256/64)² = 16.
    # A 16×16 px object of class 1 over the cells (4..5, 4..5): r = e. Elsewhere 1.
    targets = torch.tensor(
        [[0, 0, 2.5 / 8, 3.5 / 8, 0.99 / 8, 0.99 / 8], [0, 1, 5 / 8, 5 / 8, 1.99 / 8, 1.99 / 8]]
    )
    weight = cell_weights(targets, torch.zeros(1, 1, 8, 8), rarity)[0, 0]
    assert weight[3, 2].item() == pytest.approx(1 + math.log((256 / (0.99 * 8) ** 2) ** 2), rel=1e-3)
    assert weight[4:6, 4:6].flatten().tolist() == pytest.approx([2.0] * 4)
    assert (weight == 1).sum() == 64 - 5


def test_cell_weights_of_objects_over_the_border() -> None:
    weight = cell_weights(torch.tensor([[0, 0, 1.0, 0.0, 0.5, 0.5]]), torch.zeros(1, 1, 8, 8), torch.ones(1))
    assert torch.isfinite(weight).all()


def test_label_smoothing(tiny: BuildTiny) -> None:
    model = tiny().train()
    plain, smooth = run(model, HypConfig()), run(model, HypConfig(label_smoothing=0.1))
    assert plain["cls"] != smooth["cls"]


@pytest.mark.parametrize("heatmap_loss", ["bce", "focal_dice"])
def test_empty_images_do_not_outweigh_the_others(tiny: BuildTiny, heatmap_loss: str) -> None:
    model = tiny().train()
    hyp = HypConfig(heatmap_loss=heatmap_loss)  # type: ignore[arg-type]
    empty = run(model, hyp, torch.zeros(0, 6))["heatmap"]
    assert empty < 20 * run(model, hyp)["heatmap"]
    logits, label = torch.full((1, 1, 108, 192), -4.6), torch.zeros(1, 1, 108, 192)
    assert (weighted_bce_loss(logits, label, torch.ones_like(label)).count) > 200


@pytest.mark.parametrize(("mode", "expected"), [("uniform", 16), ("selected", 2)])
def test_training_patches(mode: str, expected: int) -> None:
    label = torch.zeros(1, 1, 16, 16)
    label[0, 0, 1, 1] = label[0, 0, 14, 14] = 1
    selector = TrainingSelector(label, SlicerConfig(), mode, 0.0, False, torch.Generator().manual_seed(0))
    patches = selector(torch.full((1, 1, 16, 16), 9.0))
    assert len(patches) == expected
    if mode == "selected":
        assert patches.xyxy_cell.tolist() == [[0, 0, 4, 4], [12, 12, 16, 16]]


def test_prediction_adds_patches_after_warmup_and_empties_by_share() -> None:
    label, logits = torch.zeros(2, 1, 16, 16), torch.full((2, 1, 16, 16), -9.0)
    logits[1, 0, 5, 5] = 9
    generator = torch.Generator().manual_seed(0)
    patches = TrainingSelector(label, SlicerConfig(), "selected", 0.0, True, generator)(logits)
    assert [1, 4, 4, 8, 8] in torch.cat((patches.image_index[:, None], patches.xyxy_cell), dim=1).tolist()
    assert len(patches) == 2, "never fewer than two, whatever the heatmap says"
    all_of_them = TrainingSelector(label, SlicerConfig(), "selected", 1.0, False, generator)(logits)
    assert len(all_of_them) == 32
    half = TrainingSelector(label, SlicerConfig(), "selected", 0.5, False, generator)(logits)
    assert 6 <= len(half) <= 26


def test_training_overfits_a_few_images(tiny: BuildTiny) -> None:
    """Loss on eight images falls, from random weights on: the heatmap need not work first."""
    torch.manual_seed(3)
    model = tiny().train()
    images = torch.rand(8, 3, 64, 64) * 0.2
    rows = []
    for index in range(8):
        x, y = 8 + 6 * index, 56 - 6 * index
        images[index, :, y - 5 : y + 5, x - 5 : x + 5] = 1.0
        rows.append([index, index % 3, x / 64, y / 64, 10 / 64, 10 / 64])
    targets = torch.tensor(rows)
    heatmaps = F.max_pool2d((images[:, :1] > 0.9).float(), 8)
    hyp = HypConfig(box=0.5, heatmap=0.5)
    criterion = DetectionLoss(model.config, hyp)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    history = []
    for step in range(30):
        selector = TrainingSelector(
            heatmaps, model.config.slicer, "selected", 0.1, step > 10, torch.Generator().manual_seed(step)
        )
        losses = criterion(model(images, selector), targets, heatmaps)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        history.append({name: losses[name].item() for name in PARTS})
    for name in ("box", "cls", "heatmap"):  # objectness aims at the overlap, which itself grows
        assert history[-1][name] < 0.7 * history[0][name], f"{name}: {history[0][name]} → {history[-1][name]}"
