"""Collect what test.py and benchmark_export.py measured on exported files: a page for people, JSON for machines.

    python scripts/export_table.py --runs runs/export_results --output docs/results/export \\
        --rows torch onnx=torch openvino=torch --speed docs/results/export_speed_640.json

Reads <runs>/test-<row>/metrics.json; a row NAME=REFERENCE is compared with another row. Writes <output>.json, and <output>.md
between two marks: what stands around them is written by hand. scripts/export_results.sh does all of it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from engine.export.quantise import INT8
from engine.export.verify import BOX_TOLERANCE_PX
from utils.cli import Parser, run_main
from utils.files import write_json
from utils.marked_page import update_page
from utils.typed_data import ConfigError

AP_TOLERANCE, INT8_AP_TOLERANCE = 0.1, 0.5
"""Of exported files against torch, in percent points: in 32 and in 8 bits."""
MARKERS = ("<!-- export_table begin -->", "<!-- export_table end -->")
NEW_PAGE = f"""# Exported files against torch

Made by `bash scripts/export_results.sh`; what stands between the marks is written by it.

{MARKERS[0]}
{MARKERS[1]}
"""
SCORES = (("AP", "ap"), ("AP50", "ap50"), ("AP75", "ap75"), ("AP small", "ap_small"))


def main() -> None:
    """Parse the command line, read, write."""
    args = build_parser().parse_args()
    rows = read_rows(args.runs, args.rows)
    speeds = [read_json(path, "run scripts/benchmark_export.py with --output") for path in args.speed]
    text = section(rows, speeds)
    print(text)
    content = {"format": "esod-export", "ap_tolerance": AP_TOLERANCE, "rows": rows}
    write_json(args.output.with_suffix(".json"), content)
    update_page(args.output.with_suffix(".md"), text, MARKERS, NEW_PAGE)


def read_rows(runs: Path, names: list[str]) -> list[dict[str, Any]]:
    """The tests by name, with the difference to the row that each is compared with.

    Raises:
        ConfigError: a test is missing, or is compared with none, or with one of other images or another size.
    """
    rows: dict[str, dict[str, Any]] = {}
    for entry in names:
        name, _, reference = entry.partition("=")
        path = runs / f"test-{name}" / "metrics.json"
        row = {"name": name, **read_json(path, f"run test.py with --project {runs} --name test-{name}")}
        row["options"]["weights"] = Path(row["options"]["weights"]).name
        if reference:
            if reference not in rows:
                raise ConfigError(
                    f"--rows {entry}: {reference} is no row before it ({', '.join(rows) or 'none'})"
                )
            other = rows[reference]
            for key in ("data", "img_size"):
                if row["options"][key] != other["options"][key]:
                    raise ConfigError(f"{name} and {reference} were tested with different {key}")
            row["compared_with"] = reference
            row["ap_difference"] = 100 * (row["detection"]["ap"] - other["detection"]["ap"])
        rows[name] = row
    return list(rows.values())


def read_json(path: Path, otherwise: str) -> dict[str, Any]:
    """A JSON file that another command wrote.

    Raises:
        ConfigError: there is none, with what to do.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; {otherwise}")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def section(rows: list[dict[str, Any]], speeds: list[dict[str, Any]]) -> str:
    """What the page says."""
    first = rows[0]
    options, environment = first["options"], first["environment"]
    note = [f"Note: {first['dataset_note']}."] if first["dataset_note"] else []
    parts = [
        "## Accuracy",
        *note,
        score_table(rows),
        f"`test.py` on `{options['data']}`, longer side {options['img_size']}, batch {options['batch_size']}. "
        f"{first['detection']['protocol']}. {machine(environment)}. A difference is of AP, in percent points; "
        f"at most {AP_TOLERANCE} is aimed at, in 8 bits {INT8_AP_TOLERANCE}: {score_verdict(rows)}.",
        *(part for speed in speeds for part in speed_part(speed)),
    ]
    return "\n\n".join(parts)


