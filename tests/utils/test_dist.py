"""Devices by name, and the collective operations in one and in two processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils import dist
from utils.dist import DeviceError, DistInfo, select_device

TWO_PROCESSES = """
import json, sys, time
from pathlib import Path
import torch
from utils import dist

folder = Path(sys.argv[1])
info = dist.init_distributed("cpu")
again = dist.init_distributed("cpu")
layer = torch.nn.BatchNorm1d(2)
layer.running_mean += info.rank
dist.broadcast_buffers(layer)
source = torch.tensor([info.rank, 3], dtype=torch.int64)
total = dist.sum_over_processes(source)
with dist.main_process_first():
    found = (folder / "cache").exists()
    if info.is_main:
        time.sleep(0.3)
        (folder / "cache").write_text("made")
result = {
    "info": [info.rank, info.local_rank, info.world_size, info.is_main, again == info],
    "is_main": dist.is_main(),
    "broadcast": dist.broadcast_object(f"from {info.rank}"),
    "gathered": dist.gather_objects({"rank": info.rank} if info.rank else None),
    "buffer": layer.running_mean.tolist(),
    "total": total.tolist(),
    "source": source.tolist(),
    "found": found,
}
dist.barrier()
(folder / f"{info.rank}.json").write_text(json.dumps(result))
dist.cleanup()
dist.cleanup()
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_two_processes(tmp_path: Path, root: Path) -> None:
    """Everything once, with gloo, the way torchrun starts it."""
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(tmp_path)],
            cwd=root,
            env={
                **os.environ,
                "PYTHONPATH": str(root),
                "OMP_NUM_THREADS": "1",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    for rank in range(2):
        result = json.loads((tmp_path / f"{rank}.json").read_text())
        assert result == {
            "info": [rank, rank, 2, rank == 0, True],
            "is_main": rank == 0,
            "broadcast": "from 0",
            "gathered": [None, {"rank": 1}] if rank == 0 else [],
            "buffer": [0.0, 0.0],
            "total": [1, 6],
            "source": [rank, 3],
            "found": rank == 1,
        }


def test_a_single_process_is_an_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert dist.init_distributed("cpu") == DistInfo(0, 0, 1)
    assert DistInfo().is_main and dist.is_main() and dist.world_size() == 1
    value = torch.tensor([1, 2])
    assert dist.sum_over_processes(value).tolist() == [1, 2]
    assert dist.broadcast_object("x") == "x"
    assert dist.gather_objects("x") == ["x"]
    with dist.main_process_first():
        dist.barrier()
    dist.cleanup()


@pytest.mark.parametrize(
    "environment",
    [{"RANK": "one"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"WORLD_SIZE": "0"}, {"LOCAL_RANK": "-1"}],
)
def test_a_broken_environment_is_named(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DeviceError, match="WORLD_SIZE"):
        dist.read_environment()


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("gpus", "text", "info", "expected"),
    [
        (0, "cpu", DistInfo(), "cpu"),
        (4, "cpu", DistInfo(), "cpu"),
        (4, "CPU", DistInfo(1, 1, 2), "cpu"),
        (4, "", DistInfo(), "cuda:0"),
        (4, "cuda", DistInfo(), "cuda:0"),
        (4, "2", DistInfo(), "cuda:2"),
        (4, "cuda:3", DistInfo(), "cuda:3"),
        (4, "", DistInfo(1, 1, 2), "cuda:1"),
        (4, "2,3", DistInfo(1, 1, 2), "cuda:3"),
        (4, " 2, 3 ", DistInfo(2, 0, 4), "cuda:2"),  # first process of the second machine
    ],
)
def test_device_by_name(
    gpus: int, text: str, info: DistInfo, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch, gpus)
    assert select_device(text, info) == torch.device(expected)


def test_no_gpu_means_cpu_with_a_notice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_gpus(monkeypatch, 0)
    assert select_device("", DistInfo()) == torch.device("cpu")
    assert "running on the CPU" in capsys.readouterr().out
    select_device("cpu", DistInfo())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("gpus", "text", "info", "message"),
    [
        (0, "0", DistInfo(), "use --device cpu"),
        (0, "cuda", DistInfo(), "use --device cpu"),
        (0, "0,1", DistInfo(0, 0, 2), "use --device cpu"),
        (2, "2", DistInfo(), "no GPU 2 here; there are 0 to 1"),
        (2, "gpu", DistInfo(), "not understood"),
        (2, "0,", DistInfo(), "not understood"),
        (2, "-1", DistInfo(), "not understood"),
        (2, "1,1", DistInfo(0, 0, 2), "twice"),
        (4, "0,1", DistInfo(), "torchrun --nproc_per_node 2"),
        (4, "0,1", DistInfo(2, 2, 3), "as many processes as GPUs"),
        (1, "", DistInfo(1, 1, 2), "as many processes as GPUs"),
    ],
)
def test_a_device_that_cannot_be_is_a_clear_error(
    gpus: int, text: str, info: DistInfo, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch, gpus)
    with pytest.raises(DeviceError, match=message):
        select_device(text, info)
