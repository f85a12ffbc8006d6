"""The training criterion: named losses of a head and of the heatmap, weighed and shared between processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from models.assign import targets_in_patches
from models.esod import ESODOutput
from models.losses.anchor import AnchorLoss
from models.losses.base import HeadLoss, Mean, Term
from models.losses.centre import CentreLoss
from models.losses.distance import DistanceLoss
from models.losses.heatmap import cell_weights, focal_dice_loss, weighted_bce_loss
from models.slicer import STRIDE
from utils.config import HypConfig, ModelConfig


class DetectionLoss(nn.Module):
    """Named losses of a batch; their weighted sum is ``total``.

    Hyper-parameters and class frequencies are given at construction; no state is kept between calls.
    """

    class_rarity: Tensor

    def __init__(
        self,
        config: ModelConfig,
        hyp: HypConfig,
        class_counts: Tensor | None = None,
        reduce_counts: Callable[[Tensor], Tensor] | None = None,
        world_size: int = 1,
    ) -> None:
        """Build the criterion.

        Args:
            config: of the model: kind of head, anchors, number of classes.
            hyp: weights and options.
            class_counts: [classes] objects per class in the training set, for the class-rarity weight of
                the heatmap's BCE; None: all alike.
            reduce_counts: sums a vector of counts over all processes. With it and world_size, gradients
                averaged over processes (as DDP does) equal those of one process with the joint batch.
            world_size: number of processes.
        """
        super().__init__()
        self.hyp = hyp
        self.across = config.borders == "neighbours"
        self.head = build_head_loss(config, hyp)
        self.names = (*cast(HeadLoss, self.head).names, "heatmap")
        self.reduce_counts = reduce_counts or (lambda counts: counts)
        self.world_size = world_size
        counts = torch.ones(config.num_classes) if class_counts is None else class_counts.float().clamp(min=1)
        self.register_buffer("class_rarity", (counts.max() / counts).sqrt(), persistent=False)

    def forward(self, output: ESODOutput, targets: Tensor, heatmaps: Tensor) -> dict[str, Tensor]:
        """Losses of one batch.

        Args:
            output: of the model in training mode (dense head on every patch).
            targets: [T, 6] (image, class, cx, cy, w, h), boxes in 0–1 of the input.
            heatmaps: [B, 1, H/8, W/8] label heatmaps in 0–1.

        Returns the losses of `names` (this process's share of the mean over all, weighted) and ``total``:
        their sum × the number of images in the joint batch, so that accumulated gradients add up. With no
        object or no patch they are zero or the loss of "nothing is here", never NaN.
        """
        map_hw = (heatmaps.shape[2], heatmaps.shape[3])
        input_hw = (map_hw[0] * STRIDE, map_hw[1] * STRIDE)
        in_patch = targets_in_patches(targets, output.patches, input_hw, self.across)
        terms = self.head(output, in_patch, len(heatmaps))
        heat = self._heatmap(output.heatmap_logits, targets, heatmaps)
        weight = self.hyp.heatmap * cast(HeadLoss, self.head).magnitude
        terms += [Term("heatmap", mean, weight) for mean in heat]
        return self._combine(terms, len(heatmaps))

    def _combine(self, terms: list[Term], images: int) -> dict[str, Tensor]:
        """Weigh and add the terms by name; the counts of all are shared in one go."""
        counts = [term.mean.count.float() for term in terms]
        shared = self.reduce_counts(torch.stack([*counts, self.class_rarity.new_full((), float(images))]))
        losses = dict.fromkeys(self.names, self.class_rarity.new_zeros(()))
        for term, count in zip(terms, shared[:-1], strict=True):
            losses[term.name] = losses[term.name] + term.mean.total / count.clamp(min=1) * term.weight
        # DDP divides by the number of processes what has been divided by the joint counts already.
        losses["total"] = torch.stack(list(losses.values())).sum() * shared[-1] * self.world_size
        return losses

    def _heatmap(self, logits: Tensor | None, targets: Tensor, heatmaps: Tensor) -> list[Mean]:
        """The heatmap's terms; none for a model without a seeker."""
        if logits is None:
            return []
        logits = logits.float()
        if self.hyp.heatmap_loss == "focal_dice":
            return focal_dice_loss(logits, heatmaps)
        return [weighted_bce_loss(logits, heatmaps, cell_weights(targets, heatmaps, self.class_rarity))]


def build_head_loss(config: ModelConfig, hyp: HypConfig) -> nn.Module:
    """The loss of the configured head; see `HeadLoss`."""
    if config.head.kind == "dfl":
        return DistanceLoss(config.head.bins, hyp)
    if config.head.kind == "center":
        return CentreLoss(hyp)
    return AnchorLoss(torch.tensor(config.anchors), hyp)
