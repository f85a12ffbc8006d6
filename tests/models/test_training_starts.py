"""How training starts: from random weights, with the heatmap below its threshold, in a shared stem."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor

from engine.training import GRADIENT_LIMIT, clip_gradients
from models.build import build_model
from models.esod import scale_gradient
from models.loss import DetectionLoss
from models.training_patches import MIN_PATCHES, training_selector
from utils.config import HypConfig, ModelConfig, SeekerConfig, SlicerConfig
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


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_stem_takes_a_share_of_the_heatmaps_gradient(share: float) -> None:
    """The values, the seeker's own gradient and evaluation are as without; the stem's is scaled."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(depth=0.33, width=0.125, num_classes=3)).train()
    images, _, label = scene(objects=True)

    def gradients(share: float) -> tuple[Tensor, Tensor, Tensor]:
        model.heatmap_stem = share
        model.zero_grad(set_to_none=True)
        selector = training_selector(
            label, model.config.slicer, HYP, 0.5, 10, torch.Generator().manual_seed(0)
        )
        logits = model(images, selector).heatmap_logits
        assert logits is not None and model.seeker is not None
        logits.square().sum().backward()
        own, stem = (
            torch.cat([torch.zeros(0), *(p.grad.flatten() for p in part.parameters() if p.grad is not None)])
            for part in (model.seeker, model.stem)
        )
        return logits.detach(), own, stem

    (logits, own, stem), (full_logits, full_own, full_stem) = gradients(share), gradients(1.0)
    assert torch.equal(logits, full_logits)
    assert torch.equal(own, full_own)
    if share:
        torch.testing.assert_close(stem, share * full_stem)
    else:
        assert not stem.numel()


def test_scaled_gradients_by_hand() -> None:
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    (scale_gradient(values, 0.25) * torch.tensor([1.0, 3.0])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.25, 0.75]
    assert scale_gradient(values.detach(), 0.25).requires_grad is False


def test_the_heatmap_does_not_shorten_the_detectors_step() -> None:
    """Each norm has its own limit; what was there before is told, and NaN comes through."""
    model = build_model(ModelConfig(depth=0.33, width=0.125, num_classes=3))
    assert model.seeker is not None
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    stem, seeker = next(model.stem.parameters()), next(model.seeker.parameters())
    assert stem.grad is not None and seeker.grad is not None
    stem.grad.view(-1)[0], seeker.grad.view(-1)[0] = 0.3 * GRADIENT_LIMIT, 40 * GRADIENT_LIMIT
    assert clip_gradients(model).item() == pytest.approx(GRADIENT_LIMIT * (0.3**2 + 40**2) ** 0.5)
    assert stem.grad.norm().item() == pytest.approx(0.3 * GRADIENT_LIMIT)
    assert seeker.grad.norm().item() == pytest.approx(GRADIENT_LIMIT, rel=1e-4)
    stem.grad.view(-1)[0] = 5 * GRADIENT_LIMIT
    clip_gradients(model)
    assert stem.grad.norm().item() == pytest.approx(GRADIENT_LIMIT, rel=1e-4)
    for weight in (stem, seeker):
        assert weight.grad is not None
        weight.grad.view(-1)[0] = float("nan")
        assert not torch.isfinite(clip_gradients(model))
        weight.grad.zero_()


def test_limiting_is_the_same_for_every_copy() -> None:
    """To the last bit: processes that train together apply it each for itself."""
    first = build_model(ModelConfig(depth=0.33, width=0.125, num_classes=3))
    grown = []
    for model in (first, *(deepcopy(first) for _ in range(6))):
        generator = torch.Generator().manual_seed(0)
        for weight in model.parameters():
            weight.grad = torch.randn(weight.shape, generator=generator) * 7
        clip_gradients(model)
        grown.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert all(torch.equal(grown[0], other) for other in grown[1:])


def test_nothing_to_limit() -> None:
    model = build_model(ModelConfig(depth=0.33, width=0.125, num_classes=3))
    assert clip_gradients(model).item() == 0


def test_a_dense_model_is_limited_as_one() -> None:
    model = build_model(
        ModelConfig(
            depth=0.33,
            width=0.125,
            num_classes=3,
            seeker=SeekerConfig(kind="none"),
            slicer=SlicerConfig(algorithm="none"),
        )
    )
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    before = clip_gradients(model).item()
    assert before == pytest.approx(sum(p.numel() for p in model.parameters()) ** 0.5, rel=1e-4)
    after = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm().item()
    assert after == pytest.approx(GRADIENT_LIMIT, rel=1e-3)
