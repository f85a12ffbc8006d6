"""ESOD against SAHI's sliced inference with the same weights: AP, missed objects and seconds, in one run.

    python scripts/compare_sahi.py --data data/sample.yaml --weights weights/sample_yolov5n.pt --img-size 960 --limit 4
    python scripts/compare_sahi.py --data data/visdrone.yaml --weights W.pt --img-size 1536 --page docs/results/sahi.md

Whole images with slicing by the heatmap (ESOD) and without (dense), and the dense detector on SAHI's slices, without
and with SAHI's pass over the whole image shrunk to a slice. Slices have the scale of the whole images. Needs sahi (pip install sahi).
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engine.inference import load_model
from utils.cli import (
    Parser,
    add_model_arguments,
    model_overrides,
    non_negative_int,
    positive_int,
    probability,
    run_main,
)
from utils.config import DatasetConfig, HypConfig, ModelOverrides
from utils.data import DetectionDataset
from utils.environment import environment_report
from utils.files import write_json
from utils.logger import get_logger
from utils.marked_page import update_page
from utils.splits import resolve_split
from utils.summary import spread_indices
from utils.typed_data import ConfigError, load_config

MARKERS = ("<!-- compare_sahi begin -->", "<!-- compare_sahi end -->")
NEW_PAGE = f"""# ESOD against sliced inference

Made by `scripts/compare_sahi.py`; what stands between the marks is written by it.

{MARKERS[0]}
{MARKERS[1]}
"""
MEANING = """AP is COCO's with 500 detections per image, at the thresholds of `test.py`, ignored regions greyed. Missed: objects of
the labels without a detection of their class at IoU 0.5, at the confidence of the best F1 of each row (as
`test.py --analyse` counts; small is √area < 32 px), and in use: at the confidence of 0.25 of `detect.py`. Seconds are
medians per image, from the decoded image to merged boxes, with `detect.py`'s thresholds, and in the last column with
those for AP. All rows ran interleaved, image by image."""


def main() -> None:
    """Parse the command line, compare, print, write."""
    args = build_parser().parse_args()
    content = run(args)
    print(content["table"])
    print(content["slices"])
    if args.json is not None:
        write_json(args.json, content)
    if args.page is not None:
        update_page(args.page, section(content, args), MARKERS, NEW_PAGE)


EXAMPLES = (
    "python scripts/compare_sahi.py --data data/sample.yaml --weights weights/sample_yolov5n.pt --img-size 960 --limit 4",
)
"""Shown at the end of ``--help``."""


def build_parser() -> Parser:
    """The parser of this script."""
    parser = Parser(
        "Compare ESOD with SAHI's sliced inference of the same weights on labelled images.", examples=EXAMPLES
    )
    parser.add_argument("--data", default="data/visdrone.yaml", metavar="YAML", help="dataset")
    parser.add_argument("--split", default="val", choices=("val", "test", "train"), help="which images of it")
    parser.add_argument(
        "--weights", default="weights/sample_yolov5n.pt", metavar="PT", help="weights of all rows"
    )
    parser.add_argument(
        "--img-size", type=positive_int, default=1536, metavar="PIXELS",
        help="longer side of whole images in the network, a multiple of 32; slices have the same scale",
    )  # fmt: skip
    parser.add_argument(
        "--slice",
        type=positive_int,
        default=640,
        metavar="PIXELS",
        help="side of a slice in the network, a multiple of 32",
    )
    parser.add_argument(
        "--overlap", type=probability, default=0.2, metavar="P", help="of neighbouring slices, 0-1"
    )
    parser.add_argument(
        "--slice-batch",
        type=positive_int,
        default=1,
        metavar="N",
        help="slices that run together (SAHI's default: 1)",
    )
    parser.add_argument(
        "--limit",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="at most so many images, evenly spread; 0: all",
    )
    parser.add_argument(
        "--device", default="", metavar="DEVICE", help="cpu or a GPU number; by default a GPU if there is one"
    )
    parser.add_argument("--half", action="store_true", help="compute in half precision")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write everything to this file")
    parser.add_argument(
        "--page", type=Path, metavar="MD", help="write the table into this page, between its two marks"
    )
    add_model_arguments(parser)
    return parser


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that was measured, as plain data for JSON."""
    from engine.integrations.sahi_comparison import SlicePlan, compare, make_ways, table

    for name, value in (("--img-size", args.img_size), ("--slice", args.slice)):
        if value % 32:
            raise ConfigError(f"{name} {value} is not a multiple of 32")
    dataset = load_config(DatasetConfig, args.data)
    overrides = model_overrides(args)
    esod = load_model(args.weights, args.device, overrides, half=args.half)
    dense = load_model(args.weights, args.device, ModelOverrides(slicer="none", head="dense"), half=args.half)
    if len(esod.names) != dataset.nc:
        raise ConfigError(f"the model knows {len(esod.names)} classes, the dataset has {dataset.nc}")
    data = DetectionDataset(
        resolve_split(dataset, args.data, args.split), num_classes=dataset.nc, img_size=args.img_size, augment=False,
        hyp=HypConfig(), rect=True, batch_size=1,
    )  # fmt: skip
    indices = spread_indices(len(data), args.limit)
    plan = SlicePlan(args.img_size, args.slice, args.overlap, True, args.slice_batch)
    bar = partial(tqdm, unit="image", disable=not sys.stderr.isatty(), leave=False)
    results = compare(make_ways(esod, dense, plan), data, indices, bar)
    sizes = [(int(height), int(width)) for height, width in data.image_hw[indices]]
    counts, areas = zip(*(plan.pixels(hw) for hw in sizes), strict=True)
    slices, area = sum(counts) / len(counts), sum(areas) / len(areas) / 1e6
    get_logger().info(f"{len(indices)} of {len(data)} images of {args.data} ({args.split})")
    return {
        "format": "esod-sahi-comparison",
        "version": 1,
        "images": len(indices),
        "of": len(data),
        "table": table(results),
        "slices": f"On average {slices:.1f} slices per image; with the small whole image {area:.2f} million pixels.",
        "plan": asdict(plan),
        "ways": [one.to_dict() for one in results],
        "options": {name: shown(value) for name, value in vars(args).items()},
        "sahi": metadata.version("sahi"),
        "dataset_note": dataset.note,
        "environment": environment_report(),
    }


