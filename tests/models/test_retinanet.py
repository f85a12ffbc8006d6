"""RetinaNet: the body is torchvision's, and its files land here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models import resnet18, resnet50
from torchvision.models.detection import retinanet_resnet50_fpn

from models.build import build_model
from models.convert.input_folding import IMAGENET_MEAN, IMAGENET_STD
from models.convert.torchvision import is_torchvision, rename_torchvision, torchvision_config
from models.slicer import whole_map
from utils.checkpoint import CheckpointError
from utils.config import ModelConfig


@pytest.fixture(scope="module")
def torchvision_detector() -> torch.nn.Module:
    """torchvision's own RetinaNet with random weights and lively BatchNorm statistics."""
    torch.manual_seed(1)
    network = retinanet_resnet50_fpn(weights=None, weights_backbone=None)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-0.2, 0.2)
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return network.eval()


@torch.no_grad()
def test_torchvision_detector_fills_body_and_pyramid(torchvision_detector: torch.nn.Module) -> None:
    state = torchvision_detector.state_dict()
    assert is_torchvision(state)
    config = torchvision_config(state)
    model = build_model(config).eval()
    renamed, left_over = rename_torchvision(state)
    assert all(key.startswith(("head.", "backbone.fpn.extra_blocks")) for key in left_over)
    wanted = {
        k: v for k, v in model.state_dict().items() if k.startswith(("stem", "deep", "neck"))
        and not k.endswith("num_batches_tracked")
    }  # fmt: skip
    assert {k: v.shape for k, v in renamed.items() if not k.endswith("num_batches_tracked")} == {
        k: v.shape for k, v in wanted.items()
    }
    model.load_state_dict(renamed, strict=False)

    # The same network on the same numbers: without the folding, whose effect at the padding is tested below.
    model.stem[0].conv.weight.copy_(state["backbone.body.conv1.weight"])
    model.stem[0].bn.running_mean.copy_(state["backbone.body.bn1.running_mean"])
    images = torch.rand(1, 3, 128, 160)
    expected = torchvision_detector.backbone(images)
    features = model.stem(images)
    patches = whole_map(1, (features.shape[2], features.shape[3]), features.device)
    pyramid = model.neck(*model.deep(features, patches))
    for ours, theirs in zip(pyramid, list(expected.values())[:3], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_first_layer_is_exact_away_from_the_border(torchvision_detector: torch.nn.Module) -> None:
    model = build_model(ModelConfig(family="retinanet", width=1.0)).eval()
    renamed, _ = rename_torchvision(torchvision_detector.state_dict())
    model.load_state_dict(renamed, strict=False)
    images = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    body = torchvision_detector.backbone.body
    expected = body.relu(body.bn1(body.conv1((images - mean) / std)))
    torch.testing.assert_close(model.stem[0](images)[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], atol=1e-4, rtol=1e-4)  # fmt: skip


def test_an_imagenet_classifier_fills_the_body() -> None:
    state = resnet50(weights=None).state_dict()
    renamed, left_over = rename_torchvision(state)
    assert left_over == ["fc.weight", "fc.bias"] and torchvision_config(state).width == 1.0
    model = build_model(ModelConfig(family="retinanet", width=1.0))
    missing = set(model.state_dict()) - set(renamed)
    assert all(name.startswith(("neck", "head", "seeker")) for name in missing)
    assert set(renamed) <= set(model.state_dict())


def test_another_resnet_is_refused() -> None:
    assert not is_torchvision(resnet18(weights=None).state_dict())
    state: dict[str, Tensor] = dict(resnet50(weights=None).state_dict())
    shorter = {key: value for key, value in state.items() if not key.startswith("layer3.5")}
    with pytest.raises(CheckpointError, match="3-4-5-3 blocks"):
        torchvision_config(shorter)


@torch.no_grad()
def test_fusing_changes_nothing() -> None:
    model = build_model(ModelConfig(family="retinanet", width=0.125, num_classes=3)).train()
    for _ in range(3):
        model(torch.rand(2, 3, 64, 96))
    images = torch.rand(1, 3, 64, 96)
    before = model.eval()(images).heatmap_logits
    after = model.fuse()(images).heatmap_logits
    assert before is not None and after is not None
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
