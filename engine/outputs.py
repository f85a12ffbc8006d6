"""Reading a batch and the model's output image by image."""

from __future__ import annotations

import torch
from torch import Tensor

from models.esod import ESODOutput
from utils.boxes import cxcywh_to_xyxy
from utils.data import Batch


def image_patches(output: ESODOutput, image: int) -> Tensor:
    """Patches [K, 4] of one image of the batch in cells, on the CPU."""
    return output.patches.xyxy_cell[output.patches.image_index == image].cpu()


def image_heatmap(output: ESODOutput, image: int) -> Tensor | None:
    """Heatmap probabilities [h, w] of one image of the batch on the CPU; None without a seeker."""
    return None if output.heatmap_logits is None else output.heatmap_logits[image, 0].float().sigmoid().cpu()


def true_boxes(batch: Batch, image: int) -> tuple[Tensor, Tensor]:
    """Labelled boxes [N, 4] xyxy in input pixels and classes [N] of one image of the batch, on the CPU."""
    rows = batch.targets[batch.targets[:, 0] == image].cpu()
    height, width = batch.images.shape[2:]
    boxes = cxcywh_to_xyxy(rows[:, 2:]) * torch.tensor([width, height, width, height])
    return boxes, rows[:, 1].long()
