"""Prepares a dataset for training: labels, lists, greyed copies, label heatmaps, a report.

    python scripts/data_prepare.py --dataset VisDrone
    python scripts/data_prepare.py --dataset UAVDT --root UAVDT
    python scripts/data_prepare.py --dataset TinyPerson --sam-weights weights/sam_vit_b_01ec64.pth
    python scripts/data_prepare.py --dataset coco --images photos/images --annotations photos/annotations.json
    python scripts/data_prepare.py --dataset yolo --images photos/images --names car person

Running it again changes nothing and takes seconds; a run that was killed is completed. What is made for an image
is in utils/prepare.py, what the datasets' files say in utils/datasets.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from utils.anchors import anchor_advice
from utils.cli import Parser, image_size, positive_int, probability, run_main
from utils.config import DatasetConfig
from utils.datasets.base import DatasetSource, PrepareError
from utils.datasets.coco import find_coco
from utils.datasets.custom import write_dataset_yaml
from utils.datasets.tinyperson import find_tinyperson
from utils.datasets.uavdt import find_uavdt
from utils.datasets.visdrone import find_visdrone
from utils.prepare import (
    ImageReport,
    MaskSource,
    PrepareSettings,
    folders_written,
    prepare_images,
    remove_leftovers,
    write_if_changed,
)
from utils.splits import dataset_yaml_of
from utils.typed_data import ConfigError, load_config

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = REPOSITORY / "data"
DETECT_LIST_SIZE = 8
REPORT_NAME = "report.json"
PICTURE_NAME = "report.png"
PROBLEMS_SHOWN = 20
SAM_TYPES = ("vit_b", "vit_l", "vit_h")
PUBLISHED = {"VisDrone": "visdrone", "UAVDT": "uavdt", "TinyPerson": "tinyperson"}
"""Datasets with a layout of their own, and the names of their YAML files in data/."""
CUSTOM = ("coco", "yolo")
DEFAULT_SIZE = {"UAVDT": 1280, "TinyPerson": 2048}
OPTIONS_OF = {
    "annotations": ("coco",), "val_annotations": ("coco",), "val_images": ("coco",), "images": CUSTOM,
    "val_share": CUSTOM, "names": ("yolo",), "single_class": ("UAVDT",),
}  # fmt: skip
"""Options that only some datasets know."""


EXAMPLES = (
    "python scripts/data_prepare.py --dataset VisDrone",
    "python scripts/data_prepare.py --dataset VisDrone --sam-weights sam_vit_b_01ec64.pth --sam-type vit_b",
    "python scripts/data_prepare.py --dataset coco --images photos/images --annotations photos/annotations.json",
    "python scripts/data_prepare.py --dataset yolo --images photos/images --names car person",
)
"""Shown at the end of ``--help``."""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(
        "Prepare a dataset for training: labels, lists, greyed copies, heatmaps, a report.", examples=EXAMPLES
    )
    names = {name.lower(): name for name in (*PUBLISHED, *CUSTOM)}
    parser.add_argument(
        "--dataset",
        required=True,
        type=lambda text: names.get(text.lower(), text),
        choices=tuple(names.values()),
        help="which dataset; coco and yolo: your own images with such annotations",
    )
    parser.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="folder of the dataset as unpacked, may be a symbolic link (default: the dataset's name; for your own "
        "images the folder that holds their folder called images)",
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
        "--img-size", type=image_size, metavar="N", help="input size that the anchors are checked for"
    )
    parser.add_argument(
        "--detect-list",
        type=Path,
        metavar="FILE",
        help=f"list of up to {DETECT_LIST_SIZE} of the images for detect.py --source (default: data/images/NAME.txt, "
        "for your own images split/detect.txt below the root)",
    )
    add_heatmap_arguments(parser)
    add_dataset_arguments(parser)
    return parser


def add_heatmap_arguments(parser: Parser) -> None:
    """What label heatmaps are made from."""
    group = parser.add_argument_group("label heatmaps")
    group.add_argument(
        "--heatmap",
        choices=("gaussian", "sam", "hybrid"),
        help="made from boxes (gaussian), masks (sam) or masks × boxes (hybrid, the default with --sam-weights)",
    )
    group.add_argument(
        "--sam-weights",
        type=Path,
        metavar="FILE",
        help="weights of Segment Anything, to make masks (on a CPU: minutes per image)",
    )
    group.add_argument(
        "--sam-type", choices=SAM_TYPES, default="vit_b", help="which network the weights are of"
    )
    group.add_argument(
        "--sam-device", default="", metavar="DEVICE", help="where it runs: cpu, 0, … (default: a GPU)"
    )


def add_dataset_arguments(parser: Parser) -> None:
    """Options of single datasets."""
    group = parser.add_argument_group("options of single datasets")
    group.add_argument("--single-class", action="store_true", help="UAVDT: cars, trucks, buses are one class")
    group.add_argument("--images", type=Path, metavar="DIR", help="coco, yolo: folder with your images")
    group.add_argument(
        "--annotations", type=Path, metavar="FILE", help="coco: JSON file of the (training) images"
    )
    group.add_argument(
        "--val-annotations", type=Path, metavar="FILE", help="coco: JSON file of the val images"
    )
    group.add_argument(
        "--val-images", type=Path, metavar="DIR", help="coco: their folder (default: --images)"
    )
    group.add_argument(
        "--val-share",
        type=probability,
        metavar="P",
        help="coco, yolo: share held out for validation (default: 0.2)",
    )
    group.add_argument(
        "--names", nargs="+", metavar="NAME", help="yolo: names of the classes, in their order"
    )


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare a dataset; 0 when all of it is ready, 1 when something had to be left out."""
    # Imports torch, like some imports below: worker processes import this file, and need none of it.
    from utils.prepare_report import summarise, summary_table

    args = build_parser().parse_args(arguments)
    check_options(args)
    masks = load_masks(args)
    root = dataset_root(args)
    begin = time.perf_counter()
    with only_run(root):
        source = find_dataset(args, root)
        settings = PrepareSettings(
            mask_ignored=source.mask_ignored and not args.no_mask_ignored,
            keep_labels=source.keep_labels,
            force=args.force,
        )
        reports = prepare_splits(source, root, settings, args.workers, masks)
        write_lists(root, source, reports)
        chosen = {
            "heatmap": masks.mode if masks else "gaussian",
            "tau": settings.tau,
            "mask_ignored": settings.mask_ignored,
        }
        summary = summarise(source, reports, chosen) | {"seconds": round(time.perf_counter() - begin, 1)}
        changed = args.force or any(image.changed for images in reports.values() for image in images)
        write_report(root, summary, reports, changed)
    print(f"\n{summary_table(summary)}\n\n{summary['seconds']} s", end="")
    print("" if changed else "; everything was up to date, nothing was changed")
    finish(args, root, source, reports)
    return print_problems(summary, root / REPORT_NAME)


