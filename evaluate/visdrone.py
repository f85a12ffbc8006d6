"""The official protocol of VisDrone-DET: AP, AP50, AP75 and AR at 1, 10, 100 and 500 detections per image.

    python -m evaluate.visdrone --annotations DIR --results DIR [--image-sizes FILE | --images DIR] --json OUT

A result file ``<image>.txt`` has a line ``x,y,w,h,score,category,-1,-1`` per detection. Written from a
description of the toolkit VisDrone2018-DET, whose peculiarities are kept where they change a number. Not the everyday
protocol of test.py (evaluate/detection.py); the numbers of the two must not be compared.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluate.arrays import BoolArray, EvaluationError, FloatArray, IntArray
from evaluate.average_precision import precision_recall, printed, rounded
from evaluate.candidates import (
    Candidates,
    GroupedBoxes,
    best_first,
    by_preference,
    overlaps_of,
)
from evaluate.visdrone_io import ImageSizes, VisDroneImage, read_visdrone
from evaluate.visdrone_regions import without_ignored_regions
from utils.cli import Parser, run_main
from utils.datasets.visdrone import CLASS_NAMES
from utils.files import write_json

PROTOCOL = "VisDrone-DET, official protocol"
CLASSES = len(CLASS_NAMES)
"""Categories 1–10; 11 ("others") is not evaluated."""
IOU_THRESHOLDS = 0.5 + 0.05 * np.arange(10)
MAX_DETECTIONS = (1, 10, 100, 500)
"""Limits per image, of all classes together."""


@dataclass(frozen=True)
class VisDroneMetrics:
    """What `evaluate_visdrone` found; percent. C: classes 1–10, T: IoU thresholds 0.50, 0.55, … 0.95.

    Attributes:
        ap, ap50, ap75: means over the classes, weighted by `class_images`; ap also over the thresholds.
        ar: by limit of detections per image, the same mean of the largest recall.
        ap_by_class: [C, T]; 0 for a class without objects.
        ar_by_class: by limit, [C, T].
        class_images: [C] images with a kept object of the class, ignored ones included.
        images: names in the order of evaluation.
        rows_in_result_file, gt_rows_kept, detections_kept: counts by image; kept: not in an ignored region.
    """

    ap: float
    ap50: float
    ap75: float
    ar: dict[int, float]
    ap_by_class: NDArray[np.float64]
    ar_by_class: dict[int, NDArray[np.float64]]
    class_images: IntArray
    images: list[str]
    rows_in_result_file: dict[str, int]
    gt_rows_kept: dict[str, int]
    detections_kept: dict[str, int]

    def metrics(self) -> dict[str, float]:
        """The seven numbers by the names of the toolkit."""
        return {"AP": self.ap, "AP50": self.ap50, "AP75": self.ap75} | {
            f"AR{limit}": value for limit, value in self.ar.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; unrounded except where the name says so."""
        numbered = {str(number): int(n) for number, n in enumerate(self.class_images, start=1)}
        return {
            "protocol": PROTOCOL,
            "metrics": self.metrics(),
            "metrics_as_printed_2_decimals": {name: rounded(v) for name, v in self.metrics().items()},
            "iou_thresholds": np.round(IOU_THRESHOLDS, 2).tolist(),
            "AP_matrix_class1to10_by_iou": self.ap_by_class.tolist(),
            "AR_matrix_by_maxdets": {str(limit): ar.tolist() for limit, ar in self.ar_by_class.items()},
            "class_weights_images_with_class": numbered,
            "evaluated_classes": [int(number) for number, n in numbered.items() if n],
            "images_in_evaluation_order": self.images,
            "rows_in_result_file": self.rows_in_result_file,
            "gt_rows_kept": self.gt_rows_kept,
            "detections_kept": self.detections_kept,
        }

    def table(self) -> str:
        """The official table, and the classes below it; numbers as the toolkit rounds them."""
        removed = sum(self.rows_in_result_file.values()) - sum(self.detections_kept.values())
        lines = [
            f"{PROTOCOL}: {len(self.images)} images, {sum(self.detections_kept.values())} detections "
            f"({removed} in ignored regions removed), {sum(self.gt_rows_kept.values())} annotated objects",
            "Boxes half covered by ignored regions do not exist; objects of score 0 are neutral, and in the recall.",
        ]
        most = MAX_DETECTIONS[-1]
        rows = [
            ("Precision  (AP)", "0.50:0.95", most, self.ap),
            ("Precision  (AP)", "0.50     ", most, self.ap50),
            ("Precision  (AP)", "0.75     ", most, self.ap75),
            *(("Recall     (AR)", "0.50:0.95", limit, value) for limit, value in self.ar.items()),
        ]
        for what, levels, limit, value in rows:
            lines.append(f" Average {what} @[ IoU={levels} | maxDets={limit:>3} ] = {printed(value)}%")
        lines.append(f"{'class':<16} {'images':>7} {'AP':>7} {'AP50':>7} {'AP75':>7} {'AR500':>7}")
        for name, images, ap, ar in zip(
            CLASS_NAMES, self.class_images, self.ap_by_class, self.ar_by_class[most], strict=True
        ):
            values = (ap.mean(), ap[0], ap[5], ar.mean()) if images else (None,) * 4
            lines.append(f"{name:<16} {images:>7} " + " ".join(f"{printed(value):>7}" for value in values))
        return "\n".join(lines)


