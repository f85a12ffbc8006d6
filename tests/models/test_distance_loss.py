"""The anchor-free head's loss: by hand, against loops in float64, with nothing in it, shared, and that it teaches."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.build import build_model
from models.coders import DistanceCoder
from models.esod import ESOD, ESODOutput
from models.levels import LevelOutput, all_positions
from models.loss import DetectionLoss
from models.losses.base import Term
from models.losses.distance import DistanceLoss, distribution_focal_loss
from models.slicer import Patches, fixed_grid, whole_map
from tests.models.aligned_reference import all_places, crowd, grids_of, reference_sums
from utils.config import HeadConfig, HypConfig, ModelConfig

BINS, CLASSES = 8, 3
PARTS = ("box", "dfl", "cls")
CONFIG = ModelConfig(depth=0.33, width=0.125, num_classes=CLASSES, head=HeadConfig(kind="dfl", bins=BINS))
TARGETS = torch.tensor(
    [[0, 1, 0.3, 0.4, 0.1, 0.12], [1, 2, 0.7, 0.6, 0.2, 0.1], [1, 0, 0.2, 0.2, 0.05, 0.05]]
)


def build() -> ESOD:
    torch.manual_seed(0)
    return build_model(CONFIG)


def output_of(raw: Tensor, size_px: tuple[int, int], patches: int) -> ESODOutput:
    """A model's output with these numbers at the positions of all levels: raw [M, 4·bins + classes]."""
    levels = []
    for grid in grids_of(size_px, patches):
        position = all_positions(patches, grid.grid_hw, raw.device)
        rows = raw[grid.first : grid.first + len(position)].unsqueeze(1)
        levels.append(LevelOutput(rows, position, grid.stride, grid.grid_hw))
    index = torch.arange(patches)
    size_cell = (size_px[0] // 8, size_px[1] // 8)
    corners = torch.tensor([[0, 0, size_cell[1], size_cell[0]]]).repeat(patches, 1)
    return ESODOutput(None, levels, Patches(index, corners, size_cell))


def random_raw(size_px: tuple[int, int], patches: int, seed: int) -> Tensor:
    """Logits of a head whose boxes are of the size of the objects: short distances are likelier."""
    g = torch.Generator().manual_seed(seed)
    number = len(all_places(grids_of(size_px, patches), patches))
    sides = torch.randn(number, 4, BINS, generator=g) * 1.5 - torch.arange(BINS) * 0.8
    return torch.cat((sides.flatten(1), torch.randn(number, CLASSES, generator=g)), dim=1)


def parts(terms: list[Term]) -> dict[str, tuple[float, float]]:
    """Name → sum and count."""
    return {term.name: (term.mean.total.item(), term.mean.count.item()) for term in terms}


def whole_grid(logits: Tensor) -> Patches:
    return fixed_grid(len(logits), (logits.shape[2], logits.shape[3]), 8, logits.device)


def no_patch(logits: Tensor) -> Patches:
    return Patches(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4, dtype=torch.int64), (4, 4))


# --- by hand -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        (2.0, -math.log(0.2)),
        (1.25, -0.75 * math.log(0.3) - 0.25 * math.log(0.2)),
        (0.0, -math.log(0.4)),
        (-3.0, -math.log(0.4)),  # the middle outside of the object
        (2.99, -0.01 * math.log(0.2) - 0.99 * math.log(0.1)),
        (3.0, -0.01 * math.log(0.2) - 0.99 * math.log(0.1)),  # just below the last bin
        (50.0, -0.01 * math.log(0.2) - 0.99 * math.log(0.1)),
    ],
)
def test_distribution_focal_loss_by_hand(distance: float, expected: float) -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log() + 5
    loss = distribution_focal_loss(logits.expand(2, 4, 4), torch.full((2, 4), distance))
    torch.testing.assert_close(loss, torch.full((2, 4), expected), atol=1e-4, rtol=1e-4)


def test_distribution_focal_loss_teaches_the_distance() -> None:
    """Its minimum is the distribution on the two neighbours whose mean is the distance (paper, eq. 6)."""
    logits = torch.zeros(1, BINS, requires_grad=True)
    optimizer = torch.optim.Adam([logits], 0.2)
    for _ in range(200):
        optimizer.zero_grad()
        distribution_focal_loss(logits, torch.tensor([4.3])).sum().backward()
        optimizer.step()
    share = logits.detach().softmax(dim=1)[0]
    torch.testing.assert_close(share[4:6], torch.tensor([0.7, 0.3]), atol=0.01, rtol=0)


