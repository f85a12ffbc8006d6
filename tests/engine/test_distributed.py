"""Several processes compute what one would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.conftest import ROOT
from tests.engine.distributed_worker import gradients


def test_ddp_gives_the_gradients_of_the_joint_batch(tmp_path: Path) -> None:
    """Two gloo processes with half the images each, one of them with a third of the objects."""
    file = tmp_path / "gradients.pt"
    worker = ROOT / "tests" / "engine" / "distributed_worker.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(worker),
        str(file),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(file, weights_only=True)
    expected = gradients()
    assert set(found) == set(expected) and len(expected) > 100
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, atol=1e-4, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}"
        )
