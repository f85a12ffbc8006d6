"""Run by test_distributed_evaluation.py in two processes: test.py, the second of which fails on its first batch."""

from __future__ import annotations

import os
import sys

import test
from utils.cli import run_main


def fail(*_: object) -> None:
    """What a damaged image or a full disk would do."""
    raise OSError("the second process fails")


if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        test.TestOutputs.add = fail  # type: ignore[method-assign]
    sys.exit(run_main(test.main))
