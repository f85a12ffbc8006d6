"""How long a training sample takes, and how much memory: our data pipeline against a straightforward one.

    python scripts/benchmark_data.py [--images FOLDER] [--samples 60] [--json OUT]

A sample is a mosaic of four JPEG files, blended with another one by --mixup, with boxes and label heatmap. The
straightforward pipeline (engine/benchmark/data_yardstick.py) reads and resizes four images and their full-resolution
masks, pastes them into a canvas of twice the size, warps both and pools the mask. All run in one process with one
thread, as in one loading process of training, sample by sample in turn; the peak of memory is measured in a process
of its own for each. Without --images the pictures are drawn.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from engine.benchmark.data_bench import (
    CASES,
    MASK_TYPES,
    OURS,
    OURS_RAM,
    YARDSTICK,
    CaseTimes,
    Pictures,
    build_pipeline,
    draw_pictures,
    memory_of,
    take_pictures,
    time_cases,
    use_one_thread,
    write_masks,
)
from engine.benchmark.memory import CHILD_ENVIRONMENT, MIB
from utils.cli import Parser, image_size, non_negative_int, positive_int, probability, run_main
from utils.config import HypConfig
from utils.environment import measurement_head
from utils.files import write_json
from utils.summary import quantile

MEMORY_SAMPLES = 12
TARGETS = {
    "times_faster_from_jpeg": 2.5,
    "times_faster_cache_ram": 5.0,
    "share_of_peak_memory": 0.4,
}
"""What ours should reach: at least, at least, at most."""


class CaseFailedError(RuntimeError):
    """A process that did not finish its samples."""


@dataclass(frozen=True)
class CaseMemory:
    """MiB of a process: before the samples, at the peak while they are made, and the difference."""

    before: float
    peak: float

    @property
    def growth(self) -> float:
        """What making samples needs."""
        return self.peak - self.before


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print, write; or, in a process of its own, measure the memory of one case."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    args = build_parser().parse_args(words)
    use_one_thread()
    hyp = replace(HypConfig(), mosaic=1.0, mixup=args.mixup)
    if args.case is not None:
        make = build_pipeline(args.case, Pictures(args.folder), args.img_size, hyp, args.seed)
        use = memory_of(make, MEMORY_SAMPLES)
        print(json.dumps([use.before / MIB, use.peak / MIB]))
        return
    with tempfile.TemporaryDirectory() as folder:
        pictures = make_pictures(args, Path(folder) / "pictures")
        pipelines = [(case, build_pipeline(case, pictures, args.img_size, hyp, args.seed)) for case in CASES]
        times = time_cases(pipelines, args.samples, args.warmup)
        decode_ms = decode_time(pictures)
        memory = {case: memory_in_process(case, pictures, words) for case in CASES}
        content = report(args, words, pictures, times, decode_ms, memory)
    print(table(content))
    if args.json is not None:
        write_json(args.json, content)


EXAMPLES = (
    "python scripts/benchmark_data.py --samples 60 --json docs/results/data_pipeline.json",
    "python scripts/benchmark_data.py --images VisDrone/VisDrone2019-DET-train/images",
)
"""Shown at the end of ``--help``."""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(
        "Time and memory per training sample, against a straightforward pipeline.", examples=EXAMPLES
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="take labelled JPEG files from here (default: draw some)"
    )
    parser.add_argument("--count", type=positive_int, default=16, metavar="N", help="images to use")
    parser.add_argument(
        "--picture-size",
        type=image_size_of_picture,
        default=(1080, 1920),
        metavar="HxW",
        help="of the images",
    )
    parser.add_argument("--img-size", type=image_size, default=1536, metavar="N", help="side of a sample")
    parser.add_argument(
        "--mixup", type=probability, default=0.2, metavar="P", help="share of blended samples"
    )
    parser.add_argument(
        "--mask-type", choices=MASK_TYPES, default="float32", help="of the yardstick's mask files"
    )
    parser.add_argument(
        "--samples", type=positive_int, default=60, metavar="N", help="to time, each pipeline"
    )
    parser.add_argument(
        "--warmup", type=non_negative_int, default=3, metavar="N", help="samples before, not counted"
    )
    parser.add_argument(
        "--seed", type=non_negative_int, default=0, metavar="N", help="of pictures and samples"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the numbers to this file")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


def image_size_of_picture(text: str) -> tuple[int, int]:
    """``1080x1920`` → (1080, 1920), height and width."""
    height, _, width = text.lower().partition("x")
    return positive_int(height), positive_int(width)


def make_pictures(args: argparse.Namespace, folder: Path) -> Pictures:
    """The images, labels and masks that all pipelines read."""
    if args.images is None:
        pictures = draw_pictures(folder, args.count, args.picture_size, args.seed)
    else:
        pictures = take_pictures(folder, args.images, args.count, args.picture_size)
    write_masks(pictures, args.mask_type, HypConfig().heatmap_tau)
    return pictures


def decode_time(pictures: Pictures) -> float:
    """Processor milliseconds to decode one of the files at full size, the mean over all."""
    files = [np.frombuffer(path.read_bytes(), dtype=np.uint8) for path in pictures.images]
    begin = time.process_time()
    for data in files:
        cv2.imdecode(data, cv2.IMREAD_COLOR)
    return (time.process_time() - begin) * 1000 / len(files)


def memory_in_process(case: str, pictures: Pictures, words: Sequence[str]) -> CaseMemory:
    """Peak memory of a pipeline in a fresh process.

    Raises:
        CaseFailedError: it ended without a number.
    """
    command = [sys.executable, str(Path(__file__).resolve()), *words]
    command += ["--case", case, "--folder", str(pictures.folder)]
    environment = os.environ | CHILD_ENVIRONMENT
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise CaseFailedError(f"the memory of {case} could not be measured: {lines[-1]}")
    before, peak = json.loads(done.stdout.splitlines()[-1])
    return CaseMemory(before, peak)


def report(
    args: argparse.Namespace,
    words: Sequence[str],
    pictures: Pictures,
    times: Sequence[CaseTimes],
    decode_ms: float,
    memory: dict[str, CaseMemory],
) -> dict[str, Any]:
    """What the JSON file holds."""
    cpu = {found.case: found.mean_cpu_ms for found in times}
    sizes = [path.stat().st_size for path in pictures.images]
    return {
        **measurement_head("scripts/benchmark_data.py", words, torch.device("cpu")),
        "image_size": args.img_size,
        "pictures": {
            "count": len(sizes),
            "hw": list(args.picture_size),
            "mean_bytes": sum(sizes) / len(sizes),
        },
        "drawn": args.images is None,
        "samples": args.samples,
        "decode_cpu_ms_per_file": decode_ms,
        "cases": {
            found.case: {
                "mean_cpu_ms": found.mean_cpu_ms,
                "mean_wall_ms": found.mean_wall_ms,
                "median_cpu_ms": quantile(found.cpu_ms, 0.5),
                "memory_before_mib": memory[found.case].before,
                "memory_peak_mib": memory[found.case].peak,
                "memory_growth_mib": memory[found.case].growth,
                "cpu_ms": [round(value, 2) for value in found.cpu_ms],
                "wall_ms": [round(value, 2) for value in found.wall_ms],
            }
            for found in times
        },
        "times_faster_from_jpeg": cpu[YARDSTICK] / cpu[OURS],
        "times_faster_cache_ram": cpu[YARDSTICK] / cpu[OURS_RAM],
        "share_of_peak_memory": memory[OURS].growth / memory[YARDSTICK].growth,
        "targets": TARGETS,
    }


def table(content: dict[str, Any]) -> str:
    """The printed table and what follows from it."""
    lines = [f"{'pipeline':<20}{'CPU ms':>9}{'wall ms':>9}{'median':>9}{'memory MiB':>12}"]
    for case, row in content["cases"].items():
        numbers = (row["mean_cpu_ms"], row["mean_wall_ms"], row["median_cpu_ms"])
        lines.append(
            f"{case:<20}" + "".join(f"{n:>9.1f}" for n in numbers) + f"{row['memory_growth_mib']:>12.1f}"
        )
    lines += [
        f"decoding one file: {content['decode_cpu_ms_per_file']:.1f} ms of processor time",
        f"ours from JPEG files: {content['times_faster_from_jpeg']:.2f} times as fast (target {TARGETS['times_faster_from_jpeg']})",
        f"ours with --cache ram: {content['times_faster_cache_ram']:.2f} times as fast (target {TARGETS['times_faster_cache_ram']})",
        f"peak memory: {content['share_of_peak_memory']:.2f} of the yardstick's (target {TARGETS['share_of_peak_memory']})",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_main(main))