def test_perfect_prediction_costs_nothing() -> None:
    """An object of 3×2 grid steps around the middle of a cell, said with certainty: 1.5, 1, 1.5, 1 steps."""
    raw = torch.full((126, 4 * BINS + CLASSES), -30.0)
    sides = torch.zeros(4, BINS)
    sides[[0, 2], 1] = sides[[0, 2], 2] = 30
    sides[[1, 3], 1] = 30
    raw[3 * 12 + 2, : 4 * BINS] = sides.flatten()
    raw[3 * 12 + 2, 4 * BINS + 1] = 30
    targets = crowd(1, 1, (64, 96), 0)
    targets.xy_px[:], targets.wh_px[:], targets.label[:] = (
        torch.tensor([20.0, 28]), torch.tensor([24.0, 16]), 1,
    )  # fmt: skip
    found = parts(DistanceLoss(BINS, HypConfig())(output_of(raw, (64, 96), 1), targets, 1))
    assert [term[1] for term in found.values()] == pytest.approx([1] * 3, abs=1e-3)
    assert found["box"][0] == pytest.approx(0, abs=1e-3)
    assert found["dfl"][0] == pytest.approx(math.log(2) / 2, abs=1e-3), "the doubt between 1 and 2 stays"
    assert found["cls"][0] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_equals_loops_over_everything(seed: int) -> None:
    size_px, patches = (64, 96), 1 + seed % 2
    raw, targets = random_raw(size_px, patches, seed), crowd(5 + 4 * seed, patches, size_px, seed)
    terms = DistanceLoss(BINS, HypConfig())(output_of(raw, size_px, patches), targets, patches)
    grids = grids_of(size_px, patches)
    sums, count = reference_sums(raw, BINS, all_places(grids, patches), targets)
    found = parts(terms)
    assert count > 0.3, "a case worth looking at"
    for name in PARTS:
        assert found[name] == (pytest.approx(sums[name], rel=1e-3), pytest.approx(count, rel=1e-3))


def test_weights_and_options() -> None:
    raw, targets = random_raw((64, 96), 1, 0), crowd(6, 1, (64, 96), 0)
    output = output_of(raw, (64, 96), 1)

    def terms(**changes: float) -> list[Term]:
        return DistanceLoss(BINS, HypConfig(**changes))(output, targets, 1)  # type: ignore[arg-type]

    assert {t.name: t.weight for t in terms(dfl_box=2.0, dfl=3.0, dfl_cls=4.0)} == {
        "box": 2, "dfl": 3, "cls": 4,
    }  # fmt: skip
    plain = parts(terms())
    assert parts(terms(label_smoothing=0.2)) == plain
    heavier = parts(terms(cls_pw=2.0))
    assert heavier["cls"][0] > plain["cls"][0] and heavier["box"] == plain["box"]


def test_object_in_two_patches_counts_in_both() -> None:
    """Two patches that say the same about the same object: twice the sums, twice the count."""
    raw, targets = random_raw((64, 64), 1, 1), crowd(6, 1, (64, 64), 1)
    once = parts(DistanceLoss(BINS, HypConfig())(output_of(raw, (64, 64), 1), targets, 1))
    first, second = grids_of((64, 64), 1)[1].first, grids_of((64, 64), 1)[2].first
    doubled = torch.cat([part.repeat(2, 1) for part in (raw[:first], raw[first:second], raw[second:])])
    both = replace(
        targets,
        patch=torch.cat((targets.patch, targets.patch + 1)),
        label=targets.label.repeat(2),
        xy_px=targets.xy_px.repeat(2, 1),
        wh_px=targets.wh_px.repeat(2, 1),
        object=torch.arange(2 * len(targets.patch)),
    )
    twice = parts(DistanceLoss(BINS, HypConfig())(output_of(doubled, (64, 64), 2), both, 1))
    for name in PARTS:
        assert twice[name] == pytest.approx([2 * v for v in once[name]], rel=1e-4)


# --- precision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_sixteen_bits_are_computed_in_float32(dtype: torch.dtype, autocast: bool) -> None:
    raw, targets = random_raw((64, 96), 1, 2).to(dtype), crowd(8, 1, (64, 96), 2)
    criterion = DistanceLoss(BINS, HypConfig())
    expected = criterion(output_of(raw.float(), (64, 96), 1), targets, 1)
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        found = criterion(output_of(raw, (64, 96), 1), targets, 1)
    assert all(term.mean.total.dtype == term.mean.count.dtype == torch.float32 for term in found)
    assert parts(found) == parts(expected)


