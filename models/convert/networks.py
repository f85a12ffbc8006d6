"""Checkpoints of other software, whole pickled networks, as configurations and weights of this one.

Works on the plain data that `utils.pickle_reader` extracts; it neither opens files nor builds modules.
The layer numbering of the sources is documented in docs/method.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from models.backbones.cspnext import SPP_KERNELS as RTMDET_POOLS
from models.layers import scale_channels
from models.levels import STRIDES
from utils.checkpoint import CheckpointError
from utils.config import Anchors, HeadConfig, ModelConfig, SeekerConfig, SlicerConfig
from utils.pickle_reader import PickledNetwork

SEEKER_LAYERS = 3
"""Context, prediction and selection: with them everything behind the stem has numbers that much higher."""
IGNORED = re.compile(r"\.(anchors|anchor_grid|sparse_gird|dfl\.conv\.weight)$")
"""Buffers of the sources that this project keeps in its configuration or does not need."""


@dataclass(frozen=True)
class Layout:
    """How a family is numbered (``model.<index>.…``).

    Attributes:
        family: of `ModelConfig`.
        stem: index → prefix here.
        after: index → prefix here of what is behind the stem, in the numbering without heatmap head.
        seeker_at: index of the heatmap head's first layer, where there is one.
        head_at: index of the detection layer in the numbering without heatmap head.
        inner: rewrites what follows the prefix.
    """

    family: Literal["yolov5", "yolov8", "retinanet", "rtmdet"]
    stem: Mapping[int, str]
    after: Mapping[int, str]
    seeker_at: int
    head_at: int
    inner: Callable[[str, str], str] = lambda prefix, rest: rest


def _inner_yolov8(prefix: str, rest: str) -> str:
    """``cv2.<level>.<0, 1 or 2>`` of YOLOv8's head are the box branch, ``cv3`` the class branch."""
    match = re.fullmatch(r"cv([23])\.(\d+)\.(\d)\.(.+)", rest)
    if prefix != "head.levels" or match is None:
        return rest
    branch = {"2": "reg", "3": "cls"}[match[1]]
    part = f"{branch}_pred" if match[3] == "2" else f"{branch}_conv.{match[3]}"
    return f"{match[2]}.{part}.{match[4]}"


YOLOV5 = Layout(
    "yolov5",
    {index: f"stem.{index}" for index in range(5)},
    {
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
    },
    seeker_at=5,
    head_at=24,
)
YOLOV8 = Layout(
    "yolov8",
    {index: f"stem.{index}" for index in range(5)},
    {
        5: "deep.stage4.0",
        6: "deep.stage4.1",
        7: "deep.stage5.0",
        8: "deep.stage5.1",
        9: "deep.stage5.2",
        12: "neck.top_down4",
        15: "neck.top_down3",
        16: "neck.down3",
        18: "neck.bottom_up4",
        19: "neck.down4",
        21: "neck.bottom_up5",
    },
    seeker_at=5,
    head_at=22,
    inner=_inner_yolov8,
)
RETINANET = Layout(
    "retinanet",
    {0: "stem.0", 2: "stem.2", 3: "stem.3"},
    {
        4: "deep.stage4",
        5: "deep.stage5",
        6: "neck.inner.2",
        7: "neck.output.2",
        9: "neck.inner.1",
        11: "neck.output.1",
        13: "neck.inner.0",
        15: "neck.output.0",
    },
    seeker_at=4,
    head_at=16,
    inner=lambda prefix, rest: rest.removeprefix("m.") if prefix.startswith(("stem", "deep")) else rest,
)
RTMDET = Layout(
    "rtmdet",
    {index: f"stem.{index}" for index in range(7)},
    {
        7: "deep.stage4.0",
        8: "deep.stage4.1",
        9: "deep.stage5.0",
        10: "deep.stage5.1",
        11: "deep.stage5.2",
        12: "neck.lateral5",
        15: "neck.top_down4",
        16: "neck.lateral4",
        19: "neck.top_down3",
        20: "neck.down3",
        22: "neck.bottom_up4",
        23: "neck.down4",
        25: "neck.bottom_up5",
    },
    seeker_at=7,
    head_at=26,
)


def config_of_released(network: PickledNetwork) -> ModelConfig:
    """The configuration that rebuilds a released network: of ESOD, YOLOv5 or YOLOv8.

    Raises:
        CheckpointError: the architecture is of another family, or something needed is missing.
    """
    layout = layout_of(network)
    state, plan = network.state_dict, network.yaml
    seeker = has_seeker(state, layout)
    layers = [*plan.get("backbone", []), *plan.get("head", [])]
    common = ModelConfig(
        family=layout.family,
        seeker=_seeker_config(state, layout) if seeker else SeekerConfig(kind="none"),
        slicer=_slicer_config(layers) if seeker else SlicerConfig(algorithm="none"),
        bn_eps=network.bn_eps,
        num_classes=len(network.names),
        names=[str(name) for name in network.names],
    )
    return _family_config(common, network, layers, SEEKER_LAYERS if seeker else 0)


