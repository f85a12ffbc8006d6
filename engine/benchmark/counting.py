"""Operations and bytes of a pass that really runs: what time is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from models.esod import DIRECTLY, ESOD, PartRunner
from utils.profile import attention_on_a_cpu, count_flops

PART_STAGES = {
    "stem": "stem",
    "seeker": "seeker",
    "tokens": "tokens",
    "deep": "deep",
    "neck": "deep",
    "head": "head",
}
"""Part of an `ESOD` → the stage in which it is timed."""


def gflops_by_stage(model: ESOD, images: Tensor, runner: PartRunner = DIRECTLY) -> dict[str, float]:
    """10⁹ operations per image of the convolutions and matrix products of a pass, by stage.

    Args:
        model: eager, in evaluation mode.
        images: [B,3,H,W] as the model wants them.
        runner: runs its parts.
    """
    mapping = attention_on_a_cpu()
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter, torch.no_grad():
        model(images, runner=runner)
    totals = counter.get_flop_counts()
    found: dict[str, float] = {}
    for part, stage in PART_STAGES.items():
        operations = sum(totals.get(f"{type(model).__name__}.{part}", {}).values())
        found[stage] = found.get(stage, 0.0) + operations / 1e9 / len(images)
    return found


@dataclass(frozen=True)
class Traffic:
    """GFLOPs of a computation, and the 10⁹ bytes that its convolutions (and matrix products), and that all its
    operations, read and write."""

    gflops: float
    conv_gb: float
    moved_gb: float


def traffic(part: nn.Module, *inputs: Tensor) -> Traffic:
    """Run an eager module once and count; every tensor counts as often as an operation reads or writes it."""
    with torch.no_grad():
        flops = count_flops(lambda: part(*inputs))
        with _ByteCounter() as counter:
            part(*inputs)
    return Traffic(flops.gflops, counter.conv / 1e9, counter.total / 1e9)


MULTIPLYING = ("convolution", "mkldnn_convolution", "cudnn_convolution", "mm", "addmm", "bmm", "baddbmm")
"""Operations whose operands have to be read and whose result has to be written, whatever else is fused."""


class _ByteCounter(TorchDispatchMode):
    """Adds up the bytes of the tensors that operations read and write; views cost nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total: int = 0
        self.conv: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            moved = sum(
                tensor.numel() * tensor.element_size()
                for tensor in tree_leaves((args, kwargs, result))
                if isinstance(tensor, Tensor)
            )
            self.total += moved
            self.conv += moved if func.__name__.startswith(MULTIPLYING) else 0
        return result


def moved_by_convolutions(function: Callable[[], object]) -> float:
    """10⁹ bytes that the convolutions and matrix products of a function read and write, each tensor once."""
    counter = _ByteCounter()
    with torch.no_grad(), counter:
        function()
    return counter.conv / 1e9


Run = Callable[[], object]


@dataclass(frozen=True)
class MachineTest:
    """Something simple whose speed is known to be that of the machine.

    Attributes:
        name, unit: see `engine.benchmark.results.MachineSpeed`.
        run: does it once.
        amount: of the unit that one run is worth, per second.
    """

    name: str
    unit: str
    run: Run
    amount: float


def machine_tests(dtypes: list[torch.dtype], device: torch.device) -> list[MachineTest]:
    """Copying a block of memory, and multiplying square matrices of each type."""
    large = device.type == "cuda"
    source = torch.ones((2**28 if large else 2**25), dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    side = 8192 if large else 1024
    tests = [MachineTest("copy", "GB/s", lambda: target.copy_(source), 2 * source.numel() * 4 / 1e9)]
    for dtype in dtypes:
        matrix = torch.ones((side, side), dtype=dtype, device=device)
        name = f"matmul {str(dtype).removeprefix('torch.')}"
        tests.append(
            MachineTest(name, "GFLOP/s", lambda matrix=matrix: matrix @ matrix, 2 * side**3 / 1e9)  # type: ignore[misc]
        )
    return tests
