"""The options of ``export.py``. Parsing only."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from utils.cli import Parser, image_size, non_negative_int, positive_int, probability

FORMATS = ("onnx", "openvino")
REFUSED = {
    "--include engine": "export onnx with --max-patches; docs/export.md has the trtexec lines for TensorRT",
    "--include torchscript": "give the .pt file where PyTorch is at hand, or export onnx",
    "--half": "files are in 32 bits; the runtimes convert (trtexec --fp16)",
    "--dynamic": "pairs take any batch and size as they are",
    "--simplify": "the graphs are traced without anything to simplify",
    "--nms": "give --max-patches: the single file holds decoding and suppression",
    "--head sparse": "exported heads run on whole patches",
}
"""Options of YOLOv5 and its relatives that are not offered → what to do instead."""


EXAMPLES = (
    "python export.py --weights weights/sample_yolov5n.pt --include onnx openvino",
    "python export.py --weights W.pt --include onnx --max-patches 24 --img-size 864x1536",
    "python export.py --weights W.pt --include onnx --int8 data/visdrone.yaml --img-size 1536",
)
"""Shown at the end of ``--help``."""


def build_export_parser() -> Parser:
    """The command line of the export."""
    parser = Parser(
        "Export a detector for ONNX Runtime and OpenVINO: two graphs with slicing between them, and with --max-patches "
        "also one file that holds everything for a fixed size and number of patches. docs/export.md has examples.",
        REFUSED,
        prog="export.py",
        examples=EXAMPLES,
    )
    parser.add_argument(
        "--weights",
        default="weights/sample_yolov5n.pt",
        metavar="PT",
        help="checkpoint: ours or a released one",
    )
    parser.add_argument(
        "--include",
        nargs="+",
        choices=FORMATS,
        default=["onnx"],
        metavar="FORMAT",
        help="onnx, openvino or both",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder to write into (default: that of the weights)"
    )
    parser.add_argument(
        "--image",
        type=Path,
        default=Path(__file__).resolve().parent.parent / "data" / "images" / "sample_1.jpg",
        metavar="FILE",
        help="picture to compare files and torch on after writing (default: one from the sample)",
    )
    parser.add_argument(
        "--int8",
        type=Path,
        metavar="PICTURES",
        help="also write NAME_int8, a pair in 8 bits, its ranges taken from pictures of this folder or of this dataset's "
        "YAML (train), at --img-size",
    )
    parser.add_argument(
        "--img-size",
        type=image_size,
        default=1536,
        metavar="PIXELS",
        help="of the single file: its only input size, HEIGHTxWIDTH such as 864x1536, or the side of a square; multiples "
        "of 32. Of --int8: longer side of the pictures, or HEIGHTxWIDTH",
    )
    _add_slicer_arguments(parser)
    _add_single_arguments(parser)
    return parser


def _add_slicer_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how it slices (default: as in the checkpoint)")
    group.add_argument(
        "--slicer",
        choices=("grid", "greedy", "none"),
        help="how patches are placed; can be changed when a pair is used, is fixed in a single file, which knows no "
        "greedy",
    )
    group.add_argument(
        "--heatmap-thres",
        type=probability,
        metavar="P",
        help="a heatmap cell is active from this probability on (0-1)",
    )
    group.add_argument(
        "--borders",
        choices=("zeros", "neighbours"),
        help="what a patch's layers see beyond its border: zeros, or what the kept patches beside it hold there; fixed in "
        "the files",
    )


def _add_single_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("single file, with everything in one graph (for TensorRT and the like)")
    group.add_argument(
        "--max-patches",
        type=non_negative_int,
        metavar="K",
        help="also write NAME_kK, which always computes K patches per image, best first (1 for a dense model)",
    )
    group.add_argument("--batch-size", type=positive_int, default=1, metavar="N", help="its images per call")
    group.add_argument(
        "--conf-thres", type=probability, default=0.25, metavar="P", help="only higher scores come out"
    )
    group.add_argument(
        "--iou-thres",
        type=probability,
        default=0.45,
        metavar="P",
        help="of two boxes of a class that overlap more than this, the better comes out",
    )
    group.add_argument(
        "--max-det",
        type=positive_int,
        default=500,
        metavar="N",
        help="at most this many detections per image",
    )
    group.add_argument(
        "--multi-label",
        action="store_true",
        help="a box stands for each of its classes, as test.py counts, not only for its best one, as detect.py does",
    )


def parse_export_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a command line (default: this process's); contradictions end it with status 2."""
    parser = build_export_parser()
    options = parser.parse_args(arguments)
    if options.max_patches == 0:
        parser.error("--max-patches 0: a single file has a fixed number of patches, at least 1")
    if options.max_patches is not None and options.slicer == "greedy":
        parser.error("--slicer greedy: places patches one after the other, which is no fixed graph; use grid")
    if options.max_patches is None:
        given = _given_single_options(parser, options)
        if given:
            parser.error(f"{', '.join(given)}: of the single file only, which --max-patches K asks for")
        if options.int8 is None and options.img_size != parser.get_default("img_size"):
            parser.error("--img-size: a pair takes any size; give it with --max-patches K or --int8 PICTURES")
    return options


def _given_single_options(parser: Parser, options: argparse.Namespace) -> list[str]:
    """Options of the single file that differ from their defaults."""
    names = ("batch_size", "conf_thres", "iou_thres", "max_det", "multi_label")
    return [
        "--" + name.replace("_", "-") for name in names if getattr(options, name) != parser.get_default(name)
    ]
