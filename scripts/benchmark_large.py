"""Time, memory and objects on seams of `detect.py --window` on very large pictures, against the labels.

    python scripts/benchmark_large.py [--size 12000] [--formats tif jpg] [--window 4096 --overlap 128] [--json OUT]

Pictures of the drawn sample data (scripts/make_sample.py, scripts/data_prepare.py) are laid side by side until they fill
a square; windows are laid over it without regard to objects, so many lie on seams. Each file is looked at by
detect.py in a process of its own. Objects are compared by where they lie: those that a border of a window
crosses, and the others. What windows spoil shows as a difference between the two. Needs Linux, and rasterio for "tif".
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from utils.cli import Parser, image_size, non_negative_int, positive_int, run_main
from utils.decoding import read_picture
from utils.environment import environment_report
from utils.files import write_atomic
from utils.labels import label_path, parse_label_text
from utils.optional import MissingPackageError
from utils.typed_data import ConfigError
from utils.windows import Window, cut_into_windows

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ("python scripts/benchmark_large.py --size 30000 --formats tif jpg --json runs/large.json",)
BLOCK = 512
FOUND_IOU = 0.5
INSIDE = 0.7
"""A detection is a piece of an object when so much of it lies inside, and it is not the object (`FOUND_IOU`)."""


@dataclass(frozen=True)
class Objects:
    """``xyxy`` [N, 4] in pixels of the large picture and ``label`` [N]."""

    xyxy: torch.Tensor
    label: torch.Tensor


@dataclass(frozen=True)
class Share:
    """What became of some labelled objects: how many, found, found more than once, with a piece beside them."""

    objects: int
    found: int
    twice: int
    pieces: int


@dataclass(frozen=True)
class Result:
    """One file through detect.py: size on disk, time of the whole command, peak of its memory, and the objects."""

    format: str
    size: int
    file_mib: float
    seconds: float
    peak_mib: float
    windows: int
    detections: int
    on_seams: Share
    elsewhere: Share


def lay_pictures(images: Sequence[Path], size: int) -> tuple[NDArray[np.uint8], Objects]:
    """A picture [size, size, 3] (BGR) of these, side by side and cut at its border, and its objects."""
    tiles = [(read_picture(path)[..., ::-1], _labels(path)) for path in images]
    whole = np.empty((size, size, 3), np.uint8)
    boxes: list[NDArray[np.float64]] = []
    height, width = tiles[0][0].shape[:2]
    number = 0
    for top in range(0, size, height):
        for left in range(0, size, width):
            image, rows = tiles[number % len(tiles)]
            number += 1
            whole[top : top + height, left : left + width] = image[: size - top, : size - left]
            centre, side = rows[:, 1:3] * (width, height), rows[:, 3:] * (width, height)
            boxes.append(
                np.column_stack(
                    [centre - side / 2 + (left, top), centre + side / 2 + (left, top), rows[:, 0]]
                )
            )
    table = np.concatenate(boxes)
    table = table[(table[:, 2:4] <= size).all(axis=1)]
    return whole, Objects(torch.from_numpy(table[:, :4]), torch.from_numpy(table[:, 4]).long())


def _labels(image: Path) -> NDArray[np.float64]:
    text = label_path(image).read_text(encoding="utf-8")
    return parse_label_text(text, None, str(label_path(image))).rows.astype(np.float64).reshape(-1, 5)


def write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """As its suffix says; a TIFF in tiles, compressed, with a place on the map."""
    if path.suffix != ".tif":
        options = (
            [cv2.IMWRITE_PNG_COMPRESSION, 1] if path.suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, 92]
        )
        cv2.imwrite(str(path), picture, options)
        return
    try:
        import rasterio
        from rasterio.transform import from_origin
        from rasterio.windows import Window as Rectangle
    except ImportError as error:
        raise MissingPackageError("--formats tif", "rasterio", error) from error
    size = picture.shape[0]
    with rasterio.open(
        path, "w", driver="GTiff", width=size, height=size, count=3, dtype="uint8", tiled=True, blockxsize=BLOCK,
        blockysize=BLOCK, compress="deflate", zlevel=1, photometric="RGB", crs="EPSG:32633",
        transform=from_origin(400_000, 5_800_000, 0.1, 0.1),
    ) as file:  # fmt: skip
        for top in range(0, size, BLOCK):
            rows = picture[top : top + BLOCK, :, ::-1]
            file.write(np.moveaxis(rows, 2, 0), window=Rectangle(0, top, size, len(rows)))


def run_detection(options: argparse.Namespace, path: Path, folder: Path) -> tuple[float, float]:
    """Seconds and peak of resident memory, in MiB, of detect.py on a file, which must end well."""
    line = [
        sys.executable, ROOT / "detect.py", "--weights", options.weights, "--source", path, "--window", options.window,
        "--overlap", options.overlap, "--device", "cpu", "--max-det", options.max_det, "--project", folder, "--name",
        "large", "--exist-ok", "--json", folder / "found.jsonl", "--quiet",
    ]  # fmt: skip
    print("$", shlex.join(map(str, line)), flush=True)
    started, peak_kib = time.perf_counter(), 0
    process = subprocess.Popen(list(map(str, line)))
    while process.poll() is None:
        peak_kib = max(peak_kib, _peak_kib(process.pid))
        time.sleep(0.1)
    if process.returncode:
        raise ConfigError(f"detect.py on {path} ended with status {process.returncode}")
    return time.perf_counter() - started, peak_kib / 1024


def _peak_kib(pid: int) -> int:
    """Largest resident memory of a process so far; 0 when it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    return next((int(row.split()[1]) for row in status.splitlines() if row.startswith("VmHWM")), 0)


