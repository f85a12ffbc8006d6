"""Time exported files against torch, picture by picture, in turns, so that a busy machine is unfair to nobody.

    python scripts/benchmark_export.py --weights W.pt --exported W_stem.onnx W_stem.xml --source data/images

Each way runs every picture once untimed and then --rounds times; the order is another one in every round. What is timed is
a letterboxed picture in memory to detections in original pixels. Printed are medians, and the median over the pictures of
each exported file's time over torch's. torch is plain: BatchNorm folded, not compiled.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

from engine.inference import Detector, load_model
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
from utils.environment import environment_report
from utils.images import write_atomic
from utils.sources import read_picture
from utils.typed_data import ConfigError

TORCH = "torch"
PICTURES = (".jpg", ".jpeg", ".png")


def main() -> None:
    """Parse the command line, time, print."""
    args = build_parser().parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    pictures = picture_files(args.source, args.pictures)
    detectors = {TORCH: load_model(args.weights, "cpu", model_overrides(args))}
    for file in args.exported:
        # A single file has its budget in it.
        detectors[file] = load_model(file, "cpu")
    times = measure(detectors, pictures, args)
    print(f"{len(pictures)} pictures, {args.rounds} rounds, {torch.get_num_threads()} threads")
    result = {name: summary(times, name) for name in detectors}
    for name, row in result.items():
        print(f"  {name}: {row['median_ms']:.1f} ms, {row['ratio_to_torch']:.2f} of torch's time")
    if args.output is not None:
        content = {"options": {k: str(v) for k, v in vars(args).items()}, "environment": environment_report(),
                   "result": result}  # fmt: skip
        text = json.dumps(content, indent=1)
        write_atomic(args.output, lambda file: file.write(text.encode()))


def picture_files(source: str, limit: int) -> list[Path]:
    """The first pictures of a folder, of a .txt list, or the one file.

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
    return files[:limit]


def measure(
    detectors: dict[str, Detector], pictures: list[Path], args: argparse.Namespace
) -> dict[str, list[list[float]]]:
    """Milliseconds by way and picture, one number per round."""
    config = PostprocessConfig(args.conf_thres, 0.45)
    times: dict[str, list[list[float]]] = {name: [[] for _ in pictures] for name in detectors}
    names = list(detectors)
    for number, path in enumerate(pictures):
        picture = read_picture(path)
        inputs = {name: one.prepare(picture, args.img_size) for name, one in detectors.items()}
        for name in names:
            once(detectors[name], inputs[name], config)
        for turn in range(args.rounds):
            shift = (number + turn) % len(names)
            for name in names[shift:] + names[:shift]:
                times[name][number].append(once(detectors[name], inputs[name], config))
    return times


def once(detector: Detector, pixels: NetworkInput, config: PostprocessConfig) -> float:
    """Milliseconds of one picture."""
    begin = time.perf_counter()
    detector.detect([pixels], config)
    return (time.perf_counter() - begin) * 1e3


def summary(times: dict[str, list[list[float]]], name: str) -> dict[str, float]:
    """Median over pictures of each one's median, and of its ratio to torch's."""
    own, plain = ([statistics.median(rounds) for rounds in times[key]] for key in (name, TORCH))
    ratios = [a / b for a, b in zip(own, plain, strict=True)]
    return {"median_ms": statistics.median(own), "ratio_to_torch": statistics.median(ratios)}


EXAMPLES = (
    "python scripts/benchmark_export.py --weights W.pt --exported W_stem.onnx W_stem.xml --source data/images",
)
"""Shown at the end of ``--help``."""


def build_parser() -> Parser:
    """The parser of this script."""
    parser = Parser(
        "Time exported files against torch on a CPU, picture by picture, in turns.", examples=EXAMPLES
    )
    parser.add_argument(
        "--weights", default="weights/sample_yolov5n.pt", metavar="PT", help="what was exported"
    )
    parser.add_argument("--exported", nargs="+", required=True, metavar="FILE", help="files of export.py")
    parser.add_argument(
        "--source", default="data/images", metavar="PATH", help="pictures: folder, .txt list or one file"
    )
    parser.add_argument("--pictures", type=positive_int, default=10, metavar="N", help="at most so many")
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
