"""torchvision's ResNet-50 and RetinaNet files as configuration and weights of this project's RetinaNet.

Takes a state dict that somebody else has read: of `retinanet_resnet50_fpn` (body and pyramid land here, its P6, P7 and
head are left over) or of an ImageNet classifier (the body lands). The input normalisation of these networks is
folded into the first convolution, so the result takes RGB in 0–1 as every model here does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from models.convert.input_folding import IMAGENET_MEAN, IMAGENET_STD, fold_before_batchnorm
from utils.checkpoint import CheckpointError
from utils.config import HeadConfig, ModelConfig, SeekerConfig, SlicerConfig

NAMES = (
    (r"(?:backbone\.body\.)?conv1\.(weight)", r"stem.0.conv.\1"),
    (r"(?:backbone\.body\.)?bn1\.(.+)", r"stem.0.bn.\1"),
    (r"(?:backbone\.body\.)?layer1\.(.+)", r"stem.2.\1"),
    (r"(?:backbone\.body\.)?layer2\.(.+)", r"stem.3.\1"),
    (r"(?:backbone\.body\.)?layer3\.(.+)", r"deep.stage4.\1"),
    (r"(?:backbone\.body\.)?layer4\.(.+)", r"deep.stage5.\1"),
    # Files of older releases lack the ".0" of the block around the convolution.
    (r"backbone\.fpn\.inner_blocks\.([012])\.(?:0\.)?(weight|bias)", r"neck.inner.\1.\2"),
    (r"backbone\.fpn\.layer_blocks\.([012])\.(?:0\.)?(weight|bias)", r"neck.output.\1.\2"),
)
FULL_WIDTH = 64
"""Channels of ResNet-50's first convolution."""
BLOCKS = {"layer1": 3, "layer2": 4, "layer3": 6, "layer4": 3}
"""Bottlenecks per stage of ResNet-50."""


def is_torchvision(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of a torchvision ResNet with bottlenecks, alone or in a RetinaNet."""
    prefix = _prefix(state)
    return f"{prefix}conv1.weight" in state and f"{prefix}layer1.0.conv3.weight" in state


def torchvision_config(state: Mapping[str, Tensor]) -> ModelConfig:
    """RetinaNet with ESOD of the width in a state dict for which `is_torchvision` holds.

    Raises:
        CheckpointError: the body is another ResNet than the 50-layer one.
    """
    prefix = _prefix(state)
    found = {
        stage: len({k.split(".")[0] for k in (key.removeprefix(f"{prefix}{stage}.") for key in state
                   if key.startswith(f"{prefix}{stage}."))})
        for stage in BLOCKS
    }  # fmt: skip
    if found != BLOCKS:
        raise CheckpointError(
            f"a ResNet with {'-'.join(map(str, found.values()))} blocks; RetinaNet here is ResNet-50 "
            f"({'-'.join(map(str, BLOCKS.values()))})"
        )
    width = state[f"{prefix}conv1.weight"].shape[0] / FULL_WIDTH
    return ModelConfig(
        family="retinanet",
        depth=1.0,
        width=width,
        seeker=SeekerConfig(),
        slicer=SlicerConfig(),
        head=HeadConfig(),
    )


def rename_torchvision(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Torchvision's names as this project's, normalisation folded; returns the tensors and the keys left over."""
    renamed: dict[str, Tensor] = {}
    left_over = []
    for key, tensor in state.items():
        for pattern, name in NAMES:
            match = re.fullmatch(pattern, key)
            if match is not None:
                renamed[match.expand(name)] = tensor.float() if tensor.is_floating_point() else tensor
                break
        else:
            left_over.append(key)
    first, mean = "stem.0.conv.weight", "stem.0.bn.running_mean"
    if mean not in renamed:
        raise CheckpointError("a ResNet without the running mean of its first BatchNorm (bn1.running_mean)")
    renamed[first], renamed[mean] = fold_before_batchnorm(
        renamed[first], renamed[mean], IMAGENET_MEAN, IMAGENET_STD
    )
    return renamed, left_over


def _prefix(state: Mapping[str, Tensor]) -> str:
    return "backbone.body." if "backbone.body.conv1.weight" in state else ""
