"""How long the parts of detection take alone: slicing, gathering, heads, suppression, reading pictures.

    python scripts/benchmark_parts.py --cfg models/cfg/yolov5m.yaml --img-size 896x1536 [--rounds 20] [--json OUT]

All parts run once in every round, in an order drawn anew. The whole forward pass by stages: scripts/benchmark.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from engine.benchmark.parts import (
    PartTimes,
    head_parts,
    picture_parts,
    slicing_parts,
    suppression_parts,
    time_parts,
)
from engine.benchmark.variants import NAMES, lively_model, prepare, variants_of
from utils.cli import Parser, image_size, non_negative_int, positive_int, run_main
from utils.config import ModelConfig
from utils.dist import select_device
from utils.environment import measurement_head
from utils.files import write_json
from utils.summary import quantile
from utils.typed_data import load_config

EAGER = tuple(name for name in NAMES if "-" not in name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Time the parts, print the table, write the file."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    args = build_parser().parse_args(words)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = select_device(args.device)
    size = args.img_size if isinstance(args.img_size, tuple) else (args.img_size, args.img_size)
    config = replace(load_config(ModelConfig, args.cfg), num_classes=args.num_classes, names=[])
    model = lively_model(config, args.seed)
    with picture_parts(size, args.seed) as pictures:
        parts = [*slicing_parts(config, size, device, args.seed)]
        for variant in variants_of(args.variants, device):
            parts += head_parts(prepare(model, variant, device), size, device, args.seed)
        parts += [*suppression_parts(device, args.seed), *pictures]
        times = time_parts(parts, args.rounds, args.warmup, args.seed, device)
    print(table(times))
    if args.json is not None:
        content = {
            **measurement_head("scripts/benchmark_parts.py", words, device),
            "model": args.cfg.name,
            "parts": [asdict(part) for part in times],
        }
        write_json(args.json, content)


def table(times: list[PartTimes]) -> str:
    """The printed table: median and quartiles of each part."""
    name, detail = (max(len(getattr(part, key)) for part in times) + 2 for key in ("name", "detail"))
    lines = [f"{'part':<{name}}{'input':<{detail}}{'median ms':>10}{'quartiles':>18}"]
    for part in times:
        quartiles = f"{quantile(part.ms, 0.25):.2f}–{quantile(part.ms, 0.75):.2f}"
        lines.append(f"{part.name:<{name}}{part.detail:<{detail}}{part.median_ms:>10.2f}{quartiles:>18}")
    return "\n".join(lines)


EXAMPLES = (
    "python scripts/benchmark_parts.py --cfg models/cfg/yolov5m.yaml --img-size 864x1536 --rounds 20 --json parts.json",
)
"""Shown at the end of ``--help``."""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(
        "Time the parts of detection alone: slicing, gathering, heads, suppression, reading pictures.",
        examples=EXAMPLES,
    )
    parser.add_argument("--cfg", type=Path, required=True, metavar="YAML", help="model, models/cfg/NAME.yaml")
    parser.add_argument("--num-classes", type=positive_int, default=10, metavar="N", help="classes")
    parser.add_argument(
        "--img-size",
        type=image_size,
        default=(896, 1536),
        metavar="N",
        help="network input: side, or HEIGHTxWIDTH",
    )
    parser.add_argument(
        "--variants",
        choices=EAGER,
        nargs="+",
        default=["fast"],
        help="of the heads: see scripts/benchmark.py",
    )
    parser.add_argument(
        "--rounds", type=positive_int, default=20, metavar="N", help="each runs every part once"
    )
    parser.add_argument(
        "--warmup", type=non_negative_int, default=2, metavar="N", help="rounds before, not counted"
    )
    parser.add_argument(
        "--threads", type=positive_int, metavar="N", help="of PyTorch (default: as it chooses)"
    )
    parser.add_argument("--device", default="", help="cpu or a GPU number (default: a GPU when there is one)")
    parser.add_argument("--seed", type=non_negative_int, default=0, metavar="N", help="of inputs and order")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every raw time there")
    return parser


if __name__ == "__main__":
    sys.exit(run_main(main))
