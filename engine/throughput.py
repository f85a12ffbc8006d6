"""Images per second at batch 1 and at larger batches, up to the largest that fits."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from utils.data import Batch
from utils.profile import StageTimer, peak_memory, reset_peak_memory

POOL_IMAGES = 8
"""So many images of one input shape are kept, and repeated to fill larger batches."""
POOL_SHAPES = 8
MAX_BATCH = 256
"""Where the search on a GPU ends at the latest."""
MIN_PASSES, MAX_PASSES, MIN_SECONDS = 2, 20, 1.0


@dataclass(frozen=True)
class BatchSpeed:
    """Speed at one batch size.

    Attributes:
        batch_size: images per batch.
        fps: images per second, letterboxed images in memory → detections in original pixels.
        peak_memory_bytes: see `utils.profile.peak_memory`.
    """

    batch_size: int
    fps: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Throughput:
    """Speed over batch sizes.

    Attributes:
        batches: by growing batch size, batch 1 first; the last is the largest that was run.
        input_hw: height and width of the inputs, the commonest of the data set's first images.
        images: different images that the batches are filled with.
        limit: why there is no larger batch.
    """

    batches: list[BatchSpeed]
    input_hw: tuple[int, int]
    images: int
    limit: str

    def line(self) -> str:
        """The numbers in words."""
        speeds = ", ".join(f"batch {batch.batch_size} {batch.fps:.2f}" for batch in self.batches)
        height, width = self.input_hw
        return f"images per second at {height}×{width}: {speeds} ({self.limit})"


class Pool:
    """Keeps the first images of each input shape, on the CPU: give every batch of one image to `add`."""

    def __init__(self) -> None:
        self._by_shape: dict[tuple[int, ...], list[Batch]] = {}

    def add(self, batch: Batch) -> None:
        """Keep the batch if there is room for its shape."""
        shape = tuple(batch.images.shape[2:])
        if shape in self._by_shape or len(self._by_shape) < POOL_SHAPES:
            kept = self._by_shape.setdefault(shape, [])
            if len(kept) < POOL_IMAGES:
                kept.append(batch)

    def commonest(self) -> list[Batch]:
        """The images of the shape that most were kept of."""
        return max(self._by_shape.values(), key=len, default=[])


def measure_throughput(
    run: Callable[[Batch], object], pool: Sequence[Batch], device: torch.device, larger_batch: int
) -> Throughput:
    """Time batches of growing size, made of the same real images.

    On CUDA the batch is doubled from 1 until memory runs out (which is caught, and the memory freed) or
    `MAX_BATCH` is reached: "the largest that fits" is a power of two. On a CPU, where nothing but patience
    is the limit, it is batch 1 and ``larger_batch`` only. Each size runs all its batches once untimed, then
    timed until `MIN_PASSES` passes and `MIN_SECONDS` are over.

    Args:
        run: one batch from decoded images to detections.
        pool: batches of one image each, all of one shape; at least one.
        device: that ``run`` computes on.
        larger_batch: images per batch, for a CPU.

    Raises:
        RuntimeError: not even batch 1 runs.
    """
    searching = device.type == "cuda"
    sizes = [2**n for n in range(MAX_BATCH.bit_length())] if searching else sorted({1, larger_batch})
    limit = (
        f"the search ends at {MAX_BATCH}" if searching else "on a CPU only batch 1 and --batch-size are timed"
    )
    found: list[BatchSpeed] = []
    for size in sizes:
        try:
            found.append(_speed(run, pool, device, size))
        except RuntimeError as error:
            if size == 1:
                raise
            memory = isinstance(error, torch.OutOfMemoryError)
            reason = "does not fit into memory" if memory else f"fails: {str(error).splitlines()[0]}"
            limit = f"batch {size} {reason}"
        # Outside of the handler: inside, the error still holds the tensors of the frames it came through.
        free_memory(device)
        if found[-1].batch_size != size:
            break
    height, width = pool[0].images.shape[2:]
    return Throughput(found, (height, width), len(pool), limit)


def _speed(
    run: Callable[[Batch], object], pool: Sequence[Batch], device: torch.device, size: int
) -> BatchSpeed:
    reset_peak_memory(device)
    batches = joint_batches(pool, size)
    for batch in batches:
        run(batch)
    timer = StageTimer(device)
    began = time.perf_counter()
    for number in range(MAX_PASSES):
        if number >= MIN_PASSES and time.perf_counter() - began >= MIN_SECONDS:
            break
        for batch in batches:
            with timer.frame(size):
                run(batch)
    return BatchSpeed(size, timer.summary().fps, peak_memory(device))


def joint_batches(pool: Sequence[Batch], size: int) -> list[Batch]:
    """Batches of exactly ``size`` images that go through the pool once, from its start again where it ends."""
    images = len(pool)
    batches = []
    for number in range(math.ceil(images / size)):
        chosen = [pool[(number * size + i) % images] for i in range(size)]
        batches.append(
            Batch(
                torch.cat([batch.images for batch in chosen]),
                torch.zeros(0, 6),  # labels play no part in speed
                torch.cat([batch.heatmaps for batch in chosen]),
                [meta for batch in chosen for meta in batch.metas],
            )
        )
    return batches


def free_memory(device: torch.device) -> None:
    """Give back what is no longer used, so that one batch size leaves the next a clean device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
