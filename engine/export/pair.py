"""The two-graph form: a detector as NAME_stem and NAME_patches, any batch, size and number of patches."""

from __future__ import annotations

import hashlib
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from deploy.metadata import ExportInfo, SingleSettings
from deploy.network import CORNERS, FEATURES, OWNERS, PATCHES, STEM
from engine.export.graphs import PatchGraph, StemGraph, check_exportable
from engine.export.write import Axes, finish_onnx, trace
from models.decode import PostprocessConfig
from models.esod import ESOD
from models.slicer import PATCH_MULTIPLE
from utils.config import ModelConfig
from utils.typed_data import config_to_dict

EXAMPLE_HW = (128, 192)
"""Of the input that tracing follows; sides of different lengths, so that none is taken for the other."""
EXAMPLE_PATCHES = (3, 8, 12)
"""Number, height and width in cells of the patches that tracing follows."""


@dataclass(frozen=True)
class Exportable:
    """A network prepared for tracing; made by `prepare`.

    Attributes:
        model: BatchNorm folded, on the CPU, in 32 bits, weights in plain order.
        names: of the classes.
        fingerprint: of the weights and the configuration.
    """

    model: ESOD
    names: list[str]
    fingerprint: str

    def info(self, part: str, single: SingleSettings | None = None) -> ExportInfo:
        """Metadata of one file. The head is written as dense: sparse ones need the graph to change with the image."""
        config = replace(self.model.config, names=self.names)
        config = replace(config, head=replace(config.head, sparse=False))
        use = PostprocessConfig()
        return ExportInfo(
            part=part,
            fingerprint=self.fingerprint,
            names=self.names,
            strides=list(self.model.config.strides),
            parameters=self.model.num_parameters,
            conf_thres=use.conf_thres,
            iou_thres=use.iou_thres,
            max_det=use.max_det,
            config=config_to_dict(config),
            single=single,
        )


def prepare(model: ESOD, names: list[str]) -> Exportable:
    """A copy of a network to be traced.

    Raises:
        ConfigError: it cannot be exported, with the reason.
    """
    check_exportable(model)
    copy = deepcopy(model).to(device="cpu", dtype=torch.float32, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return Exportable(copy.eval().fuse(), names, fingerprint(copy, model.config))


def fingerprint(model: ESOD, config: ModelConfig) -> str:
    """Sixteen hexadecimal digits that tell weights and configurations apart."""
    digest = hashlib.sha256(repr(config).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def export_pair(source: Exportable, folder: Path, name: str) -> tuple[Path, Path]:
    """Write NAME_stem.onnx and NAME_patches.onnx; returns both paths."""
    stem, deep = StemGraph(source.model), PatchGraph(source.model)
    images = torch.rand(2, 3, *EXAMPLE_HW)
    with torch.no_grad():
        channels = stem(images)[0].shape[1]
    height_width = {0: "batch", 2: "height", 3: "width"}
    stem_axes = Axes(["images"], stem.output_names, {"images": height_width})
    stem_path, patches_path = folder / f"{name}{STEM}.onnx", folder / f"{name}{PATCHES}.onnx"
    finish_onnx(trace(stem, images, stem_axes), source.info("stem"), stem_path)
    example, sides = _patch_inputs(source.model, channels)
    patch_axes = Axes(list(sides), deep.output_names, sides)
    finish_onnx(trace(deep, example, patch_axes), source.info("patches"), patches_path)
    return stem_path, patches_path


def _patch_inputs(model: ESOD, channels: int) -> tuple[tuple[Tensor, ...], dict[str, dict[int, str]]]:
    """Examples of what the graph of the patches takes, and which of their sides may change."""
    count, height, width = EXAMPLE_PATCHES
    features = torch.rand(count, channels, height, width)
    sides = {FEATURES: {0: "patches", 2: "rows", 3: "columns"}}
    if model.surroundings is None:
        return (features,), sides
    # Two beside each other, and one in another image.
    corners = torch.tensor([[0, 0, 0], [0, 0, width // PATCH_MULTIPLE], [1, 0, 0]])
    owners = torch.full((2, 3, 7), -1)
    for number, (image, row, column) in enumerate(corners.tolist()):
        owners[image, row : row + height // PATCH_MULTIPLE, column : column + width // PATCH_MULTIPLE] = (
            number
        )
    sides |= {CORNERS: {0: "patches"}, OWNERS: {0: "batch", 1: "block_rows", 2: "block_columns"}}
    return (features, corners, owners), sides
