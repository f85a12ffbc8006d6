"""What TinyPerson's two metrics share: overlapping pairs, and the second look at ignored objects.

Which objects are ignored, and which overlap counts, differs between the metrics and is written there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluate.arrays import BoolArray, FloatArray, IntArray
from evaluate.candidates import Overlaps, overlaps_of
from evaluate.tinyperson_io import TinyPersonData

THRESHOLDS = (0.25, 0.5, 0.75)
OVERLAP_LIMIT = 1 - 1e-10
"""A threshold above this counts as this."""


@dataclass(frozen=True)
class Flags:
    """Options of the official program, and what they are there.

    Attributes:
        ignore_uncertain: objects marked "uncertain" are ignored.
        use_iod_for_ignore: detections without a match are compared with ignored objects a second time, by
            `Fallback`.
    """

    ignore_uncertain: bool = True
    use_iod_for_ignore: bool = True

    def __str__(self) -> str:
        return f"ignore_uncertain={self.ignore_uncertain},use_iod_for_ignore={self.use_iod_for_ignore}"


def all_overlaps(data: TinyPersonData) -> Overlaps:
    """Every pair of the same image and category that overlaps at all."""
    return overlaps_of(data.detections.boxes, data.objects.boxes)


@dataclass(frozen=True)
class Fallback:
    """The measure by which a detection without a match may still belong to an ignored object.

    TinyBenchmark, use_iod_for_ignore: q = o / (1 + o) · (1 + A / a), with o the overlap of the pair, A the area
    field of the object and a = w·h of the detection. With o an IoU and A = w·h it is exactly the IoD; with o
    an IoD already it is larger than that. Both are computed as they stand.

    Attributes:
        detection, truth, measure: pairs [P] in order of detection, in that the largest measure first, of equal
            ones the first object.
    """

    detection: IntArray
    truth: IntArray
    measure: FloatArray

    @staticmethod
    def of(data: TinyPersonData, pairs: Overlaps, overlap: FloatArray) -> Fallback:
        """The measure of all pairs.

        Args:
            data: for the areas.
            pairs: which detections and objects.
            overlap: [P] o of each pair.
        """
        share = data.objects.area[pairs.truth] / data.detections.area[pairs.detection]
        measure = overlap / (1 + overlap) * (1 + share)
        order = np.lexsort((pairs.truth, -measure, pairs.detection))
        return Fallback(pairs.detection[order], pairs.truth[order], measure[order])

    def best(self, ignored: BoolArray) -> Fallback:
        """The best ignored object of each detection; at most one row per detection.

        Args:
            ignored: [N] by object.
        """
        rows = np.flatnonzero(ignored[self.truth])
        rows = rows[np.diff(self.detection[rows], prepend=-1) > 0]
        return Fallback(self.detection[rows], self.truth[rows], self.measure[rows])
