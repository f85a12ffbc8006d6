"""Average precision and recall of TinyPerson: COCO's 101 recall levels, other sizes and ignore rules.

Not the miss rate, whose matching differs: evaluate/tinyperson_missrate.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluate.arrays import BoolArray, FloatArray, IntArray
from evaluate.candidates import Candidates, Overlaps, by_preference
from evaluate.tinyperson_io import TinyPersonData
from evaluate.tinyperson_overlaps import OVERLAP_LIMIT, THRESHOLDS, Fallback, Flags

SIZE_RANGES = {
    "all": (1.0, 1e10),
    "tiny": (1.0, 400.0),
    "tiny1": (1.0, 64.0),
    "tiny2": (64.0, 144.0),
    "tiny3": (144.0, 400.0),
    "small": (400.0, 1024.0),
    "reasonable": (1024.0, 1e10),
}
"""Areas in square original pixels, both ends included: an area of 64 is in tiny1 and in tiny2."""
MAX_DETECTIONS = 200
"""Per image and category, best scores first."""
RECALL_LEVELS = np.linspace(0, 1, 101)
NOT_DEFINED = -1.0
"""For a size without an object to find."""
_EPSILON = float(np.spacing(1.0))


def average_precisions(data: TinyPersonData, pairs: Overlaps, flags: Flags) -> dict[str, float]:
    """``AP{25,50,75}_{range}`` and ``AR{25,50,75}_{range}``, 0–1, -1 where a range has no object to find.

    Source: TinyBenchmark, COCO evaluation with eval_standard "tiny".

    Args:
        data: ground truth and detections.
        pairs: `all_overlaps` of the data.
        flags: options of the official program.
    """
    first = data.detections.place < MAX_DETECTIONS
    pairs = pairs.select(first[pairs.detection])
    overlap = np.where(data.objects.crowd[pairs.truth], pairs.iod, pairs.iou)
    fallback = Fallback.of(data, pairs, overlap) if flags.use_iod_for_ignore else None
    rankings = [data.ranking(category, first) for category in range(len(data.categories))]
    precision: dict[str, float] = {}
    recall: dict[str, float] = {}
    for name, limits in SIZE_RANGES.items():
        matcher = _Matcher.of(data, pairs, overlap, fallback, _ignored(data, limits, flags), limits)
        for threshold in THRESHOLDS:
            hit, alarm = matcher.outcome(threshold)
            key = f"{100 * threshold:.0f}_{name}"
            precision[f"AP{key}"], recall[f"AR{key}"] = _class_means(data, matcher, rankings, hit, alarm)
    # In the official order: thresholds first, then ranges.
    return {
        f"{kind}{100 * threshold:.0f}_{name}": values[f"{kind}{100 * threshold:.0f}_{name}"]
        for kind, values in (("AP", precision), ("AR", recall))
        for threshold in THRESHOLDS
        for name in SIZE_RANGES
    }


def _ignored(data: TinyPersonData, limits: tuple[float, float], flags: Flags) -> BoolArray:
    """[N] which objects are ignored in a size range."""
    objects = data.objects
    flagged = objects.ignore | objects.crowd | (objects.uncertain & flags.ignore_uncertain)
    return flagged | _outside(objects.area, limits)


def _outside(area: FloatArray, limits: tuple[float, float]) -> BoolArray:
    return (area < limits[0]) | (area > limits[1])


@dataclass(frozen=True)
class _Matcher:
    """Matching in one size range.

    Attributes:
        ignored: [N] by object.
        outside: [D] detections whose own area is outside the range.
        candidates: pairs by overlap. An ignored object is taken only once, a crowd any number of times.
        fallback: one ignored object per detection, or None when the option is off.
    """

    data: TinyPersonData
    ignored: BoolArray
    outside: BoolArray
    candidates: Candidates
    fallback: Fallback | None

    @staticmethod
    def of(
        data: TinyPersonData,
        pairs: Overlaps,
        overlap: FloatArray,
        fallback: Fallback | None,
        ignored: BoolArray,
        limits: tuple[float, float],
    ) -> _Matcher:
        """Order the pairs of the range; those that no threshold accepts are left out."""
        used = overlap >= min(THRESHOLDS)
        near = pairs.select(used)
        crowd = data.objects.crowd[near.truth]
        candidates = by_preference(near, overlap[used], ignored[near.truth], shared=crowd)
        best = None if fallback is None else fallback.best(ignored)
        return _Matcher(data, ignored, _outside(data.detections.area, limits), candidates, best)

    def outcome(self, threshold: float) -> tuple[BoolArray, BoolArray]:
        """[D] true and [D] false positives; a detection that is neither is ignored."""
        objects = self.data.objects
        candidates = self.candidates.select(self.candidates.overlap >= min(threshold, OVERLAP_LIMIT))
        if self.fallback is not None:
            candidates = _with_fallback(candidates, self.fallback, threshold)
        matched = candidates.match(len(self.outside), len(objects.area))
        found = np.flatnonzero(matched >= 0)
        truth = matched[found]
        hit, neutral = np.zeros_like(self.outside), self.outside.copy()
        # The official program notes a match by the object's id and takes id 0 for "no match".
        hit[found] = ~self.ignored[truth] & ~objects.has_id_zero[truth]
        neutral[found] = self.ignored[truth] | (objects.has_id_zero[truth] & self.outside[found])
        return hit, ~hit & ~neutral


def _with_fallback(candidates: Candidates, fallback: Fallback, threshold: float) -> Candidates:
    """The candidates, and behind those of each detection its best ignored object by the second measure.

    That object may have been taken already, hence shared; either way no later detection gets it by overlap.
    """
    accepted = fallback.measure >= threshold
    detection = np.concatenate((candidates.detection, fallback.detection[accepted]))
    order = np.argsort(detection, kind="stable")
    return Candidates(
        detection[order],
        np.concatenate((candidates.truth, fallback.truth[accepted]))[order],
        np.concatenate((candidates.overlap, fallback.measure[accepted]))[order],
        np.concatenate((candidates.shared, np.ones(int(accepted.sum()), dtype=np.bool_)))[order],
    )


def _class_means(
    data: TinyPersonData, matcher: _Matcher, rankings: list[IntArray], hit: BoolArray, alarm: BoolArray
) -> tuple[float, float]:
    """AP and AR, means over the categories that have an object to find."""
    count = np.bincount(data.objects.category[~matcher.ignored], minlength=len(rankings))
    means = [
        _interpolated(hit[ranking], alarm[ranking], int(count[category]))
        for category, ranking in enumerate(rankings)
        if count[category]
    ]
    if not means:
        return NOT_DEFINED, NOT_DEFINED
    precision, recall = np.mean(means, axis=0)
    return float(precision), float(recall)


def _interpolated(hit: BoolArray, alarm: BoolArray, objects: int) -> tuple[float, float]:
    """COCO's AP over 101 recall levels, and the last recall; of ranked detections, ``objects`` > 0."""
    if not len(hit):
        return 0.0, 0.0
    hits, alarms = np.cumsum(hit), np.cumsum(alarm)
    recall = hits / objects
    precision = hits / (hits + alarms + _EPSILON)
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    rank = np.searchsorted(recall, RECALL_LEVELS, side="left")
    return float(np.append(falling, 0.0)[rank].mean()), float(recall[-1])
