"""Activation checkpointing changes neither gradients nor running statistics, and keeps less."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pytest
import torch
from torch import Tensor

from models.build import build_model
from models.esod import ESOD
from models.loss import DetectionLoss
from models.slicer import fixed_grid
from utils.config import HypConfig, ModelConfig

CLASSES = 3


def build(family: Literal["yolov5", "yolov8", "retinanet", "rtmdet"] = "yolov5") -> ESOD:
    torch.manual_seed(4)
    return build_model(ModelConfig(family=family, depth=0.33, width=0.125, num_classes=CLASSES)).train()


def step(model: ESOD) -> tuple[dict[str, Tensor], Tensor, int]:
    """Gradients of one training step, its loss, and the bytes kept for its backward pass."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, 128, 128, generator=generator)
    boxes = torch.rand(6, 4, generator=generator) * 0.2 + 0.3
    targets = torch.cat([torch.tensor([[0, 1], [0, 2], [1, 0], [1, 0], [1, 1], [0, 0]]).float(), boxes], 1)
    heatmaps = torch.rand(2, 1, 16, 16, generator=generator)
    kept: dict[int, int] = {}
    own = {p.data_ptr() for p in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(images, lambda logits: fixed_grid(len(logits), (16, 16), 4, logits.device))
        loss = DetectionLoss(model.config, HypConfig())(output, targets, heatmaps)["total"]
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return gradients, loss.detach(), sum(kept.values())


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("family", ["yolov5", "yolov8", "rtmdet"])
@pytest.mark.parametrize("recompute", ["stem", "all"])
def test_same_gradients_and_statistics(
    family: Literal["yolov5", "yolov8", "rtmdet"], recompute: Literal["stem", "all"]
) -> None:
    plain, frugal = build(family), build(family)
    frugal.recompute = recompute
    expected, loss, kept = step(plain)
    found, same_loss, less = step(frugal)
    assert torch.equal(loss, same_loss)
    assert found.keys() == expected.keys() and len(expected) > 50
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
        )
    state = frugal.state_dict()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, state[name]), f"{name}: statistics saw the batch another number of times"
    assert less < 0.8 * kept


def test_evaluation_is_left_alone() -> None:
    model = build().eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        model.recompute = "all"
        found = model(images)
    assert torch.equal(expected.heatmap_logits, found.heatmap_logits)
    assert model.recompute == "all" and ESOD.recompute == "none"
