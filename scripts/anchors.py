"""Anchors that fit a dataset: how well its own do at an image size, and better ones by k-means. Changes nothing.

    python scripts/anchors.py --data data/visdrone.yaml --img-size 1536

Prints the entry to put under ``anchors:`` of the dataset YAML, if you want it there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from utils.anchors import best_possible_recall, kmeans_anchors, scaled_sizes
from utils.cli import Parser, positive_int, run_main
from utils.config import Anchors, DatasetConfig
from utils.labels import load_labels
from utils.splits import resolve_split
from utils.typed_data import ConfigError, load_config

EXAMPLES = ("python scripts/anchors.py --data data/visdrone.yaml --img-size 1536",)
"""Shown at the end of ``--help``."""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(
        "Print anchors that fit the training boxes of a dataset at given image sizes.", examples=EXAMPLES
    )
    parser.add_argument("--data", type=Path, required=True, metavar="YAML", help="the dataset")
    parser.add_argument(
        "--img-size",
        type=positive_int,
        nargs="+",
        default=[1536],
        metavar="N",
        help="longer side of the input",
    )
    parser.add_argument(
        "--num", type=positive_int, default=9, metavar="N", help="anchors in all, a multiple of 3"
    )
    parser.add_argument(
        "--anchor-t",
        type=float,
        default=4.0,
        metavar="T",
        help="an anchor matches when no side differs by this factor",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the labels, print."""
    args = build_parser().parse_args(arguments)
    if args.anchor_t <= 1:
        raise ConfigError(f"--anchor-t must be above 1, found {args.anchor_t:g}")
    dataset = load_config(DatasetConfig, args.data)
    labels = load_labels(resolve_split(dataset, args.data, "train"), dataset.nc)
    sizes = [
        (rows[:, 3:5] * (hw[1], hw[0]), (int(hw[0]), int(hw[1])))
        for rows, hw in zip(labels.labels, labels.image_hw, strict=True)
    ]
    print("anchors:")
    for img_size in args.img_size:
        boxes_px = scaled_sizes(sizes, img_size)
        for title, anchors in (
            ("now", dataset.anchors_for(img_size)),
            ("better", kmeans_anchors(boxes_px, args.num)),
        ):
            recall, matching = best_possible_recall(boxes_px, anchors, args.anchor_t)
            count = sum(map(len, anchors))
            print(
                f"  # {title}: best possible recall {recall:.4f}, {matching:.2f} of {count} match an object"
            )
            if title == "better":
                print(yaml_entry(img_size, anchors))


def yaml_entry(img_size: int, anchors: Anchors) -> str:
    """The lines of the dataset YAML."""
    levels = [f"    - [{', '.join(f'[{w:g}, {h:g}]' for w, h in level)}]" for level in anchors]
    return "\n".join([f"  {img_size}:", *levels])


if __name__ == "__main__":
    sys.exit(run_main(main))
