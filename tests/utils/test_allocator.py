"""Freed memory is kept: a second large tensor costs no new pages."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from utils.allocator import VARIABLES

PROGRAM = """
import resource, sys
import torch
from utils.allocator import keep_freed_memory

kept = keep_freed_memory()

def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(20):  # until glibc has found places for blocks of this size
    torch.ones(2**24)  # of 64 MiB, 16384 pages
before = pages()
for _ in range(4):
    torch.ones(2**24)
print(kept, pages() - before)
"""


def run(**environment: str) -> tuple[bool, int]:
    own = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=own | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, pages = done.stdout.split()
    return kept == "True", int(pages)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_large_blocks_are_used_again() -> None:
    kept, pages = run()
    if not kept:
        pytest.skip("this C library has no mallopt")
    assert pages < 2000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_what_the_user_set_is_left_alone() -> None:
    kept, pages = run(MALLOC_MMAP_THRESHOLD_="131072")
    assert not kept and pages > 4 * 16384 // 2
