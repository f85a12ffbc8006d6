"""Patches for training: where the deep part learns.

Not the slicer of inference: it sees the label heatmap too, keeps the fixed grid (so that the borders of
patches fall anywhere relative to objects) and adds empty patches, without which the deep part would never
see background that looks like objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from models.slicer import Patches, fixed_grid, patch_cells, whole_map
from utils.config import HypConfig, SlicerConfig

LABEL_THRESHOLD = 0.5
"""A label cell at or above this is an object: every box has one (see utils/heatmap.py)."""
MOST_WARMUP = 1 / 3
MIN_PATCHES = 2
"""Least number of patches in a batch, so that BatchNorm always has statistics and no rank runs dry."""


@dataclass(frozen=True)
class TrainingSelector:
    """Chooses the patches of one training step; give it to the model's forward as ``select``.

    Attributes:
        label: [B, 1, H/8, W/8] label heatmaps in 0–1.
        slicer: of the model.
        mode: "uniform": the whole grid; "selected": label ∪ prediction ∪ random empty patches.
        empty_share: probability that a patch without label and prediction is kept.
        use_prediction: False during warm-up.
        generator: of the random empties, on the CPU.
    """

    label: Tensor
    slicer: SlicerConfig
    mode: str
    empty_share: float
    use_prediction: bool
    generator: torch.Generator

    def __call__(self, logits: Tensor) -> Patches:
        """Patches from heatmap logits [B, 1, H/8, W/8]."""
        map_hw = (logits.shape[2], logits.shape[3])
        if self.slicer.algorithm == "none":
            return whole_map(len(logits), map_hw, logits.device)
        grid = fixed_grid(len(logits), map_hw, self.slicer.patches_per_side, logits.device)
        if self.mode == "uniform":
            return grid
        wanted = self.label >= LABEL_THRESHOLD
        if self.use_prediction:
            wanted = wanted | (logits.float().sigmoid() >= self.slicer.threshold)
        occupied = wanted.flatten()[patch_cells(grid, map_hw)].flatten(1).any(dim=1)
        chance = torch.rand(len(grid), generator=self.generator).to(logits.device)
        # The most favoured patches are there whatever the threshold says.
        favoured = torch.zeros_like(occupied)
        favoured[(chance - occupied.float()).topk(min(MIN_PATCHES, len(grid)), largest=False).indices] = True
        index = (occupied | favoured | (chance < self.empty_share)).nonzero().squeeze(1)
        return Patches(grid.image_index[index], grid.xyxy_cell[index], grid.size_cell)


def training_selector(
    label: Tensor,
    slicer: SlicerConfig,
    hyp: HypConfig,
    progress: float,
    epochs: int,
    generator: torch.Generator,
) -> TrainingSelector:
    """The selector of a step.

    Args:
        label: [B, 1, H/8, W/8].
        slicer, hyp: of the run.
        progress: share of the run that is over, 0–1.
        epochs: of the run. The label alone chooses for hyp.heatmap_warmup_epochs, but for no more than
            `MOST_WARMUP` of the run: a short run must see its own predictions too.
        generator: of this step's random numbers.
    """
    warmup = min(hyp.heatmap_warmup_epochs / epochs, MOST_WARMUP)
    return TrainingSelector(
        label=label,
        slicer=slicer,
        mode=hyp.train_patches,
        empty_share=hyp.empty_patch_share,
        use_prediction=progress >= warmup,
        generator=generator,
    )


def resize_label(label: Tensor, map_hw: tuple[int, int]) -> Tensor:
    """Label heatmaps at another map size (multi-scale training), peaks kept. [B,1,h,w] → [B,1,*map_hw]."""
    return F.adaptive_max_pool2d(label, map_hw)
