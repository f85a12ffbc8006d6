"""Detect objects in pictures and videos: parse the command line, predict, write. See --help.

    python detect.py --weights W.pt --source PATH --img-size 1536 --view-cluster

Finding and reading the pictures is in utils/sources.py, the network behind engine/inference.py, what is written in
utils/detection_output.py. Threads read and resize pictures ahead of the network, and draw and write behind it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import closing

import cv2

from engine.inference import Detector, load_model
from engine.windows import FramePredictor, WholePredictor, WindowPredictor
from models.decode import PostprocessConfig
from utils.cli import model_overrides, run_main
from utils.cluster_picture import BoxStyle, plural
from utils.detect_cli import parse_detect_options
from utils.detection_output import DetectionOutput, DetectionSummary, OutputOptions, count_classes
from utils.geojson import require_rasterio
from utils.images import ImageError
from utils.logger import get_logger, warnings_only
from utils.progress import Progress
from utils.record_files import ReaderGoneError, RecordOptions, json_lines_file, open_records
from utils.results import PredictionLike
from utils.runs import new_run_dir
from utils.sources import Frame, Source, open_source
from utils.typed_data import ConfigError

NOTHING_READ = 1
SOME_NOT_READ = 3
INTERRUPTED = 130
READER_GONE = 141
"""What a shell says of a program that a closed pipe ended."""


def detect(options: argparse.Namespace) -> int:
    """Run detection over a source; returns the exit status: 1 when not one picture could be read, 3 when some could not."""
    log = get_logger()
    if options.save_geojson:
        require_rasterio()
    with warnings_only(options.quiet), json_lines_file(options.json) as json_lines:
        source = open_source(options.source, options.reconnect, windows=options.window is not None)
        detector = load_model(
            options.weights,
            options.device,
            model_overrides(options),
            half=options.half,
            compiled=options.compile,
            graphs=options.graphs,
        )
        _check_classes(options.classes, detector.names)
        folder = new_run_dir(options.project, options.name, options.exist_ok)
        records = open_records(folder, _record_options(options), detector.names, json_lines)
        summary, status = DetectionSummary(), 0
        if options.workers:
            cv2.setNumThreads(0)  # one core per worker; OpenCV's own threads would fight over them
        started = time.perf_counter()
        try:
            with DetectionOutput(
                folder, detector.names, _output_options(options), source.relative, options.workers, records
            ) as output:
                detect_all(source, _predictor(options, detector), output, summary, options)
        except KeyboardInterrupt:
            status = INTERRUPTED
            log.warning("stopped by Ctrl-C; what was finished is complete")
        except ReaderGoneError:
            status = READER_GONE
        summary.elapsed_s = time.perf_counter() - started
        if not any(folder.iterdir()):  # all went to --json
            folder.rmdir()
        for line in summary.lines(folder if folder.is_dir() else None, source.problems):
            log.info("%s", line)
        if status or not summary.frames:
            return status or NOTHING_READ
        return SOME_NOT_READ if source.problems else 0


def detect_all(
    source: Source,
    predictor: FramePredictor,
    output: DetectionOutput,
    summary: DetectionSummary,
    options: argparse.Namespace,
) -> None:
    """Detect in every frame of a source, write what was asked for, say a line about each or show a progress bar."""
    log = get_logger()
    with (
        closing(source.read_ahead(predictor.prepare, options.workers)) as frames,
        Progress(not options.quiet) as progress,
    ):
        say = log.info if options.verbose or not (progress.shown and sys.stdout.isatty()) else log.debug
        started = time.perf_counter()
        for frame, prepared in frames:
            read = time.perf_counter()
            try:
                prediction = predictor.predict(frame, prepared)
            except ImageError as error:  # of a picture that is read in parts
                source.report(str(error))
                continue
            predicted = time.perf_counter()
            output.write(frame, prediction)
            written = time.perf_counter()
            # With workers, reading and writing only take what the network had to wait for them.
            waited = {"read": (read - started) * 1e3, "write": (written - predicted) * 1e3}
            summary.add(prediction, {"read": waited["read"], **prediction.times_ms, "write": waited["write"]})
            line = frame_line(frame, source, prediction, output.names)
            say("%s", line)
            progress.update(frame, line)
            started = time.perf_counter()


def frame_line(frame: Frame, source: Source, prediction: PredictionLike, names: Sequence[str]) -> str:
    """One line about a frame: which, what was found, on how many patches, milliseconds of the network."""
    where = f"{frame.index + 1}/{frame.total or '?'} {source.relative(frame.path)}"
    if frame.frame_number is not None:
        count = frame.video.frame_count if frame.video else None
        where += f" frame {frame.frame_number + 1}/{count or '?'}"
    found = count_classes(prediction.detections, names)
    patches = plural(len(prediction.patches_orig), "patch", "patches")
    return f"{where}: {found}; {patches}, {sum(prediction.times_ms.values()):.1f} ms"


def _check_classes(classes: list[int] | None, names: list[str]) -> None:
    unknown = [number for number in classes or [] if number >= len(names)]
    if unknown:
        known = ", ".join(f"{number} {name}" for number, name in enumerate(names))
        raise ConfigError(
            f"--classes {' '.join(map(str, unknown))}: this model has {len(names)} classes: {known}"
        )


def _predictor(options: argparse.Namespace, detector: Detector) -> FramePredictor:
    post = _postprocessing(options)
    if options.window is None:
        return WholePredictor(detector, post, options.img_size, options.augment)
    if detector.model.input_hw is not None:
        height, width = detector.model.input_hw
        raise ConfigError(
            f"--window needs a network that takes any size, and {options.weights} takes {height}×{width} only: "
            "give the checkpoint, or the pair of files that export.py writes"
        )
    scale = options.img_size / options.window
    return WindowPredictor(
        detector, post, options.window, options.overlap, scale, options.augment, options.workers
    )


def _postprocessing(options: argparse.Namespace) -> PostprocessConfig:
    return PostprocessConfig(
        options.conf_thres,
        options.iou_thres,
        options.max_det,
        agnostic=options.agnostic_nms,
        classes=None if options.classes is None else tuple(options.classes),
        nms=options.nms,
    )


def _output_options(options: argparse.Namespace) -> OutputOptions:
    return OutputOptions(
        save_pictures=not options.nosave,
        view_cluster=options.view_cluster,
        save_txt=options.save_txt,
        save_conf=options.save_conf,
        save_crop=options.save_crop,
        video_codec=options.video_codec,
        style=BoxStyle(options.line_thickness, options.hide_labels, options.hide_conf),
    )


def _record_options(options: argparse.Namespace) -> RecordOptions:
    return RecordOptions(options.save_csv, options.save_coco, options.save_geojson)


def main() -> int:
    """Entry point: returns the exit status."""
    options = parse_detect_options()
    # What OpenCV warns of (unknown tags of a TIFF, a camera that is not there) is told by us where it matters.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    return detect(options)


if __name__ == "__main__":
    sys.exit(run_main(main))
