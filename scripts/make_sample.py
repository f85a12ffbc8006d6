"""Draws the sample dataset: aerial pictures with exact boxes in VisDrone's original layout, free of any licence.

    python scripts/make_sample.py
    python scripts/data_prepare.py --dataset VisDrone --root sample

Same settings, same bytes, however many processes draw; running it again repairs what is missing or damaged and
leaves the rest alone. How a picture comes about is in utils/synthetic. It is no benchmark: a network that is
good at drawn cars has learnt to find drawn cars.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
from tqdm import tqdm

from utils.files import write_atomic, write_json
from utils.images import MASKED_SUFFIX
from utils.synthetic import VERSION, draw_picture

# utils.cli is imported where it is used: it loads torch, which the drawing processes can do without.

SPLITS = ("train", "val")
MANIFEST = "sample.json"
JPEG_QUALITY = 92
SIDE_RANGE = (64, 4096)


class SampleError(ValueError):
    """A sample that cannot be drawn there; the message says why, and what to do instead."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides what the files hold."""

    train: int
    val: int
    width: int
    height: int
    seed: int


@dataclass(frozen=True)
class Job:
    """One picture to be drawn."""

    settings: Settings
    output: Path
    split: str
    index: int
    recorded: dict[str, str]
    """Hashes of the sample's files by path in ``output``, as far as an earlier run knew them."""

    @property
    def files(self) -> tuple[str, str]:
        """Image and annotation file, as paths in ``output``."""
        folder, stem = f"VisDrone2019-DET-{self.split}", f"sample_{self.split}_{self.index:05d}"
        return f"{folder}/images/{stem}.jpg", f"{folder}/annotations/{stem}.txt"


@dataclass(frozen=True)
class Drawn:
    """What became of a job."""

    sha256: dict[str, str]
    written: int
    """Files that were new or different, 0–2."""


EXAMPLES = (
    "python scripts/make_sample.py",
    "python scripts/make_sample.py --output sample_small --train 8 --val 4 --width 640 --height 384",
)
"""Shown at the end of ``--help``."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    from utils.cli import Parser, default_workers, non_negative_int, positive_int

    parser = Parser(
        "Draw the sample dataset: licence-free aerial pictures with boxes, in VisDrone's layout.",
        examples=EXAMPLES,
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("sample"),
        metavar="DIR",
        help="folder to make; must be new, empty, or hold a sample of the same settings, e.g. --output /data/sample",
    )
    parser.add_argument(
        "--train", type=positive_int, default=96, metavar="N", help="training images, e.g. --train 500"
    )
    parser.add_argument(
        "--val", type=positive_int, default=24, metavar="N", help="validation images, e.g. --val 100"
    )
    low, high = SIDE_RANGE
    parser.add_argument(
        "--width",
        type=side,
        default=960,
        metavar="PIXELS",
        help=f"of an image, {low}-{high}, e.g. --width 1920",
    )
    parser.add_argument(
        "--height",
        type=side,
        default=544,
        metavar="PIXELS",
        help=f"of an image, {low}-{high}, e.g. --height 1080",
    )
    parser.add_argument(
        "--seed",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="another seed draws other pictures, e.g. --seed 7",
    )
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=default_workers(),
        metavar="N",
        help="drawing processes, 1: no extra one; never changes the result, e.g. --workers 4",
    )
    parser.epilog = "example: python scripts/make_sample.py --output sample_hd --train 200 --val 50 --width 1920 --height 1088"
    return parser


def side(text: str) -> int:
    """Argument type: a side of an image in pixels."""
    low, high = SIDE_RANGE
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of pixels from {low} to {high}")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 on success. Raises SampleError or OSError when the folder cannot be used."""
    args = build_parser().parse_args(arguments)
    settings = Settings(args.train, args.val, args.width, args.height, args.seed)
    started = time.perf_counter()
    written = make_sample(args.output, settings, args.workers)
    seconds = time.perf_counter() - started
    count = settings.train + settings.val
    change = f"{written} files written" if written else "everything was there already, nothing was changed"
    print(
        f"{count} images of {settings.width}×{settings.height} in {args.output}: {change} ({seconds:.1f} s)"
    )
    return 0


def make_sample(output: Path, settings: Settings, workers: int) -> int:
    """Make the sample or complete it; returns how many files had to be written.

    Raises SampleError when ``output`` holds anything but a sample of the same settings, or when a drawing
    process dies; OSError when it cannot be written.
    """
    recorded = check_output(output, settings)
    if not recorded:
        # Before the first image: a run that is interrupted must know its own folder again.
        write_manifest(output, settings, {})
    jobs = [
        Job(settings, output, split, index, recorded)
        for split, count in zip(SPLITS, (settings.train, settings.val), strict=True)
        for index in range(count)
    ]
    check_foreign(output, jobs)
    sha256: dict[str, str] = {}
    written = 0
    with tqdm(total=len(jobs), desc="drawing", unit="image") as progress:
        for drawn in draw_all(jobs, workers):
            sha256 |= drawn.sha256
            written += drawn.written
            progress.update()
    if sha256 != recorded:
        write_manifest(output, settings, sha256)
    return written


