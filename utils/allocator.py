"""What becomes of large blocks of memory that a process frees, on Linux with glibc.

By default glibc gives every block above 32 MiB back to the system when it is freed, and asks for it again at the next
layer: the system then clears it page by page. At 896×1536 that was a sixth of a stem's time on a CPU
(docs/notes/inference.md).
"""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
NEVER = -1
BLOCK_BYTES = 2**30
"""Only larger blocks still come from the system, and go back to it, one by one."""
VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
"""By which the user says how it should be; then it is left alone."""


def keep_freed_memory(whatever_is_set: bool = False) -> bool:
    """Let this process keep the memory that it frees, and use it again; whether it does from now on.

    It keeps its largest size until it ends. Processes that it forks do the same. Elsewhere than with glibc, or where
    one of `VARIABLES` is set (unless ``whatever_is_set``), nothing changes.
    """
    if not whatever_is_set and any(os.environ.get(name) for name in VARIABLES):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return False
    return bool(set_option(M_MMAP_THRESHOLD, BLOCK_BYTES)) and bool(set_option(M_TRIM_THRESHOLD, NEVER))
