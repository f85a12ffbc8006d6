"""Small models for the tests of the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from models.build import build_model
from models.esod import ESOD
from utils.config import HeadConfig, ModelConfig, SlicerConfig

BuildTiny = Callable[..., ESOD]


@pytest.fixture
def tiny() -> BuildTiny:
    """Builds a YOLOv5 + ESOD of tiny width, in evaluation mode, with a heatmap that varies from cell to cell."""

    def build(
        slicer: str = "grid",
        sparse: bool = False,
        *,
        threshold: float = 0.5,
        kind: str = "decoupled",
        **options: Any,
    ) -> ESOD:
        config = ModelConfig(
            depth=0.33,
            width=0.125,
            num_classes=3,
            slicer=SlicerConfig(algorithm=slicer, threshold=threshold),  # type: ignore[arg-type]
            head=HeadConfig(kind=kind, sparse=sparse),  # type: ignore[arg-type]
            **options,
        )
        model = build_model(config)
        _calibrate(model)
        return model.eval()

    return build


@pytest.fixture
def always_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sparse heads gather whatever is selected, even everything."""
    monkeypatch.setattr("models.head.DENSE_ABOVE", dict.fromkeys((4, 8, 16, 32), 2.0))
    monkeypatch.setattr("models.head.DENSE_ABOVE_TWO", 2.0)


@torch.no_grad()
def _calibrate(model: ESOD) -> None:
    """Give BatchNorm the statistics of random images, and the heatmap logits zero mean and unit spread."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.5
    images = torch.rand(2, 3, 128, 160)
    for _ in range(4):
        model(images)
    if model.seeker is None:
        return
    model.eval()
    logits = model(images).heatmap_logits
    assert logits is not None
    predict = model.seeker.predict
    assert isinstance(predict, torch.nn.Conv2d) and predict.bias is not None
    predict.bias.sub_(logits.mean())
    predict.weight.div_(logits.std())
    predict.bias.div_(logits.std())
