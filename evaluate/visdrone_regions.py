"""Ignored regions of VisDrone-DET: which annotations and detections lie in them, by the official rule.

The toolkit paints a map of pixels and sums it; here the map is cut into the cells between the regions' edges,
which gives the same whole numbers without a pixel being touched.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from evaluate.arrays import BoolArray, EvaluationError, FloatArray, round_half_away
from evaluate.visdrone_io import VisDroneImage

DROPPED_SHARE = 0.5
"""Rows with at least this share of their area in ignored regions are dropped."""


@dataclass(frozen=True)
class RegionMap:
    """The union of an image's ignored regions, in cells between their edges.

    Spans are half-open, [from, to) counted from the image's left or top, so pixel column c of the toolkit's
    1-based map is the span [c − 1, c).

    Attributes:
        x_px, y_px: edges [X + 1] and [Y + 1], ascending, original pixels.
        covered: bool [Y, X] cells that lie in a region.
        size_wh: of the image.
    """

    x_px: NDArray[np.float64]
    y_px: NDArray[np.float64]
    covered: BoolArray
    size_wh: tuple[int, int]

    @staticmethod
    def of(regions_xywh: FloatArray, size_wh: tuple[int, int]) -> RegionMap:
        """The map of some regions [R, 4] (whole numbers).

        VisDrone toolkit, ignored regions: every number below 1 becomes 1; columns x to x + w and rows y to
        y + h, both included and 1-based although the file counts from 0, up to the image's last.
        """
        regions = np.maximum(regions_xywh, 1)
        near = regions[:, :2] - 1
        far = np.maximum(np.minimum(np.array(size_wh), regions[:, :2] + regions[:, 2:]), near)
        x_px, y_px = (np.unique(np.concatenate((near[:, axis], far[:, axis]))) for axis in (0, 1))
        inside_x, inside_y = (
            ((near[:, axis, None] <= edges[:-1]) & (edges[1:] <= far[:, axis, None])).astype(np.float64)
            for axis, edges in ((0, x_px), (1, y_px))
        )
        return RegionMap(x_px, y_px, inside_y.T @ inside_x > 0, size_wh)

    def drops(self, xywh: FloatArray) -> BoolArray:
        """[N, 4] boxes → [N] whether at least half of a box is covered.

        VisDrone toolkit, dropping of rows: x, y, w, h are rounded (halves away from zero) and raised to at
        least 1; the covered pixels of columns x + 1 to x + w and rows y + 1 to y + h, as far as they are in
        the image, are compared with w·h, which is not clipped.
        """
        boxes = np.maximum(round_half_away(xywh), 1)
        image = np.array(self.size_wh, dtype=np.float64)
        near, far = np.minimum(image, boxes[:, :2]), np.minimum(image, boxes[:, :2] + boxes[:, 2:])
        columns = _common_lengths(near[:, 0], far[:, 0], self.x_px)
        rows = _common_lengths(near[:, 1], far[:, 1], self.y_px)
        # All whole numbers, so the products and their sums are exact.
        covered_px = ((rows @ self.covered.astype(np.float64)) * columns).sum(axis=1)
        dropped: BoolArray = covered_px / boxes[:, 2:].prod(axis=1) >= DROPPED_SHARE
        return dropped


def _common_lengths(near: FloatArray, far: FloatArray, edges: FloatArray) -> NDArray[np.float64]:
    """Spans [N] and edges [K + 1] → [N, K] how much of each cell a span covers."""
    lengths = np.minimum(far[:, None], edges[None, 1:]) - np.maximum(near[:, None], edges[None, :-1])
    common: NDArray[np.float64] = np.maximum(lengths, 0)
    return common


def without_ignored_regions(image: VisDroneImage) -> VisDroneImage:
    """The image as it is evaluated: regions gone, and with them the rows that lie in them; order kept.

    Raises:
        EvaluationError: there are regions, and the image's size is not known.
    """
    region = image.is_region
    if not region.any():
        return image
    if image.size_wh is None:
        raise EvaluationError(f"image {image.name} has ignored regions: its width and height are needed")
    regions = RegionMap.of(image.xywh[region], image.size_wh)
    kept = ~region & ~regions.drops(image.xywh)
    kept_detections = ~regions.drops(image.detection_xywh)
    return replace(
        image,
        xywh=image.xywh[kept],
        counts=image.counts[kept],
        category=image.category[kept],
        detection_xywh=image.detection_xywh[kept_detections],
        score=image.score[kept_detections],
        detection_category=image.detection_category[kept_detections],
    )
