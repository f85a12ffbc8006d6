"""Every mode computes what the plain network computes, and --half is taken only where it pays."""

from __future__ import annotations

import logging
from copy import deepcopy

import pytest
import torch

from engine import modes
from engine.modes import FAST, PLAIN, Mode, half_type, put_into
from models.build import build_model
from models.layers import Conv, WideDepthwise
from utils.config import ModelConfig

CPU = torch.device("cpu")


@pytest.mark.parametrize("mode", [FAST, Mode("bf16", torch.bfloat16)])
@torch.inference_mode()
def test_modes_agree(mode: Mode) -> None:
    model = build_model(ModelConfig(width=0.125, depth=0.33, num_classes=2)).eval()
    images = torch.rand(1, 3, 96, 128)
    plain, other = put_into(PLAIN, deepcopy(model), CPU), put_into(mode, model, CPU)
    assert other.head.coder.anchors.dtype == torch.float32
    expected, found = plain(images), other(images.to(mode.dtype))
    assert expected.heatmap_logits is not None and found.heatmap_logits is not None
    tolerance = 1e-4 if mode.dtype == torch.float32 else 0.1
    torch.testing.assert_close(
        found.heatmap_logits.float(), expected.heatmap_logits, atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize("fused", [False, True])
@torch.inference_mode()
def test_the_wide_depthwise_convolution_is_a_convolution(fused: bool) -> None:
    layer, like = WideDepthwise(16, 13).eval(), Conv(16, 16, 13, groups=16).eval()
    torch.nn.init.uniform_(layer.bn.running_mean, -1, 1)  # type: ignore[arg-type]
    torch.nn.init.uniform_(layer.bn.running_var, 0.5, 2)  # type: ignore[arg-type]
    like.load_state_dict(layer.state_dict())
    if fused:
        layer.fuse()
        like.fuse()
    x = torch.randn(2, 16, 20, 24)
    assert torch.equal(layer(x), like(x))
    layer, wide = layer.to(torch.bfloat16), x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    found = layer(wide)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), like(x), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("fast", [False, True])
def test_half_on_a_cpu(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fast: bool) -> None:
    monkeypatch.setattr(modes, "has_fast_bf16", lambda: fast)
    logger = modes.get_logger()
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO):
            dtype = half_type(CPU)
    finally:
        logger.removeHandler(caplog.handler)
    assert dtype == (torch.bfloat16 if fast else torch.float32)
    assert ("computing in float32" in caplog.text) == (not fast)
    assert half_type(torch.device("cuda")) == torch.float16
