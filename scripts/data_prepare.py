"""Prepares a dataset as it is published for training: labels, lists, greyed copies, heatmaps.

    python scripts/data_prepare.py --dataset VisDrone

Running it again changes nothing and takes seconds; a run that was killed is completed. What is made for an image
is in utils/prepare.py, what VisDrone's files say in utils/visdrone.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from utils.cli import Parser, positive_int, run_main
from utils.prepare import (
    GRID_SIDE,
    ImageReport,
    PrepareError,
    PrepareSettings,
    prepare_images,
    remove_leftovers,
    write_if_changed,
)
from utils.visdrone import CLASS_NAMES, Split, find_splits, parse_annotations

REPOSITORY = Path(__file__).resolve().parent.parent
DETECT_LIST = REPOSITORY / "data" / "images" / "visdrone.txt"
DETECT_LIST_SIZE = 8
REPORT_NAME = "prepare.json"
PROBLEMS_SHOWN = 20

TABLE = (
    ("images", "images"),
    ("images left out", "images_left_out"),
    ("images with a greyed copy", "images_masked"),
    ("objects", "objects"),
    ("objects per image", "objects_per_image"),
    ("share of empty 8×8 grid cells", "empty_grid_share"),
    ("heatmap file, mean kB", "heatmap_kb"),
    ("boxes clipped at the border", "boxes_clipped"),
)

Summary = dict[str, Any]


def build_parser() -> Parser:
    """The command line."""
    parser = Parser("Prepare a dataset for training: labels, lists, greyed copies, heatmaps.")
    parser.add_argument("--dataset", required=True, choices=("VisDrone",), help="which dataset")
    parser.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="folder of the dataset as unpacked, may be a symbolic link (default: the dataset's name)",
    )
    parser.add_argument(
        "--workers", type=positive_int, default=usable_cores(), metavar="N", help="processes; 1: no extra one"
    )
    parser.add_argument("--force", action="store_true", help="make everything anew, not only what is missing")
    parser.add_argument(
        "--no-mask-ignored",
        action="store_true",
        help="leave the pixels of ignored regions alone: lists name the original images",
    )
    parser.add_argument(
        "--heatmap", choices=("gaussian",), default="gaussian", help="what label heatmaps are made from"
    )
    parser.add_argument(
        "--detect-list",
        type=Path,
        default=DETECT_LIST,
        metavar="FILE",
        help=f"list of up to {DETECT_LIST_SIZE} of the images for detect.py --source",
    )
    return parser


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare a dataset; 0 when all of it is ready, 1 when something had to be left out."""
    args = build_parser().parse_args(arguments)
    root: Path = args.root or Path(args.dataset)
    settings = PrepareSettings(parse_annotations, mask_ignored=not args.no_mask_ignored, force=args.force)
    begin = time.perf_counter()
    with only_run(root):
        splits = find_splits(root)
        remove_leftovers(folders_written(root, splits))
        reports = prepare_splits(splits, settings, args.workers)
        for name, images in reports.items():
            write_list(root, name, images)
        summary = summarise(splits, reports, settings) | {"seconds": round(time.perf_counter() - begin, 1)}
        changed = args.force or any(image.changed for images in reports.values() for image in images)
        write_report(root / REPORT_NAME, summary, changed)
    print_summary(summary, changed)
    write_detect_list(args.detect_list, reports)
    return print_problems(summary, root / REPORT_NAME)


@contextlib.contextmanager
def only_run(root: Path) -> Iterator[None]:
    """Hold a lock on a folder, one that leaves no file behind. Raises PrepareError when another run holds it."""
    if fcntl is None or not root.is_dir():
        yield
        return
    handle = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise PrepareError(f"{root}: another run is preparing this folder; wait for its end") from error
    except OSError:
        pass  # a file system without locks: two runs at once are the user's care
    try:
        yield
    finally:
        os.close(handle)


def folders_written(root: Path, splits: Sequence[Split]) -> list[Path]:
    """All folders that a run writes into, the detect list's aside."""
    inside = [split.folder / name for split in splits for name in ("images", "labels", "heatmaps")]
    return [root, root / "split", *inside]


def prepare_splits(
    splits: Sequence[Split], settings: PrepareSettings, workers: int
) -> dict[str, list[ImageReport]]:
    """Prepare the images of all splits with one progress bar; reports by split, in the order of the names."""
    jobs = [job for split in splits for job in split.jobs]
    reports = prepare_images(jobs, settings, workers)
    with contextlib.closing(reports), tqdm(reports, "Preparing", len(jobs), unit=" images") as bar:
        done = iter(list(bar))
    return {split.name: [next(done) for _ in split.jobs] for split in splits}


def write_list(root: Path, name: str, images: Sequence[ImageReport]) -> None:
    """``split/<name>.txt``: the usable images, relative to root, so that a symbolic link may lead there."""
    lines = [f"./{image.listed.relative_to(root).as_posix()}\n" for image in images if image.listed]
    write_if_changed(root / "split" / f"{name}.txt", "".join(lines).encode())


