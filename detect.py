"""Detect objects in pictures and videos: parse the command line, predict, write. See --help.

Finding the pictures is in utils/sources.py, the network behind engine.py, what is written in
utils/detection_output.py.
"""

from __future__ import annotations

import argparse
import sys
import time

from engine.inference import Detector, load_model
from utils.cli import (
    Parser,
    add_image_size_argument,
    add_model_arguments,
    add_run_arguments,
    model_overrides,
    non_negative_int,
    positive_int,
    probability,
    run_main,
)
from utils.cluster_picture import BoxStyle
from utils.detection_output import DetectionOutput, DetectionSummary, OutputOptions, count_classes
from utils.logger import get_logger
from utils.results import PredictionLike
from utils.runs import new_run_dir
from utils.sources import Frame, Source, open_source

DESCRIPTION = "Detect objects in an image, a folder, a glob, a .txt list or a video."
REFUSED = {
    "--view-img": "the pictures are saved; look into the folder printed at the end",
    "--workers": "pictures are read one at a time, in this process",
    "--update": "released checkpoints are read as they are; scripts/model_convert.py writes them anew",
}
INTERRUPTED = 130


def build_parser() -> Parser:
    """The command line of detection."""
    parser = Parser(DESCRIPTION, refused=REFUSED)
    parser.add_argument("--weights", default="weights/sample_yolov5n.pt", metavar="PATH", help="checkpoint: ours or a released one")  # fmt: skip
    parser.add_argument("--source", default="data/images", metavar="PATH", help="image, folder (with all below it), glob, .txt list or video")  # fmt: skip
    add_image_size_argument(parser)
    _add_threshold_arguments(parser)
    add_model_arguments(parser)
    add_run_arguments(parser, "detect")
    _add_output_arguments(parser)
    _add_device_arguments(parser)
    return parser


def _add_threshold_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("detection")
    group.add_argument("--conf-thres", type=probability, default=0.25, metavar="P", help="lowest score that is kept, 0-1")  # fmt: skip
    group.add_argument("--iou-thres", type=probability, default=0.45, metavar="P", help="of two boxes of a class that overlap more than this, 0-1, the better stays")  # fmt: skip
    group.add_argument("--max-det", type=positive_int, default=500, metavar="N", help="at most this many detections per image")  # fmt: skip
    group.add_argument("--classes", type=non_negative_int, nargs="+", metavar="N", help="keep only classes with these numbers: --classes 0 3")  # fmt: skip
    group.add_argument("--agnostic-nms", action="store_true", help="boxes of different classes suppress each other too")  # fmt: skip
    group.add_argument("--augment", action="store_true", help="look at each image also mirrored and at other sizes: slower, finds a little more")  # fmt: skip


def _add_output_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("pictures and files")
    group.add_argument("--view-cluster", action="store_true", help="also save NAME_cluster.jpg: patches in green, heatmap, and the labels where there are any")  # fmt: skip
    group.add_argument("--save-txt", action="store_true", help="save labels/NAME.txt, Darknet format (class cx cy w h, shares of the image)")  # fmt: skip
    group.add_argument(
        "--save-conf", action="store_true", help="with --save-txt: the score as a sixth column"
    )
    group.add_argument("--save-crop", action="store_true", help="save what is in each box as crops/CLASS/NAME_NUMBER.jpg")  # fmt: skip
    group.add_argument("--nosave", action="store_true", help="do not save the pictures and videos with boxes")
    group.add_argument("--line-thickness", type=positive_int, metavar="PIXELS", help="of the boxes (default: by the size of the image)")  # fmt: skip
    group.add_argument("--hide-labels", action="store_true", help="draw boxes without class names and scores")
    group.add_argument("--hide-conf", action="store_true", help="draw class names without scores")


def _add_device_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("hardware")
    group.add_argument("--device", default="", help="cpu, or a GPU number such as 0 (default: the first GPU, or the CPU when there is none)")  # fmt: skip
    group.add_argument("--half", action="store_true", help="compute in 16 bits (GPU: fp16, CPU: bf16)")


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of a command line (default: this process's); contradictions end it with status 2."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.save_conf and not options.save_txt:
        parser.error("--save-conf adds scores to the files of --save-txt, which is not given")
    return options


def detect(options: argparse.Namespace) -> int:
    """Run detection over a source; returns the exit status: 1 when not one picture could be read."""
    log = get_logger()
    source = open_source(options.source)
    detector = load_model(options.weights, options.device, model_overrides(options), half=options.half)
    _check_classes(options.classes, detector.names)
    folder = new_run_dir(options.project, options.name, options.exist_ok)
    summary = DetectionSummary()
    interrupted = False
    try:
        with DetectionOutput(folder, detector.names, _output_options(options), source.relative) as output:
            detect_all(source, detector, output, summary, options)
    except KeyboardInterrupt:
        interrupted = True
        log.warning("stopped by Ctrl-C; what was finished is complete")
    for line in summary.lines(folder, source.problems):
        log.info("%s", line)
    if interrupted:
        return INTERRUPTED
    return 0 if summary.frames else 1


def detect_all(
    source: Source,
    detector: Detector,
    output: DetectionOutput,
    summary: DetectionSummary,
    options: argparse.Namespace,
) -> None:
    """Detect in every frame of a source, write what was asked for, say a line about each."""
    log = get_logger()
    started = time.perf_counter()
    for frame in source:
        read = time.perf_counter()
        (prediction,) = detector.predict(
            [frame.image],
            img_size=options.img_size,
            conf_thres=options.conf_thres,
            iou_thres=options.iou_thres,
            max_det=options.max_det,
            classes=options.classes,
            agnostic=options.agnostic_nms,
            augment=options.augment,
        )
        predicted = time.perf_counter()
        output.write(frame, prediction)
        written = time.perf_counter()
        outside = {"read": (read - started) * 1e3, "write": (written - predicted) * 1e3}
        summary.add(prediction, {"read": outside["read"], **prediction.times_ms, "write": outside["write"]})
        log.info("%s", frame_line(frame, source, prediction, detector.names))
        started = time.perf_counter()


def frame_line(frame: Frame, source: Source, prediction: PredictionLike, names: list[str]) -> str:
    """One line about a frame: which, what was found, on how many patches, milliseconds of the network."""
    where = f"{frame.index + 1}/{frame.total or '?'} {source.relative(frame.path)}"
    if frame.frame_number is not None:
        count = frame.video.frame_count if frame.video else None
        where += f" frame {frame.frame_number + 1}/{count or '?'}"
    found = count_classes(prediction.detections, names)
    milliseconds = sum(prediction.times_ms.values())
    return f"{where}: {found}; {len(prediction.patches_orig)} patches, {milliseconds:.1f} ms"


def _check_classes(classes: list[int] | None, names: list[str]) -> None:
    unknown = [number for number in classes or [] if number >= len(names)]
    if unknown:
        known = ", ".join(f"{number} {name}" for number, name in enumerate(names))
        raise ValueError(
            f"--classes {' '.join(map(str, unknown))}: this model has {len(names)} classes: {known}"
        )


def _output_options(options: argparse.Namespace) -> OutputOptions:
    return OutputOptions(
        save_pictures=not options.nosave,
        view_cluster=options.view_cluster,
        save_txt=options.save_txt,
        save_conf=options.save_conf,
        save_crop=options.save_crop,
        style=BoxStyle(options.line_thickness, options.hide_labels, options.hide_conf),
    )


def main() -> int:
    """Entry point: returns the exit status."""
    return detect(parse_options())


if __name__ == "__main__":
    sys.exit(run_main(main))
