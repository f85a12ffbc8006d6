"""What the losses of the heads have in common: named terms, each a sum and what it is over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from models.assign import PatchTargets
from models.esod import ESODOutput


@dataclass
class Mean:
    """A loss as a sum and the number of things it is over, so that processes can share the number."""

    total: Tensor
    count: Tensor


@dataclass
class Term:
    """A part of the loss.

    Attributes:
        name: under which it is reported; terms of one name are added up.
        mean: its value.
        weight: in the total.
    """

    name: str
    mean: Mean
    weight: float


class HeadLoss(Protocol):
    """The loss of one kind of head."""

    names: tuple[str, ...]
    """Of its terms, in the order of the report."""
    magnitude: float
    """About how many times as large as that of `AnchorLoss` its gradient in the stem is, with default weights, when
    training starts (scripts/loss_gradients.py). The heatmap's loss is multiplied by it, so that its weight means the
    same for every head."""

    def __call__(self, output: ESODOutput, targets: PatchTargets, images: int) -> list[Term]:
        """Terms of a batch: always as many, whatever is in it, so that processes can share their counts.

        Args:
            output: of the model in training mode (the head everywhere on every patch).
            targets: objects seen from the patches.
            images: in the batch of this process.
        """
        ...
