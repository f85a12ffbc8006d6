"""OpenMMLab's RTMDet and CSPNeXt files as configuration and weights of this project's RTMDet.

Takes a state dict that somebody else has read: of a detector (body and neck land here; its last convolutions per level
and its head are left over) or of an ImageNet classifier (the body lands). The input normalisation of these networks is
folded into the first convolution, so the result takes RGB in 0–1 as every model here does. Whole pickled networks of
the released ESOD are `models.convert.networks`'s matter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from models.backbones.cspnext import CHANNELS, NECK_REPEATS, REPEATS
from models.convert.input_folding import IMAGENET_MEAN, IMAGENET_STD, fold_before_batchnorm
from models.layers import scale_channels, scale_repeats
from utils.checkpoint import CheckpointError
from utils.config import ModelConfig

PREFIXES = {
    "backbone.stem.0": "stem.0",
    "backbone.stem.1": "stem.1",
    "backbone.stem.2": "stem.2",
    "backbone.stage1.0": "stem.3",
    "backbone.stage1.1": "stem.4",
    "backbone.stage2.0": "stem.5",
    "backbone.stage2.1": "stem.6",
    "backbone.stage3.0": "deep.stage4.0",
    "backbone.stage3.1": "deep.stage4.1",
    "backbone.stage4.0": "deep.stage5.0",
    "backbone.stage4.1.conv1": "deep.stage5.1.cv1",
    "backbone.stage4.1.conv2": "deep.stage5.1.cv2",
    "backbone.stage4.2": "deep.stage5.2",
    "neck.reduce_layers.0": "neck.lateral5",
    "neck.reduce_layers.1": "neck.lateral4",
    "neck.top_down_blocks.0": "neck.top_down4",
    "neck.top_down_blocks.1": "neck.top_down3",
    "neck.downsamples.0": "neck.down3",
    "neck.downsamples.1": "neck.down4",
    "neck.bottom_up_blocks.0": "neck.bottom_up4",
    "neck.bottom_up_blocks.1": "neck.bottom_up5",
}
"""Names inside a block are the same on both sides."""
FIRST_WEIGHT, FIRST_MEAN = "stem.0.conv.weight", "stem.0.bn.running_mean"

CONVOLUTIONS = ("stem.0", "stem.2", "stage1.0", "stage2.0", "stage3.0", "stage4.0")
"""Of the body, whose channels are `CHANNELS` scaled by width."""
STAGES = ("stage1.1", "stage2.1", "stage3.1", "stage4.2")
"""Of the body, whose blocks are `REPEATS` scaled by depth."""
DEPTHS = (0.167, 0.33, 0.67, 1.0, 1.33)
"""Of the sizes tiny, s, m, l and x."""
CHANNEL_MULTIPLES = (8, 4)
BN_EPS = 1e-5
"""The published configurations say only ``SyncBN``, for which OpenMMLab takes PyTorch's epsilon."""


def is_openmmlab_rtmdet(state: Mapping[str, Tensor]) -> bool:
    """Whether these are OpenMMLab's names of a CSPNeXt body, alone or in an RTMDet."""
    return (
        "backbone.stem.0.conv.weight" in state
        and "backbone.stage1.1.blocks.0.conv2.depthwise_conv.conv.weight" in state
    )


def openmmlab_rtmdet_config(state: Mapping[str, Tensor]) -> ModelConfig:
    """RTMDet with ESOD of the size in a state dict for which `is_openmmlab_rtmdet` holds.

    Raises:
        CheckpointError: not one of the sizes tiny, s, m, l and x, or not the body for strides to 32.
    """
    if any(key.startswith("backbone.stage5.") for key in state):
        raise CheckpointError(
            "a CSPNeXt with a fifth stage (P6), to stride 64; RTMDet here ends at stride 32"
        )
    channels = tuple(_out_channels(state, f"backbone.{name}") for name in CONVOLUTIONS)
    width = channels[-1] / CHANNELS[-1]
    for multiple in CHANNEL_MULTIPLES:
        if channels == tuple(scale_channels(c, width, multiple) for c in CHANNELS):
            break
    else:
        raise CheckpointError(f"convolutions of {channels} channels; RTMDet's are {CHANNELS} times one width")
    return ModelConfig(
        family="rtmdet", depth=_depth(state), width=width, channel_multiple=multiple, bn_eps=BN_EPS
    )


def rename_openmmlab_rtmdet(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """OpenMMLab's names as this project's, normalisation folded; returns the tensors and the keys left over.

    A detector takes BGR, a classifier RGB; both are normalised with ImageNet's mean and standard deviation.

    Raises:
        CheckpointError: there is no first convolution with its BatchNorm.
    """
    renamed: dict[str, Tensor] = {}
    left_over = []
    for key, tensor in state.items():
        prefix = next((p for p in PREFIXES if key.startswith(f"{p}.")), None)
        if prefix is None:
            left_over.append(key)
        else:
            renamed[PREFIXES[prefix] + key.removeprefix(prefix)] = (
                tensor.float() if tensor.is_floating_point() else tensor
            )
    if FIRST_MEAN not in renamed or FIRST_WEIGHT not in renamed:
        raise CheckpointError("a CSPNeXt without its first convolution or the BatchNorm behind it (stem.0)")
    bgr = any(key.startswith(("neck.", "bbox_head.")) for key in state)
    mean, std = (IMAGENET_MEAN[::-1], IMAGENET_STD[::-1]) if bgr else (IMAGENET_MEAN, IMAGENET_STD)
    renamed[FIRST_WEIGHT], renamed[FIRST_MEAN] = fold_before_batchnorm(
        renamed[FIRST_WEIGHT], renamed[FIRST_MEAN], mean, std, bgr=bgr
    )
    return renamed, left_over


def _out_channels(state: Mapping[str, Tensor], name: str) -> int:
    weight = state.get(f"{name}.conv.weight")
    if weight is None or weight.ndim != 4:
        raise CheckpointError(f"a CSPNeXt without the convolution {name}.conv.weight")
    return weight.shape[0]


def _depth(state: Mapping[str, Tensor]) -> float:
    """Depth multiple, by the numbers of blocks."""
    found = [_blocks(state, f"backbone.{stage}") for stage in STAGES]
    expected = [*REPEATS]
    in_neck = _blocks(state, "neck.top_down_blocks.0")
    if in_neck:
        found.append(in_neck)
        expected.append(NECK_REPEATS)
    for depth in DEPTHS:
        if found == [scale_repeats(count, depth) for count in expected]:
            return depth
    raise CheckpointError(
        f"stages of {'-'.join(map(str, found))} blocks; RTMDet's are {'-'.join(map(str, expected))} times one of "
        f"{', '.join(map(str, DEPTHS))}, rounded"
    )


def _blocks(state: Mapping[str, Tensor], stage: str) -> int:
    pattern = re.compile(re.escape(stage) + r"\.blocks\.(\d+)\.conv1\.conv\.weight")
    return sum(pattern.fullmatch(key) is not None for key in state)
