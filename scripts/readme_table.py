"""Put the table "the paper's numbers and ours" into the README, from a report of scripts/result_table.py.

python scripts/readme_table.py
python scripts/readme_table.py --results docs/results/visdrone_subset.json --page README.md
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.cli import Parser, run_main
from utils.marked_page import update_page
from utils.typed_data import ConfigError

MARKERS = ("<!-- made by scripts/readme_table.py: begin -->", "<!-- made by scripts/readme_table.py: end -->")
HEAD = ("what was measured", "dense: AP, AP50", "GFLOPs", "ESOD: AP, AP50", "GFLOPs", "of dense")


@dataclass(frozen=True)
class Score:
    """AP and AP50 in percent, GFLOPs per image (2 per multiply-accumulate)."""

    ap: float
    ap50: float
    gflops: float


PAPER = "the paper (quoted): VisDrone val, YOLOv5m, 1536 px, 50 epochs on VisDrone train"
PAPER_DENSE = Score(36.2, 60.1, 264.9)
PAPER_ESOD = Score(36.0, 59.7, 119.5)
"""arXiv 2407.16424, table of VisDrone results."""


def main() -> None:
    """Parse the command line, read the results, write the table."""
    args = build_parser().parse_args()
    content = "\n".join(table_lines(read_rows(args.results), args.dense, args.esod))
    update_page(args.page, content, MARKERS)
    print(content)


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of a result file by name."""
    return {row["name"]: row for row in json.loads(path.read_text(encoding="utf-8"))}


def table_lines(rows: dict[str, dict[str, Any]], dense: str, esod: str) -> list[str]:
    """The table in Markdown; ``dense`` and ``esod`` name two rows of one report.

    Raises:
        ConfigError: there is no row of that name.
    """
    for name in (dense, esod):
        if name not in rows:
            raise ConfigError(f"no row {name!r} in the results; there are: {', '.join(rows)}")
    return [
        f"| {' | '.join(HEAD)} |",
        "|" + "---|" * len(HEAD),
        table_line(PAPER, PAPER_DENSE, PAPER_ESOD),
        table_line(set_up(rows[esod]), score_of(rows[dense]), score_of(rows[esod])),
    ]


def table_line(what: str, dense: Score, esod: Score) -> str:
    """One row."""
    return (
        f"| {what} | {dense.ap:.1f}, {dense.ap50:.1f} | {dense.gflops:.1f} | {esod.ap:.1f}, {esod.ap50:.1f} "
        f"| {esod.gflops:.1f} | {esod.gflops / dense.gflops:.0%} |"
    )


def score_of(row: dict[str, Any]) -> Score:
    """The numbers of a row of results."""
    detection = row["metrics"]["detection"]
    return Score(100 * detection["ap"], 100 * detection["ap50"], row["measure"]["gflops_2mac"]["mean"])


def set_up(row: dict[str, Any]) -> str:
    """In a few words: on what it was trained and tested."""
    train = row["training"]["train"]
    images = row["metrics"]["detection"]["images"]
    return (
        f"ours (measured): {images} images of VisDrone val, {model_name(train['cfg'])}, {train['img_size']} px, "
        f"{train['epochs']} epochs on other images of val"
    )


def model_name(cfg: str) -> str:
    """models/cfg/yolov5s.yaml → YOLOv5s."""
    return Path(cfg).stem.replace("yolo", "YOLO")


EXAMPLES = (
    "python scripts/readme_table.py",
    "python scripts/readme_table.py --results docs/results/visdrone_subset.json --page README.md",
)
"""Shown at the end of ``--help``."""


def build_parser() -> Parser:
    """The parser of this script."""
    parser = Parser("Put the table of the paper's numbers and ours into the README.", examples=EXAMPLES)
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("docs/results/visdrone_subset.json"),
        metavar="JSON",
        help="results, as scripts/result_table.py writes them",
    )
    parser.add_argument("--dense", default="dense", metavar="NAME", help="row of the dense twin")
    parser.add_argument("--esod", default="esod-grid", metavar="NAME", help="row of ESOD")
    parser.add_argument(
        "--page", type=Path, default=Path("README.md"), metavar="MD", help="page with the two marks"
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_main(main))
