"""Miss rate of TinyPerson: the log-average over false positives per image, as for CityPersons.

Not the average precision, whose matching differs: evaluate/tinyperson_ap.py.
"""

from __future__ import annotations

import numpy as np

from evaluate.arrays import BoolArray, FloatArray
from evaluate.candidates import Overlaps, by_preference
from evaluate.tinyperson_io import TinyPersonData
from evaluate.tinyperson_overlaps import OVERLAP_LIMIT, THRESHOLDS, Fallback, Flags

SETUPS = {
    "tiny1": (2.0, 8.0),
    "tiny2": (8.0, 12.0),
    "tiny3": (12.0, 20.0),
    "tiny": (2.0, 20.0),
    "small": (20.0, 32.0),
    "All": (-1.0, 1e10),
}
"""Sizes in original pixels, the root of the area; both ends included."""
SIZE_TOLERANCE = 1.25
"""Detections may be smaller or larger than a setup by this factor."""
LEAST_VISIBILITY = 0.65
FALLBACK_THRESHOLD = 0.5
"""For the second look at ignored objects, at every IoU threshold, and strict."""
FALSE_POSITIVES_PER_IMAGE = np.exp(np.linspace(np.log(0.01), np.log(1.0), 9))
NOT_DEFINED = -100.0
"""For a setup without an object to find."""


def miss_rates(data: TinyPersonData, pairs: Overlaps, flags: Flags) -> dict[str, float]:
    """``MR{25,50,75}_{setup}`` in percent, -100 where a setup has no object to find.

    Source: TinyBenchmark, CityPersons evaluation with size filter.

    Args:
        data: ground truth and detections.
        pairs: `all_overlaps` of the data.
        flags: options of the official program.
    """
    fallback = Fallback.of(data, pairs, pairs.iod) if flags.use_iod_for_ignore else None
    rates = {}
    for name, limits in SETUPS.items():
        ignored = _ignored(data, limits, flags)
        kept = _kept(data, limits)
        for threshold, (hit, alarm) in zip(
            THRESHOLDS, _outcomes(data, pairs.select(kept[pairs.detection]), ignored, fallback), strict=True
        ):
            rates[f"MR{100 * threshold:.0f}_{name}"] = _rate(data, kept, ignored, hit, alarm)
    return rates


def _ignored(data: TinyPersonData, limits: tuple[float, float], flags: Flags) -> BoolArray:
    """[N] which objects are ignored in a setup; a crowd is like any other object here."""
    objects = data.objects
    with np.errstate(invalid="ignore"):  # the root of a negative area is no size, which is in no setup
        size_px = np.sqrt(objects.area)
    inside = (size_px >= limits[0]) & (size_px <= limits[1])
    flagged = objects.ignore | (objects.uncertain & flags.ignore_uncertain)
    return flagged | ~inside | (objects.visibility < LEAST_VISIBILITY)


def _kept(data: TinyPersonData, limits: tuple[float, float]) -> BoolArray:
    """[D] detections whose size is near the setup's; the others do not exist for it."""
    with np.errstate(invalid="ignore"):
        size_px = np.sqrt(data.detections.area)
    return (size_px >= limits[0] / SIZE_TOLERANCE) & (size_px < limits[1] * SIZE_TOLERANCE)


def _outcomes(
    data: TinyPersonData, pairs: Overlaps, ignored: BoolArray, fallback: Fallback | None
) -> list[tuple[BoolArray, BoolArray]]:
    """By threshold: [D] true and [D] false positives; a detection that is neither is neutral."""
    objects = data.objects
    to_ignored = ignored[pairs.truth]
    overlap = np.where(to_ignored, pairs.iod, pairs.iou)
    # Ignored objects can be taken any number of times.
    candidates = by_preference(pairs, overlap, to_ignored, shared=to_ignored)
    in_ignored = np.zeros(len(data.detections.score), dtype=np.bool_)
    if fallback is not None:
        best = fallback.best(ignored)
        in_ignored[best.detection[best.measure > FALLBACK_THRESHOLD]] = True
    outcomes = []
    for threshold in THRESHOLDS:
        accepted = candidates.select(candidates.overlap >= min(threshold, OVERLAP_LIMIT))
        matched = accepted.match(len(in_ignored), len(objects.area))
        found = np.flatnonzero(matched >= 0)
        truth = matched[found]
        hit, neutral = np.zeros_like(in_ignored), in_ignored.copy()
        # An object of id 0 is taken, but its detection counts as a false positive.
        hit[found] = ~ignored[truth] & ~objects.has_id_zero[truth]
        neutral[found] = ignored[truth]
        outcomes.append((hit, ~hit & ~neutral))
    return outcomes


def _rate(
    data: TinyPersonData, kept: BoolArray, ignored: BoolArray, hit: BoolArray, alarm: BoolArray
) -> float:
    """The geometric mean of the miss rates at the reference points of all categories; percent."""
    count = np.bincount(data.objects.category[~ignored], minlength=len(data.categories))
    recalls = []
    for category in np.flatnonzero(count):
        ranking = data.ranking(int(category), kept)
        recalls.append(_recall_at_points(hit[ranking], alarm[ranking], int(count[category]), data.images))
    if not recalls:
        return NOT_DEFINED
    missed = 1 - np.concatenate(recalls)
    return float(100 * np.exp(np.log(missed).mean())) if (missed > 0).all() else 0.0


def _recall_at_points(hit: BoolArray, alarm: BoolArray, objects: int, images: int) -> FloatArray:
    """[9] recall at the last rank whose false positives per image do not exceed each reference point.

    Where no rank qualifies (the first row is a false positive, and one is too many already) the official
    program takes index -1, the last rank, and with it the highest recall of all. So does this.
    """
    if not len(hit):
        return np.zeros(len(FALSE_POSITIVES_PER_IMAGE))
    recall = np.cumsum(hit) / objects
    per_image = np.cumsum(alarm) / images
    found: FloatArray = recall[np.searchsorted(per_image, FALSE_POSITIVES_PER_IMAGE, side="right") - 1]
    return found