def check_options(args: argparse.Namespace) -> None:
    """Options that contradict each other or the dataset. Raises ConfigError."""
    for option, datasets in OPTIONS_OF.items():
        if getattr(args, option) and args.dataset not in datasets:
            flag = f"--{option.replace('_', '-')}"
            raise ConfigError(f"{flag} is an option of {' and '.join(datasets)}, not of {args.dataset}")
    if args.dataset in CUSTOM and args.images is None:
        raise ConfigError(f"--dataset {args.dataset} needs --images, the folder with your images")
    if args.dataset == "coco" and args.annotations is None:
        raise ConfigError("--dataset coco needs --annotations, the JSON file of your images")
    if args.heatmap in ("sam", "hybrid") and args.sam_weights is None:
        raise ConfigError(f"--heatmap {args.heatmap} needs --sam-weights; --heatmap gaussian needs none")
    if args.heatmap == "gaussian" and args.sam_weights is not None:
        raise ConfigError("--heatmap gaussian makes no use of --sam-weights: leave one of them out")


def load_masks(args: argparse.Namespace) -> MaskSource | None:
    """The network that makes masks; None: heatmaps come from boxes."""
    if args.sam_weights is None:
        return None
    from utils.sam_heatmaps import SamHeatmaps

    return SamHeatmaps(args.sam_weights, args.sam_type, args.heatmap or "hybrid", args.sam_device)


def dataset_root(args: argparse.Namespace) -> Path:
    """Where lists and report go, and what the lists are relative to."""
    if args.root is not None:
        return Path(args.root)
    if args.dataset in PUBLISHED:
        return Path(args.dataset)
    parts = args.images.parts
    if "images" in parts:
        return Path(*parts[: len(parts) - 1 - parts[::-1].index("images")])
    return Path(args.images)