def on_seams(xyxy: torch.Tensor, windows: Sequence[Window], size: int) -> torch.Tensor:
    """Which boxes [N, 4] are crossed by a border of a window inside the picture: [N]."""
    crossed = torch.zeros(len(xyxy), dtype=torch.bool)
    for axis in (0, 1):
        for border in {border for window in windows for border in window.span(axis)} - {0, size}:
            crossed |= (xyxy[:, axis] < border) & (border < xyxy[:, axis + 2])
    return crossed


def compare(truth: Objects, found: Objects, chosen: torch.Tensor) -> Share:
    """What became of the chosen objects; a detection that is another object, too, is no piece and no double."""
    iou = box_iou(found.xyxy, truth.xyxy) * (found.label[:, None] == truth.label)
    best, owner = iou.max(dim=1)
    is_object = best >= FOUND_IOU
    count = torch.bincount(owner[is_object], minlength=len(truth.label))
    low = torch.maximum(found.xyxy[:, None, :2], truth.xyxy[None, :, :2])
    high = torch.minimum(found.xyxy[:, None, 2:], truth.xyxy[None, :, 2:])
    area = (found.xyxy[:, 2:] - found.xyxy[:, :2]).prod(dim=1).clamp(min=1e-9)
    inside = (high - low).clamp(min=0).prod(dim=2) / area[:, None] >= INSIDE
    piece = (inside & ~is_object[:, None] & (found.label[:, None] == truth.label)).any(dim=0)
    here = count[chosen]
    return Share(
        int(chosen.sum()),
        int((here > 0).sum()),
        int((here > 1).sum()),
        int((piece[chosen] & (here > 0)).sum()),
    )


def compare_near(truth: Objects, found: Objects, chosen: torch.Tensor, size: int) -> Share:
    """`compare` strip by strip, so that not every detection meets every object."""
    total = [0, 0, 0, 0]
    centre = (truth.xyxy[:, 1] + truth.xyxy[:, 3]) / 2
    for top in range(0, size, BLOCK):
        mine = (centre >= top) & (centre < top + BLOCK)
        near = (truth.xyxy[:, 3] > top - BLOCK) & (truth.xyxy[:, 1] < top + 2 * BLOCK)
        also = (found.xyxy[:, 3] > top - BLOCK) & (found.xyxy[:, 1] < top + 2 * BLOCK)
        if also.any() and mine.any():
            part = compare(
                Objects(truth.xyxy[near], truth.label[near]),
                Objects(found.xyxy[also], found.label[also]),
                (chosen & mine)[near],
            )
            total = [
                a + b for a, b in zip(total, (part.objects, part.found, part.twice, part.pieces), strict=True)
            ]
    return Share(*total)


