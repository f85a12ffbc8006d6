"""Training from random weights, when the heatmap is below its threshold everywhere, does not stand still."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.build import build_model
from models.loss import DetectionLoss
from models.training_patches import MIN_PATCHES, training_selector
from utils.config import HypConfig, ModelConfig
from utils.heatmap import render_heatmap

SIDE = 128
HYP = HypConfig(heatmap_warmup_epochs=0.0, empty_patch_share=0.0)
"""The prediction counts from the first step on, and no patch is kept by chance."""


def scene(objects: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Two images of noise, the first with a bright square where it has an object: images, targets, label heatmaps."""
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 0.2
    if not objects:
        return images, torch.zeros(0, 6), torch.zeros(2, 1, SIDE // 8, SIDE // 8)
    images[0, :, 40:56, 72:88] = 1.0
    box = torch.tensor([[80.0, 48, 16, 16]])
    label = torch.from_numpy(render_heatmap(box.numpy(), (SIDE, SIDE)))
    targets = torch.cat((torch.tensor([[0.0, 1]]), box / SIDE), dim=1)
    return images, targets, torch.stack((label, torch.zeros_like(label)))[:, None]


@pytest.mark.parametrize("heatmap_loss", ["bce", "focal_dice"])
def test_nothing_above_the_threshold_does_not_stall_training(heatmap_loss: str) -> None:
    """Without warm-up and without any active cell both the detector and the heatmap learn, and cells become active."""
    torch.manual_seed(0)
    hyp = HypConfig(**{**vars(HYP), "heatmap_loss": heatmap_loss})
    model = build_model(ModelConfig(depth=0.33, width=0.125, num_classes=3)).train()
    criterion = DetectionLoss(model.config, hyp)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    images, targets, label = scene(objects=True)
    generator = torch.Generator().manual_seed(0)
    totals, active = [], []
    for step in range(40):
        selector = training_selector(label, model.config.slicer, hyp, step / 40, 1, generator)
        output = model(images, selector)
        losses = criterion(output, targets, label)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        assert len(output.patches) >= MIN_PATCHES
        assert output.heatmap_logits is not None
        totals.append(losses["total"].item())
        active.append(int((output.heatmap_logits.sigmoid() >= model.config.slicer.threshold).sum()))
    assert active[0] == 0, "from random weights nothing is above the threshold"
    assert active[-1] > 0, "the heatmap has come above it"
    assert totals[-1] < 0.6 * totals[0]


@pytest.mark.parametrize("objects", [False, True])
def test_the_first_step_reaches_every_weight(objects: bool) -> None:
    """Also of a batch without any label: background is trained on."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(depth=0.33, width=0.125, num_classes=3)).train()
    images, targets, label = scene(objects)
    generator = torch.Generator().manual_seed(0)
    output = model(images, training_selector(label, model.config.slicer, HYP, 0.5, 10, generator))
    assert output.heatmap_logits is not None
    assert (output.heatmap_logits.sigmoid() < model.config.slicer.threshold).all()
    assert len(output.patches) == MIN_PATCHES
    DetectionLoss(model.config, HYP)(output, targets, label)["total"].backward()
    untouched = [name for name, p in model.named_parameters() if p.grad is None]
    still = [
        name for name, p in model.named_parameters() if p.grad is not None and not p.grad.any()
        and not name.startswith("head.")
    ]  # fmt: skip
    assert untouched == [] and still == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