def find_dataset(args: argparse.Namespace, root: Path) -> DatasetSource:
    """What is to be prepared. Raises PrepareError when the dataset is not there or not complete."""
    share = 0.2 if args.val_share is None else args.val_share
    if args.dataset == "VisDrone":
        return find_visdrone(root)
    if args.dataset == "UAVDT":
        return find_uavdt(root, args.single_class)
    if args.dataset == "TinyPerson":
        return find_tinyperson(root)
    if args.dataset == "coco":
        return find_coco(args.annotations, args.images, args.val_annotations, args.val_images, share)
    from utils.datasets.yolo import find_yolo

    return find_yolo(args.images, args.names or (), share)


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


def prepare_splits(
    source: DatasetSource, root: Path, settings: PrepareSettings, workers: int, masks: MaskSource | None
) -> dict[str, list[ImageReport]]:
    """Prepare the images of all splits with one progress bar; reports by split, in the order of the jobs."""
    jobs = [job for split in source.splits for job in split.jobs]
    remove_leftovers([root, root / "split", *folders_written(jobs)])
    reports = prepare_images(jobs, settings, workers, masks)
    with contextlib.closing(reports), tqdm(reports, "Preparing", len(jobs), unit=" images") as bar:
        done = iter(list(bar))
    return {split.name: [next(done) for _ in split.jobs] for split in source.splits}


def write_lists(root: Path, source: DatasetSource, reports: Mapping[str, Sequence[ImageReport]]) -> None:
    """``split/<name>.txt``: the usable images; and ``<name>_ds.txt``, every n-th of each sequence."""
    for split in source.splits:
        images = reports[split.name]
        write_list(root / "split" / f"{split.name}.txt", root, images)
        if split.thinned:
            folders: dict[Path, list[ImageReport]] = {}
            for image in images:
                folders.setdefault(image.image.parent, []).append(image)
            some = [image for sequence in folders.values() for image in sequence[:: split.thinned]]
            write_list(root / "split" / f"{split.name}_ds.txt", root, some)


def write_list(path: Path, root: Path, images: Sequence[ImageReport]) -> None:
    """One image per line: relative to root, so that a symbolic link may lead there; absolute when elsewhere."""
    listed = [image.listed for image in images if image.listed]
    lines = [
        f"./{image.relative_to(root).as_posix()}\n"
        if image.is_relative_to(root)
        else f"{image.absolute().as_posix()}\n"
        for image in listed
    ]
    write_if_changed(path, "".join(lines).encode())


def finish(
    args: argparse.Namespace, root: Path, source: DatasetSource, reports: Mapping[str, Sequence[ImageReport]]
) -> None:
    """The dataset's YAML, the list for detect.py, the anchor check, and what to do next."""
    if args.dataset in CUSTOM:
        yaml_path = root / "dataset.yaml"
        write_dataset_yaml(yaml_path, source, args.force)
        detect_list = root / "split" / "detect.txt"
    else:
        name = PUBLISHED[args.dataset] + ("_single" if args.single_class else "")
        yaml_path = dataset_yaml_of(root, DATA / f"{name}.yaml")
        detect_list = DATA / "images" / f"{PUBLISHED[args.dataset]}.txt"
    write_detect_list(args.detect_list or detect_list, reports)
    size = args.img_size or DEFAULT_SIZE.get(args.dataset, 1536)
    longer = size if isinstance(size, int) else max(size)
    anchors = load_config(DatasetConfig, yaml_path).anchors_for(longer)
    training = [image for image in reports.get("train", ()) if image.listed]
    print(
        anchor_advice(
            [(image.wh, image.hw) for image in training], longer, anchors, from_repository(yaml_path)
        )
    )
    data = from_repository(yaml_path)
    print(f"\nNext: python train.py --data {data} --cfg models/cfg/yolov5m.yaml --img-size {longer}")


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


def write_report(
    root: Path, summary: dict[str, Any], reports: Mapping[str, Sequence[ImageReport]], changed: bool
) -> None:
    """Save the summary and its picture, unless nothing has happened since those that are there."""
    from utils.plots import save_figure
    from utils.prepare_report import report_figure

    path, picture = root / REPORT_NAME, root / PICTURE_NAME
    if not changed and picture.is_file():
        with contextlib.suppress(OSError, ValueError):
            earlier = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(earlier, dict) and earlier | {"seconds": 0} == summary | {"seconds": 0}:
                return
    content = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    write_if_changed(path, content.encode(errors="backslashreplace"))
    save_figure(report_figure(summary, reports), picture)


def print_problems(summary: dict[str, Any], report: Path) -> int:
    """Name what is wrong, at most a page of it; return the exit status."""
    warnings, problems = summary["warnings"], summary["problems"]
    for title, messages in (("warnings", warnings), ("problems", problems)):
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