def measure(options: argparse.Namespace, kind: str, folder: Path) -> Result:
    """One format: make the file, detect, compare, remove it."""
    size = options.size
    path = folder / f"large.{kind}"
    picture, truth = lay_pictures(_images(options.images), size)
    write_picture(path, picture)
    del picture
    file_mib = path.stat().st_size / 2**20
    seconds, peak_mib = run_detection(options, path, folder)
    path.unlink()
    with (folder / "found.jsonl").open(encoding="ascii") as file:
        rows = json.loads(file.readline())["detections"]
    found = Objects(
        torch.tensor([row["xyxy"] for row in rows], dtype=torch.float64).reshape(-1, 4),
        torch.tensor([row["class"] for row in rows], dtype=torch.int64),
    )
    windows = cut_into_windows((size, size), options.window, options.overlap)
    seam = on_seams(truth.xyxy, windows, size)
    shares = [compare_near(truth, found, chosen, size) for chosen in (seam, ~seam)]
    return Result(kind, size, file_mib, seconds, peak_mib, len(windows), len(rows), *shares)


def _images(folder: Path) -> list[Path]:
    images = sorted(path for path in folder.glob("*.jpg") if not path.stem.endswith("_masked"))
    if not images:
        raise ConfigError(
            f"{folder} holds no .jpg: draw the sample (python scripts/make_sample.py, then "
            "python scripts/data_prepare.py --dataset VisDrone --root sample), or give --images"
        )
    return images


def table(results: Sequence[Result]) -> str:
    """For people, in Markdown."""
    rows = [
        "| file | MiB | s | peak MiB | windows | objects | where | found | twice | with a piece |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        for where, share in (("on seams", one.on_seams), ("elsewhere", one.elsewhere)):
            shares = " | ".join(
                f"{count} ({100 * count / max(share.objects, 1):.2f}%)"
                for count in (share.found, share.twice, share.pieces)
            )
            rows.append(
                f"| {one.size}² .{one.format} | {one.file_mib:.0f} | {one.seconds:.0f} | {one.peak_mib:.0f} | "
                f"{one.windows} | {share.objects} | {where} | {shares} |"
            )
    return "\n".join(rows)


def build_parser() -> Parser:
    """The command line."""
    parser = Parser("Measure detect.py --window on very large pictures.", examples=EXAMPLES)
    parser.add_argument(
        "--size", type=positive_int, default=12000, metavar="PIXELS", help="side of the picture"
    )
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=("tif", "jpg", "png"),
        default=["tif", "jpg"],
        help="of the files, one run each",
    )
    parser.add_argument(
        "--images", type=Path, default=Path("sample/VisDrone2019-DET-val/images"), metavar="FOLDER",
        help="labelled pictures of one size",
    )  # fmt: skip
    parser.add_argument("--weights", default="weights/sample_yolov5n.pt", metavar="PATH", help="of the model")
    parser.add_argument("--window", type=image_size, default=4096, metavar="PIXELS", help="see detect.py")
    parser.add_argument(
        "--overlap", type=non_negative_int, default=128, metavar="PIXELS", help="see detect.py"
    )
    parser.add_argument(
        "--max-det", type=positive_int, default=5000, metavar="N", help="per window, see detect.py"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="keeps the drawn pictures; else they are removed"
    )
    parser.add_argument(
        "--json", type=Path, metavar="PATH", help="write all numbers, and where they were made"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    options = build_parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.output or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        results = []
        for kind in options.formats:
            results.append(measure(options, kind, folder))
            print(table(results[-1:]), flush=True)
    if options.json is not None:
        report = {"environment": environment_report(), "results": [asdict(result) for result in results]}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(options.json, lambda file: file.write((json.dumps(report, indent=1) + "\n").encode()))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
