"""How long the official evaluations take, and how much memory, on generated data of the size of the test sets.

    python scripts/benchmark_evaluate.py [--protocols visdrone uavdt tinyperson] [--scale 1] [--json OUT]

Every protocol runs as its command (python -m evaluate.NAME) in a process of its own with one thread; start, reading
and writing are included. Seconds of processor time hardly depend on what else the machine does; wall time does. The
numbers that come out of the evaluation mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluate.uavdt_io import NUM_FRAMES
from utils.cli import Parser, run_main
from utils.files import write_json

ROOT = Path(__file__).resolve().parent.parent
SIZE_WH = (1920.0, 1080.0)
FOUND_SHARE = 0.7
"""Of the detections: those near an object. The others lie anywhere."""

Rows = NDArray[np.float64]


class BenchmarkError(RuntimeError):
    """An evaluation that failed."""


@dataclass(frozen=True)
class Case:
    """Generated data on disk: options for the command, and how much it is."""

    options: list[str]
    images: int
    detections: int


@dataclass(frozen=True)
class Measurement:
    """One row of the table. Seconds of processor time and on the clock; memory: peak resident, MiB."""

    protocol: str
    images: int
    detections: int
    cpu_s: float
    wall_s: float
    peak_mib: float


def main() -> None:
    """Parse the command line, measure, print, write."""
    args = build_parser().parse_args()
    measurements = []
    for protocol in args.protocols:
        with tempfile.TemporaryDirectory() as folder:
            case = GENERATORS[protocol](Path(folder), args.scale, np.random.default_rng(args.seed))
            measurements.append(measure(protocol, case, Path(folder)))
    if args.json is not None:
        write_json(args.json, {"scale": args.scale, "rows": [asdict(row) for row in measurements]})
    print(table(measurements))


def scale(text: str) -> float:
    """A number above 0 and at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and at most 1")
    return value


EXAMPLES = (
    "python scripts/benchmark_evaluate.py",
    "python scripts/benchmark_evaluate.py --protocols visdrone --scale 0.1 --json times.json",
)
"""Shown at the end of ``--help``."""


def build_parser() -> Parser:
    """The parser of this script."""
    parser = Parser("Time and memory of the official evaluations on generated data.", examples=EXAMPLES)
    parser.add_argument(
        "--protocols",
        nargs="+",
        choices=tuple(GENERATORS),
        default=list(GENERATORS),
        metavar="NAME",
        help=f"which: {', '.join(GENERATORS)}; by default all",
    )
    parser.add_argument(
        "--scale", type=scale, default=1.0, metavar="F", help="fraction of the test sets' images or frames"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the generated data")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the numbers to this file")
    return parser


# --- measuring ---------------------------------------------------------------------------------


