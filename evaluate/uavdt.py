"""The official protocol of UAVDT-DET: AP at IoU 0.7, overall and by attribute of sequences and objects.

    python -m evaluate.uavdt --gt DIR --results DIR [--num-frames FILE] --json OUT

A result file ``<sequence>.txt`` has a line ``frame,-1,x,y,w,h,score,…`` per detection; classes are not looked at.
Written from a description of the toolkit UAV-benchmark-MOTD_v1.0, whose peculiarities are kept where they change a
number. Not the everyday protocol of test.py (evaluate/detection.py); the numbers of the two must not be compared.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.arrays import BoolArray, EvaluationError, FloatArray, IntArray
from evaluate.average_precision import precision_recall, printed, rounded
from evaluate.candidates import (
    Candidates,
    GroupedBoxes,
    best_first,
    by_preference,
    grouped_pairs,
    overlaps_of,
)
from evaluate.uavdt_io import NUM_FRAMES, UavdtSequence, in_official_order, read_num_frames, read_uavdt
from utils.cli import Parser, run_main
from utils.files import write_json

PROTOCOL = "UAVDT-DET, official protocol"
IOU_THRESHOLD = 0.7
SEQUENCE_ATTRIBUTES = {
    "day": (3, 4, 5, 6, 7, 8, 10, 11, 17, 18, 19, 20),
    "night": (1, 2, 12, 14, 16),
    "fog": (9, 13, 15),
    "low": (1, 2, 4, 10, 11, 16, 19, 20),
    "medium": (3, 5, 7, 8, 12, 13, 14, 15, 17, 18),
    "high": (6, 9),
    "front": (3, 4, 5, 6, 7, 8, 12, 13, 14, 16, 17, 20),
    "side": (2, 4, 5, 6, 8, 11, 16, 18, 19),
    "bird": (1, 9, 10, 15),
    "long": (4, 12),
}
"""Light, altitude, view, length → 1-based positions in `NUM_FRAMES`."""
CATEGORY_COLUMN = 9
OBJECT_ATTRIBUTES = {
    "obj1": (CATEGORY_COLUMN, ("car", "truck", "bus")),
    "obj2": (8, ("no-occ", "lagre-occ", "medium-occ", "small-occ")),
    "obj3": (7, ("no-out", "medium-out", "small-out")),
}
"""Column that is meant (1-based, of the ground-truth file), names of its values 1, 2, …; "lagre" is the toolkit's."""
_FIRST_ATTRIBUTE_COLUMN = 7


@dataclass(frozen=True)
class UavdtScore:
    """AP in percent, None without any detection; number of objects and detections; largest recall, 0–1."""

    ap: float | None
    num_gt: int
    num_det: int
    max_recall: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data by the toolkit's names."""
        return {
            "AP": self.ap,
            "num_gt": self.num_gt,
            "num_det": self.num_det,
            "max_recall": self.max_recall,
        }


