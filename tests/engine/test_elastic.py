"""Several training processes with uneven work, and with one that is killed."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.engine.test_training import options, tensors


def torchrun(
    processes: int, restarts: int, script: str, *arguments: object
) -> subprocess.CompletedProcess[str]:
    """A script of the tests in several gloo processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", str(restarts)]
    command += ["--nproc_per_node", str(processes), str(ROOT / "tests" / "engine" / script)]
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )


def test_processes_without_objects_do_not_hang(tmp_path: Path) -> None:
    """Three of four processes have no object and no patch to train on but the two that every batch has."""
    file = tmp_path / "found.json"
    done = torchrun(4, 0, "uneven_worker.py", file)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(file.read_text())
    assert len(found) == 4
    for kind in ("none", "stem", "all"):
        assert [process[kind][0] for process in found] == [[16, 16, 16]] + [[2, 2, 2]] * 3
        sums = [process[kind][1] for process in found]
        assert max(sums) - min(sums) < 1e-9 * max(map(abs, sums)) + 1e-9, "the processes have drifted apart"
    assert found[0]["stem"][1] == pytest.approx(found[0]["none"][1], rel=1e-6)


@pytest.mark.slow
def test_a_killed_process_and_a_restart(tiny_dataset: Path, tmp_path: Path) -> None:
    """kill -9 of one process in the second epoch: all are started anew and go on behind the first one."""
    line = options(tiny_dataset, tmp_path, epochs=3, batch_size=4)
    done = torchrun(2, 1, "elastic_worker.py", *line, "--auto-resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "at epoch 2 of 3" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["exp"], "one run, one folder"
    with (tmp_path / "exp" / "results.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1", "2"]
    state = tensors(tmp_path / "exp" / "weights" / "last.pt", "model")
    assert all(torch.isfinite(t).all() for t in state.values() if t.is_floating_point())


@pytest.mark.slow
def test_a_killed_process_ends_the_others(tiny_dataset: Path, tmp_path: Path) -> None:
    """Without restarts: an error, no process left waiting, the last checkpoint whole."""
    line = options(tiny_dataset, tmp_path, epochs=3, batch_size=3)
    done = torchrun(3, 0, "elastic_worker.py", *line)
    assert done.returncode != 0 and "SIGKILL" in done.stderr
    assert len(tensors(tmp_path / "exp" / "weights" / "last.pt", "model")) > 100
