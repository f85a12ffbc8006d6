"""Patches of a trained model over the heatmap threshold: comparing models where they pay for the same area."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.outputs import true_boxes
from evaluate.heatmap import SelectorEvaluator, SelectorMetrics
from models.esod import ESOD, find_candidates
from utils.config import SlicerConfig
from utils.data import Batch
from utils.typed_data import ConfigError

STEPS = 14
"""Halvings of the interval that a threshold is looked for in."""
LEAST_LOGIT, MOST_LOGIT = -12.0, 12.0


@dataclass(frozen=True)
class Look:
    """One image: heatmap probabilities [1, 1, h, w] and labelled boxes [N, 4] in input pixels."""

    prob: Tensor
    boxes_px: Tensor


@torch.inference_mode()
def look_at(model: ESOD, batches: Iterable[Batch], device: torch.device) -> list[Look]:
    """Heatmaps of a model over labelled images; only stem and seeker run.

    Raises:
        ConfigError: the model has no heatmap.
    """
    if model.seeker is None:
        raise ConfigError("a dense model has no heatmap whose occupancy could be chosen: leave occupancy out")
    model.eval()
    looks = []
    for loaded in batches:
        batch = loaded.to(device)
        prob = model.seeker(model.stem(batch.images.to(model.dtype))).float().sigmoid().cpu()
        looks += [Look(prob[i : i + 1], true_boxes(batch, i)[0]) for i in range(len(prob))]
    return looks


def selection(looks: Iterable[Look], slicer: SlicerConfig) -> SelectorMetrics:
    """How well a slicer chooses patches from heatmaps."""
    evaluator = SelectorEvaluator()
    for look in looks:
        candidates = find_candidates(look.prob, slicer)
        patches = candidates.take(int(candidates.keep.sum()))
        map_hw = (look.prob.shape[2], look.prob.shape[3])
        evaluator.update(
            look.prob[0, 0], patches.xyxy_cell, look.boxes_px, map_hw, threshold=slicer.threshold
        )
    return evaluator.compute()


def at_occupancy(looks: list[Look], slicer: SlicerConfig, occupancy: float) -> tuple[float, SelectorMetrics]:
    """The heatmap threshold at which patches cover about this share of the map, and what they cover then.

    By halving: the higher the threshold, the fewer the patches. Where no threshold gives so much or so little, it is
    the nearest one.
    """
    low, high = LEAST_LOGIT, MOST_LOGIT
    best: tuple[float, float, SelectorMetrics] | None = None
    for _ in range(STEPS):
        middle = (low + high) / 2
        threshold = torch.tensor(middle).sigmoid().item()
        found = selection(looks, replace(slicer, threshold=threshold))
        reached = found.occupancy or 0.0
        if best is None or abs(reached - occupancy) < best[0]:
            best = (abs(reached - occupancy), threshold, found)
        low, high = (middle, high) if reached > occupancy else (low, middle)
    assert best is not None
    return best[1], best[2]
