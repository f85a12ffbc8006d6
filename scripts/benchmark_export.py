"""Compare exported files with torch on pictures: boxes and time, picture by picture, in turns.

    python scripts/benchmark_export.py --weights W.pt --exported W_stem.onnx W_stem.xml --source data/images

Each way runs every picture once untimed and then --rounds times, in another order in every round, so that a busy machine
is unfair to nobody. What is timed is a letterboxed picture in memory to detections in original pixels. Printed are
medians, the median over the pictures of each way's time over that of plain torch, and how far the detections of files in
32 bits are from torch's. Torch runs in two ways: plain (float32, eager, BatchNorm not folded, contiguous) and as detect.py runs it.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from engine.export.quantise import INT8
from engine.export.verify import BOX_TOLERANCE_PX, SCORE_MARGIN, detection_difference
from engine.exported import ExportedSingle
from engine.inference import Detector, load_in_mode, load_model
from engine.modes import PLAIN
from engine.predictor import NetworkInput
from models.decode import PostprocessConfig
from utils.cli import (
    Parser,
    add_image_size_argument,
    add_model_arguments,
    model_overrides,
    positive_int,
    run_main,
)
from utils.config import ModelOverrides
from utils.environment import environment_report
from utils.files import write_json
from utils.images import ByteImage
from utils.results import Detections
from utils.sources import read_picture
from utils.summary import spread_indices
from utils.typed_data import ConfigError

TORCH = "torch"
PICTURES = (".jpg", ".jpeg", ".png")


@dataclass
class Way:
    """One way of running the weights, and what was measured so far.

    Attributes:
        name: in the table.
        detector: what runs.
        reference: torch with what is fixed in the file, for its boxes; None for torch itself, and for 8 bits, whose boxes
            test.py judges.
        times_ms: by picture, one number per round.
        detections: that the reference found, on all pictures.
        box_px: largest distance of a corner from the reference's, in original pixels.
        score: largest difference of a score.
    """

    name: str
    detector: Detector
    reference: Detector | None = None
    times_ms: list[list[float]] = field(default_factory=list)
    detections: int = 0
    box_px: float = 0.0
    score: float = 0.0

    def compare(self, picture: ByteImage, img_size: int | tuple[int, int], post: PostprocessConfig) -> None:
        """Hold the detections in a picture against the reference's, in the same network input."""
        if self.reference is None:
            return
        pixels = self.detector.prepare(picture, img_size)
        expected, found = (found_in(one, pixels, post) for one in (self.reference, self.detector))
        box_px, score = detection_difference(expected, found, post.conf_thres + SCORE_MARGIN)
        self.detections += len(expected)
        self.box_px, self.score = max(self.box_px, box_px), max(self.score, score)

    def result(self, plain: Way) -> dict[str, Any]:
        """Median over the pictures of each one's median time, and of its ratio to plain torch's; boxes."""
        own, others = ([statistics.median(rounds) for rounds in way.times_ms] for way in (self, plain))
        ratios = [a / b for a, b in zip(own, others, strict=True)]
        row: dict[str, Any] = {
            "name": self.name,
            "median_ms": statistics.median(own),
            "ratio_to_plain": statistics.median(ratios),
            "pictures_slower": sum(ratio > 1 for ratio in ratios),
        }
        if self.reference is not None:
            same = math.isfinite(self.box_px)
            row |= {"detections": self.detections, "box_px": self.box_px if same else None}
            row["score"] = self.score if same else None
        return row


def main() -> None:
    """Parse the command line, compare, print, write."""
    args = build_parser().parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    pictures = picture_files(args.source, args.pictures)
    ways = make_ways(args)
    measure(ways, pictures, args)
    rows = [way.result(ways[0]) for way in ways]
    print(f"{len(pictures)} pictures, {args.rounds} rounds, {torch.get_num_threads()} threads")
    for row in rows:
        print(f"  {line(row)}")
    if args.output is not None:
        content = {
            "format": "esod-export-benchmark", "pictures": [path.name for path in pictures], "rows": rows,
            "options": {key: shown(value) for key, value in vars(args).items()}, "environment": environment_report(),
            "runtimes": runtime_versions(),
        }  # fmt: skip
        write_json(args.output, content)


def make_ways(args: argparse.Namespace) -> list[Way]:
    """Torch plain, torch as detect.py runs it, and every exported file."""
    overrides = model_overrides(args)
    usual = load_model(args.weights, "cpu", overrides)
    ways = [
        Way(f"{TORCH}, plain", load_in_mode(args.weights, PLAIN, torch.device("cpu"), overrides)),
        Way(TORCH, usual),
    ]
    for file in args.exported:
        detector, reference = load_model(file, "cpu", None), usual
        if isinstance(detector.model, ExportedSingle):
            reference = load_model(args.weights, "cpu", fixed_in(detector.model, overrides))
        else:
            detector = load_model(file, "cpu", overrides)
        name = Path(file).name
        ways.append(Way(name, detector, None if INT8 in name else reference))
    return ways


