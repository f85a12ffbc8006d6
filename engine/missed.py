"""What `evaluate.missed` needs, out of a model's output: raw predictions image by image, patches, head positions.

One image at a time is decoded without threshold, so the memory is that of one image's predictions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.outputs import image_patches, true_boxes
from evaluate.arrays import BoolArray, FloatArray, to_array
from evaluate.missed import CAUSES, MissedEvaluator, MissedMetrics, in_some_patch, near_positions
from models.decode import DecodedBoxes, decode
from models.esod import ESODOutput, Network
from models.levels import LevelOutput
from models.slicer import STRIDE, Patches
from utils.boxes import cxcywh_to_xyxy
from utils.data import Batch
from utils.dist import gather_objects
from utils.plots import plot_stacked_bars
from utils.results import Detections


class MissedCollector:
    """Collects batch by batch: give `add` to `engine.evaluation.evaluate`, then call `compute`.

    Args:
        model: that is evaluated, in evaluation mode.
        names: class names, one when ``single_class``.
        single_class: all classes count as one, a box with the score of its best class.
    """

    def __init__(self, model: Network, names: list[str], *, single_class: bool = False) -> None:
        self.model = model
        self.single_class = single_class
        self.evaluator = MissedEvaluator(names)

    def add(self, batch: Batch, output: ESODOutput, found: list[Detections]) -> None:
        """Look at one batch."""
        # A model without a seeker has one patch over everything; one with --slicer none covers the map, too.
        sparse = self.model.config.head.sparse and output.heatmap_logits is not None
        for index, (meta, detections) in enumerate(zip(batch.metas, found, strict=True)):
            boxes_px, label = true_boxes(batch, index)
            boxes = to_array(boxes_px).astype(np.float64)
            patches = to_array(image_patches(output, index))
            part = image_levels(output, index)
            raw = decode(part, self.model.coder)
            score = raw_scores(raw, self.single_class)
            self.evaluator.update(
                meta.index,
                detections.to("cpu"),
                meta.letterbox.to_original(boxes_px),
                label,
                meta.letterbox.to_original(cxcywh_to_xyxy(raw.cxcywh_px)),
                score,
                in_patch=None if output.heatmap_logits is None else in_some_patch(boxes, patches),
                has_position=head_positions_near(part.levels, output.patches, boxes) if sparse else None,
            )

    def gather(self) -> None:
        """Bring the images of all processes to the main one; every process has to call this."""
        states = gather_objects(self.evaluator.state())
        self.evaluator.reset()
        self.evaluator.merge(states)

    def compute(self, best_confidence: float | None, least_score: float) -> MissedMetrics:
        """The causes; arguments as for `MissedEvaluator.compute`."""
        return self.evaluator.compute(best_confidence, least_score)


def image_levels(output: ESODOutput, image: int) -> ESODOutput:
    """The output of a batch with the predictions of one image only; patches stay, so positions stay valid."""
    levels = []
    for level in output.levels:
        rows = output.patches.image_index[level.position[:, 0]] == image
        levels.append(LevelOutput(level.raw[rows], level.position[rows], level.stride, level.grid_hw))
    return ESODOutput(output.heatmap_logits, levels, output.patches)


def raw_scores(raw: DecodedBoxes, single_class: bool) -> Tensor:
    """[N, C] objectness × class probability, the score that suppression sees; [N, 1] of the best class for one class."""
    score = raw.objectness.unsqueeze(1) * raw.class_prob
    return score.amax(dim=1, keepdim=True) if single_class else score


def head_positions_near(levels: list[LevelOutput], patches: Patches, boxes_px: FloatArray) -> BoolArray:
    """[N] whether any level has a position near the centre of each box [N, 4]; see `near_positions`."""
    centre_px = (boxes_px[:, :2] + boxes_px[:, 2:]) / 2
    near = np.zeros(len(boxes_px), dtype=bool)
    for level in levels:
        corner_px = patches.xyxy_cell[level.position[:, 0], :2] * STRIDE
        position_px = corner_px + (level.position[:, [2, 1]].to(torch.float64) + 0.5) * level.stride
        near |= near_positions(centre_px, to_array(position_px), level.stride)
    return near


def plot_missed(metrics: MissedMetrics, path: Path) -> Path:
    """Draw the causes by size as stacked bars; returns the file."""
    groups = [metrics.total, *metrics.by_size]
    return plot_stacked_bars(
        [f"{group.name} px" if group.name[-1].isdigit() else group.name for group in groups],
        [group.labels for group in groups],
        {name: [group.causes[key] for group in groups] for key, (name, _) in CAUSES.items()},
        path,
        title=f"Missed objects by cause: IoU 0.5, confidence ≥ {metrics.confidence:.3f}, {metrics.images} images",
        x_name="size: √area in pixels of the original image (small < 32 ≤ medium < 96 ≤ large)",
        y_name="missed share of the labelled objects",
    )
