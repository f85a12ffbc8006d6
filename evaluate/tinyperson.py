"""The official protocol of TinyPerson: AP and AR at IoU 0.25, 0.5, 0.75 by size, and the miss rate (MR).

    python -m evaluate.tinyperson --gt FILE --results FILE [--no-ignore-uncertain] [--no-iod-for-ignore] --json OUT

Ground truth and results are COCO-style JSON. Written from a description of TinyBenchmark's evaluate_tiny.py, whose
peculiarities are kept where they change a number. Not the everyday protocol of test.py (evaluate/detection.py); the
numbers of the two must not be compared.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluate.average_precision import printed
from evaluate.tinyperson_ap import MAX_DETECTIONS, SIZE_RANGES, average_precisions
from evaluate.tinyperson_io import TinyPersonData, read_tinyperson
from evaluate.tinyperson_missrate import SETUPS, miss_rates
from evaluate.tinyperson_overlaps import THRESHOLDS, Flags, all_overlaps
from utils.cli import Parser, run_main
from utils.files import write_json

PROTOCOL = "TinyPerson, official protocol"


@dataclass(frozen=True)
class TinyPersonMetrics:
    """What `evaluate_tinyperson` found.

    Attributes:
        flags: options that the numbers were made with.
        precision_recall: ``AP…`` and ``AR…``, 0–1, -1: the range has no object to find.
        miss_rate: ``MR…``, percent, -100: the setup has no object to find.
        images, objects, detections: numbers of rows that were read.
    """

    flags: Flags
    precision_recall: dict[str, float]
    miss_rate: dict[str, float]
    images: int
    objects: int
    detections: int

    def metrics(self) -> dict[str, float]:
        """All numbers by the names of the official program."""
        return self.precision_recall | self.miss_rate

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, unrounded: the numbers, and once more below ``settings`` and the flags."""
        return {
            "protocol": PROTOCOL,
            "images": self.images,
            **self.metrics(),
            "settings": {str(self.flags): self.metrics()},
        }

    def table(self) -> str:
        """The official numbers, rounded as the official program prints them."""
        uncertain = "ignored" if self.flags.ignore_uncertain else "counted"
        second = "compared with ignored ones" if self.flags.use_iod_for_ignore else "false positives"
        lines = [
            f"{PROTOCOL}: {self.images} images, {self.objects} annotations, {self.detections} detections",
            f"Uncertain objects are {uncertain}; detections without an object are {second}. AP and AR: at most "
            f"{MAX_DETECTIONS} detections per image, 0–1, -1: no object; MR: percent, -100: no object.",
        ]
        for kind, names, digits in (("AP", SIZE_RANGES, 4), ("AR", SIZE_RANGES, 4), ("MR", SETUPS, 2)):
            lines.append(f"{kind:<4}" + "".join(f"{name:>11}" for name in names))
            for threshold in THRESHOLDS:
                level = f"{100 * threshold:.0f}"
                values = (self.metrics()[f"{kind}{level}_{name}"] for name in names)
                lines.append(f"{level:>4}" + "".join(f"{printed(value, digits):>11}" for value in values))
        return "\n".join(lines)


def evaluate_tinyperson(data: TinyPersonData, flags: Flags | None = None) -> TinyPersonMetrics:
    """Evaluate detections.

    Source: TinyBenchmark, evaluate_tiny.py: AP and AR by `average_precisions`, MR by `miss_rates`, two programs
    with different rules for ignored objects.

    Args:
        data: from `read_tinyperson`.
        flags: by default those of the official program, both on.
    """
    flags = flags or Flags()
    pairs = all_overlaps(data)
    return TinyPersonMetrics(
        flags=flags,
        precision_recall=average_precisions(data, pairs, flags),
        miss_rate=miss_rates(data, pairs, flags),
        images=data.images,
        objects=len(data.objects.area),
        detections=data.results,
    )


def main() -> None:
    """Parse the command line, read, evaluate, write, print."""
    args = build_parser().parse_args()
    flags = Flags(not args.no_ignore_uncertain, not args.no_iod_for_ignore)
    metrics = evaluate_tinyperson(read_tinyperson(args.gt, args.results), flags)
    if args.json is not None:
        write_json(args.json, metrics.to_dict())
    print(metrics.table())


EXAMPLES = (
    "python -m evaluate.tinyperson --gt TinyPerson/mini_annotations/tiny_set_test_all.json --results TinyPerson_results.json --json tinyperson.json",
)
"""Shown at the end of ``--help``."""


def build_parser() -> Parser:
    """The parser of this command."""
    parser = Parser(f"{PROTOCOL}.", prog="python -m evaluate.tinyperson", examples=EXAMPLES)
    parser.add_argument("--gt", type=Path, required=True, metavar="FILE", help="ground truth, COCO JSON")
    parser.add_argument(
        "--results",
        type=Path,
        required=True,
        metavar="FILE",
        help="JSON list of {image_id, category_id, bbox, score}",
    )
    parser.add_argument(
        "--no-ignore-uncertain", action="store_true", help="uncertain objects count (officially: ignored)"
    )
    parser.add_argument(
        "--no-iod-for-ignore",
        action="store_true",
        help="no second look at ignored objects for detections without a match (officially there is one)",
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all numbers, unrounded, to this file")
    return parser


if __name__ == "__main__":
    sys.exit(run_main(main))
