"""What a detector found in one image: the common currency between models, evaluation and drawing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.boxes import Letterbox


@dataclass
class Detections:
    """Detections of one image, best score first.

    Attributes:
        xyxy: [N, 4] float32, corners in pixels of the original image.
        score: [N] float32 in 0–1.
        label: [N] int64 class index.
    """

    xyxy: Tensor
    score: Tensor
    label: Tensor

    def __len__(self) -> int:
        return int(self.score.numel())

    @classmethod
    def empty(cls, device: torch.device | str = "cpu") -> Detections:
        """No detections: three empty tensors of the right shapes and types."""
        return cls(
            torch.zeros((0, 4), device=device),
            torch.zeros(0, device=device),
            torch.zeros(0, dtype=torch.int64, device=device),
        )

    def to(self, device: torch.device | str) -> Detections:
        """The same detections on another device."""
        return Detections(self.xyxy.to(device), self.score.to(device), self.label.to(device))

    def select(self, index: Tensor) -> Detections:
        """Those at an index or boolean mask."""
        return Detections(self.xyxy[index], self.score[index], self.label[index])


class PredictionLike(Protocol):
    """What drawing and writing need to know about the prediction for one image; any such object will do."""

    @property
    def detections(self) -> Detections:
        """In pixels of the original image."""

    @property
    def heatmap(self) -> NDArray[np.float32] | None:
        """[h, w] in 0–1, stretched over the network input (padding included); None: the model has none."""

    @property
    def patches_orig(self) -> NDArray[Any]:
        """[K, 4] corners of the patches in pixels of the original image; may reach into the padding."""

    @property
    def letterbox(self) -> Letterbox:
        """How the original image was placed in the network input."""

    @property
    def times_ms(self) -> Mapping[str, float]:
        """Milliseconds by stage, in the order the stages ran."""
