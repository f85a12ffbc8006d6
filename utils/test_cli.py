"""The command line of test.py. Parsing only."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from utils.cli import (
    Parser,
    add_device_arguments,
    add_image_size_argument,
    add_model_arguments,
    add_nms_argument,
    add_report_argument,
    add_run_arguments,
    check_model_options,
    check_nms_options,
    positive_int,
    probability,
)

TASKS = ("val", "test", "train", "measure", "speed")
REFUSED = {
    "--task study": "run --task val and --task measure at each --img-size and compare their JSON files",
    "--rect": "images are always padded as little as possible; leave it out",
    "--save-hybrid": "use --save-txt",
    "--dnn": "give the file as --weights: a .pt, or an exported .onnx or .xml",
}
"""Options of YOLOv5 and its relatives that are not offered → what to do instead."""


EXAMPLES = (
    "python test.py --data data/sample.yaml --weights weights/sample_yolov5n.pt --img-size 960",
    "python test.py --data data/visdrone.yaml --weights W.pt --img-size 1536 --device 0 --official",
    "python test.py --data data/visdrone.yaml --weights W.pt --img-size 1536 --task measure --batch-size 1",
)
"""Shown at the end of ``--help``."""


def build_test_parser() -> Parser:
    """The parser of ``test.py``."""
    parser = Parser(
        "Test a detector on a dataset: accuracy and patch selection, or cost.",
        REFUSED,
        prog="test.py",
        examples=EXAMPLES,
    )
    group = parser.add_argument_group("what to test, and how")
    group.add_argument("--data", default="data/visdrone.yaml", metavar="YAML", help="dataset")
    group.add_argument(
        "--weights", default="weights/sample_yolov5n.pt", metavar="PT", help="checkpoint to test"
    )
    group.add_argument(
        "--task",
        choices=TASKS,
        default="val",
        help="val, test, train: accuracy on that split; measure: parameters, GFLOPs and time on the val images; "
        "speed: time only",
    )
    group.add_argument(
        "--batch-size",
        type=positive_int,
        default=8,
        metavar="N",
        help="images per batch, in each process (torchrun); "
        "measure and speed take images one by one and use this on a CPU for the throughput of a larger batch",
    )
    _add_suppression(group)
    group.add_argument(
        "--augment", action="store_true", help="test-time augmentation: three views, merged (slower)"
    )
    group.add_argument("--single-cls", action="store_true", help="count all classes as one")
    group.add_argument("--verbose", action="store_true", help="print every class, also when there are many")
    group.add_argument(
        "--analyse",
        action="store_true",
        help="also say why each object was missed (no patch, suppressed, wrong class, score too low, …), by size: "
        "a table, analysis.json and analysis.png; not with --augment, measure or speed",
    )
    add_image_size_argument(parser)
    add_model_arguments(parser)
    add_device_arguments(parser)
    _add_outputs(parser)
    add_run_arguments(parser, "test")
    add_report_argument(parser)
    return parser


def _add_suppression(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--conf-thres",
        type=probability,
        metavar="P",
        help="least score of a detection, 0-1 (default: 0.001 for accuracy; for measure and speed 0.25, as in use)",
    )
    group.add_argument(
        "--iou-thres",
        type=probability,
        metavar="P",
        help="boxes overlapping more suppress each other, 0-1 (default: 0.6; for measure and speed 0.45)",
    )
    add_nms_argument(group)
    group.add_argument(
        "--max-det", type=positive_int, default=500, metavar="N", help="most detections per image"
    )


def parse_test_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a command line (default: this process's); contradictions end it with status 2."""
    parser = build_test_parser()
    options = parser.parse_args(arguments)
    check_model_options(parser, options)
    check_nms_options(parser, options)
    if options.analyse and options.task in ("measure", "speed"):
        parser.error(
            f"--analyse needs detections and labels, --task {options.task} only measures cost: use val"
        )
    cost_only = options.task in ("measure", "speed")
    for name, flag in (
        ("--save-txt", options.save_txt),
        ("--save-json", options.save_json),
        ("--official", options.official),
    ):
        if flag and cost_only:
            parser.error(
                f"{name} needs detections of the whole split, --task {options.task} only measures cost: use val"
            )
    if options.save_conf and not (options.save_txt or options.official):
        parser.error("--save-conf adds scores to the files of --save-txt, which is not given")
    if options.analyse and options.augment:
        parser.error("--analyse looks at one pass over each image, --augment merges three: leave one out")
    return options


def thresholds(args: argparse.Namespace) -> tuple[float, float]:
    """Confidence and overlap threshold: as given, else what the task calls for."""
    confidence, overlap = (0.25, 0.45) if args.task in ("measure", "speed") else (0.001, 0.6)
    return (
        confidence if args.conf_thres is None else args.conf_thres,
        overlap if args.iou_thres is None else args.iou_thres,
    )


def _add_outputs(parser: Parser) -> None:
    group = parser.add_argument_group("results to save")
    group.add_argument(
        "--save-txt", action="store_true", help="write a Darknet label file per image into labels/"
    )
    group.add_argument("--save-conf", action="store_true", help="with --save-txt: add the score to each line")
    group.add_argument(
        "--official",
        action="store_true",
        help="convert the detections into the layout of the dataset's official toolkit and run its protocol too "
        "(tasks val and test)",
    )
    group.add_argument(
        "--save-json", action="store_true", help="write all detections as COCO results (predictions.json)"
    )