def check_output(output: Path, settings: Settings) -> dict[str, str]:
    """Check that the folder may be written; returns the hashes that an earlier run has recorded.

    Raises SampleError when it is not new, not empty and not a sample of the same settings.
    """
    if not output.exists():
        return {}
    if not output.is_dir():
        raise SampleError(f"{output} is a file: give the name of a folder as --output")
    path = output / MANIFEST
    if not path.is_file():
        others = sorted(entry.name for entry in output.iterdir())
        if others:
            raise SampleError(
                f"{output} holds {', '.join(others[:3])}{' …' if len(others) > 3 else ''} and no {MANIFEST}, so it is "
                "not a sample of ours and is left alone: give a new or empty folder as --output"
            )
        return {}
    wanted = description(settings)
    found, sha256 = read_manifest(path)
    if found != wanted:
        differences = [
            f"{key} {found.get(key)} there, {wanted[key]} here"
            for key in wanted
            if found.get(key) != wanted[key]
        ]
        raise SampleError(
            f"{output} holds a sample with other settings ({'; '.join(differences)}): "
            "give another --output, or delete that folder first"
        )
    return sha256


def check_foreign(output: Path, jobs: Sequence[Job]) -> None:
    """Raise SampleError when the image folders hold images of somebody else (greyed copies are ours)."""
    own = {file for job in jobs for file in job.files}
    for split in SPLITS:
        folder = f"VisDrone2019-DET-{split}/images"
        for path in sorted((output / folder).glob("*")):
            derived = path.stem.endswith(MASKED_SUFFIX) or path.name.startswith(".")
            if not derived and f"{folder}/{path.name}" not in own:
                raise SampleError(
                    f"{path} is not part of this sample: move it away, or give another folder as --output"
                )


def description(settings: Settings) -> dict[str, int]:
    """What must be equal for two runs to draw the same."""
    return {"version": VERSION, **asdict(settings)}


def read_manifest(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """(description, hashes by file) from a manifest. Raises SampleError when it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found, sha256 = content["drawn"], content["sha256"]
        if not isinstance(found, dict) or not isinstance(sha256, dict):
            raise TypeError("wrong types")
    except (ValueError, KeyError, TypeError) as error:
        raise SampleError(
            f"{path} cannot be read ({error}): delete {path.parent}, or give another --output"
        ) from error
    return found, {str(file): str(value) for file, value in sha256.items()}


def write_manifest(output: Path, settings: Settings, sha256: dict[str, str]) -> None:
    """Record what was drawn here."""
    content = {
        "what": "sample dataset drawn by scripts/make_sample.py; nothing in it is a photograph",
        "drawn": description(settings),
        "sha256": dict(sorted(sha256.items())),
    }
    write_json(output / MANIFEST, content)


def draw_all(jobs: Sequence[Job], workers: int) -> Generator[Drawn, None, None]:
    """Draw the jobs, in their order, in several processes. Raises SampleError when a process dies."""
    if workers <= 1 or len(jobs) <= 1:
        yield from map(draw_job, jobs)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy whatever threads the parent has
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=start_worker)
    try:
        yield from pool.map(draw_job, jobs)
    except BrokenProcessPool as error:
        raise SampleError(
            "a drawing process died, most likely for want of memory: use fewer --workers or smaller images; "
            "run the same command again, what is drawn is kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def start_worker() -> None:
    """Prepare a drawing process: one thread, Ctrl-C is the parent's business, and a killed parent ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Wait for the parent's end, then end this process too."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def draw_job(job: Job) -> Drawn:
    """Draw one picture and write what is not there yet."""
    earlier = {file: job.recorded[file] for file in job.files if file in job.recorded}
    if len(earlier) == len(job.files) and all(
        sha256_of(job.output / file) == earlier[file] for file in earlier
    ):
        return Drawn(earlier, 0)
    settings = job.settings
    picture = draw_picture(settings.width, settings.height, settings.seed, SPLITS.index(job.split), job.index)
    _, jpeg = cv2.imencode(".jpg", picture.image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    rows = "".join(f"{annotation.row()}\n" for annotation in picture.annotations)
    written, sha256 = 0, {}
    for file, data in zip(job.files, (bytes(jpeg), rows.encode()), strict=True):
        sha256[file] = hashlib.sha256(data).hexdigest()
        if sha256_of(job.output / file) != sha256[file]:
            write_bytes(job.output / file, data)
            written += 1
    return Drawn(sha256, written)


def sha256_of(path: Path) -> str | None:
    """Hash of a file, None when there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    write_atomic(path, lambda file: file.write(data))


if __name__ == "__main__":
    from utils.cli import run_main

    sys.exit(run_main(main))
