"""Checkpoints of other YOLOv5-style software as configurations and weights of this one.

Works on the plain data that `utils.pickle_reader` extracts; it neither opens files nor builds modules.
The layer numbering of the sources is documented in docs/method.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from utils.checkpoint import CheckpointError
from utils.config import Anchors, HeadConfig, ModelConfig, SeekerConfig, SlicerConfig
from utils.pickle_reader import PickledNetwork

STRIDES = (8, 16, 32)

STEM = {index: f"stem.{index}" for index in range(5)}
SEEKER = {5: "seeker.context", 6: "seeker.predict"}
AFTER_STEM = {
    5: "deep.stage4.0",
    6: "deep.stage4.1",
    7: "deep.stage5.0",
    8: "deep.stage5.1",
    9: "deep.stage5.2",
    10: "neck.lateral5",
    13: "neck.top_down4",
    14: "neck.lateral4",
    17: "neck.top_down3",
    18: "neck.down3",
    20: "neck.bottom_up4",
    21: "neck.down4",
    23: "neck.bottom_up5",
    24: "head.levels",
}
"""Indices of the plain network; with ESOD's three extra layers everything behind the stem is 3 higher."""
SEEKER_LAYERS = 3
HEAD_INDEX = 24
IGNORED = re.compile(r"\.(anchors|anchor_grid|sparse_gird)$")
"""Buffers of the sources that this project keeps in its configuration or does not need."""


def has_seeker(state: Mapping[str, Tensor]) -> bool:
    """Whether a released state dict holds the heatmap head."""
    return "model.6.m.0.weight" in state and state["model.6.m.0.weight"].shape[0] == 1


def config_of_released(network: PickledNetwork) -> ModelConfig:
    """The configuration that rebuilds a released YOLOv5 or YOLOv5 + ESOD network.

    Raises:
        CheckpointError: the architecture is of another family, or something needed is missing.
    """
    state, plan = network.state_dict, network.yaml
    body = _body(state)
    seeker = has_seeker(state)
    head_index = HEAD_INDEX + (SEEKER_LAYERS if seeker else 0)
    decoupled = f"model.{head_index}.m.0.stem.conv.weight" in state
    layers = [*plan.get("backbone", []), *plan.get("head", [])]
    return ModelConfig(
        family="yolov5",
        depth=_multiple(plan, "depth_multiple"),
        width=_multiple(plan, "width_multiple"),
        body=body,
        seeker=_seeker_config(state) if seeker else SeekerConfig(kind="none"),
        slicer=_slicer_config(layers) if seeker else SlicerConfig(algorithm="none"),
        head=HeadConfig(kind="decoupled" if decoupled else "single"),
        spp_kernels=_spp_kernels(layers, SEEKER_LAYERS + 5 if seeker else 5) if body == "v5.0" else [5],
        bn_eps=network.bn_eps,
        num_classes=len(network.names),
        names=[str(name) for name in network.names],
        anchors=_anchors(state, head_index),
    )


def _body(state: Mapping[str, Tensor]) -> Literal["v5.0", "v6"]:
    """Which release of YOLOv5 the body is of, by its first layer and the pooling behind its last stage."""
    if "model.0.conv.conv.weight" in state:
        return "v5.0"
    first = state.get("model.0.conv.weight")
    if first is not None and tuple(first.shape[2:]) == (6, 6) and "model.9.cv2.conv.weight" in state:
        return "v6"
    raise CheckpointError(
        "the architecture in this checkpoint is not YOLOv5's (its first layer is neither Focus nor a 6×6 convolution): "
        "only YOLOv5 v5.0, YOLOv5 v6 and YOLOv5 + ESOD checkpoints can be converted"
    )


def rename_released(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Released keys (``model.<index>.…``) as this project's; returns the tensors and the keys left over."""
    seeker = has_seeker(state)
    shift = SEEKER_LAYERS if seeker else 0
    prefixes = STEM | {index + shift: name for index, name in AFTER_STEM.items()} | (SEEKER if seeker else {})
    renamed, left_over = {}, []
    for key, tensor in state.items():
        match = re.fullmatch(r"model\.(\d+)\.(.+)", key)
        if match is None or int(match[1]) not in prefixes:
            left_over.append(key)
        elif not IGNORED.search(key):
            renamed[_join(prefixes[int(match[1])], match[2])] = (
                tensor.float() if tensor.is_floating_point() else tensor
            )
    return renamed, left_over


def _join(prefix: str, rest: str) -> str:
    if prefix == "seeker.predict":
        return f"{prefix}.{rest.removeprefix('m.0.')}"
    if prefix == "head.levels":
        rest = rest.removeprefix("m.")
        # The single-convolution head is the level itself: "<level>.weight".
        rest = re.sub(r"^(\d+)\.(weight|bias)$", r"\1.predict.\2", rest)
    return f"{prefix}.{rest}"


def _multiple(plan: Mapping[str, Any], key: str) -> float:
    value = plan.get(key)
    if not isinstance(value, (int, float)) or not 0 < value < 100:
        raise CheckpointError(f"the architecture in this checkpoint has no usable {key} (found {value!r})")
    return float(value)


def _seeker_config(state: Mapping[str, Tensor]) -> SeekerConfig:
    if "model.5.conv.weight" in state:
        return SeekerConfig(kind="conv", kernel=int(state["model.5.conv.weight"].shape[-1]))
    return SeekerConfig(kind="spp")


def _slicer_config(layers: list[Any]) -> SlicerConfig:
    """The released grid rule with the patches per side and threshold written in the architecture."""
    for layer in layers:
        if "HeatMapParser" in str(layer[2]):
            _, patches_per_side, threshold = layer[3]
            return SlicerConfig(
                algorithm="grid",
                patches_per_side=int(patches_per_side),
                threshold=float(threshold),
                shift="edge",
            )
    raise CheckpointError(
        "the checkpoint has a heatmap head but its architecture names no patch selection layer"
    )


def _spp_kernels(layers: list[Any], after: int) -> list[int]:
    """Pooling sizes of the body's SPP, the first one behind the stem and seeker."""
    for layer in layers[after:]:
        if str(layer[2]).endswith("SPP"):
            return [int(k) for k in layer[3][1]]
    raise CheckpointError("the architecture in this checkpoint has no SPP layer: it is not YOLOv5 v5.0")


def _anchors(state: Mapping[str, Tensor], head_index: int) -> Anchors:
    """Anchors in pixels, from the buffer in pixels or else from the one in units of the stride."""
    key = f"model.{head_index}.anchor_grid"
    if key in state:
        grid = state[key].float()
        return grid.view(grid.shape[0], -1, 2).tolist()  # type: ignore[no-any-return]
    key = f"model.{head_index}.anchors"
    if key in state:
        return (state[key].float() * torch.tensor(STRIDES).view(-1, 1, 1)).tolist()  # type: ignore[no-any-return]
    raise CheckpointError(
        f"the checkpoint has no anchors (looked for model.{head_index}.anchor_grid and .anchors)"
    )
