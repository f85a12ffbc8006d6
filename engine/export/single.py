"""The single-file form: pixels in, detections out, for one input size and a fixed number of patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deploy.metadata import SingleSettings
from engine.export.borders import block_owners
from engine.export.graphs import PatchGraph
from engine.export.pair import Exportable
from engine.export.selection import GridSelection, gather_patches
from engine.export.suppression import append_suppression
from engine.export.write import Axes, finish_onnx, fold_constants, trace
from models.esod import ESOD
from models.levels import LevelOutput, all_positions
from models.slicer import PATCH_MULTIPLE, STRIDE
from utils.boxes import cxcywh_to_xyxy
from utils.config import ModelConfig
from utils.typed_data import ConfigError

MAX_CANDIDATES = 3840
"""Most boxes that take part in the suppression: the largest number that TensorRT's TopK can give."""


class CandidateGraph(nn.Module):
    """Images → the best-scored boxes of each, before suppression, and how it looked at them.

    Outputs: boxes [B, M, 4] xyxy in input pixels, scores [B, M], classes [B, M] as floats, class_scores [B, C, M] with
    each box's score at its class and zeros elsewhere, patches [B, K, 4] in cells, patch_counts [B], and for models with
    a seeker heatmap [B, 1, H/8, W/8] probabilities.
    """

    def __init__(self, model: ESOD, settings: SingleSettings) -> None:
        super().__init__()
        self.stem, self.seeker, self.rest = model.stem, model.seeker, PatchGraph(model)
        self.head_coder, self.settings = model.coder, settings
        map_hw = (settings.height // STRIDE, settings.width // STRIDE)
        self.select = None
        if model.config.slicer.algorithm != "none":
            self.select = GridSelection(model.config.slicer, map_hw, settings.max_patches)
        self.map_hw = map_hw
        self.classes, self.strides = model.config.num_classes, model.config.strides

    @property
    def output_names(self) -> list[str]:
        """Of what comes out."""
        names = ["boxes", "scores", "classes", "class_scores", "patches", "patch_counts"]
        return names if self.seeker is None else [*names, "heatmap"]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.stem(images)
        prob = None if self.seeker is None else self.seeker(features).sigmoid()
        if self.select is not None and prob is not None:
            corners, used = self.select(prob)
            size = self.select.size
            raws = self.rest(gather_patches(features, corners, size), *self._where(corners, used, size))
        else:
            size, raws = self.map_hw, self.rest(features)
            corners, used = torch.zeros(len(features), 1, 2), torch.ones(len(features), 1)
        boxes, scores = self._decode(raws, corners, size)
        scores = scores * used.unsqueeze(2).repeat(1, 1, scores.shape[1] // used.shape[1]).reshape(
            used.shape[0], -1, 1
        )
        best = self._candidates(boxes, scores)
        patches = torch.cat((corners, corners + torch.tensor([size[1], size[0]]).float()), dim=2)
        looked = (patches, used.sum(dim=1))
        return (*best, *looked) if prob is None else (*best, *looked, prob)

    def _where(self, corners: Tensor, used: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """Where patches lie, for a network that looks beyond their borders."""
        if self.rest.surroundings is None:
            return ()
        blocks = (corners.flip(2) / PATCH_MULTIPLE).long()
        image = torch.arange(len(corners)).view(-1, 1, 1).expand(-1, blocks.shape[1], 1)
        owners = block_owners(corners, used, self.map_hw, size)
        return torch.cat((image, blocks), dim=2).reshape(-1, 3), owners

    def _decode(
        self, raws: tuple[Tensor, ...], corners: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Raw predictions of all patches → boxes [B, N, 4] xyxy in input pixels and scores [B, N, C]."""
        batch, patches = corners.shape[:2]
        boxes, scores = [], []
        for number, (raw, stride) in enumerate(zip(raws, self.strides, strict=True)):
            grid = (size[0] * STRIDE // stride, size[1] * STRIDE // stride)
            position = all_positions(batch * patches, grid, torch.device("cpu"))
            corner_px = (corners * STRIDE).reshape(-1, 1, 2).repeat(1, grid[0] * grid[1], 1).reshape(-1, 2)
            level = LevelOutput(raw.reshape(-1, *raw.shape[2:]), position, stride, grid)
            found = self.head_coder.decode(number, level, corner_px)
            boxes.append(cxcywh_to_xyxy(found.cxcywh_px).reshape(batch, -1, 4))
            score = found.objectness.unsqueeze(-1) * found.class_prob
            # Per level all patches in order; the levels follow each other inside of each patch, for the mask above.
            boxes[-1] = boxes[-1].reshape(batch, patches, -1, 4)
            scores.append(score.reshape(batch, patches, -1, self.classes))
        return (
            torch.cat(boxes, dim=2).reshape(batch, -1, 4),
            torch.cat(scores, dim=2).reshape(batch, -1, self.classes),
        )

    def _candidates(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best-scored boxes above the threshold, as the first four outputs."""
        scores = scores * (scores > self.settings.conf_thres).float()
        if self.settings.multi_label:
            count = min(self.settings.max_candidates, scores.shape[1] * self.classes)
            score, index = scores.reshape(scores.shape[0], -1).topk(count, dim=1)
            # In floats: division of whole numbers, rounded down, becomes a dozen nodes.
            box = ((index.float() + 0.5) / self.classes).floor().long()
            label = index - box * self.classes
        else:
            best, labels = scores.max(dim=2)
            score, box = best.topk(min(self.settings.max_candidates, scores.shape[1]), dim=1)
            label = labels.gather(1, box)
        chosen = boxes.gather(1, box.unsqueeze(2).repeat(1, 1, 4))
        is_class = label.unsqueeze(1) == torch.arange(self.classes).view(1, -1, 1)
        return chosen, score, label.float(), is_class.float() * score.unsqueeze(1)


def single_settings(config: ModelConfig, settings: SingleSettings) -> SingleSettings:
    """The settings, with the number of patches that the graph really has.

    Raises:
        ConfigError: the model's slicer is no fixed graph, or a dense model is asked for several patches.
    """
    if config.slicer.algorithm == "greedy":
        raise ConfigError(
            "slicer greedy places patches one after the other, which is no fixed graph: use --slicer grid"
        )
    if config.slicer.algorithm == "none":
        if settings.max_patches != 1:
            raise ConfigError(
                f"--max-patches {settings.max_patches}: a dense model has one patch over everything; use 1"
            )
        return settings
    map_hw = (settings.height // STRIDE, settings.width // STRIDE)
    count = GridSelection(config.slicer, map_hw, settings.max_patches).count
    return SingleSettings(**{**vars(settings), "max_patches": count})


def export_single(source: Exportable, settings: SingleSettings, folder: Path, name: str) -> Path:
    """Write NAME_kK.onnx; returns its path.

    Raises:
        ConfigError: see `single_settings`.
    """
    settings = single_settings(source.model.config, settings)
    graph = CandidateGraph(source.model, settings)
    example = torch.rand(settings.batch, 3, settings.height, settings.width)
    model: Any = trace(graph, example, Axes(["images"], graph.output_names, {}))
    with torch.no_grad():
        candidates = graph(example)[1].shape[1]
    append_suppression(model, settings, candidates)
    path = folder / f"{name}_k{settings.max_patches}.onnx"
    finish_onnx(fold_constants(model), source.info("single", settings), path)
    return path
