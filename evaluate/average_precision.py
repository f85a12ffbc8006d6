"""Average precision over all points ("VOC area") as the official VisDrone and UAVDT toolkits compute it.

Not COCO's: neither 11 nor 101 recall levels. Only the curve; what is a hit is decided by each protocol.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluate.arrays import BoolArray, FloatArray, round_half_away


@dataclass(frozen=True)
class PrecisionRecall:
    """Running precision and recall, 0–1, [K] each, in order of rank (best score first)."""

    precision: FloatArray
    recall: FloatArray

    @property
    def max_recall(self) -> float:
        """The last and largest recall, 0 without rows."""
        return float(self.recall[-1]) if len(self.recall) else 0.0

    def area(self) -> float:
        """Area below the curve whose precision is made to fall: 0–1, 0 without rows.

        From (0, 0) to (1, 0): precision is replaced, from the right, by its running maximum, and multiplied
        by every step of recall.
        """
        recall = np.concatenate(([0.0], self.recall, [1.0]))
        falling = np.maximum.accumulate(np.append(self.precision, 0.0)[::-1])[::-1]
        return float(np.sum(np.diff(recall) * falling)) if len(self.recall) else 0.0


def precision_recall(hit: BoolArray, false_alarm: BoolArray, objects: int) -> PrecisionRecall:
    """The curve of ranked detections.

    Args:
        hit: [K] true positives, best score first.
        false_alarm: [K] false positives; a row that is neither is neutral: it adds to neither count.
        objects: number that recall refers to; 0 counts as 1, as in the toolkits.
    """
    hits, alarms = np.cumsum(hit), np.cumsum(false_alarm)
    return PrecisionRecall(hits / np.maximum(1, hits + alarms), hits / max(1, objects))


def printed(value: float | None, digits: int = 2) -> str:
    """A number as the toolkits print it: halves away from zero; n/a for "not defined"."""
    return "n/a" if value is None else f"{rounded(value, digits):.{digits}f}"


def rounded(value: float, digits: int = 2) -> float:
    """A number to some digits after the point, halves away from zero."""
    scale = 10**digits
    return float(round_half_away(np.float64(value * scale)) / scale)
