"""Several processes, and the device each works on.

One process per GPU, started by torchrun; with a single process everything here is an identity, so that
callers need no second code path. ``DataParallel`` (one process, several GPUs) is not offered.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

from utils.logger import get_logger

T = TypeVar("T")

# The main process prepares labels, scores and writes alone while the others wait, which may take long on a big set.
_TIMEOUT = datetime.timedelta(hours=2)


class DeviceError(ValueError):
    """A ``--device`` that does not exist here or fits the number of processes badly."""


@dataclass(frozen=True)
class DistInfo:
    """This process among all: global rank, rank on its machine, number of processes on all machines."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes files."""
        return self.rank == 0


SINGLE = DistInfo()
"""A process that has no others beside it."""


def read_environment() -> DistInfo:
    """What torchrun says in RANK, LOCAL_RANK and WORLD_SIZE; a single process when it says nothing.

    Raises:
        DeviceError: one of them is not a number, or the rank is not below the number of processes.
    """
    try:
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        rank = int(os.environ.get("RANK", "0"))
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    except ValueError as error:
        raise DeviceError(f"WORLD_SIZE, RANK and LOCAL_RANK must be numbers: {error}") from error
    if not 0 <= rank < world_size or local_rank < 0:
        raise DeviceError(f"RANK={rank}, LOCAL_RANK={local_rank} do not fit WORLD_SIZE={world_size}")
    return DistInfo(rank, local_rank, world_size)


def init_distributed(device: str = "") -> DistInfo:
    """Join the other processes, when torchrun started several: nccl on CUDA, gloo on the CPU.

    Args:
        device: the ``--device`` text; see `select_device`, which gives this process's own device.

    Raises:
        DeviceError: as `select_device`.
    """
    info = read_environment()
    if info.world_size == 1 or torch_dist.is_initialized():
        return info
    own = select_device(device, info)
    if own.type == "cuda":
        torch.cuda.set_device(own)
        torch_dist.init_process_group("nccl", timeout=_TIMEOUT, device_id=own)
    else:
        torch_dist.init_process_group("gloo", timeout=_TIMEOUT)
    return info


def cleanup() -> None:
    """Leave the group of processes; nothing to do for a single one."""
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()


def world_size() -> int:
    """Number of processes in the group."""
    return torch_dist.get_world_size() if torch_dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process prints and writes files."""
    return not torch_dist.is_initialized() or torch_dist.get_rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if torch_dist.is_initialized():
        torch_dist.barrier()


def broadcast_object(value: T) -> T:
    """The main process's value in every process; what the others give is dropped."""
    if world_size() == 1:
        return value
    holder = [value]
    torch_dist.broadcast_object_list(holder, src=0, device=_collective_device())
    return holder[0]


def gather_objects(value: T) -> list[T]:
    """The values of all processes by rank, on the main process; an empty list on the others.

    Every process has to call it, also one that has nothing to give. The values are pickled, so they should be
    plain data on the CPU; they travel between processes of one run only.
    """
    count = world_size()
    if count == 1:
        return [value]
    gathered: list[T | None] | None = [None] * count if is_main() else None
    torch_dist.gather_object(value, gathered, dst=0)
    return cast("list[T]", gathered or [])


def broadcast_buffers(module: nn.Module) -> None:
    """Give every process the main process's buffers, in place.

    Training keeps parameters equal, but each process has BatchNorm statistics of its own share of the data.
    """
    if world_size() > 1:
        for buffer in module.buffers():
            torch_dist.broadcast(buffer, src=0)


def sum_over_processes(value: Tensor) -> Tensor:
    """Sum over all processes of a tensor of any shape: a new tensor, same device and type, without gradient."""
    total = value.detach().clone()
    if world_size() > 1:
        torch_dist.all_reduce(total)
    return total


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """The main process runs the block before the others, which then find what it left (caches, files)."""
    if not is_main():
        barrier()
    try:
        yield
    finally:
        if is_main():
            barrier()


def select_device(text: str = "", info: DistInfo | None = None) -> torch.device:
    """The device this process works on.

    Args:
        text: ``""`` (first GPU, or the CPU with a notice when there is none), ``"cpu"``, ``"0"`` (a GPU by
            number; ``"cuda"`` and ``"cuda:0"`` are understood too) or ``"0,1"`` (one GPU per process).
        info: this process among the others; by default, what torchrun says.

    Raises:
        DeviceError: no such GPU, or fewer GPUs than processes, or several GPUs for one process.
    """
    info = info or read_environment()
    name = text.strip().lower().replace("cuda:", "")
    if name == "cpu":
        return torch.device("cpu")
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "" and available == 0:
        get_logger().info("no CUDA GPU found: running on the CPU (--device cpu says so without this notice)")
        return torch.device("cpu")
    if name in ("", "cuda"):
        numbers = list(range(available)) if info.world_size > 1 else [0]
    else:
        numbers = _gpu_numbers(text, name)
    _check_gpus(text, numbers, available, info)
    return torch.device("cuda", numbers[info.local_rank])


def _gpu_numbers(text: str, name: str) -> list[int]:
    parts = [part.strip() for part in name.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise DeviceError(f"--device {text!r} is not understood: give cpu, a GPU number (0) or a list (0,1)")
    numbers = [int(part) for part in parts]
    if len(set(numbers)) != len(numbers):
        raise DeviceError(f"--device {text!r} names a GPU twice")
    return numbers


def _check_gpus(text: str, numbers: list[int], available: int, info: DistInfo) -> None:
    if available == 0:
        raise DeviceError(
            f"--device {text or 'cuda'}: PyTorch {torch.__version__} finds no CUDA GPU on this machine "
            "(driver missing, or a CPU-only build of PyTorch?); use --device cpu (scripts/train.sh: GPUS=cpu)"
        )
    missing = [number for number in numbers if number >= available]
    if missing:
        raise DeviceError(f"--device {text}: no GPU {missing[0]} here; there are 0 to {available - 1}")
    if info.local_rank >= len(numbers):
        raise DeviceError(
            f"process {info.local_rank} of this machine has no GPU: --device {text!r} gives {len(numbers)}; "
            "start as many processes as GPUs (torchrun --nproc_per_node)"
        )
    if info.world_size == 1 and len(numbers) > 1:
        raise DeviceError(
            f"--device {text}: several GPUs need one process each. To train, use "
            f"GPUS={text} bash scripts/train.sh (or torchrun --nproc_per_node {len(numbers)} train.py …); "
            f"otherwise give one GPU: --device {numbers[0]}"
        )


def _collective_device() -> torch.device:
    """Where tensors must lie for the group's backend."""
    if torch_dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (AMX or AVX512-BF16)."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