@dataclass(frozen=True)
class UavdtMetrics:
    """What `evaluate_uavdt` found.

    Attributes:
        overall: all sequences.
        sequence_attributes: by attribute, over the sequences that have it.
        object_attributes: by ``obj1``, ``obj2``, ``obj3`` + ``_as_shipped`` or ``_intended_column``, by value.
        num_frames: the sequences and their frames.
        ignored_detections: detections that were removed because they lie in ignored regions.
    """

    overall: UavdtScore
    sequence_attributes: dict[str, UavdtScore]
    object_attributes: dict[str, dict[str, UavdtScore]]
    num_frames: dict[str, int]
    ignored_detections: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; unrounded except where the name says so."""
        overall = {
            "AP": self.overall.ap,
            "AP_as_printed_2_decimals": None if self.overall.ap is None else rounded(self.overall.ap),
            "num_gt": self.overall.num_gt,
            "num_det_after_ignore": self.overall.num_det,
            "max_recall": self.overall.max_recall,
        }
        return {
            "protocol": PROTOCOL,
            "num_frames": self.num_frames,
            "iou_threshold": IOU_THRESHOLD,
            "overall": overall,
            "sequence_attributes": {
                name: score.to_dict() for name, score in self.sequence_attributes.items()
            },
            "object_attributes": {
                group: {name: score.to_dict() for name, score in scores.items()}
                for group, scores in self.object_attributes.items()
            },
        }

    def table(self) -> str:
        """The official table; numbers as the toolkit rounds them."""
        lines = [
            f"{PROTOCOL}: {len(self.num_frames)} of {len(NUM_FRAMES)} sequences, "
            f"{sum(self.num_frames.values())} frames, IoU {IOU_THRESHOLD}",
            f"Detections strictly inside an ignored region of their frame do not count: {self.ignored_detections} "
            "removed. Classes are not compared.",
            f"{'':<28} {'AP':>7} {'objects':>8} {'detections':>11} {'recall':>7}",
        ]
        rows = {"overall": self.overall} | self.sequence_attributes
        for group, scores in self.object_attributes.items():
            rows |= {f"{group} {name}": score for name, score in scores.items()}
        for name, score in rows.items():
            lines.append(
                f"{name:<28} {printed(score.ap):>7} {score.num_gt:>8} {score.num_det:>11} {score.max_recall:>7.3f}"
            )
        lines.append(
            "obj*: objects of another value cannot be found and yet count in the recall, as in the toolkit; "
            "as_shipped looks at the category for all three, intended_column at what is meant."
        )
        return "\n".join(lines)


@dataclass(frozen=True)
class _Objects:
    """Objects sorted by sequence and frame; N rows."""

    boxes: GroupedBoxes
    position: IntArray
    """Of the sequence in `NUM_FRAMES`, 1-based."""
    attributes: IntArray
    """[N, 3]."""


@dataclass(frozen=True)
class _Detections:
    """Detections outside the regions, sorted by sequence and frame, in those best score first; N rows."""

    boxes: GroupedBoxes
    position: IntArray
    ranking: IntArray
    """Indices of all rows, best score of all first."""


def evaluate_uavdt(sequences: Sequence[UavdtSequence]) -> UavdtMetrics:
    """Evaluate sequences.

    Source: UAV-benchmark-MOTD_v1.0, detection. Detections strictly inside an ignored region of their frame are
    removed; in each frame the others are matched greedily, best score first, at IoU ≥ 0.7, whatever their
    class; AP is the area below the precision made to fall. For a value of an object attribute the objects of
    other values are as if taken: nothing matches them, and they stay in the recall.

    Args:
        sequences: some of the test sequences, in any order.

    Raises:
        EvaluationError: none, one twice, or one that is no test sequence.
    """
    by_name = {sequence.name: sequence for sequence in sequences}
    if len(by_name) != len(sequences):
        raise EvaluationError("a sequence is given twice")
    num_frames = in_official_order({name: one.frames for name, one in by_name.items()})
    ordered = [by_name[name] for name in num_frames]
    objects = _objects(ordered)
    detections, ignored = _detections(ordered)
    pairs = overlaps_of(detections.boxes, objects.boxes, least=IOU_THRESHOLD)
    pairs = pairs.select(pairs.iou >= IOU_THRESHOLD)
    none = np.zeros(len(pairs.iou), dtype=np.bool_)
    candidates = by_preference(pairs, pairs.iou, ignored=none, shared=none)
    hit = _hits(candidates, objects, detections)
    everywhere = tuple(range(1, len(NUM_FRAMES) + 1))
    return UavdtMetrics(
        overall=_score(hit, objects, detections, everywhere),
        sequence_attributes={
            name: _score(hit, objects, detections, positions)
            for name, positions in SEQUENCE_ATTRIBUTES.items()
        },
        object_attributes=_object_attributes(candidates, objects, detections),
        num_frames=num_frames,
        ignored_detections=ignored,
    )


def _object_attributes(
    candidates: Candidates, objects: _Objects, detections: _Detections
) -> dict[str, dict[str, UavdtScore]]:
    everywhere = tuple(range(1, len(NUM_FRAMES) + 1))
    known: dict[tuple[int, int], UavdtScore] = {}

    def score(column: int, value: int) -> UavdtScore:
        if (column, value) not in known:
            has_value = objects.attributes[:, column - _FIRST_ATTRIBUTE_COLUMN] == value
            hit = _hits(candidates.select(has_value[candidates.truth]), objects, detections)
            known[column, value] = _score(hit, objects, detections, everywhere)
        return known[column, value]

    found = {}
    for name, (column, values) in OBJECT_ATTRIBUTES.items():
        for kind, used in (("as_shipped", CATEGORY_COLUMN), ("intended_column", column)):
            found[f"{name}_{kind}"] = {label: score(used, value) for value, label in enumerate(values, 1)}
    return found


def _hits(candidates: Candidates, objects: _Objects, detections: _Detections) -> BoolArray:
    """[D] which detections are true positives."""
    return candidates.match(len(detections.position), len(objects.position)) >= 0


def _score(
    hit: BoolArray, objects: _Objects, detections: _Detections, positions: Sequence[int]
) -> UavdtScore:
    """The score over some of the sequences."""
    chosen = np.zeros(len(NUM_FRAMES) + 1, dtype=np.bool_)
    chosen[list(positions)] = True
    ranking = detections.ranking[chosen[detections.position[detections.ranking]]]
    num_gt = int(chosen[objects.position].sum())
    curve = precision_recall(hit[ranking], ~hit[ranking], num_gt)
    ap = 100 * curve.area() if len(ranking) else None
    return UavdtScore(ap, num_gt, len(ranking), curve.max_recall)


def _objects(sequences: Sequence[UavdtSequence]) -> _Objects:
    group = _groups([one.frame for one in sequences], sequences)
    order = np.argsort(group, kind="stable")
    xywh = np.concatenate([one.xywh for one in sequences])
    attributes = np.concatenate([one.attributes for one in sequences])
    position = _positions([len(one.frame) for one in sequences], sequences)
    return _Objects(GroupedBoxes(xywh[order], group[order]), position[order], attributes[order])


def _detections(sequences: Sequence[UavdtSequence]) -> tuple[_Detections, int]:
    """Detections that count, and how many ignored regions have removed."""
    group = _groups([one.detection_frame for one in sequences], sequences)
    xywh = np.concatenate([one.detection_xywh for one in sequences])
    score = np.concatenate([one.score for one in sequences])
    position = _positions([len(one.score) for one in sequences], sequences)
    region_group = _groups([one.region_frame for one in sequences], sequences)
    region_order = np.argsort(region_group, kind="stable")
    region_xywh = np.concatenate([one.region_xywh for one in sequences])[region_order]
    inside = _strictly_inside(xywh, group, GroupedBoxes(region_xywh, region_group[region_order]))
    rows = np.flatnonzero(~inside)
    rows = rows[best_first(group[rows], score[rows])]
    ranking = np.argsort(-score[rows], kind="stable")
    kept = _Detections(GroupedBoxes(xywh[rows], group[rows]), position[rows], ranking)
    return kept, int(inside.sum())


def _groups(frames: Sequence[IntArray], sequences: Sequence[UavdtSequence]) -> IntArray:
    """A number of each row's frame, counted on through the sequences."""
    begin = np.cumsum([0, *(one.frames for one in sequences)])[:-1]
    return np.concatenate([frame + first for frame, first in zip(frames, begin, strict=True)])


