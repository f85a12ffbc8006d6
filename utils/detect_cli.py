"""The options of ``detect.py``: what each is called, what it means, what it is by default. Parsing only."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from utils.cli import (
    Parser,
    add_image_size_argument,
    add_model_arguments,
    add_nms_argument,
    add_run_arguments,
    add_speed_arguments,
    check_model_options,
    check_nms_options,
    default_workers,
    image_size,
    non_negative_int,
    positive_int,
    probability,
)
from utils.streams import RECONNECTS
from utils.writers import BEST_CODEC, VIDEO_CODECS

DESCRIPTION = "Detect objects in images, videos, lists of them, cameras and streams."
EPILOG = (
    "Exit status: 0 all was read; 1 nothing could be read, or another error; 2 wrong options; "
    "3 some of it could not be read, the rest is done; 130 stopped by Ctrl-C, what was finished is complete; "
    "141 whoever read --json - went away."
)
REFUSED = {
    "--view-img": "the pictures are saved; look into the folder printed at the end",
    "--update": "released checkpoints are read as they are; scripts/model_convert.py writes them anew",
}
"""Options of YOLOv5 and its relatives that are not offered → what to do instead."""
DEFAULT_SIZE = 1536
DEFAULT_OVERLAP = 128


EXAMPLES = (
    "python detect.py --weights weights/sample_yolov5n.pt --source data/images --img-size 960 --view-cluster",
    "python detect.py --weights W.pt --source flight.mp4 --img-size 1536 --max-patches 24 --half --device 0",
    "python detect.py --weights W.pt --source pictures --save-txt --save-conf --nosave",
    "python detect.py --weights W.pt --source orthophoto.tif --window 4096 --overlap 128 --save-geojson",
    "python detect.py --weights W.pt --source rtsp://10.0.0.1/live --video-codec vp8 --save-csv",
    'python detect.py --weights W.pt --source "pictures/**/*.jpg" --nosave --json -',
)
"""Shown at the end of ``--help``."""


def build_detect_parser() -> Parser:
    """The command line of detection."""
    parser = Parser(DESCRIPTION, REFUSED, prog="detect.py", examples=EXAMPLES)
    parser.epilog = EPILOG
    parser.add_argument(
        "--weights",
        default="weights/sample_yolov5n.pt",
        metavar="PATH",
        help="checkpoint, ours or a released one, or what export.py wrote",
    )
    parser.add_argument(
        "--source",
        default="data/images",
        metavar="WHAT",
        help="image, video, folder (with all below it), glob, .txt or .csv list, - (names on standard input, a line "
        "each), camera number, address of a stream (rtsp://, rtmp://, http://), or a .streams list of these two",
    )
    parser.add_argument(
        "--reconnect",
        type=non_negative_int,
        default=RECONNECTS,
        metavar="N",
        help="a lost camera or stream is opened again up to N times in a row, after 1, 2, 4, … at most 30 seconds",
    )
    add_image_size_argument(parser, None, f" (default: {DEFAULT_SIZE}; with --window as large as the window)")
    _add_window_arguments(parser)
    _add_threshold_arguments(parser)
    add_model_arguments(parser)
    add_run_arguments(parser, "detect")
    _add_output_arguments(parser)
    _add_talk_arguments(parser)
    _add_device_arguments(parser)
    return parser


def _add_window_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("very large pictures")
    group.add_argument(
        "--window",
        type=image_size,
        metavar="PIXELS",
        help="look at pictures in windows of this size, a multiple of 32, each at its own resolution; with --img-size "
        "a window is resized to that. --max-det then counts per window",
    )
    group.add_argument(
        "--overlap",
        type=non_negative_int,
        metavar="PIXELS",
        help="of neighbouring windows: a multiple of 32, at most half a window, more than most objects (default: 128)",
    )


def _add_threshold_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("detection")
    group.add_argument(
        "--conf-thres", type=probability, default=0.25, metavar="P", help="lowest score that is kept, 0-1"
    )
    group.add_argument(
        "--iou-thres",
        type=probability,
        default=0.45,
        metavar="P",
        help="of two boxes of a class that overlap more than this, 0-1, the better stays",
    )
    add_nms_argument(group)
    group.add_argument(
        "--max-det",
        type=positive_int,
        default=500,
        metavar="N",
        help="at most this many detections per image",
    )
    group.add_argument(
        "--classes",
        type=non_negative_int,
        nargs="+",
        metavar="N",
        help="keep only classes with these numbers: --classes 0 3",
    )
    group.add_argument(
        "--agnostic-nms", action="store_true", help="boxes of different classes suppress each other too"
    )
    group.add_argument(
        "--augment",
        action="store_true",
        help="test-time augmentation: three views, merged (slower)",
    )


def _add_output_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("pictures and files")
    group.add_argument(
        "--view-cluster",
        action="store_true",
        help="also save NAME_cluster.jpg: patches in green, heatmap, and the labels where there are any; of a video "
        "NAME_cluster.webm, side by side",
    )
    group.add_argument(
        "--save-txt",
        action="store_true",
        help="save labels/NAME.txt, Darknet format (class cx cy w h, shares of the image)",
    )
    group.add_argument(
        "--save-conf", action="store_true", help="with --save-txt: the score as a sixth column"
    )
    group.add_argument(
        "--save-crop", action="store_true", help="save what is in each box as crops/CLASS/NAME_NUMBER.jpg"
    )
    group.add_argument("--nosave", action="store_true", help="do not save the pictures and videos with boxes")
    group.add_argument(
        "--video-codec",
        choices=tuple(VIDEO_CODECS),
        default=BEST_CODEC,
        help="of saved videos: vp9 is the smallest and by far the slowest to write; vp8 in browsers, too; mpeg4 the "
        "fastest, for players only",
    )
    _add_record_arguments(group)
    group.add_argument(
        "--line-thickness",
        type=positive_int,
        metavar="PIXELS",
        help="of the boxes (default: by the size of the image)",
    )
    group.add_argument("--hide-labels", action="store_true", help="draw boxes without class names and scores")
    group.add_argument("--hide-conf", action="store_true", help="draw class names without scores")


def _add_record_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--save-csv",
        action="store_true",
        help="save detections.csv, one table of all: image, frame, class, name, score, x1, y1, x2, y2 (pixels)",
    )
    group.add_argument(
        "--save-coco",
        action="store_true",
        help="save detections.json, a COCO dataset to be used alone: images, categories, annotations with a score",
    )
    group.add_argument(
        "--save-geojson",
        action="store_true",
        help="save detections.geojson, polygons of longitude and latitude, of georeferenced pictures "
        "(needs rasterio)",
    )
    group.add_argument(
        "--json",
        metavar="PATH",
        help="write a JSON object a line for each picture or frame; -: to standard output, messages to standard error",
    )


def _add_talk_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("messages")
    choice = group.add_mutually_exclusive_group()
    choice.add_argument("--quiet", action="store_true", help="say nothing but warnings and errors")
    choice.add_argument(
        "--verbose",
        action="store_true",
        help="say a line about every picture also on a terminal, where the progress bar is enough for most",
    )


def _add_device_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("hardware")
    group.add_argument(
        "--device",
        default="",
        help="cpu, or a GPU number such as 0 (default: the first GPU, or the CPU when there is none)",
    )
    group.add_argument(
        "--workers",
        type=non_negative_int,
        default=default_workers(),
        metavar="N",
        help="threads that read and resize pictures ahead of the model, and as many that draw and write; 0: none",
    )
    add_speed_arguments(group)


def parse_detect_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a command line (default: this process's); contradictions end it with status 2."""
    parser = build_detect_parser()
    options = parser.parse_args(arguments)
    check_model_options(parser, options)
    check_nms_options(parser, options)
    if options.save_conf and not options.save_txt:
        parser.error("--save-conf adds scores to the files of --save-txt, which is not given")
    _check_windows(parser, options)
    return options


def _check_windows(parser: Parser, options: argparse.Namespace) -> None:
    """Contradictions of --window, --overlap and --img-size end the command; what was not given is filled in."""
    if options.window is None:
        if options.overlap is not None:
            parser.error("--overlap is that of the windows of --window, which is not given")
        options.img_size = options.img_size or DEFAULT_SIZE
        return
    if isinstance(options.window, tuple) or isinstance(options.img_size, tuple):
        parser.error("--window is one number, and --img-size beside it too: windows are square")
    options.overlap = (
        min(DEFAULT_OVERLAP, options.window // 64 * 32) if options.overlap is None else options.overlap
    )
    if options.overlap % 32 or 2 * options.overlap > options.window:
        parser.error(
            f"--overlap {options.overlap} with --window {options.window}: expected a multiple of 32, "
            f"at most {options.window // 64 * 32}"
        )
    options.img_size = options.img_size or options.window
