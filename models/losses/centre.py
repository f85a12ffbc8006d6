"""The loss of the centre head (CenterNet, arXiv 1904.07850): class maps, centre offsets and sizes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.assign import PatchTargets
from models.assign_centre import assign_centres, class_maps, targets_of_level
from models.esod import ESODOutput
from models.losses.base import Mean, Term
from utils.config import HypConfig

ALPHA = 2
BETA = 4
"""CenterNet, eq. 1: how little easy positions count, and how little those near an object."""


class CentreLoss(nn.Module):
    """``heat``, ``offset`` and ``size``, each over all levels and divided by the number of objects.

    Objects are counted once per patch that holds their centre, like everywhere in training. Offsets and sizes are
    learned at the centre cell only, by the sum of the absolute errors in x and y; objects that share a cell pull its one
    prediction both ways. They are in grid steps of the level: CenterNet's program measures sizes in pixels of its output
    map, which is the same for its one map, and with three the levels weigh alike.

    Args:
        hyp: weights and options.
    """

    names = ("heat", "offset", "size")
    magnitude = 50.0

    def __init__(self, hyp: HypConfig) -> None:
        super().__init__()
        self.hyp = hyp

    def forward(self, output: ESODOutput, targets: PatchTargets, images: int) -> list[Term]:
        """See `HeadLoss`."""
        heat, offset, size = [], [], []
        for number, level in enumerate(output.levels):
            raw = level.raw.float().squeeze(1)
            found = assign_centres(targets_of_level(targets, number), level.stride, level.grid_hw)
            wanted = class_maps(
                found, len(output.patches), level.grid_hw, raw.shape[1] - 4, self.hyp.center_overlap
            )
            heat.append(penalty_reduced_focal_loss(raw[:, 4:], wanted))
            # Indexing with nothing keeps the predictions in the graph: all processes see the same parameters.
            chosen = raw[found.row]
            offset.append((chosen[:, :2] - found.offset).abs().sum())
            size.append((chosen[:, 2:4] - found.size).abs().sum())
        objects = heat[0].new_full((), float(len(targets.label)))
        sums = (torch.stack(parts).sum() for parts in (heat, offset, size))
        weights = (self.hyp.center_heat, self.hyp.center_offset, self.hyp.center_size)
        return [
            Term(name, Mean(total, objects), weight)
            for name, total, weight in zip(self.names, sums, weights, strict=True)
        ]


def penalty_reduced_focal_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Focal loss that forgives high scores near an object (CenterNet, eq. 1), summed: a scalar.

    −(1 − p)^α · log p where ``wanted`` is 1, −(1 − wanted)^β · p^α · log(1 − p) elsewhere; of logits, so that neither
    logarithm meets a zero.

    Args:
        logits: any shape.
        wanted: the same shape, in 0–1.
    """
    prob = logits.sigmoid()
    positive = (1 - prob).pow(ALPHA) * F.logsigmoid(logits)
    negative = (1 - wanted).pow(BETA) * prob.pow(ALPHA) * F.logsigmoid(-logits)
    return -torch.where(wanted == 1, positive, negative).sum()