def fixed_in(single: ExportedSingle, overrides: ModelOverrides) -> ModelOverrides:
    """The slicer of a single file, so that torch computes as many patches at most."""
    sliced = single.config.slicer.algorithm != "none"
    return replace(overrides, max_patches=single.settings.max_patches) if sliced else overrides


def picture_files(source: str, limit: int) -> list[Path]:
    """Pictures of a folder or of a .txt list, evenly spread over it, or the one file.

    Raises:
        ConfigError: there are none.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURES)
    elif path.suffix == ".txt":
        files = [Path(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        files = [path]
    if not files:
        raise ConfigError(f"{source}: no pictures")
    return [files[index] for index in spread_indices(len(files), limit)]


def measure(ways: list[Way], pictures: list[Path], args: argparse.Namespace) -> None:
    """Compare and time every way on every picture."""
    post = PostprocessConfig(args.conf_thres, 0.45)
    for number, path in enumerate(pictures):
        picture = read_picture(path)
        inputs = [way.detector.prepare(picture, args.img_size) for way in ways]
        for way, pixels in zip(ways, inputs, strict=True):
            way.compare(picture, args.img_size, post)
            found_in(way.detector, pixels, post)
            way.times_ms.append([])
        for turn in range(args.rounds):
            for place in range(len(ways)):
                index = (number + turn + place) % len(ways)
                begin = time.perf_counter()
                found_in(ways[index].detector, inputs[index], post)
                ways[index].times_ms[number].append((time.perf_counter() - begin) * 1e3)


def found_in(detector: Detector, pixels: NetworkInput, post: PostprocessConfig) -> Detections:
    """Detections in one network input."""
    return detector.detect([pixels], post)[0].detections


def line(row: dict[str, Any]) -> str:
    """A way's numbers in words."""
    text = f"{row['name']}: {row['median_ms']:.1f} ms, {row['ratio_to_plain']:.2f} of plain torch's time"
    if "box_px" not in row:
        return text
    if row["box_px"] is None:
        return f"{text}; {row['detections']} detections, NOT those of torch: some have no partner"
    verdict = "within" if row["box_px"] <= BOX_TOLERANCE_PX else "NOT within"
    return (
        f"{text}; {row['detections']} detections, boxes {row['box_px']:.4f} px, {verdict} {BOX_TOLERANCE_PX} px of torch's, "
        f"scores {row['score']:.1e}"
    )


def runtime_versions() -> dict[str, str]:
    """Of what runs exported files, those that are installed."""
    names = ("onnxruntime", "onnxruntime-gpu", "openvino")
    return {name: metadata.version(name) for name in names if installed(name)}


def installed(name: str) -> bool:
    """Whether a package is there."""
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def shown(value: Any) -> Any:
    """An option as a file may show it: of paths that begin at the root of somebody's machine the name alone."""
    if isinstance(value, list):
        return [shown(one) for one in value]
    if isinstance(value, (str, Path)) and Path(value).is_absolute():
        return Path(value).name
    return str(value) if isinstance(value, Path) else value


EXAMPLES = (
    "python scripts/benchmark_export.py --weights W.pt --exported W_stem.onnx W_stem.xml --source data/images",
)
"""Shown at the end of ``--help``."""


def build_parser() -> Parser:
    """The parser of this script."""
    parser = Parser(
        "Compare exported files with torch on a CPU: boxes and time, picture by picture, in turns.",
        examples=EXAMPLES,
    )
    parser.add_argument(
        "--weights", default="weights/sample_yolov5n.pt", metavar="PT", help="what was exported"
    )
    parser.add_argument("--exported", nargs="+", required=True, metavar="FILE", help="files of export.py")
    parser.add_argument(
        "--source", default="data/images", metavar="PATH", help="pictures: folder, .txt list or one file"
    )
    parser.add_argument(
        "--pictures", type=positive_int, default=10, metavar="N", help="at most so many, evenly spread"
    )
    parser.add_argument("--rounds", type=positive_int, default=5, metavar="N", help="times that each is run")
    parser.add_argument(
        "--conf-thres", type=float, default=0.25, metavar="P", help="lowest score of a detection, 0-1"
    )
    parser.add_argument(
        "--threads", type=positive_int, metavar="N", help="of torch and of the runtimes (default: torch's)"
    )
    parser.add_argument("--output", type=Path, metavar="JSON", help="write the numbers there as well")
    add_image_size_argument(parser)
    add_model_arguments(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_main(main))
