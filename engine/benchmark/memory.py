"""Peak memory of one case's first forward pass: each in a process of its own, in which nothing ran before."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from engine.benchmark.bench import Bench, Case
from engine.benchmark.results import CaseResult, Memory
from utils.memory import measure_memory

MIB = 2**20
CHILD_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""glibc: blocks above 128 KiB go back to the system when they are freed, instead of being kept for later."""


class MemoryCaseError(RuntimeError):
    """A process that ended without a number."""


@torch.inference_mode()
def first_pass(bench: Bench, case: Case) -> Memory:
    """Memory of the first forward pass of a case, without suppression, in this process."""
    ready = bench.prepared[case.variant]
    bench.feed(ready, case)
    gc.collect()
    use = measure_memory(lambda: bench.forward(ready, case), bench.device)
    return Memory(round(use.before / MIB, 1), round(use.peak / MIB, 1))


def case_arguments(result: CaseResult) -> list[str]:
    """The options of scripts/benchmark.py that name one case; the rest must be those of the whole run."""
    height, width = result.input_hw
    return [
        "--memory-case", f"{result.variant}/{result.mode}", "--img-size", f"{height}x{width}",
        "--batch-sizes", str(result.batch), "--kept", str(result.kept_asked), "--heads", result.head,
    ]  # fmt: skip


def measure_in_process(script: Path, common: Sequence[str], result: CaseResult) -> Memory:
    """Start a script for one case and read its number from the last line that it prints.

    Args:
        script: that understands `case_arguments`.
        common: its other options: model, device, seed, threads.
        result: the case.

    Raises:
        MemoryCaseError: it failed; the message ends with its last words.
    """
    command = [sys.executable, str(script), *common, *case_arguments(result)]
    done = subprocess.run(
        command, env=os.environ | CHILD_ENVIRONMENT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        why = "killed, most likely for want of memory" if done.returncode < 0 else lines[-1]
        raise MemoryCaseError(f"memory of {result.variant} {result.mode} at {result.kept_asked:g}: {why}")
    return Memory(**json.loads(done.stdout.splitlines()[-1]))
