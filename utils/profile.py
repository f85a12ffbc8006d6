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
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from utils.summary import spread

Shape = Sequence[int]


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
    with FlopCounterMode(display=False, custom_mapping=attention_on_a_cpu()) as counter:
        function()
    flops = counter.get_total_flops()
    operations = counter.get_flop_counts().get("Global", {})
    attention = sum(n for name, n in operations.items() if "scaled_dot_product" in str(name))
    return FlopCount(macs=flops // 2, flops=flops, attention=attention)


def attention_on_a_cpu() -> dict[object, Callable[..., int]]:
    """Operations of the CPU's fused attention by its shapes, which some releases of torch (2.14) do not know."""

    def forward(query: Shape, key: Shape, value: Shape, *_: object, **__: object) -> int:
        return int(sdpa_flop_count(query, key, value))

    def backward(gradient: Shape, query: Shape, key: Shape, value: Shape, *_: object, **__: object) -> int:
        return int(sdpa_backward_flop_count(gradient, query, key, value))

    aten = torch.ops.aten
    return {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }


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

    A stage that runs several times in a frame counts with its sum. The first ``warmup`` frames are not counted.
    Disabled, it hands out a context that does nothing.

    On CUDA every stage and frame waits for the device, which costs overlap. With ``waiting=False`` none does: the
    device itself notes when it gets there (CUDA events), and what is read from the timer waits for that. Then a
    stage's time is that of the device, and includes what it waited for the host there.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        warmup: int = 0,
        enabled: bool = True,
        waiting: bool = True,
    ) -> None:
        self.device = torch.device(device)
        self.warmup = warmup
        self.enabled = enabled
        self.waiting = waiting
        self.reset()

    def reset(self) -> None:
        """Forget everything measured, warm-up included."""
        self._stages: dict[str, list[float]] = {}
        self._frames: list[float] = []
        self._images = 0
        self._frames_seen = 0
        self._current: list[tuple[str, Moment, Moment]] | None = None
        self._stage_began: Moment | None = None
        self._unread: list[tuple[Moment, Moment, list[tuple[str, Moment, Moment]]]] = []

    @property
    def stage_ms(self) -> dict[str, list[float]]:
        """Milliseconds of each stage, by name, in each counted frame in which it ran."""
        self._read()
        return {name: [seconds * 1e3 for seconds in times] for name, times in self._stages.items()}

    @property
    def frame_ms(self) -> list[float]:
        """Milliseconds of each counted frame, in order."""
        self._read()
        return [seconds * 1e3 for seconds in self._frames]

    def frame(self, images: int = 1) -> AbstractContextManager[None]:
        """One pass end to end over a number of images."""
        return self._frame(images) if self.enabled else _NOTHING

    def stage(self, name: str) -> AbstractContextManager[None]:
        """A named part of a frame; it may be entered in a frame only."""
        return self._stage(name) if self.enabled else _NOTHING

    def summary(self) -> TimingSummary:
        """Statistics over the frames measured so far. A stage's count is of the frames in which it ran."""
        self._read()
        seconds = sum(self._frames)
        return TimingSummary(
            stages={name: stage_statistics(times) for name, times in self._stages.items()},
            total=stage_statistics(self._frames) if self._frames else None,
            images=self._images,
            fps=self._images / seconds if seconds > 0 else 0.0,
        )

    @contextlib.contextmanager
    def _frame(self, images: int) -> Iterator[None]:
        self._current = []
        begin = self._now()
        try:
            yield
            end = self._now()
            self._frames_seen += 1
            if self._frames_seen > self.warmup:
                self._unread.append((begin, end, self._current))
                self._images += images
        finally:
            self._current = None

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        if self._current is None:
            raise RuntimeError(f"stage {name!r} timed outside of a frame: put it in `with timer.frame():`")
        begin = self._now()
        try:
            yield
        finally:
            self._current.append((name, begin, self._now()))

    def _now(self) -> Moment:
        if self.device.type != "cuda":
            return time.perf_counter()
        if self.waiting:
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _read(self) -> None:
        """Turn what was noted into seconds; with events, wait until the device is through the last of them."""
        for begin, end, stages in self._unread:
            self._frames.append(_seconds(begin, end))
            times: dict[str, float] = {}
            for name, began, ended in stages:
                times[name] = times.get(name, 0.0) + _seconds(began, ended)
            for name, seconds in times.items():
                self._stages.setdefault(name, []).append(seconds)
        self._unread.clear()


Moment = float | torch.cuda.Event


def _seconds(begin: Moment, end: Moment) -> float:
    if isinstance(begin, float) and isinstance(end, float):
        return end - begin
    assert isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event)
    end.synchronize()
    return begin.elapsed_time(end) / 1e3  # type: ignore[no-any-return,no-untyped-call]


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
