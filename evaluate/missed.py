"""Missed, and why: every labelled object that is not found gets exactly one cause, the first that applies.

From arrays only. An object is found when matching at IoU 0.5 gives it a detection of its class at or above the
confidence threshold: the matching of recall (`evaluate.curves`), so found / labels is the recall at that threshold.

The order of `CAUSES` is the order of precedence. First where the pipeline lost the object for good (no patch, no head
position, suppression), then what a user sees in its place at that threshold (another class, a poor box), then what only
a lower threshold could show. A detection that has found another object is no explanation for this one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from evaluate.arrays import (
    BoolArray,
    EvaluationError,
    FloatArray,
    IntArray,
    Objects,
    checked_boxes,
    checked_labels,
    to_array,
)
from evaluate.heatmap import covered_boxes
from evaluate.matching import box_iou, match_by_score, overlapping_pairs
from utils.results import Detections

FOUND_IOU = 0.5
POOR_IOU = 0.3
FAINT_SCORE = 0.001
"""Scores below are what AP does not look at by default: the head says nothing."""
DEFAULT_CONFIDENCE = 0.25
"""Threshold where there is no best F1, because nothing was found at any."""

CAUSES = {
    "no_patch": ("no patch", "no kept patch holds its centre or covers more than half of it"),
    "no_head_position": (
        "patch but no head position",
        "sparse head: no position of any level from which a box with its centre could be predicted",
    ),
    "suppressed": (
        "suppressed",
        "a box of its class with IoU ≥ 0.5 was predicted at or above the threshold, but non-maximum suppression or the "
        "limit of detections removed it, or it counts for another object",
    ),
    "wrong_class": (
        "wrong class",
        "a detection of another class with IoU ≥ 0.5, which found no other object",
    ),
    "poor_box": ("poor box", "a detection of its class with IoU 0.3–0.5, which found no other object"),
    "below_threshold": (
        "head below threshold",
        f"a box with IoU ≥ 0.5 was predicted, the score of its class from {FAINT_SCORE} to below the threshold",
    ),
    "near_zero": (
        "head score near zero",
        f"a box with IoU ≥ 0.5 was predicted, the score of its class below {FAINT_SCORE}",
    ),
    "nothing_near": ("nothing near", "no predicted box has an IoU ≥ 0.5, whatever its score"),
}
"""Key → (name, meaning), in order of precedence."""

SIZE_GROUPS = (
    ("small", 0.0, 32.0),
    ("medium", 32.0, 96.0),
    ("large", 96.0, math.inf),
    ("under 8", 0.0, 8.0),
    ("8 to 16", 8.0, 16.0),
    ("16 to 32", 16.0, 32.0),
)
"""Name, and √area in original pixels from (inclusive) and to (exclusive). The last three make up "small"."""


@dataclass(frozen=True)
class MissedGroup:
    """Objects of one size or class: how many are labelled, how many not found, and those by cause (sum: missed)."""

    name: str
    labels: int
    missed: int
    causes: dict[str, int]


@dataclass(frozen=True)
class MissedMetrics:
    """What `MissedEvaluator` found.

    Attributes:
        protocol: what was counted, on how many images, at which threshold.
        confidence: detections count from this score on.
        total: all objects.
        by_size: as `SIZE_GROUPS`.
        by_class: one group per name.
    """

    protocol: str
    images: int
    confidence: float
    total: MissedGroup
    by_size: list[MissedGroup]
    by_class: list[MissedGroup]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the meaning of every cause included."""
        plain = vars(self).copy()
        plain["total"] = vars(self.total).copy()
        for key in ("by_size", "by_class"):
            plain[key] = [vars(group).copy() for group in plain[key]]
        plain["sides_orig"] = {
            name: [low, None if high == math.inf else high] for name, low, high in SIZE_GROUPS
        }
        plain["meaning"] = {key: meaning for key, (_, meaning) in CAUSES.items()}
        return plain

    def table(self) -> str:
        """The printed table: protocol, a column per size, a row per cause."""
        groups = [self.total, *self.by_size]
        rows: list[tuple[str, list[int]]] = [
            ("labelled", [group.labels for group in groups]),
            ("found", [group.labels - group.missed for group in groups]),
            ("missed", [group.missed for group in groups]),
        ]
        rows += [(f"  {name}", [group.causes[key] for group in groups]) for key, (name, _) in CAUSES.items()]
        width = max(len(name) for name, _ in rows)
        head = f"{'objects of √area':<{width}}" + "".join(f"{group.name:>9}" for group in groups)
        lines = [f"{name:<{width}}" + "".join(f"{count:>9}" for count in counts) for name, counts in rows]
        return "\n".join([self.protocol, head, *lines])


