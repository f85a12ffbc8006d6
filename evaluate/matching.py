"""Which detection has found which labelled object: overlaps, and greedy matching of all images at once.

Pure functions on arrays; thresholds and what counts as a hit belong to the metric that calls them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluate.arrays import FloatArray, IntArray, Objects


@dataclass(frozen=True)
class Pairs:
    """Overlapping detections and labels: indices of both, and their IoU; [P] each."""

    detection: IntArray
    truth: IntArray
    iou: FloatArray

    def select(self, index: NDArray[np.bool_] | IntArray) -> Pairs:
        """Those at an index or boolean mask."""
        return Pairs(self.detection[index], self.truth[index], self.iou[index])


def box_iou(first: FloatArray, second: FloatArray) -> FloatArray:
    """[N, 4] and [M, 4] corners → [N, M] intersection over union; 0 where the union has no area."""
    far = np.minimum(first[:, None, 2:], second[None, :, 2:])
    near = np.maximum(first[:, None, :2], second[None, :, :2])
    intersection = (far - near).clip(min=0).prod(axis=2)
    area, other = ((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second))
    union = area[:, None] + other[None, :] - intersection
    iou: FloatArray = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    return iou


def overlapping_pairs(detections: Objects, truths: Objects, min_iou: float) -> Pairs:
    """All pairs of a detection and a label of the same image with IoU ≥ ``min_iou`` (> 0), of any classes."""
    parts = [Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for number in np.intersect1d(detections.image, truths.image):
        first, last = np.searchsorted(detections.image, [number, number + 1])
        truth_first, truth_last = np.searchsorted(truths.image, [number, number + 1])
        iou = box_iou(detections.xyxy[first:last], truths.xyxy[truth_first:truth_last])
        detection, truth = np.nonzero(iou >= min_iou)
        parts.append(Pairs(detection + first, truth + truth_first, iou[detection, truth]))
    return Pairs(
        np.concatenate([part.detection for part in parts]),
        np.concatenate([part.truth for part in parts]),
        np.concatenate([part.iou for part in parts]),
    )


def match_by_score(pairs: Pairs, truths: int) -> Pairs:
    """The pairs that greedy matching keeps: in order of index (best score first), each detection takes the
    free label that it overlaps most; a label is taken once.

    Args:
        pairs: candidates; detections of one image are numbered best score first.
        truths: number of labels.
    """
    order = np.lexsort((pairs.truth, -pairs.iou, pairs.detection))
    return pairs.select(order[accept_in_order(pairs.detection[order], pairs.truth[order], truths)])


def match_by_overlap(pairs: Pairs, detections: int, truths: int) -> Pairs:
    """The pairs that greedy matching by overlap keeps: the pair of the largest IoU first, then the next whose
    detection and label are both free; of equal IoUs the better detection (lower index), then the lower label.

    What it keeps of the pairs above any IoU is what it would keep if those were all the pairs.

    Args:
        pairs: candidates.
        detections, truths: how many there are of each.
    """
    pairs = pairs.select(np.lexsort((pairs.truth, pairs.detection, -pairs.iou)))
    accepted = np.zeros(len(pairs.iou), dtype=bool)
    left = np.arange(len(pairs.iou))
    while len(left):
        # A pair that comes first for its detection and for its label cannot lose either to another pair.
        first, truth_first = np.full(detections, len(accepted)), np.full(truths, len(accepted))
        np.minimum.at(first, pairs.detection[left], left)
        np.minimum.at(truth_first, pairs.truth[left], left)
        taken = left[(first[pairs.detection[left]] == left) & (truth_first[pairs.truth[left]] == left)]
        accepted[taken] = True
        free, truth_free = np.ones(detections, dtype=bool), np.ones(truths, dtype=bool)
        free[pairs.detection[taken]] = False
        truth_free[pairs.truth[taken]] = False
        left = left[free[pairs.detection[left]] & truth_free[pairs.truth[left]]]
    return pairs.select(accepted)


def accept_in_order(
    detection: IntArray, truth: IntArray, truths: int, shared: NDArray[np.bool_] | None = None
) -> IntArray:
    """One-by-one greedy matching of all images at once: positions of the pairs that it keeps, ascending.

    As deferred acceptance: every detection proposes to the object it likes best, an object keeps the proposal
    of the lowest index, the refused go on to their next. All objects rank the detections alike, so the one
    stable outcome is that of the loop in which detection after detection takes its best free object. A refusal
    is final, because an object that was taken stays taken by the same or a better detection; that also holds
    with shared pairs, which are never refused but take the object from later pairs that are not shared.

    Args:
        detection: [P], ascending; the lower index chooses first.
        truth: [P] the object of each pair; a detection's pairs stand in its order of preference.
        truths: number of objects.
        shared: [P] pairs that need no free object; by default none.
    """
    current = np.flatnonzero(np.diff(detection, prepend=-1))
    end = np.append(current[1:], len(detection))[: len(current)]
    while True:
        holder = np.full(truths, np.iinfo(np.int64).max)
        np.minimum.at(holder, truth[current], detection[current])
        refused = holder[truth[current]] != detection[current]
        if shared is not None:
            refused &= ~shared[current]
        if not refused.any():
            return current
        current = current + refused
        current, end = current[current < end], end[current < end]
