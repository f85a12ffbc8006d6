"""Counted work against hand computation, times with a clock of our own, memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.profile import (
    FlopCount,
    StageStatistics,
    StageTimer,
    count_flops,
    count_parameters,
    peak_memory,
    reset_peak_memory,
)


def test_parameters() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2, bias=False))
    assert count_parameters(model) == (3 * 8 * 9 + 8) + 16 + 16
    model.append(model[2])  # shared
    assert count_parameters(model) == 256
    model[1].requires_grad_(False)
    assert count_parameters(model, trainable_only=True) == 240


# Multiply-accumulates by hand, for x = [2, 8, 10, 12].
OPERATIONS: dict[str, tuple[Callable[[Tensor], object], int]] = {
    "convolution, stride 2": (
        lambda x: F.conv2d(x, x.new_ones(16, 8, 3, 3), stride=2, padding=1),
        2 * 30 * 16 * 72,
    ),
    "depth-wise 13x13": (
        lambda x: F.conv2d(x, x.new_ones(8, 1, 13, 13), padding=6, groups=8),
        2 * 120 * 8 * 169,
    ),
    "two groups, bias": (
        lambda x: F.conv2d(x, x.new_ones(4, 4, 1, 1), x.new_ones(4), groups=2),
        2 * 120 * 4 * 4,
    ),
    "linear with bias (addmm)": (
        lambda x: F.linear(x.flatten(0, 2), x.new_ones(5, 12), x.new_ones(5)),
        160 * 60,
    ),
    "matrix product (mm)": (lambda x: x[0, 0] @ x[1, 1].T, 10 * 12 * 10),
    "batched product (bmm)": (lambda x: torch.einsum("bij,bkj->bik", x[:, 0], x[:, 1]), 2 * 10 * 12 * 10),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x), 2 * (2 * 8 * 10 * 12 * 10)),
    "empty batch through a convolution": (lambda x: F.conv2d(x[:0], x.new_ones(16, 8, 3, 3)), 0),
    "empty rows through a linear layer": (lambda x: F.linear(x[0, 0, :0], x.new_ones(5, 12)), 0),
    "element-wise and pooling": (lambda x: F.max_pool2d(F.silu(x * 2 + 1), 3), 0),
    "the same layer twice": (
        lambda x: [F.conv2d(x, x.new_ones(1, 8, 1, 1)) for _ in range(2)],
        2 * (2 * 120 * 8),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_by_hand(
    name: str, mode: Callable[[], contextlib.AbstractContextManager[None]], dtype: torch.dtype
) -> None:
    operation, macs = OPERATIONS[name]
    x = torch.ones(2, 8, 10, 12, dtype=dtype)
    attention = 2 * macs if name == "attention" else 0
    with mode():
        assert count_flops(lambda: operation(x)) == FlopCount(macs, 2 * macs, attention)


def test_autocast_and_backward_are_counted() -> None:
    layer = nn.Linear(12, 5)
    x = torch.ones(7, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert count_flops(lambda: layer(x)).macs == 7 * 60
    # the gradient of the weight costs as much as the forward product; the input wants none
    assert count_flops(lambda: layer(x).sum().backward()).macs == 2 * 7 * 60


def test_cost_follows_what_really_ran() -> None:
    layer = nn.Conv2d(3, 4, 1)
    per_patch = 4 * 4 * 12
    counts = [count_flops(lambda k=k: layer(torch.ones(k, 3, 4, 4))).macs for k in (0, 1, 5)]  # type: ignore[misc]
    assert counts == [0, per_patch, 5 * per_patch]


def test_counts_add_up_and_convert() -> None:
    total = FlopCount(10**9, 2 * 10**9) + FlopCount(5 * 10**8, 10**9)
    assert (total.macs, total.flops, total.gmacs, total.gflops) == (15 * 10**8, 3 * 10**9, 1.5, 3.0)


class Clock:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def test_stages_by_hand(clock: Clock) -> None:
    timer = StageTimer(warmup=1)
    for frame, stem_ms in enumerate([1000.0, 10.0, 20.0, 60.0]):
        with timer.frame(images=2):
            with timer.stage("stem"):
                clock.now += stem_ms / 1e3
            for _ in range(2):
                with timer.stage("patches"):
                    clock.now += 0.002
            if frame == 3:
                with timer.stage("rare"):
                    clock.now += 0.001
            clock.now += 0.006  # between the stages
    summary = timer.summary()
    assert list(summary.stages) == ["stem", "patches", "rare"]
    stem = summary.stages["stem"]
    # 95th percentile of 10, 20, 60: rank 0.95 * 2 = 1.9 → 20 + 0.9 * 40
    assert (stem.median_ms, stem.mean_ms, stem.p95_ms, stem.count) == pytest.approx((20.0, 30.0, 56.0, 3))
    assert summary.stages["patches"].median_ms == pytest.approx(4.0)
    assert summary.stages["rare"].count == 1
    assert summary.total is not None
    assert summary.total.median_ms == pytest.approx(30.0)
    assert summary.total.mean_ms == pytest.approx((20 + 30 + 71) / 3)
    assert summary.images == 6
    assert summary.fps == pytest.approx(6 / 0.121)


def test_a_frame_that_fails_is_not_counted(clock: Clock) -> None:
    timer = StageTimer()

    def fail() -> None:
        with timer.frame(), timer.stage("stem"):
            clock.now += 1.0
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert timer.summary().stages == {}
    with timer.frame():
        clock.now += 0.5
    assert timer.summary().total == StageStatistics(500.0, 500.0, 500.0, 1)
    timer.reset()
    assert timer.summary().total is None


def test_nothing_measured_yet() -> None:
    summary = StageTimer(warmup=3).summary()
    assert (summary.stages, summary.total, summary.images, summary.fps) == ({}, None, 0, 0.0)


def test_disabled_hands_out_one_idle_context(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden() -> float:
        raise AssertionError("a disabled timer looked at the clock")

    monkeypatch.setattr(time, "perf_counter", forbidden)
    timer = StageTimer(enabled=False)
    assert timer.stage("a") is timer.stage("b") is timer.frame()
    with timer.frame(), timer.stage("a"), timer.stage("a"):
        pass
    with timer.stage("outside of a frame"):
        pass
    assert timer.summary().total is None


def test_a_stage_outside_of_a_frame_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"timer\.frame"), StageTimer().stage("stem"):
        pass


def test_cuda_is_waited_for_at_both_ends(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    waited: list[object] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    timer = StageTimer("cuda:1")
    with timer.frame(), timer.stage("stem"):
        pass
    assert waited == [torch.device("cuda:1")] * 4


def test_peak_memory_of_the_process_is_in_bytes() -> None:
    cpu = torch.device("cpu")
    reset_peak_memory(cpu)
    block = torch.ones(8 * 2**20)  # 32 MiB, touched
    peak = peak_memory(cpu)
    assert block.nbytes < peak < 2**42


class FakeEvent:
    """In place of a CUDA event: notes the clock of the test as the device's."""

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing

    def record(self, stream: object = None) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end_event: FakeEvent) -> float:
        assert end_event.waited_for, "read before the device got there"
        return (end_event.at - self.at) * 1e3

    waited_for = False

    def synchronize(self) -> None:
        self.waited_for = True


def test_without_waiting_the_device_notes_the_times(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """No stage waits; reading does."""

    def forbidden(*_: object) -> None:
        raise AssertionError("waited for the device")

    monkeypatch.setattr(torch.cuda, "synchronize", forbidden)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    timer = StageTimer("cuda:0", warmup=1, waiting=False)
    for _ in range(3):
        with timer.frame(images=2):
            for milliseconds in (3, 4):
                with timer.stage("stem"):
                    clock.now += milliseconds / 1e3
            clock.now += 0.001
    assert timer.stage_ms == {"stem": pytest.approx([7, 7])}
    assert timer.frame_ms == pytest.approx([8, 8])
    with timer.frame(images=2):
        clock.now += 0.004
    summary = timer.summary()
    assert summary.images == 6 and summary.fps == pytest.approx(6 / 0.020)