@dataclass(frozen=True)
class _Objects:
    """Kept objects of classes 1–10, sorted by image and class; N rows."""

    boxes: GroupedBoxes
    label: IntArray
    """0–9."""
    ignored: BoolArray


@dataclass(frozen=True)
class _Detections:
    """Kept detections of classes 1–10, sorted by image and class, in those best score first; N rows."""

    boxes: GroupedBoxes
    label: IntArray
    score: FloatArray
    place: IntArray
    """Detections of the image before it in the file, of any class."""


def evaluate_visdrone(images: Sequence[VisDroneImage]) -> VisDroneMetrics:
    """Evaluate a set of images.

    Source: VisDrone2018-DET toolkit. Boxes in ignored regions are dropped; per class and IoU threshold
    detections are matched greedily, best score first, an ignored object (score 0) making its detection neutral;
    recall counts ignored objects, too. The limit of detections per image takes the first rows of the file, of
    all classes, whatever their scores. A class weighs as much as it has images.

    Args:
        images: in the order of evaluation, which decides between equal scores.

    Raises:
        EvaluationError: no image has an object to evaluate, or the size of an image with regions is not known.
    """
    kept = [without_ignored_regions(image) for image in images]
    objects, detections = _objects(kept), _detections(kept)
    class_images = np.bincount(np.unique(objects.boxes.group) % CLASSES, minlength=CLASSES)
    if not class_images.any():
        raise EvaluationError(
            f"no object of the classes 1–10 outside the ignored regions of {len(images)} images: "
            "there is nothing to evaluate"
        )
    ap, ar = _by_class(objects, detections)
    return VisDroneMetrics(
        ap=_weighted_mean(ap.mean(axis=1), class_images),
        ap50=_weighted_mean(ap[:, 0], class_images),
        ap75=_weighted_mean(ap[:, 5], class_images),
        ar={limit: _weighted_mean(recall.mean(axis=1), class_images) for limit, recall in ar.items()},
        ap_by_class=ap,
        ar_by_class=ar,
        class_images=class_images,
        images=[image.name for image in images],
        rows_in_result_file={image.name: len(image.score) for image in images},
        gt_rows_kept={image.name: len(image.category) for image in kept},
        detections_kept={image.name: len(image.score) for image in kept},
    )


def _weighted_mean(values: FloatArray, weights: IntArray) -> float:
    return float((values * weights).sum() / weights.sum())


def _objects(kept: Sequence[VisDroneImage]) -> _Objects:
    image = np.repeat(np.arange(len(kept)), [len(one.category) for one in kept])
    category = np.concatenate([np.zeros(0, np.int64), *(one.category for one in kept)])
    group = image * CLASSES + category - 1
    rows = np.flatnonzero((category >= 1) & (category <= CLASSES))
    rows = rows[np.argsort(group[rows], kind="stable")]
    xywh = np.concatenate([np.zeros((0, 4)), *(one.xywh for one in kept)])
    counts = np.concatenate([np.zeros(0, np.bool_), *(one.counts for one in kept)])
    return _Objects(GroupedBoxes(xywh[rows], group[rows]), category[rows] - 1, ~counts[rows])


