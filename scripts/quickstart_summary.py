"""Prints what a quickstart has reached: one table (ESOD beside the same weights without slicing) and the pictures.

It only reads the JSON files that test.py leaves in a run's folder (`metrics.json` of ``--task val``,
`measure.json` of ``--task measure``); it computes nothing anew and needs no package.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.cli import Parser, run_main

EXAMPLES = (
    "python scripts/quickstart_summary.py --esod runs/quickstart/test --dense runs/quickstart/test-dense --train runs/quickstart/train",
)
PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png"}
NOT_THERE = "–"


class SummaryError(ValueError):
    """A run's folder does not hold what the table needs; the message says what would write it."""


@dataclass(frozen=True)
class Row:
    """One line of the table: where its number is in which file, and how it is written."""

    title: str
    file: str
    keys: tuple[str, ...]
    write: Callable[[float], str]
    sliced_only: bool = False
    """True for numbers about patches, which say nothing when nothing is sliced."""


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


ROWS = (
    Row("AP", "metrics.json", ("detection", "ap"), "{:.3f}".format),
    Row("AP50", "metrics.json", ("detection", "ap50"), "{:.3f}".format),
    Row("AP small", "metrics.json", ("detection", "ap_small"), "{:.3f}".format),
    Row(
        "missing rate (objects outside all patches)",
        "metrics.json",
        ("selector", "missing_rate"),
        _share,
        True,
    ),
    Row("empty rate (area that is not computed)", "metrics.json", ("selector", "empty_rate"), _share, True),
    Row("GFLOPs per image (2×MAC)", "measure.json", ("gflops_2mac",), "{:.2f}".format),
    Row("patches per image", "measure.json", ("patches",), "{:.1f}".format, True),
    Row("images per second, end to end", "measure.json", ("fps",), "{:.1f}".format),
)


def read_run(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Read a test run's `metrics.json` and `measure.json`; keys are the file names.

    Raises SummaryError when one is missing, is not JSON or is not a mapping.
    """
    tasks = {"metrics.json": "val", "measure.json": "measure"}
    contents: dict[str, Mapping[str, Any]] = {}
    for name, task in tasks.items():
        path = folder / name
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise SummaryError(
                f"{path}: no such file; `python test.py --task {task} --project {folder.parent} "
                f"--name {folder.name} --exist-ok …` writes it"
            ) from error
        except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
            raise SummaryError(
                f"{path}: not readable as JSON: {error}; run test.py --task {task} again"
            ) from error
        if not isinstance(data, dict):
            raise SummaryError(f"{path}: expected a mapping at the top, found {type(data).__name__}")
        contents[name] = data
    return contents


def look_up(contents: Mapping[str, Mapping[str, Any]], row: Row) -> float | None:
    """The number of a row, or None when the file lacks it or holds null (nothing to measure).

    Where a file gives a spread over the images (a mapping with "mean"), the number is its mean.
    """
    value: Any = contents[row.file]
    for key in row.keys:
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, dict):
        value = value.get("mean")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value)


def make_table(
    esod: Mapping[str, Mapping[str, Any]], dense: Mapping[str, Mapping[str, Any]] | None
) -> tuple[str, list[str]]:
    """The table as text, and the names ``file: key.key`` of ESOD's numbers that were not found."""
    header = ["", "ESOD"] if dense is None else ["", "dense", "ESOD"]
    lines, lacking = [header], []
    for row in ROWS:
        value = look_up(esod, row)
        if value is None:
            lacking.append(f"{row.file}: {'.'.join(row.keys)}")
        cells = [row.title, NOT_THERE if value is None else row.write(value)]
        if dense is not None:
            other = None if row.sliced_only else look_up(dense, row)
            cells.insert(1, NOT_THERE if other is None else row.write(other))
        lines.append(cells)
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    rule = "─" * (sum(widths) + 3 * (len(widths) - 1))
    text = ["   ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    return "\n".join([text[0], rule, *text[1:]]), lacking


def find_pictures(folder: Path) -> list[Path]:
    """All pictures below a folder, in order of their paths; none when there is no such folder."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES)


def list_pictures(folder: Path, show: int) -> str:
    """A line per picture, at most `show` of a folder; what is left out is counted."""
    pictures = find_pictures(folder)
    if not pictures:
        return f"  none in {folder}"
    lines = [f"  {path}" for path in pictures[:show]]
    if len(pictures) > show:
        lines.append(f"  … and {len(pictures) - show} more in {folder}")
    return "\n".join(lines)


def build_parser() -> Parser:
    """The parser of this script."""
    parser = Parser("Print the table and the pictures of a quickstart.", examples=EXAMPLES)
    parser.add_argument("--esod", type=Path, required=True, help="run of test.py (tasks val and measure)")
    parser.add_argument("--dense", type=Path, help="the same with --slicer none; left out: no column for it")
    parser.add_argument("--train", type=Path, help="run of train.py whose curves and weights are named")
    parser.add_argument("--pictures", type=Path, help="run of detect.py whose pictures are listed")
    parser.add_argument(
        "--show", type=int, default=6, help="how many pictures to list (default: %(default)s)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the summary; returns the exit status."""
    options = build_parser().parse_args(arguments)
    esod = read_run(options.esod)
    table, lacking = make_table(esod, read_run(options.dense) if options.dense else None)
    print(table)
    if options.dense:
        print("\ndense: the same weights with --slicer none (one patch over the whole map)")
    if lacking:
        print(f"\n{NOT_THERE} not found in {options.esod}: {', '.join(lacking)}", file=sys.stderr)
    if options.train:
        print(
            f"\nWeights   {options.train / 'weights' / 'best.pt'}\nCurves    {options.train / 'results.png'}"
        )
    if options.pictures:
        print(f"\nPictures\n{list_pictures(options.pictures, options.show)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