def write_detect_list(path: Path, reports: Mapping[str, Sequence[ImageReport]]) -> None:
    """A few images, spread over the val split or else the first there is: something to show detect.py."""
    for name in ("val", *reports):
        listed = [image.listed for image in reports.get(name, ()) if image.listed]
        if listed:
            count = min(DETECT_LIST_SIZE, len(listed))
            chosen = [listed[i * len(listed) // count] for i in range(count)]
            lines = "".join(f"{from_repository(image)}\n" for image in chosen)
            write_if_changed(path, lines.encode(errors="surrogateescape"))
            return


def from_repository(path: Path) -> str:
    """A path for use in the repository's folder: relative if it is below it; links are not followed."""
    absolute = path.absolute()
    return (absolute.relative_to(REPOSITORY) if absolute.is_relative_to(REPOSITORY) else absolute).as_posix()


def summarise(
    splits: Sequence[Split], reports: Mapping[str, Sequence[ImageReport]], settings: PrepareSettings
) -> Summary:
    """What was prepared, as plain data for the report file."""
    failed = [image.problem for images in reports.values() for image in images if image.problem]
    return {
        "dataset": "VisDrone",
        "settings": {"heatmap": "gaussian", "tau": settings.tau, "mask_ignored": settings.mask_ignored},
        "splits": {split.name: summarise_split(split, reports[split.name]) for split in splits},
        "problems": [problem for split in splits for problem in split.problems] + failed,
        "warnings": [
            message for images in reports.values() for image in images for message in image.messages
        ],
    }


def summarise_split(split: Split, reports: Sequence[ImageReport]) -> Summary:
    """The numbers of one split. Shares and means are over the images with annotations; None without any."""
    used = [image for image in reports if image.listed]
    labelled = [
        image for image, job in zip(reports, split.jobs, strict=True) if image.listed and job.annotation
    ]
    counts = sum((Counter(image.class_counts) for image in labelled), Counter[int]())
    dropped = sum((Counter(image.dropped) for image in labelled), Counter[str]())

    def mean(values: Sequence[float], digits: int) -> float | None:
        return round(sum(values) / len(values), digits) if values else None

    return {
        "images": len(used),
        "images_left_out": len(reports) - len(used),
        "images_masked": sum(image.listed != image.image for image in used),
        "objects": counts.total(),
        "objects_per_image": mean([sum(image.class_counts.values()) for image in labelled], 2),
        "empty_grid_share": mean([image.empty_cells / GRID_SIDE**2 for image in labelled], 4),
        "heatmap_kb": mean([image.heatmap_bytes / 1000 for image in labelled], 2),
        "boxes_per_class": {name: counts[index] for index, name in enumerate(CLASS_NAMES)},
        "boxes_clipped": sum(image.clipped for image in labelled),
        "dropped": dict(sorted(dropped.items())),
    }


def write_report(path: Path, summary: Summary, changed: bool) -> None:
    """Save the summary, unless nothing has happened since the one that is there."""
    if not changed:
        with contextlib.suppress(OSError, ValueError):
            earlier = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(earlier, dict) and earlier | {"seconds": 0} == summary | {"seconds": 0}:
                return
    write_if_changed(
        path, (json.dumps(summary, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace")
    )


def print_summary(summary: Summary, changed: bool) -> None:
    """A table with one column per split."""
    splits: dict[str, Summary] = summary["splits"]
    reasons = sorted({reason for split in splits.values() for reason in split["dropped"]})
    rows = [("", list(splits))]
    rows += [(title, [show(split[key]) for split in splits.values()]) for title, key in TABLE]
    rows += [
        (f"boxes: {name}", [show(split["boxes_per_class"][name]) for split in splits.values()])
        for name in CLASS_NAMES
    ]
    rows += [
        (f"no label: {reason}", [show(split["dropped"].get(reason, 0)) for split in splits.values()])
        for reason in reasons
    ]
    width = max(len(title) for title, _ in rows)
    columns = max(12, *(len(cell) + 2 for _, cells in rows for cell in cells))
    print()
    for title, cells in rows:
        print(f"{title:<{width}}" + "".join(f"{cell:>{columns}}" for cell in cells))
    print(
        f"\n{summary['seconds']} s" + ("" if changed else "; everything was up to date, nothing was changed")
    )


def show(value: float | None) -> str:
    """A number for the table."""
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def print_problems(summary: Summary, report: Path) -> int:
    """Name what is wrong, at most a page of it; return the exit status."""
    warnings, problems = summary["warnings"], summary["problems"]
    for title, messages in (("lines that gave no label", warnings), ("problems", problems)):
        if messages:
            print(f"\n{len(messages)} {title}:", file=sys.stderr)
            print("\n".join(f"  {message}" for message in messages[:PROBLEMS_SHOWN]), file=sys.stderr)
        if len(messages) > PROBLEMS_SHOWN:
            print(f"  … and {len(messages) - PROBLEMS_SHOWN} more, all of them in {report}", file=sys.stderr)
    if problems:
        print(
            "\nNOT COMPLETE: the above is left out, everything else is ready. "
            "Mend it and run this again: only what changed is done anew.",
            file=sys.stderr,
        )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(run_main(main))
