"""Peak memory of one computation, apart from what was in use before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from utils.profile import peak_memory, reset_peak_memory

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""What resets a process's resident peak when written to `CLEAR` (Linux, man 5 proc_pid_clear_refs)."""


@dataclass(frozen=True)
class MemoryUse:
    """Bytes.

    Attributes:
        before: in use when the computation began: CUDA, by tensors on the device; CPU, resident in the process.
        peak: most in use until it ended.
    """

    before: int
    peak: int

    @property
    def growth(self) -> int:
        """What the computation needed on top."""
        return max(self.peak - self.before, 0)


def measure_memory(function: Callable[[], object], device: torch.device) -> MemoryUse:
    """Run a function once and tell how much memory it needed.

    On CUDA every tensor is counted to the byte. On a CPU it is the resident memory of the whole process, to about
    a megabyte, and only what the allocator takes from the system: memory freed earlier that it kept for itself is
    used again unseen. Run it in a fresh process with ``MALLOC_MMAP_THRESHOLD_`` set (`scripts/training_memory.py`
    does), so that large blocks go back at once. Where the system cannot reset the peak (not Linux), before is the
    process's peak so far, and growth a lower bound.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        reset_peak_memory(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return MemoryUse(before, peak_memory(device))
    if not _reset_resident_peak():
        before = peak_memory(device)
        function()
        return MemoryUse(before, peak_memory(device))
    before = _status_bytes("VmRSS")
    function()
    return MemoryUse(before, _status_bytes("VmHWM"))


def _reset_resident_peak() -> bool:
    """Whether the resident peak of this process is now what it uses."""
    try:
        CLEAR.write_text(RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return STATUS.exists()


def _status_bytes(field: str) -> int:
    """A field of /proc/self/status that is given in kB (which are KiB)."""
    for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"{STATUS} has no {field}")