def measure(protocol: str, case: Case, folder: Path) -> Measurement:
    """Run a command and look at what it took.

    Raises:
        BenchmarkError: it failed.
    """
    command = [
        sys.executable,
        "-m",
        f"evaluate.{protocol}",
        *case.options,
        "--json",
        str(folder / "out.json"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    begin = time.perf_counter()
    with (folder / "printed.txt").open("wb") as printed:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=printed, stderr=subprocess.STDOUT
        )
        # wait4 and not getrusage: the usage of this one process, not the largest of all so far.
        _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        text = (folder / "printed.txt").read_text(encoding="utf-8", errors="replace")
        raise BenchmarkError(f"{' '.join(command)} failed: {text[-2000:]}")
    peak_kib = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return Measurement(
        protocol, case.images, case.detections, usage.ru_utime + usage.ru_stime, wall_s, peak_kib / 1024
    )


def table(measurements: list[Measurement]) -> str:
    """The printed table."""
    lines = [f"{'protocol':<12} {'images':>7} {'detections':>11} {'CPU s':>7} {'wall s':>7} {'peak MiB':>9}"]
    lines += [
        f"{row.protocol:<12} {row.images:>7} {row.detections:>11} {row.cpu_s:>7.1f} {row.wall_s:>7.1f} {row.peak_mib:>9.0f}"
        for row in measurements
    ]
    return "\n".join(lines)


# --- generated data ------------------------------------------------------------------------------


def random_boxes(rng: np.random.Generator, count: int, sides_px: tuple[float, float]) -> Rows:
    """[count, 4] x, y, w, h anywhere in an image of `SIZE_WH`."""
    corner = rng.uniform(0, 1, (count, 2)) * (np.array(SIZE_WH) - sides_px[1])
    return np.concatenate((corner, rng.uniform(*sides_px, (count, 2))), axis=1)


def detected(rng: np.random.Generator, objects: Rows, count: int) -> tuple[Rows, NDArray[np.int64]]:
    """[count, 4] detections, most of them beside an object, and the object each was drawn from."""
    source = rng.integers(0, len(objects), count)
    boxes = objects[source] * (1 + rng.normal(0, 0.1, (count, 4)) * [0, 0, 1, 1])
    boxes[:, :2] += rng.normal(0, 0.1, (count, 2)) * boxes[:, 2:]
    lost = rng.uniform(size=count) > FOUND_SHARE
    boxes[lost, :2] = rng.uniform(0, 1, (int(lost.sum()), 2)) * SIZE_WH
    return boxes, source


def write_rows(path: Path, form: str, rows: Rows) -> None:
    """A line per row, by a ``%`` format."""
    path.write_text("".join(form % tuple(row) + "\n" for row in rows.tolist()), encoding="utf-8")


def generate_visdrone(folder: Path, part: float, rng: np.random.Generator) -> Case:
    """Test-dev: 1610 images of 50–80 objects in 10 classes, 3–8 ignored regions, 500 detections."""
    images, per_image = max(1, round(1610 * part)), 500
    for name in ("annotations", "results"):
        (folder / name).mkdir()
    for index in range(images):
        objects = random_boxes(rng, int(rng.integers(50, 81)), (8, 90)).round()
        label = rng.integers(1, 11, len(objects))
        score = rng.uniform(size=len(objects)) > 0.05
        regions = random_boxes(rng, int(rng.integers(3, 9)), (40, 300)).round()
        nothing = np.zeros((len(regions), 2))
        rows = np.concatenate(
            (np.column_stack((objects, score, label)), np.concatenate((regions, nothing), axis=1))
        )
        write_rows(folder / "annotations" / f"{index:07d}.txt", "%d,%d,%d,%d,%d,%d,0,0", rows)
        boxes, source = detected(rng, objects, per_image)
        rows = np.column_stack((boxes, rng.uniform(size=per_image), label[source]))
        write_rows(folder / "results" / f"{index:07d}.txt", "%.2f,%.2f,%.2f,%.2f,%.4f,%d,-1,-1", rows)
    sizes = {f"{index:07d}": [int(side) for side in SIZE_WH] for index in range(images)}
    write_json(folder / "sizes.json", sizes)
    options = [f"--{name}={folder / name}" for name in ("annotations", "results")]
    return Case([*options, f"--image-sizes={folder / 'sizes.json'}"], images, images * per_image)


def generate_uavdt(folder: Path, part: float, rng: np.random.Generator) -> Case:
    """The 20 test sequences: 25 objects, 3 ignored regions and 100 detections in each frame."""
    num_frames = {name: max(1, round(frames * part)) for name, frames in NUM_FRAMES.items()}
    objects_per_frame, regions_per_frame, per_frame = 25, 3, 100
    for name in ("gt", "results"):
        (folder / name).mkdir()
    write_json(folder / "frames.json", num_frames)
    for name, frames in num_frames.items():
        objects, detections, regions = [], [], []
        for frame in range(1, frames + 1):
            boxes = random_boxes(rng, objects_per_frame, (20, 120)).round()
            attributes = rng.integers(1, 4, (objects_per_frame, 3))
            number = np.full((per_frame, 1), frame)
            objects.append(np.hstack((number[:objects_per_frame], boxes, attributes)))
            regions.append(
                np.hstack((number[:regions_per_frame], random_boxes(rng, regions_per_frame, (50, 300))))
            )
            found, _ = detected(rng, boxes, per_frame)
            detections.append(np.hstack((number, found, rng.uniform(size=(per_frame, 1)))))
        whole, ignore = (folder / "gt" / f"{name}_gt_{kind}.txt" for kind in ("whole", "ignore"))
        write_rows(whole, "%d,1,%d,%d,%d,%d,%d,%d,%d", np.concatenate(objects))
        write_rows(ignore, "%d,-1,%d,%d,%d,%d,1,-1,-1", np.concatenate(regions))
        write_rows(
            folder / "results" / f"{name}.txt",
            "%d,-1,%.1f,%.1f,%.1f,%.1f,%.4f,1,1",
            np.concatenate(detections),
        )
    frames = sum(num_frames.values())
    options = [f"--gt={folder / 'gt'}", f"--results={folder / 'results'}"]
    return Case([*options, f"--num-frames={folder / 'frames.json'}"], frames, frames * per_frame)


def generate_tinyperson(folder: Path, part: float, rng: np.random.Generator) -> Case:
    """Test: 816 images of 10–40 small objects, 200 detections."""
    images, per_image = max(1, round(816 * part)), 200
    annotations: list[str] = []
    results: list[str] = []
    for index in range(images):
        objects = random_boxes(rng, int(rng.integers(10, 41)), (2, 40))
        for box, flags in zip(objects.tolist(), rng.uniform(size=(len(objects), 3)).tolist(), strict=True):
            ignore, crowd, uncertain = (value < 0.1 for value in flags)
            annotations.append(
                json.dumps(
                    {"id": len(annotations), "image_id": index, "category_id": 1, "bbox": box, "area": box[2] * box[3],
                     "iscrowd": int(crowd), "ignore": ignore, "uncertain": uncertain}
                )
            )  # fmt: skip
        boxes, _ = detected(rng, objects, per_image)
        for box, score in zip(boxes.round(3).tolist(), rng.uniform(size=per_image).tolist(), strict=True):
            results.append(json.dumps({"image_id": index, "category_id": 1, "bbox": box, "score": score}))
    listed = ", ".join(f'{{"id": {index}}}' for index in range(images))
    (folder / "gt.json").write_text(
        f'{{"images": [{listed}], "categories": [{{"id": 1, "name": "person"}}], '
        f'"annotations": [{", ".join(annotations)}]}}',
        encoding="utf-8",
    )
    (folder / "results.json").write_text(f"[{', '.join(results)}]", encoding="utf-8")
    options = [f"--gt={folder / 'gt.json'}", f"--results={folder / 'results.json'}"]
    return Case(options, images, images * per_image)


GENERATORS: dict[str, Callable[[Path, float, np.random.Generator], Case]] = {
    "visdrone": generate_visdrone,
    "uavdt": generate_uavdt,
    "tinyperson": generate_tinyperson,
}


if __name__ == "__main__":
    sys.exit(run_main(main))
