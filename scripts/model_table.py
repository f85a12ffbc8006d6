"""Write the table of models: parameters and GFLOPs of every models/cfg/*.yaml, dense and with patches.

    python scripts/model_table.py --json docs/results/models.json --page docs/models.md

Counted by shapes, see models/summary.py. The page keeps its text: only what stands between its two markers is replaced.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from models.summary import build_for_counting, cost_at, dense_twin
from utils.cli import Parser, image_size, run_main
from utils.config import ModelConfig
from utils.environment import environment_report
from utils.files import write_json
from utils.marked_page import update_page
from utils.profile import count_parameters
from utils.typed_data import load_config

ROOT = Path(__file__).resolve().parent.parent
KEPT = (0.2, 0.4)
NUM_CLASSES = 10
MARKERS = (
    "<!-- made by scripts/model_table.py: begin -->",
    "<!-- made by scripts/model_table.py: end -->",
)
FAMILIES = {
    "yolov5": "YOLOv5",
    "yolov8": "YOLOv8",
    "retinanet": "RetinaNet",
    "rtmdet": "RTMDet",
    "gpvit": "GPViT",
}


def main() -> None:
    """Count every model, write the files, print the table."""
    args = build_parser().parse_args()
    size = args.img_size if isinstance(args.img_size, tuple) else (args.img_size, args.img_size)
    configs = sorted((ROOT / "models" / "cfg").glob("*.yaml"), key=_order)
    models = [describe(path, size) for path in tqdm(configs, desc="counting", unit="model", leave=False)]
    table = "\n".join(table_lines(models, size))
    if args.json is not None:
        content = {
            "command": " ".join(["python scripts/model_table.py", *sys.argv[1:]]),
            "environment": environment_report(),
            "input": f"{size[0]}×{size[1]}",
            "num_classes": NUM_CLASSES,
            "models": models,
        }
        write_json(args.json, content)
    if args.page is not None:
        update_page(args.page, table, MARKERS)
    print(table)


def describe(path: Path, input_hw: tuple[int, int]) -> dict[str, Any]:
    """Parameters and operations of one configuration."""
    config = replace(load_config(ModelConfig, path), num_classes=NUM_CLASSES)
    model = build_for_counting(config)
    dense = cost_at(build_for_counting(dense_twin(config)), input_hw, None)
    kept = [cost_at(model, input_hw, share) for share in KEPT]
    return {
        "name": path.stem,
        "family": config.family,
        "head": config.head.kind,
        "parameters": count_parameters(model),
        "gflops_dense": dense.total,
        "gflops_stem": kept[0].gflops["stem"] + kept[0].gflops["seeker"],
        "gflops_kept": {f"{cost.kept:.3f}": cost.total for cost in kept},
    }


def table_lines(models: list[dict[str, Any]], input_hw: tuple[int, int]) -> list[str]:
    """The table in Markdown."""
    lines = [
        f"| model | family | head | parameters, M | GFLOPs at {input_hw[0]}×{input_hw[1]}: dense | stem + heatmap | "
        + " | ".join(f"{share:.0%} kept" for share in KEPT)
        + " | of dense |",
        "|---|---|---|---|---|---|" + "---|" * len(KEPT) + "---|",
    ]
    for model in models:
        dense, kept = model["gflops_dense"], list(model["gflops_kept"].values())
        lines.append(
            f"| `{model['name']}` | {FAMILIES[model['family']]} | {model['head']} | {model['parameters'] / 1e6:.2f} "
            f"| {dense:.1f} | {model['gflops_stem']:.1f} | "
            + " | ".join(f"{value:.1f}" for value in kept)
            + f" | {' / '.join(f'{value / dense:.0%}' for value in kept)} |"
        )
    return lines


def _order(path: Path) -> tuple[int, str, str]:
    """By family, and in it by size."""
    config = load_config(ModelConfig, path)
    sizes = "ntsmlx"
    letter = path.stem.removeprefix(config.family).lstrip("_")[:1]
    rank = sizes.index(letter) if letter in sizes else len(sizes)
    return list(FAMILIES).index(config.family), config.body, f"{rank}{path.stem}"


EXAMPLES = ("python scripts/model_table.py --json docs/results/models.json --page docs/models.md",)
"""Shown at the end of ``--help``."""


def build_parser() -> Parser:
    """The parser of this script."""
    parser = Parser(
        "Write the table of models: parameters and GFLOPs of every models/cfg/*.yaml.", examples=EXAMPLES
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    parser.add_argument(
        "--page", type=Path, metavar="MD", help="put the table between the markers of this page"
    )
    parser.add_argument(
        "--img-size", type=image_size, default=(864, 1536), metavar="N", help="side, or HEIGHTxWIDTH"
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_main(main))