def score_table(rows: list[dict[str, Any]]) -> str:
    """AP of each row and its difference to the row it is compared with, as Markdown."""
    head = ["test", "file", *(title for title, _ in SCORES), "occupancy", "compared with", "difference"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        values = [row["detection"][key] for _, key in SCORES]
        cells = [
            row["name"],
            f"`{row['options']['weights']}`",
            *("–" if value is None else f"{100 * value:.2f}" for value in values),
            f"{row['selector']['occupancy']:.1%}",
            row.get("compared_with", ""),
            f"{row['ap_difference']:+.3f}" if "ap_difference" in row else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def score_verdict(rows: list[dict[str, Any]]) -> str:
    """Whether all differences are as small as aimed at, in words."""
    compared = [row for row in rows if "ap_difference" in row]
    wrong = [row["name"] for row in compared if abs(row["ap_difference"]) > tolerance(row)]
    return f"**does not hold for {', '.join(wrong)}**" if wrong else f"holds for all {len(compared)}"


def tolerance(row: dict[str, Any]) -> float:
    """Largest difference of AP that is aimed at, in percent points."""
    return INT8_AP_TOLERANCE if INT8 in row["options"]["weights"] else AP_TOLERANCE


def speed_part(speed: dict[str, Any]) -> list[str]:
    """Boxes and time at one size, as paragraphs."""
    rows, options, environment = speed["rows"], speed["options"], speed["environment"]
    lines = [
        "| way | ms, median | of plain torch's time | boxes of torch | largest distance, px | of scores |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["name"], f"{row['median_ms']:.0f}", f"{row['ratio_to_plain']:.2f}"]
        boxes = ["", "", ""]
        if "box_px" in row:
            same = row["box_px"] is not None
            found = [f"{row['box_px']:.4f}", f"{row['score']:.1e}"] if same else ["without partner", ""]
            boxes = [str(row["detections"]), *found]
        lines.append("| " + " | ".join(cells + boxes) + " |")
    compared = [row for row in rows if "box_px" in row]
    versions = "".join(f", {name} {version}" for name, version in speed.get("runtimes", {}).items())
    far = [r["name"] for r in compared if r["box_px"] is None or r["box_px"] > BOX_TOLERANCE_PX]
    slow = [row["name"] for row in rows if row["ratio_to_plain"] > 1]
    boxes_verdict = f"**does not hold for {', '.join(far)}**" if far else "holds"
    time_verdict = f"**does not hold for {', '.join(slow)}**" if slow else "holds"
    return [
        f"## Boxes and time, longer side {options['img_size']}",
        "\n".join(lines),
        f"`scripts/benchmark_export.py`: {len(speed['pictures'])} pictures, {options['rounds']} rounds in turns, "
        f"confidence {options['conf_thres']}. {machine(environment)}{versions}. Within {BOX_TOLERANCE_PX} px of torch (32 bits): {boxes_verdict}. "
        f"Not slower than plain torch: {time_verdict}. Plain is float32, eager, BatchNorm not folded, contiguous; the row "
        "below is what `detect.py` does with a `.pt`. A single file is compared with torch at its number of patches, and "
        "timed against torch without that limit.",
    ]


def machine(environment: dict[str, Any]) -> str:
    """Where something was measured."""
    changed = " (with changes)" if environment["git_dirty"] else ""
    return (
        f"{environment['cpu']}, {environment['threads']} threads, torch {environment['torch']}, "
        f"commit {environment['git_commit']}{changed}"
    )


EXAMPLES = (
    "python scripts/export_table.py --runs runs/export_results --output docs/results/export --rows torch onnx=torch",
)
"""Shown at the end of ``--help``."""


def build_parser() -> Parser:
    """The parser of this script."""
    parser = Parser("Collect what was measured on exported files (Markdown and JSON).", examples=EXAMPLES)
    parser.add_argument("--runs", type=Path, required=True, metavar="DIR", help="folder of the tests")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="PATH", help="where to write, without ending"
    )
    parser.add_argument(
        "--rows", nargs="+", required=True, metavar="NAME[=ROW]",
        help="tested: folders test-NAME; =ROW: compared with that one",
    )  # fmt: skip
    parser.add_argument(
        "--speed", nargs="*", type=Path, default=[], metavar="JSON", help="files of benchmark_export.py"
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_main(main))
