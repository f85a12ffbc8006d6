"""Which detections could match which objects, the way the official protocols look at them: (x, y, w, h) boxes
without an added pixel, groups that are compared only within themselves, the last of equal overlaps.

Thresholds, and which overlap counts for which object, belong to the protocol that calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from evaluate.arrays import BoolArray, FloatArray, IntArray
from evaluate.matching import accept_in_order

CHUNK_PAIRS = 1 << 16
"""Pairs compared at a time: their arrays stay in the processor's cache."""


@dataclass(frozen=True)
class GroupedBoxes:
    """Boxes sorted by group: what is compared with what (an image, or one class of an image).

    Attributes:
        xywh: float64 [N, 4] left, top, width, height in original pixels.
        group: int64 [N], ascending.
    """

    xywh: FloatArray
    group: IntArray

    def __len__(self) -> int:
        return len(self.group)


@dataclass(frozen=True)
class Overlaps:
    """Pairs of the same group that overlap, in order of detection, then object; [P] each.

    Attributes:
        detection, truth: indices into the boxes they were made from.
        iou: intersection over union.
        iod: intersection over the detection's own area.
    """

    detection: IntArray
    truth: IntArray
    iou: FloatArray
    iod: FloatArray

    def select(self, index: BoolArray | IntArray) -> Overlaps:
        """Those at an index or boolean mask."""
        return Overlaps(self.detection[index], self.truth[index], self.iou[index], self.iod[index])


def grouped_pairs(detections: IntArray, truths: IntArray) -> Iterator[tuple[IntArray, IntArray]]:
    """All pairs of the same group as (detection, truth) indices, some `CHUNK_PAIRS` at a time.

    Args:
        detections: [D] group of each detection, in any order.
        truths: [T] group of each object, ascending.
    """
    first = np.searchsorted(truths, detections, side="left")
    count = np.searchsorted(truths, detections, side="right") - first
    end = np.cumsum(count)
    total = int(count.sum())
    if total == 0:
        return
    cuts = np.searchsorted(end, np.arange(0, total, CHUNK_PAIRS), side="right")
    for begin, stop in zip(cuts, [*cuts[1:], len(count)], strict=True):
        part = count[begin:stop]
        detection = np.repeat(np.arange(begin, stop), part)
        # Position of a pair among its detection's own: its place in the chunk less where those begin.
        begins = end[begin:stop] - part
        truth = np.arange(len(detection)) + np.repeat(first[begin:stop] - (begins - begins[:1]), part)
        yield detection, truth


def overlaps_of(detections: GroupedBoxes, truths: GroupedBoxes, least: float = 0.0) -> Overlaps:
    """The pairs of the same group that overlap, with an IoU or IoD of at least ``least``.

    Widths and heights are as they stand (no pixel is added); boxes that only touch do not overlap.
    """
    near, far = detections.xywh[:, :2].T.copy(), (detections.xywh[:, :2] + detections.xywh[:, 2:]).T.copy()
    truth_near, truth_far = truths.xywh[:, :2].T.copy(), (truths.xywh[:, :2] + truths.xywh[:, 2:]).T.copy()
    area, truth_area = detections.xywh[:, 2:].prod(axis=1), truths.xywh[:, 2:].prod(axis=1)
    nothing = np.zeros(0, np.int64)
    parts = [Overlaps(nothing, nothing, np.zeros(0), np.zeros(0))]
    for detection, truth in grouped_pairs(detections.group, truths.group):
        side = np.minimum(far[0][detection], truth_far[0][truth])
        side -= np.maximum(near[0][detection], truth_near[0][truth])
        # Most pairs lie apart: what follows is computed for the others only.
        beside = np.flatnonzero(side > 0)
        detection, truth, width = detection[beside], truth[beside], side[beside]
        height = np.minimum(far[1][detection], truth_far[1][truth])
        height -= np.maximum(near[1][detection], truth_near[1][truth])
        over = np.flatnonzero(height > 0)
        detection, truth, intersection = detection[over], truth[over], width[over] * height[over]
        iod = intersection / area[detection]
        iou = intersection / (area[detection] + truth_area[truth] - intersection)
        pairs = Overlaps(detection, truth, iou, iod)
        parts.append(pairs.select((iod >= least) | (iou >= least)))
    return Overlaps(*(np.concatenate([getattr(p, name) for p in parts]) for name in vars(parts[0])))


@dataclass(frozen=True)
class Candidates:
    """Pairs that may match, in order of detection and of the detection's preference; [P] each.

    Attributes:
        detection, truth: indices; detections of a group are numbered best score first.
        overlap: that counts for this pair.
        shared: whether the object can be taken by this pair although it is taken already.
    """

    detection: IntArray
    truth: IntArray
    overlap: FloatArray
    shared: BoolArray

    def select(self, index: BoolArray | IntArray) -> Candidates:
        """Those at an index or boolean mask, which must keep the order."""
        return Candidates(self.detection[index], self.truth[index], self.overlap[index], self.shared[index])

    def match(self, detections: int, truths: int) -> IntArray:
        """Greedy matching: object that each detection takes, or -1; int64 [detections]."""
        kept = accept_in_order(self.detection, self.truth, truths, self.shared)
        matched = np.full(detections, -1)
        matched[self.detection[kept]] = self.truth[kept]
        return matched


def by_preference(pairs: Overlaps, overlap: FloatArray, ignored: BoolArray, shared: BoolArray) -> Candidates:
    """Candidates in the protocols' order: per detection normal objects before ignored ones, the largest overlap
    first, of equal overlaps the last object.

    Args:
        pairs: which detections and objects.
        overlap: [P] the one that counts (IoU, or IoD where the protocol says so).
        ignored: [P] whether the object is an ignored one.
        shared: [P] see `Candidates`.
    """
    order = np.lexsort((-pairs.truth, -overlap, ignored, pairs.detection))
    return Candidates(pairs.detection[order], pairs.truth[order], overlap[order], shared[order])


def best_first(group: IntArray, score: FloatArray) -> IntArray:
    """[N] order by group, in a group by descending score; equal scores stay in the order they came in."""
    return np.lexsort((-score, group))


def place_in_group(group: IntArray) -> IntArray:
    """[N] how many rows of the same group stand before; groups ascending."""
    return np.arange(len(group)) - np.searchsorted(group, group, side="left")
