"""Run by test_elastic.py through torchrun: train.py, one process of which is killed once, in its second epoch."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import engine.training as training
import train
from utils.cli import run_main

KILLED_RANK = "1"
KILLED_EPOCH = 1


def main() -> int:
    """Train; the first attempt loses a process without any warning, as to a full machine or a pulled plug."""
    real = training.train_one_epoch

    def train_one_epoch(*arguments: Any) -> training.EpochResult:
        epoch = arguments[-1]
        if epoch == KILLED_EPOCH and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            if os.environ["RANK"] == KILLED_RANK:
                os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    training.train_one_epoch = train_one_epoch
    return run_main(train.main)


if __name__ == "__main__":
    sys.exit(main())
