"""(Re)make the report.html of finished runs, from the files in their folders.

python scripts/report.py runs/train/exp runs/test/exp
"""

from __future__ import annotations

import argparse
import sys

from utils.cli import Parser, run_main
from utils.logger import get_logger
from utils.report import write_report

EXAMPLES = ("python scripts/report.py runs/train/exp runs/test/exp",)
"""Shown at the end of ``--help``."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(
        "Make report.html of finished train.py and test.py runs.", prog="report.py", examples=EXAMPLES
    )
    parser.add_argument(
        "folders",
        nargs="+",
        metavar="RUN",
        help="folder of a run, such as runs/train/exp; several are done in turn",
    )
    return parser


def main() -> None:
    """Write a report into each folder."""
    for folder in build_parser().parse_args().folders:
        get_logger().info(str(write_report(folder)))


if __name__ == "__main__":
    sys.exit(run_main(main))