@dataclass(frozen=True)
class _ImageRecord:
    """One image as it is kept: final detections best first, and a few values per labelled object."""

    image_id: int
    xyxy: FloatArray
    score: FloatArray
    label: IntArray
    truth_xyxy: FloatArray
    truth_label: IntArray
    in_patch: BoolArray
    has_position: BoolArray
    raw_score: FloatArray
    """[N] best score of the object's class among the predicted boxes with IoU ≥ 0.5; NaN: no such box."""


class MissedEvaluator:
    """Collects images and computes `MissedMetrics`; of the raw predictions it keeps one number per object.

    Args:
        names: class names; the position is the class index.
    """

    def __init__(self, names: list[str]) -> None:
        self.names = list(names)
        self._records: dict[int, _ImageRecord] = {}

    def reset(self) -> None:
        """Forget every image."""
        self._records.clear()

    def update(
        self,
        image_id: int,
        detections: Detections,
        gt_xyxy_orig: Tensor,
        gt_label: Tensor,
        raw_xyxy_orig: Tensor,
        raw_score: Tensor,
        *,
        in_patch: BoolArray | None = None,
        has_position: BoolArray | None = None,
    ) -> None:
        """Add one image.

        Args:
            image_id: any integer, once per image.
            detections: after suppression, in original pixels.
            gt_xyxy_orig: [N, 4] labelled corners in original pixels.
            gt_label: [N] class index.
            raw_xyxy_orig: [M, 4] every predicted box before threshold and suppression, in original pixels.
            raw_score: [M, C] its score for each class, 0–1.
            in_patch: [N] see `in_some_patch`; None: there are no patches to miss (a dense model).
            has_position: [N] see `near_positions`; None: the head is dense.

        Raises:
            EvaluationError: the image came before, or a value is not finite, out of range or misshapen.
        """
        where = f"image {image_id}: "
        if image_id in self._records:
            raise EvaluationError(f"{where}was added twice; give each image once")
        score = _checked_scores(detections.score, f"{where}detection scores")
        xyxy = checked_boxes(detections.xyxy, len(score), f"{where}detection boxes")
        label = checked_labels(detections.label, len(score), len(self.names), f"{where}detection labels")
        truth_label = checked_labels(gt_label, len(gt_label), len(self.names), f"{where}true labels")
        count = len(truth_label)
        truth_xyxy = checked_boxes(gt_xyxy_orig, count, f"{where}true boxes")
        raw_boxes = checked_boxes(raw_xyxy_orig, len(raw_score), f"{where}predicted boxes")
        raw = _checked_scores(raw_score, f"{where}predicted scores")
        if raw.shape != (len(raw_boxes), len(self.names)):
            raise EvaluationError(
                f"{where}predicted scores have shape {raw.shape}; expected {(len(raw_boxes), len(self.names))}"
            )
        everywhere = np.ones(count, dtype=bool)
        best = np.argsort(-score, kind="stable")
        self._records[image_id] = _ImageRecord(
            image_id, xyxy[best], score[best], label[best], truth_xyxy, truth_label,
            everywhere if in_patch is None else _checked_flags(in_patch, count, f"{where}in_patch"),
            everywhere if has_position is None else _checked_flags(has_position, count, f"{where}has_position"),
            best_raw_scores(truth_xyxy, truth_label, raw_boxes, raw),
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        """Everything collected, as plain data (numbers, lists, numpy arrays) to send to another process."""
        return {"names": list(self.names), "images": [vars(r).copy() for r in self._records.values()]}

    def merge(self, states: Iterable[dict[str, Any]]) -> None:
        """Add the images of other evaluators' states; the result equals one evaluator that saw them all.

        Raises:
            EvaluationError: other class names, or an image that is here already.
        """
        for state in states:
            if state["names"] != self.names:
                raise EvaluationError(f"cannot merge: names are {state['names']} there and {self.names} here")
            for image in state["images"]:
                if image["image_id"] in self._records:
                    raise EvaluationError(f"image {image['image_id']} is in two merged states")
                self._records[image["image_id"]] = _ImageRecord(**image)

    def compute(self, best_confidence: float | None, least_score: float = 0.0) -> MissedMetrics:
        """The causes of all images added so far.

        Args:
            best_confidence: threshold, normally that of the best F1; None: `DEFAULT_CONFIDENCE`.
            least_score: of the detections that were given; a lower threshold is raised to it.
        """
        why = "best F1" if best_confidence is not None else "nothing is found at any confidence"
        confidence = DEFAULT_CONFIDENCE if best_confidence is None else best_confidence
        if confidence < least_score:
            confidence, why = least_score, "the least score of the detections"
        data = _Collected([self._records[key] for key in sorted(self._records)])
        cause = _causes(data, np.float32(confidence))
        size = data.truths.xyxy
        side = np.sqrt((size[:, 2:] - size[:, :2]).prod(axis=1))
        return MissedMetrics(
            protocol=(
                f"missed objects, {len(self._records)} images, no ignore regions; found = a detection of the right "
                f"class, IoU ≥ {FOUND_IOU}, confidence ≥ {confidence:.3f} ({why})"
            ),
            images=len(self._records),
            confidence=float(confidence),
            total=_group("all", cause),
            by_size=[_group(name, cause[(side >= low) & (side < high)]) for name, low, high in SIZE_GROUPS],
            by_class=[_group(name, cause[data.truths.label == i]) for i, name in enumerate(self.names)],
        )


def in_some_patch(boxes_px: FloatArray, patches_xyxy_cell: IntArray) -> BoolArray:
    """[N] whether one of the patches [K, 4] (stride-8 cells) holds the centre of a box [N, 4] (input pixels)
    or covers more than half of it."""
    kept, centre = covered_boxes(boxes_px, patches_xyxy_cell)
    return kept | centre


def near_positions(centre_px: FloatArray, position_px: FloatArray, stride: int) -> BoolArray:
    """Whether some head position can predict a box with a given centre.

    Decoding (`models.decode.decode_boxes`) puts a centre at most one grid step from the middle of its cell.

    Args:
        centre_px: [N, 2] (x, y) of the objects in input pixels.
        position_px: [P, 2] middles of the cells of one level in which the head ran, input pixels.
        stride: input pixels per grid step of the level.

    Returns [N].
    """
    near = np.zeros(len(centre_px), dtype=bool)
    for number, centre in enumerate(centre_px):
        near[number] = bool((np.abs(position_px - centre) <= stride).all(axis=1).any())
    return near


def best_raw_scores(
    truth_xyxy: FloatArray, truth_label: IntArray, raw_xyxy: FloatArray, raw_score: FloatArray
) -> FloatArray:
    """[N] best score of each object's class among the boxes [M, 4], [M, C] with IoU ≥ 0.5; NaN without one.

    A box with IoU ≥ 0.5 has its centre inside the object's box (it overlaps at least half of the wider of both in
    each direction), so an object is compared with the boxes of its own columns only, and no [N, M] table is made.
    """
    best: FloatArray = np.full(len(truth_xyxy), np.nan)
    middle = (raw_xyxy[:, 0] + raw_xyxy[:, 2]) / 2
    order = np.argsort(middle, kind="stable")
    middle, raw_xyxy, raw_score = middle[order], raw_xyxy[order], raw_score[order]
    # A hair wider than the box, against rounding; the IoU decides.
    margin = 1e-6 * np.abs(truth_xyxy).max(initial=1.0)
    first = np.searchsorted(middle, truth_xyxy[:, 0] - margin, side="left")
    last = np.searchsorted(middle, truth_xyxy[:, 2] + margin, side="right")
    for number, (begin, end) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        iou = box_iou(truth_xyxy[number : number + 1], raw_xyxy[begin:end])[0]
        scores = raw_score[begin:end, truth_label[number]][iou >= FOUND_IOU]
        if scores.size:
            best[number] = scores.max()
    return best


class _Collected:
    """All images flattened, numbered by rank of their id."""

    def __init__(self, records: list[_ImageRecord]) -> None:
        self.detections = Objects(
            np.repeat(np.arange(len(records)), [len(record.label) for record in records]),
            np.concatenate([np.zeros((0, 4)), *(record.xyxy for record in records)]),
            np.concatenate([np.zeros(0, np.int64), *(record.label for record in records)]),
        )
        self.score = np.concatenate([np.zeros(0, np.float32), *(record.score for record in records)])
        self.truths = Objects(
            np.repeat(np.arange(len(records)), [len(record.truth_label) for record in records]),
            np.concatenate([np.zeros((0, 4)), *(record.truth_xyxy for record in records)]),
            np.concatenate([np.zeros(0, np.int64), *(record.truth_label for record in records)]),
        )
        self.in_patch = np.concatenate([np.zeros(0, bool), *(record.in_patch for record in records)])
        self.has_position = np.concatenate([np.zeros(0, bool), *(record.has_position for record in records)])
        self.raw_score = np.concatenate([np.zeros(0, np.float32), *(record.raw_score for record in records)])


def _causes(data: _Collected, confidence: np.float32) -> IntArray:
    """[N] position in `CAUSES` of every labelled object, -1 for those that are found."""
    pairs = overlapping_pairs(data.detections, data.truths, POOR_IOU)
    pairs = pairs.select(data.score[pairs.detection] >= confidence)
    same_class = data.detections.label[pairs.detection] == data.truths.label[pairs.truth]
    near = pairs.iou >= FOUND_IOU
    count = len(data.truths.label)
    matched = match_by_score(pairs.select(same_class & near), count)
    busy = np.zeros(len(data.score), dtype=bool)
    busy[matched.detection] = True
    free = ~busy[pairs.detection]

    def touched(chosen: BoolArray) -> BoolArray:
        flags = np.zeros(count, dtype=bool)
        flags[pairs.truth[chosen]] = True
        return flags

    found = np.zeros(count, dtype=bool)
    found[matched.truth] = True
    applies = {
        "no_patch": ~data.in_patch,
        "no_head_position": ~data.has_position,
        # NaN, no box at all, fails every comparison.
        "suppressed": data.raw_score >= confidence,
        "wrong_class": touched(~same_class & near & free),
        "poor_box": touched(same_class & ~near & free),
        "below_threshold": data.raw_score >= np.float32(FAINT_SCORE),
        "near_zero": ~np.isnan(data.raw_score),
        "nothing_near": np.ones(count, dtype=bool),
    }
    table = np.stack([applies[key] for key in CAUSES])
    return np.where(found, -1, table.argmax(axis=0))


def _group(name: str, cause: IntArray) -> MissedGroup:
    counts = np.bincount(cause[cause >= 0], minlength=len(CAUSES)).tolist()
    return MissedGroup(name, len(cause), sum(counts), dict(zip(CAUSES, counts, strict=True)))


def _checked_scores(scores: Tensor, what: str) -> FloatArray:
    array: FloatArray = to_array(scores).astype(np.float32)
    # Written so that NaN, which fails every comparison, is caught as well.
    if not bool(((array >= 0) & (array <= 1)).all()):
        raise EvaluationError(f"{what} are not all in 0–1; NaN means that the model has diverged")
    return array


def _checked_flags(flags: BoolArray, count: int, what: str) -> BoolArray:
    if flags.shape != (count,) or flags.dtype != np.bool_:
        raise EvaluationError(
            f"{what} is {flags.dtype} {flags.shape}; expected one bool for each of {count} labels"
        )
    return flags