def rename_released(state: Mapping[str, Tensor], layout: Layout) -> tuple[dict[str, Tensor], list[str]]:
    """Released keys (``model.<index>.…``) as this project's; returns the tensors and the keys left over."""
    shift = SEEKER_LAYERS if has_seeker(state, layout) else 0
    prefixes = dict(layout.stem) | {index + shift: name for index, name in layout.after.items()}
    prefixes[layout.head_at + shift] = "head.levels"
    if shift:
        prefixes |= {layout.seeker_at: "seeker.context", layout.seeker_at + 1: "seeker.predict"}
    renamed, left_over = {}, []
    for key, tensor in state.items():
        match = re.fullmatch(r"model\.(\d+)\.(.+)", key)
        if match is None or int(match[1]) not in prefixes:
            left_over.append(key)
        elif not IGNORED.search(key):
            prefix = prefixes[int(match[1])]
            renamed[_join(prefix, layout.inner(prefix, match[2]))] = (
                tensor.float() if tensor.is_floating_point() else tensor
            )
    return renamed, left_over


def layout_of(network: PickledNetwork) -> Layout:
    """The family's numbering, by the kinds of layers that the architecture names.

    Raises:
        CheckpointError: none of those known.
    """
    kinds = _kinds(network.yaml)
    by_kind = {"ResBlockLayer": RETINANET, "RTMDetCSPLayer": RTMDET, "C2f": YOLOV8, "C3": YOLOV5}
    for kind, layout in by_kind.items():
        if kind in kinds:
            return layout
    raise CheckpointError(
        f"the architecture in this checkpoint (layers {', '.join(sorted(kinds)[:12]) or 'unknown'}) is none of those that "
        "can be converted: YOLOv5 v5.0 and v6, YOLOv8, and ESOD with YOLOv5, RTMDet or RetinaNet"
    )


def has_seeker(state: Mapping[str, Tensor], layout: Layout) -> bool:
    """Whether a released state dict holds the heatmap head."""
    weight = state.get(f"model.{layout.seeker_at + 1}.m.0.weight")
    return weight is not None and weight.ndim == 4 and weight.shape[0] == 1


def _family_config(
    common: ModelConfig, network: PickledNetwork, layers: list[Any], shift: int
) -> ModelConfig:
    """The fields that differ from family to family."""
    state, plan = network.state_dict, network.yaml
    if common.family == "yolov8":
        depth, width = _yolov8_multiples(plan)
        head = HeadConfig(kind="dfl", bins=_bins(state))
        return replace(common, depth=depth, width=width, max_channels=_max_channels(state, width), head=head)
    head_at = layout_of(network).head_at + shift
    decoupled = f"model.{head_at}.m.0.stem.conv.weight" in state
    head = HeadConfig(kind="decoupled" if decoupled else "single")
    width, anchors = _multiple(plan, "width_multiple"), _anchors(state, head_at)
    if common.family == "retinanet":
        return replace(common, depth=1.0, width=width, head=head, anchors=anchors)
    common = replace(common, depth=_multiple(plan, "depth_multiple"), width=width, head=head, anchors=anchors)
    if common.family == "rtmdet":
        _check_rtmdet_pools(_spp_kernels(layers, 7 + shift))
        return common
    body = _body(state)
    return replace(common, body=body, spp_kernels=_spp_kernels(layers, 5 + shift) if body == "v5.0" else [5])


def _check_rtmdet_pools(kernels: list[int]) -> None:
    """Pooling sizes leave no trace in the tensors; RTMDet's are not configurable here."""
    if kernels != list(RTMDET_POOLS):
        raise CheckpointError(
            f"the SPP layer of this checkpoint pools {kernels}; RTMDet's pools {list(RTMDET_POOLS)}"
        )


def _kinds(plan: Mapping[str, Any]) -> set[str]:
    """Names of the layers of an architecture, without the module they are in."""
    layers = [*plan.get("backbone", []), *plan.get("head", [])]
    return {
        str(layer[2]).rsplit(".", 1)[-1] for layer in layers if isinstance(layer, list) and len(layer) > 2
    }


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


def _yolov8_multiples(plan: Mapping[str, Any]) -> tuple[float, float]:
    """Depth and width: written as such, or (newer files) as a letter into a table of scales."""
    scales, scale = plan.get("scales"), plan.get("scale")
    if isinstance(scales, dict) and scale in scales and "depth_multiple" not in plan:
        row = scales[scale]
        if isinstance(row, (list, tuple)) and len(row) >= 2:
            plan = {"depth_multiple": row[0], "width_multiple": row[1]}
    return _multiple(plan, "depth_multiple"), _multiple(plan, "width_multiple")


def _max_channels(state: Mapping[str, Tensor], width: float) -> int:
    """Channels of YOLOv8's last stage before scaling."""
    weight = state.get("model.7.conv.weight")
    for most in (1024, 768, 512):
        if weight is not None and weight.shape[0] == scale_channels(most, width):
            return most
    raise CheckpointError(
        "the last stage of this checkpoint (model.7) has not the channels of a YOLOv8 of its width"
    )


def _bins(state: Mapping[str, Tensor]) -> int:
    weight = state.get("model.22.cv2.0.2.weight")
    if weight is None or weight.shape[0] % 4:
        raise CheckpointError("the detection layer of this checkpoint (model.22) is not YOLOv8's")
    return int(weight.shape[0]) // 4


def _seeker_config(state: Mapping[str, Tensor], layout: Layout) -> SeekerConfig:
    key = f"model.{layout.seeker_at}.conv.weight"
    return (
        SeekerConfig(kind="conv", kernel=int(state[key].shape[-1])) if key in state else SeekerConfig("spp")
    )


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
    raise CheckpointError("the architecture in this checkpoint has no SPP layer behind its stem")


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
