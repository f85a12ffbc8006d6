"""What a dataset gives and a network takes: the types `Sample` and `Batch`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from utils.boxes import Letterbox


@dataclass(frozen=True)
class ImageMeta:
    """Where a sample comes from.

    Attributes:
        path: the image file (of a mosaic or mixup: of its first image).
        index: of that image in the dataset.
        letterbox: how that image lies in the input; with augmentation, how it would without.
        others: further images that a mosaic or mixup took parts of.
    """

    path: Path
    index: int
    letterbox: Letterbox
    others: tuple[Path, ...] = ()


@dataclass(eq=False)
class Sample:
    """One network input with its labels.

    Attributes:
        image: uint8 [3, H, W] RGB.
        boxes: float32 [N, 4] (cx, cy, w, h)_norm of the input.
        labels: int64 [N].
        heatmap: float32 [1, H/8, W/8] in 0–1.
        meta: where it comes from.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    heatmap: Tensor
    meta: ImageMeta


@dataclass(eq=False)
class Batch:
    """Samples of one size, stacked.

    Attributes:
        images: [B, 3, H, W] RGB; uint8 from the loader, float32 in 0–1 after `to`.
        targets: float32 [T, 6], image in the batch, class, (cx, cy, w, h)_norm.
        heatmaps: float32 [B, 1, H/8, W/8] in 0–1.
        metas: of the B samples.
    """

    images: Tensor
    targets: Tensor
    heatmaps: Tensor
    metas: list[ImageMeta]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on a device, with images as float32 in 0–1."""
        images = self.images.to(device, non_blocking=non_blocking)
        if images.dtype == torch.uint8:
            images = images.float().div_(255)
        targets = self.targets.to(device, non_blocking=non_blocking)
        heatmaps = self.heatmaps.to(device, non_blocking=non_blocking)
        return Batch(images, targets, heatmaps, self.metas)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; called by DataLoader."""
        return Batch(
            self.images.pin_memory(), self.targets.pin_memory(), self.heatmaps.pin_memory(), self.metas
        )


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one size into a batch."""
    targets = []
    for number, sample in enumerate(samples):
        image = torch.full((len(sample.labels), 1), float(number))
        targets.append(torch.cat([image, sample.labels[:, None].float(), sample.boxes], dim=1))
    return Batch(
        torch.stack([sample.image for sample in samples]),
        torch.cat(targets),
        torch.stack([sample.heatmap for sample in samples]),
        [sample.meta for sample in samples],
    )