def test_autocast_does_not_round_decoded_boxes() -> None:
    level = output_of(random_raw((64, 96), 1, 3), (64, 96), 1).levels[2]
    coder = DistanceCoder(BINS)
    expected = coder.decode(2, level, torch.zeros(1, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = coder.decode(2, level, torch.zeros(1, 2))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# --- nothing there -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["no objects", "no patches", "neither"])
def test_nothing_there(case: str) -> None:
    model = build().eval()
    targets = TARGETS if case == "no patches" else torch.zeros(0, 6)
    output = model(torch.rand(2, 3, 64, 96), whole_grid if case == "no objects" else no_patch)
    criterion = DetectionLoss(model.config, HypConfig())
    assert criterion.names == (*PARTS, "heatmap")
    losses = criterion(output, targets, torch.zeros(2, 1, 8, 12))
    assert losses["box"] == losses["dfl"] == 0 and torch.isfinite(losses["total"])
    assert (losses["cls"] > 0) == (case == "no objects")
    losses["total"].backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert [name for name, grad in gradients.items() if grad is None] == []
    assert [name for name, grad in gradients.items() if grad is not None and not grad.isfinite().all()] == []
    assert len(criterion.head(output, crowd(0, 0, (64, 96), 0), 2)) == 3


def test_objects_that_no_box_reaches_are_background() -> None:
    """Boxes of no size beside their objects: all overlaps 0, no weight, finite gradients."""
    raw = torch.full((126, 4 * BINS + CLASSES), -30.0)
    raw[:, [0, BINS, 2 * BINS, 3 * BINS]] = 30.0
    raw.requires_grad_(True)
    targets = crowd(6, 1, (64, 96), 0)
    targets.wh_px[:] = 3.0
    targets.xy_px[:] = targets.xy_px.floor().div(8).floor() * 8 + 1.6
    terms = DistanceLoss(BINS, HypConfig())(output_of(raw, (64, 96), 1), targets, 1)
    assert parts(terms)["box"] == parts(terms)["dfl"] == (0, 0)
    torch.stack([term.mean.total for term in terms]).sum().backward()
    assert raw.grad is not None and raw.grad.isfinite().all()


# --- processes -----------------------------------------------------------------------------------------------------


def test_counts_shared_by_processes_scale_the_losses() -> None:
    """Two processes with half a batch each give, averaged, the gradient of one with the joint batch."""
    # Random weights say nearly the same everywhere: rounding must not decide which position is the better one.
    model = build().eval().double()
    images, heatmaps = torch.rand(2, 3, 96, 96).double(), torch.rand(2, 1, 12, 12)
    rows = [[1, i % 3, 0.1 + 0.06 * i, 0.9 - 0.05 * i, 0.15, 0.2] for i in range(12)]
    targets = torch.tensor([[0, 1, 0.3, 0.4, 0.3, 0.3], [0, 2, 0.7, 0.6, 0.4, 0.4], *rows])

    def gradient(criterion: DetectionLoss, x: Tensor, t: Tensor, heat: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        criterion(model(x, whole_grid), t, heat)["total"].backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    joint = gradient(DetectionLoss(model.config, HypConfig()), images, targets, heatmaps)
    counts: list[Tensor] = []
    record = DetectionLoss(model.config, HypConfig(), reduce_counts=lambda c: counts.append(c) or c)
    halves = [
        (images[:1], targets[:2], heatmaps[:1]),
        (images[1:], targets[2:] - torch.tensor([1.0, 0, 0, 0, 0, 0]), heatmaps[1:]),
    ]
    for half in halves:
        gradient(record, *half)
    total = counts[0] + counts[1]
    assert counts[0][0] != counts[1][0] and total[0] > 1, "the count must matter"
    shared = DetectionLoss(model.config, HypConfig(), reduce_counts=lambda _: total, world_size=2)
    first, second = (gradient(shared, *half) for half in halves)
    assert set(first) == set(second) == set(joint)
    largest = max(g.abs().max().item() for g in joint.values())
    for name, expected in joint.items():
        torch.testing.assert_close((first[name] + second[name]) / 2, expected, atol=1e-5 * largest, rtol=1e-3)


# --- teaching ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [8, 24])
def test_training_overfits_one_image(side: int) -> None:
    """From random weights, whose first boxes are 15 grid steps wide: overlaps rise and losses fall."""
    model = build().train()
    image, rows = torch.rand(1, 3, 128, 128) * 0.2, []
    for index in range(9):
        x, y = 20 + 40 * (index % 3), 22 + 40 * (index // 3)
        image[0, index % 3, y - side // 2 : y + side // 2, x - side // 2 : x + side // 2] = 1.0
        rows.append([0, index % 3, x / 128, y / 128, side / 128, side / 128])
    counts: list[float] = []

    def remember(shared: Tensor) -> Tensor:
        counts.append(shared[0].item())
        return shared

    criterion = DetectionLoss(model.config, HypConfig(), reduce_counts=remember)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    history = []
    for _ in range(30):
        output = model(image, lambda logits: whole_map(1, (16, 16), logits.device))
        losses = criterion(output, torch.tensor(rows), torch.zeros(1, 1, 16, 16))
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        history.append({name: losses[name].item() * max(counts[-1], 1) / counts[-1] for name in PARTS})
    assert counts[-1] > 10 * counts[0] or counts[-1] > 5
    for name in PARTS:  # per target score: the sums begin near 0 because the scores do
        assert history[-1][name] < 0.6 * history[0][name], f"{name}: {history[0][name]} → {history[-1][name]}"
