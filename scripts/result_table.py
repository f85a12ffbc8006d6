"""Collect what test.py measured into one table: Markdown for people, JSON with everything for machines.

    python scripts/result_table.py --runs runs/visdrone_subset --output docs/results/visdrone_subset \\
        --rows dense esod-grid --trained dense esod

Reads <runs>/test-<row>/metrics.json and measure.json, and the training's config.yaml and results.csv; writes
<output>.md, <output>.json and <output>-<training>.png (its curves).
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from utils.cli import Parser, run_main
from utils.files import write_json, write_text

COLUMNS = (
    ("AP", "detection", "ap", 100.0),
    ("AP50", "detection", "ap50", 100.0),
    ("AP small", "detection", "ap_small", 100.0),
    ("missing rate %", "selector", "missing_rate", 100.0),
    ("empty rate %", "selector", "empty_rate", 100.0),
)


class ResultError(ValueError):
    """Results that are missing or belong to different set-ups."""


def main() -> None:
    """Parse the command line, read, write."""
    args = build_parser().parse_args()
    if len(args.rows) != len(args.trained):
        raise ResultError(
            f"--rows names {len(args.rows)} tests, --trained {len(args.trained)} trainings: one for each"
        )
    rows = [read_row(args.runs, row, trained) for row, trained in zip(args.rows, args.trained, strict=True)]
    write_json(args.output.with_suffix(".json"), rows)
    curves = copy_curves(args.runs, sorted(set(args.trained)), args.output)
    write_text(args.output.with_suffix(".md"), page(args.output.name, args.made_by, rows, curves))
    print(table(rows))


def read_row(runs: Path, row: str, trained: str) -> dict[str, Any]:
    """Everything known about one tested model."""
    metrics, measure = (read_json(runs / f"test-{row}" / name) for name in ("metrics.json", "measure.json"))
    config_path = runs / trained / "config.yaml"
    if not config_path.is_file():
        raise ResultError(f"{config_path}: no such file; the training {trained!r} has not run")
    config = yaml.safe_load(config_path.read_text(encoding="utf-8"))
    return {"name": row, "trained": trained, "metrics": metrics, "measure": measure, "training": config}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of test.py."""
    if not path.is_file():
        raise ResultError(
            f"{path}: no such file; run test.py with --task val and --task measure into that folder"
        )
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def table(rows: list[dict[str, Any]]) -> str:
    """The Markdown table."""
    head = ["model", *(title for title, *_ in COLUMNS), "GFLOPs", "of dense", "FPS", "patches"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    base = rows[0]["measure"]["gflops_2mac"]["mean"]
    for row in rows:
        values = [row["metrics"][part][key] for _, part, key, _ in COLUMNS]
        numbers = [
            "–" if v is None else f"{v * scale:.1f}" for v, (*_, scale) in zip(values, COLUMNS, strict=True)
        ]
        measure = row["measure"]
        flops = measure["gflops_2mac"]["mean"]
        numbers += [
            f"{flops:.1f}",
            f"{flops / base:.0%}",
            f"{measure['fps']:.2f}",
            f"{measure['patches']['mean']:.1f}",
        ]
        lines.append(f"| {row['name']} | " + " | ".join(numbers) + " |")
    return "\n".join(lines)


def page(name: str, made_by: str, rows: list[dict[str, Any]], curves: list[Path]) -> str:
    """The whole page."""
    first = rows[0]
    environment, training = first["metrics"]["environment"], first["training"]["train"]
    commits = sorted({str(row["training"]["provenance"]["environment"].get("git_commit")) for row in rows})
    lines = [
        f"# {name.replace('_', ' ')}",
        "",
        f"Protocol: {first['metrics']['detection']['protocol']}.",
        *([f"Note: {first['metrics']['dataset_note']}."] if first["metrics"]["dataset_note"] else []),
        "",
        table(rows),
        "",
        f"Input {training['img_size']} pixels{other_sizes(rows)}, {training['epochs']} epochs, batch {training['batch_size']}, trained at "
        f"commit {', '.join(commits)}; tested at {environment.get('git_commit')} on {first['measure']['device']}, torch "
        f"{environment.get('torch')}. GFLOPs: 2 per multiply-accumulate, mean over the images, counted on what really "
        "ran. FPS: batch 1, letterboxed image in memory to detections; timings on shared machines are noisy, compare ratios "
        "only. All numbers, options and versions: the JSON file beside this page.",
        "",
        f"Made by `{made_by}`.",
        "",
        *(f"![training curves of {path.stem}]({path.name})" for path in curves),
    ]
    return "\n".join(lines) + "\n"


def other_sizes(rows: list[dict[str, Any]]) -> str:
    """Which rows were tested at another size than they were trained at."""
    size = rows[0]["training"]["train"]["img_size"]
    others = [(row["name"], row["metrics"]["options"]["img_size"]) for row in rows]
    named = [f"{name} tested at {other}" for name, other in others if other != size]
    return f" ({', '.join(named)})" if named else ""


def copy_curves(runs: Path, trainings: list[str], output: Path) -> list[Path]:
    """Copy results.png of each training beside the page."""
    copied = []
    for name in trainings:
        source = runs / name / "results.png"
        if source.is_file():
            target = output.with_name(f"{output.name}-{name}.png")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            copied.append(target)
    return copied


EXAMPLES = (
    "python scripts/result_table.py --runs runs/visdrone_subset --output docs/results/visdrone_subset --rows dense esod-grid --trained dense esod",
)
"""Shown at the end of ``--help``."""


def build_parser() -> Parser:
    """The parser of this script."""
    parser = Parser("Collect what test.py measured into one table (Markdown and JSON).", examples=EXAMPLES)
    parser.add_argument("--runs", type=Path, required=True, metavar="DIR", help="folder of the runs")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="PATH", help="where to write, without ending"
    )
    parser.add_argument("--rows", nargs="+", required=True, metavar="NAME", help="tested: folders test-NAME")
    parser.add_argument(
        "--trained", nargs="+", required=True, metavar="NAME", help="training of each row, in order"
    )
    parser.add_argument(
        "--made-by",
        default="scripts/result_table.py",
        metavar="COMMAND",
        help="that repeats all of it, for the page",
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_main(main))
