"""Peak memory against allocations of known size, on a CPU in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils.memory import CLEAR, MemoryUse, measure_memory

ROOT = Path(__file__).resolve().parent.parent.parent
MIB = 2**20
CPU = torch.device("cpu")
BODY = """
import torch
from utils.memory import measure_memory

big = torch.ones(400 * 2**18)  # 400 MiB, gone before anything is measured
del big

def work(count):
    return lambda: [torch.ones(2**18 * size) for size in count]

for count in ([100], [40, 60], [1], [100]):
    use = measure_memory(work(count), torch.device("cpu"))
    print(use.before, use.peak, use.growth)
"""


@pytest.mark.skipif(not CLEAR.exists(), reason="this system cannot reset a process's peak")
def test_cpu_growth_is_what_a_step_allocates() -> None:
    """Neither an earlier, larger peak nor memory that an earlier step gave back is counted."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run(
        [sys.executable, "-c", BODY], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    rows = [[int(word) / MIB for word in line.split()] for line in done.stdout.splitlines()]
    assert [row[2] for row in rows] == pytest.approx([100, 100, 1, 100], abs=8)
    assert all(peak - before == pytest.approx(growth) for before, peak, growth in rows)
    assert max(row[1] for row in rows) - rows[0][0] < 120


def test_where_the_peak_cannot_be_reset_growth_is_over_the_peak_so_far(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("utils.memory.CLEAR", tmp_path / "missing" / "clear_refs")
    peaks = iter([500 * MIB, 620 * MIB])
    monkeypatch.setattr("utils.memory.peak_memory", lambda device: next(peaks))
    ran = []
    assert measure_memory(lambda: ran.append(1), CPU).growth == 120 * MIB
    assert ran == [1]


def test_growth_is_never_negative() -> None:
    assert MemoryUse(before=10, peak=7).growth == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_is_counted_to_the_byte() -> None:
    device = torch.device("cuda")
    use = measure_memory(lambda: torch.ones(2**20, device=device), device)
    assert use.growth == 4 * 2**20
