"""What a computation costs: parameters, multiply-accumulates that really ran, time by stage, memory.

Measuring only; what is measured (images, warm-up, batch) is chosen by the caller. Nothing is estimated
from a model's description: the cost of a forward depends on the patches it kept.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from utils.summary import spread


@dataclass(frozen=True)
class FlopCount:
    """Cost of a computation: ``macs`` multiply-accumulates, ``flops`` = 2 · macs arithmetic operations.

    ``attention`` of the flops are scaled dot-product attention's, which is a function: counting by modules misses them.
    """

    macs: int
    flops: int
    attention: int = 0

    def __add__(self, other: FlopCount) -> FlopCount:
        return FlopCount(self.macs + other.macs, self.flops + other.flops, self.attention + other.attention)

    @property
    def gflops(self) -> float:
        """10⁹ floating-point operations, a multiply-accumulate counting two."""
        return self.flops / 1e9

    @property
    def gmacs(self) -> float:
        """10⁹ multiply-accumulates."""
        return self.macs / 1e9


def count_parameters(model: nn.Module, trainable_only: bool = False) -> int:
    """Number of parameters (numbers, not tensors) of a model; shared ones count once, buffers not at all."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def count_flops(function: Callable[[], object]) -> FlopCount:
    """Run a function once and count the convolutions and matrix products that it runs.

    Counted on the shapes that really occur, padding included, in any precision; element-wise work
    (activations, normalisation, pooling, sorting) is not, as is usual. A backward pass inside counts too.
    """
    with FlopCounterMode(display=False) as counter:
        function()
    flops = counter.get_total_flops()
    operations = counter.get_flop_counts().get("Global", {})
    attention = sum(n for name, n in operations.items() if "scaled_dot_product" in str(name))
    return FlopCount(macs=flops // 2, flops=flops, attention=attention)


class CounterMissingError(RuntimeError):
    """thop is not installed or does not import here."""


def count_modules(model: nn.Module, *inputs: object) -> FlopCount:
    """Run a model once in evaluation mode and count its modules by thop's rules: the second opinion on `count_flops`.

    thop adds up what it knows of each layer of a model, from the shapes that come out of it. Torch's counter sees
    every operation, whoever calls it. So the two differ:

    - work outside of modules is not in thop's number: the sparse head, whose convolutions run as matrix products
      on gathered rows, attention (in `FlopCount.attention`), GPViT's depth-wise convolutions on kept tokens, and
      the slicer;
    - thop also counts BatchNorm (4 per value) and upsampling layers, torch's counter neither. On a fused model,
      as `engine.inference.load_model` makes it, there is no BatchNorm, and on the dense path the two agree.

    May be called inside `count_flops`, so that both count the same pass.

    Raises:
        CounterMissingError: thop cannot be imported; the message says why.
    """
    try:
        from thop import profile
    except (
        ImportError
    ) as error:  # also where it is there, but Python has no distutils for it (3.12, no setuptools)
        raise CounterMissingError(f"thop does not import ({error}): pip install thop setuptools") from error
    try:
        macs, _ = profile(model, inputs=inputs, verbose=False)
    finally:
        # thop leaves its counters in the modules that it has no rule for, and they would end up in checkpoints.
        for module in model.modules():
            module._buffers.pop("total_ops", None)
            module._buffers.pop("total_params", None)
    return FlopCount(macs=int(macs), flops=2 * int(macs))


def peak_memory(device: torch.device) -> int:
    """Largest memory use in bytes: CUDA, of tensors on the device since `reset_peak_memory`; CPU, of the
    process (resident) since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory(device: torch.device) -> None:
    """Begin a new measurement of `peak_memory` on CUDA; a process's own peak cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


@dataclass(frozen=True)
class StageStatistics:
    """Milliseconds per frame of one stage."""

    median_ms: float
    mean_ms: float
    p95_ms: float
    count: int


@dataclass(frozen=True)
class TimingSummary:
    """Milliseconds per frame by stage, and end to end.

    Attributes:
        stages: by name, in the order in which they first ran.
        total: whole frames, what lies between the stages included; None when there was no frame.
        images: number of images in all measured frames.
        fps: images per second end to end; 0 when there was no frame.
    """

    stages: dict[str, StageStatistics]
    total: StageStatistics | None
    images: int
    fps: float


class StageTimer:
    """Wall time by stage. ::

        timer = StageTimer(device, warmup=3)
        for batch in batches:
            with timer.frame(images=len(batch)):
                with timer.stage("stem"):
                    ...

    A stage that runs several times in a frame counts with its sum. The first ``warmup`` frames are not
    counted. On CUDA every stage and frame waits for the device, which costs overlap: for the best
    end-to-end number, time frames alone. Disabled, it hands out a context that does nothing.
    """

    def __init__(self, device: torch.device | str = "cpu", warmup: int = 0, enabled: bool = True) -> None:
        self.device = torch.device(device)
        self.warmup = warmup
        self.enabled = enabled
        self.reset()

    def reset(self) -> None:
        """Forget everything measured, warm-up included."""
        self._stages: dict[str, list[float]] = {}
        self._frames: list[float] = []
        self._images = 0
        self._frames_seen = 0
        self._current: dict[str, float] | None = None
        self._stage_began: float | None = None

    @property
    def stage_ms(self) -> dict[str, list[float]]:
        """Milliseconds of each stage, by name, in each counted frame in which it ran."""
        return {name: [seconds * 1e3 for seconds in times] for name, times in self._stages.items()}

    @property
    def frame_ms(self) -> list[float]:
        """Milliseconds of each counted frame, in order."""
        return [seconds * 1e3 for seconds in self._frames]

    def frame(self, images: int = 1) -> AbstractContextManager[None]:
        """One pass end to end over a number of images."""
        return self._frame(images) if self.enabled else _NOTHING

    def stage(self, name: str) -> AbstractContextManager[None]:
        """A named part of a frame; it may be entered in a frame only."""
        return self._stage(name) if self.enabled else _NOTHING

    def split(self, name: str) -> None:
        """Count what the running stage did so far as a stage ``name`` of its own, and not as the running one's.

        For a boundary that lies inside of code which only knows the outer stage. Outside of a stage it is an error.
        """
        if not self.enabled:
            return
        if self._current is None or self._stage_began is None:
            raise RuntimeError(f"no stage is running that {name!r} could be split from")
        now = self._now()
        self._current[name] = self._current.get(name, 0.0) + now - self._stage_began
        self._stage_began = now

    def summary(self) -> TimingSummary:
        """Statistics over the frames measured so far. A stage's count is of the frames in which it ran."""
        seconds = sum(self._frames)
        return TimingSummary(
            stages={name: stage_statistics(times) for name, times in self._stages.items()},
            total=stage_statistics(self._frames) if self._frames else None,
            images=self._images,
            fps=self._images / seconds if seconds > 0 else 0.0,
        )

    @contextlib.contextmanager
    def _frame(self, images: int) -> Iterator[None]:
        self._current = {}
        begin = self._now()
        try:
            yield
            elapsed = self._now() - begin
            self._frames_seen += 1
            if self._frames_seen > self.warmup:
                self._frames.append(elapsed)
                self._images += images
                for name, seconds in self._current.items():
                    self._stages.setdefault(name, []).append(seconds)
        finally:
            self._current = None

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        if self._current is None:
            raise RuntimeError(f"stage {name!r} timed outside of a frame: put it in `with timer.frame():`")
        outer, self._stage_began = self._stage_began, self._now()
        try:
            yield
        finally:
            self._current[name] = self._current.get(name, 0.0) + self._now() - self._stage_began
            self._stage_began = outer

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


_NOTHING: AbstractContextManager[None] = contextlib.nullcontext()


def stage_statistics(seconds: Sequence[float]) -> StageStatistics:
    """Of at least one time in seconds."""
    times = spread(seconds)
    return StageStatistics(
        median_ms=times.median * 1e3,
        mean_ms=times.mean * 1e3,
        p95_ms=times.p95 * 1e3,
        count=len(seconds),
    )