def _detections(kept: Sequence[VisDroneImage]) -> _Detections:
    """Only the first rows of each file, as many as the highest limit."""
    most = MAX_DETECTIONS[-1]
    sizes = [min(most, len(one.score)) for one in kept]
    image = np.repeat(np.arange(len(kept)), sizes)
    place = np.concatenate([np.zeros(0, np.int64), *(np.arange(size) for size in sizes)])
    category = np.concatenate([np.zeros(0, np.int64), *(one.detection_category[:most] for one in kept)])
    score = np.concatenate([np.zeros(0), *(one.score[:most] for one in kept)])
    xywh = np.concatenate([np.zeros((0, 4)), *(one.detection_xywh[:most] for one in kept)])
    group = image * CLASSES + category - 1
    rows = np.flatnonzero((category >= 1) & (category <= CLASSES))
    rows = rows[best_first(group[rows], score[rows])]
    return _Detections(GroupedBoxes(xywh[rows], group[rows]), category[rows] - 1, score[rows], place[rows])


def _by_class(
    objects: _Objects, detections: _Detections
) -> tuple[NDArray[np.float64], dict[int, NDArray[np.float64]]]:
    """AP [C, T], and by limit AR [C, T]; percent."""
    pairs = overlaps_of(detections.boxes, objects.boxes, least=float(IOU_THRESHOLDS[0]))
    ignored = objects.ignored[pairs.truth]
    overlap = np.where(ignored, pairs.iod, pairs.iou)
    # An ignored object can be taken any number of times.
    candidates = by_preference(pairs, overlap, ignored, shared=ignored)
    count = np.bincount(objects.label, minlength=CLASSES)
    rankings = [_ranking(detections, label) for label in range(CLASSES)]
    ap = np.zeros((CLASSES, len(IOU_THRESHOLDS)))
    ar = {limit: np.zeros_like(ap) for limit in MAX_DETECTIONS}
    for limit in MAX_DETECTIONS:
        within = candidates.select(detections.place[candidates.detection] < limit)
        for column, threshold in enumerate(IOU_THRESHOLDS):
            hit, neutral = _outcome(
                within.select(within.overlap >= threshold), objects, len(detections.label)
            )
            hits = np.bincount(detections.label[hit], minlength=CLASSES)
            ar[limit][:, column] = 100 * hits / np.maximum(1, count)
            if limit == MAX_DETECTIONS[-1]:
                alarm = ~(hit | neutral)
                areas = [
                    precision_recall(hit[ranking], alarm[ranking], int(count[label])).area()
                    for label, ranking in enumerate(rankings)
                ]
                ap[:, column] = 100 * np.array(areas)
    return ap, ar


def _outcome(candidates: Candidates, objects: _Objects, detections: int) -> tuple[BoolArray, BoolArray]:
    """[D] which detections hit an object, and which are neutral."""
    matched = candidates.match(detections, len(objects.label))
    ignored = (matched >= 0) & objects.ignored[matched]
    return (matched >= 0) & ~ignored, ignored


def _ranking(detections: _Detections, label: int) -> IntArray:
    """Rows of a class, best score of all images first; equal scores in the order of images and files."""
    rows = np.flatnonzero(detections.label == label)
    return rows[np.argsort(-detections.score[rows], kind="stable")]


def main() -> None:
    """Parse the command line, read, evaluate, write, print."""
    args = build_parser().parse_args()
    metrics = evaluate_visdrone(
        read_visdrone(args.annotations, args.results, ImageSizes(args.image_sizes, args.images))
    )
    if args.json is not None:
        write_json(args.json, metrics.to_dict())
    print(metrics.table())


EXAMPLES = (
    "python -m evaluate.visdrone --annotations VisDrone/VisDrone2019-DET-val/annotations --results DET_results-val --images VisDrone/VisDrone2019-DET-val/images --json visdrone.json",
)
"""Shown at the end of ``--help``."""


def build_parser() -> Parser:
    """The parser of this command."""
    parser = Parser(f"{PROTOCOL}.", prog="python -m evaluate.visdrone", examples=EXAMPLES)
    parser.add_argument(
        "--annotations", type=Path, required=True, metavar="DIR", help="annotation files, one per image"
    )
    parser.add_argument(
        "--results",
        type=Path,
        required=True,
        metavar="DIR",
        help="result files of the same names, lines x,y,w,h,score,category,-1,-1",
    )
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        "--image-sizes",
        type=Path,
        metavar="FILE",
        help="JSON {name: [width, height]}; this or --images is needed when an image has ignored regions",
    )
    sizes.add_argument(
        "--images", type=Path, metavar="DIR", help="folder of the images; only their headers are read"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all numbers, unrounded, to this file")
    return parser


if __name__ == "__main__":
    sys.exit(run_main(main))
