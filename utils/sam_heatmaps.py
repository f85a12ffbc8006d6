"""Label heatmaps of whole images by Segment Anything: what utils/prepare.py asks for, put together."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from utils.datasets.base import BoxArray
from utils.dist import select_device
from utils.heatmap import HeatmapFile
from utils.images import ByteImage
from utils.mask_heatmap import MaskMode, mask_heatmap_file
from utils.sam import Builders, SamType, check_sam, load_sam, sam_fingerprint


class SamHeatmaps:
    """A `utils.prepare.MaskSource`: masks of SAM, in the mode "sam" or "hybrid".

    Attributes:
        mode: see `utils.mask_heatmap.label_values`.
        identity: of the weights, their type and the method; another one makes heatmaps anew.
    """

    def __init__(
        self,
        weights: Path,
        sam_type: SamType,
        mode: MaskMode,
        device: str = "",
        builders: Builders | None = None,
    ) -> None:
        """The network itself is loaded with the first image: where all heatmaps are there, it never is.

        Args:
            weights, sam_type, builders: see `utils.sam.load_sam`.
            mode: of the heatmaps.
            device: as for --device.

        Raises:
            SamError, DeviceError: with what to do about it; as far as it can be known without loading.
        """
        check_sam(weights, sam_type)
        self.mode: MaskMode = mode
        self.identity = sam_fingerprint(weights, sam_type)
        own = select_device(device)
        self._masker = cache(lambda: load_sam(weights, sam_type, own, builders))

    def heatmap(self, image: ByteImage, boxes: BoxArray, tau: float, fingerprint: str) -> HeatmapFile:
        """Heatmap file of an image uint8 [H, W, 3] RGB with boxes float64 [N, 4] (corners_orig)."""
        masks = self._masker().object_masks(image, boxes)
        centred = np.hstack([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]])
        file, fallbacks = mask_heatmap_file(
            masks, centred, (image.shape[0], image.shape[1]), tau, self.mode, fingerprint
        )
        return replace(file, fallbacks={reason.value: count for reason, count in sorted(fallbacks.items())})
