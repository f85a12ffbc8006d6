"""A dataset of named images of VisDrone, in VisDrone's layout, so that an experiment on a part of it can be repeated.

    python scripts/take_subset.py --source VisDrone --output VisDroneSubset

--lists has a text file per split, ``train.txt`` and ``val.txt``, with an image's name without suffix on each line; by
default those of this project's experiments, all of them from the official validation set. Images and annotations are
looked for in every split of --source and hard-linked (copied where that cannot be). Running it again adds what is
missing. scripts/data_prepare.py then prepares the result like VisDrone itself.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.cli import Parser, run_main
from utils.datasets.base import PrepareError
from utils.datasets.visdrone import VisDroneFile, find_visdrone
from utils.files import write_atomic

ROOT = Path(__file__).resolve().parent.parent
LISTS = ROOT / "data" / "subsets" / "visdrone"
SPLITS = ("train", "val")
NAMES_SHOWN = 3
EXAMPLES = ("python scripts/take_subset.py --source VisDrone --output VisDroneSubset",)
"""Shown at the end of ``--help``."""

Pair = tuple[Path, Path]
"""An image and its annotation file."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Find every named image, then link them all."""
    args = build_parser().parse_args(arguments)
    names = {split: read_names(args.lists / f"{split}.txt") for split in SPLITS}
    pairs = labelled_images(args.source)
    missing = [name for split in SPLITS for name in names[split] if name not in pairs]
    if missing:
        raise PrepareError(
            f"{args.source}: {len(missing)} of the named images are not there, such as {', '.join(missing[:NAMES_SHOWN])}; "
            "unpack VisDrone2019-DET-val (and -train, if the lists need it) there."
        )
    for split in SPLITS:
        folder = args.output / f"VisDrone2019-DET-{split}"
        made = sum(link(pairs[name], folder) for name in names[split])
        print(f"{folder}: {len(names[split])} images, {made} of them new")
    print(
        f"next: python scripts/data_prepare.py --dataset VisDrone --root {args.output} "
        f"--detect-list {args.output / 'split' / 'detect.txt'}"
    )


def build_parser() -> Parser:
    """The command line."""
    parser = Parser("A dataset of named images of VisDrone, in its layout.", examples=EXAMPLES)
    parser.add_argument(
        "--source", type=Path, default=Path("VisDrone"), metavar="DIR", help="VisDrone, unpacked"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("VisDroneSubset"), metavar="DIR", help="folder of the new dataset"
    )
    parser.add_argument(
        "--lists", type=Path, default=LISTS, metavar="DIR", help="folder of train.txt and val.txt"
    )
    return parser


def read_names(path: Path) -> list[str]:
    """Names of images, one on each line, blank lines left out.

    Raises:
        PrepareError: the file cannot be read, has none, or has one twice.
    """
    try:
        names = path.read_text(encoding="utf-8").split()
    except OSError as error:
        raise PrepareError(
            f"{path}: cannot be read ({error.strerror}); --lists has train.txt and val.txt"
        ) from error
    if not names:
        raise PrepareError(f"{path}: no names in it; write one on each line, without suffix")
    if len(set(names)) < len(names):
        raise PrepareError(f"{path}: has a name twice")
    return names


def labelled_images(source: Path) -> Mapping[str, Pair]:
    """Name → image and annotation file, of all splits of a VisDrone folder."""
    pairs: dict[str, Pair] = {}
    for split in find_visdrone(source).splits:
        for job in split.jobs:
            if isinstance(job.annotations, VisDroneFile):
                pairs.setdefault(job.image.stem, (job.image, job.annotations.path))
    return pairs


def link(pair: Pair, folder: Path) -> bool:
    """Put an image and its annotations into a split's folder; False when both are there."""
    new = False
    for kind, file in zip(("images", "annotations"), pair, strict=True):
        target = folder / kind / file.name
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, target)
        except OSError:  # another file system, or one without hard links
            with file.open("rb") as content:
                write_atomic(target, functools.partial(shutil.copyfileobj, content))
        new = True
    return new


if __name__ == "__main__":
    sys.exit(run_main(main))