def shown(value: Any) -> Any:
    """An option as a page may show it: of a path that begins at the root of somebody's machine the name alone."""
    is_path = isinstance(value, (str, Path)) and Path(value).is_absolute()
    return Path(value).name if is_path else str(value) if isinstance(value, Path) else value


def section(content: dict[str, Any], args: argparse.Namespace) -> str:
    """What the page says: command, data, machine, table, meaning."""
    made = content["environment"]
    where = (
        made["gpu"] if args.device != "cpu" and made["gpu"] else f"{made['cpu']}, {made['threads']} threads"
    )
    parts = [
        f"{content['images']} of {content['of']} images of `{shown(args.data)}` ({args.split}), weights `{Path(args.weights).name}`, "
        f"longer side {args.img_size}, slices of {args.slice} with {args.overlap:.0%} overlap at the same scale.",
        content["table"],
        content["slices"],
        MEANING,
        f"```console\npython scripts/compare_sahi.py {shlex.join(map(shown, sys.argv[1:]))}\n```",
        f"sahi {content['sahi']}, torch {made['torch']}, {where}, commit {made['git_commit']}"
        + (" (with changes)" if made["git_dirty"] else "")
        + ".",
    ]
    if content["dataset_note"]:
        parts.append(f"Note: {content['dataset_note']}.")
    return "\n\n".join(part for part in parts if part)


if __name__ == "__main__":
    sys.exit(run_main(main))