def _positions(counts: Sequence[int], sequences: Sequence[UavdtSequence]) -> IntArray:
    names = list(NUM_FRAMES)
    return np.repeat([names.index(one.name) + 1 for one in sequences], counts)


def _strictly_inside(xywh: FloatArray, group: IntArray, regions: GroupedBoxes) -> BoolArray:
    """[N] whether a box lies inside a region of its group and touches no edge of it."""
    near, far = xywh[:, :2], xywh[:, :2] + xywh[:, 2:]
    region_near, region_far = regions.xywh[:, :2], regions.xywh[:, :2] + regions.xywh[:, 2:]
    inside = np.zeros(len(xywh), dtype=np.bool_)
    for box, region in grouped_pairs(group, regions.group):
        within = (near[box] > region_near[region]).all(axis=1) & (far[box] < region_far[region]).all(axis=1)
        inside[box[within]] = True
    return inside


def main() -> None:
    """Parse the command line, read, evaluate, write, print."""
    args = build_parser().parse_args()
    num_frames = NUM_FRAMES if args.num_frames is None else read_num_frames(args.num_frames)
    metrics = evaluate_uavdt(read_uavdt(args.gt, args.results, num_frames))
    if args.json is not None:
        write_json(args.json, metrics.to_dict())
    print(metrics.table())


EXAMPLES = (
    "python -m evaluate.uavdt --gt UAVDT/UAV-benchmark-MOTD_v1.0/GT --results runs/test/exp/official/RES_DET/ESOD --json uavdt.json",
)
"""Shown at the end of ``--help``."""


def build_parser() -> Parser:
    """The parser of this command."""
    parser = Parser(f"{PROTOCOL}.", prog="python -m evaluate.uavdt", examples=EXAMPLES)
    parser.add_argument(
        "--gt",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of <sequence>_gt_whole.txt and <sequence>_gt_ignore.txt",
    )
    parser.add_argument(
        "--results",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of <sequence>.txt, lines frame,-1,x,y,w,h,score",
    )
    parser.add_argument(
        "--num-frames",
        type=Path,
        metavar="FILE",
        help="JSON {sequence: frames}: evaluate these sequences only, by default all 20 test sequences",
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all numbers, unrounded, to this file")
    return parser


if __name__ == "__main__":
    sys.exit(run_main(main))
