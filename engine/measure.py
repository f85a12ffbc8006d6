"""What a detector costs on real images: operations that really ran, and time by stage."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tqdm import tqdm

from engine.inference import Detector
from engine.outputs import head_anchors
from models.decode import PostprocessConfig, postprocess
from models.esod import NO_TIMER
from utils.data import Batch
from utils.environment import cpu_name
from utils.profile import FlopCount, StageStatistics, StageTimer, count_flops, count_parameters

WARMUP_FRAMES = 3


@dataclass(frozen=True)
class Spread:
    """Mean, smallest and largest of a number over images."""

    mean: float
    least: float
    most: float


@dataclass
class Measurement:
    """Cost of a detector on a set of images.

    Attributes:
        parameters: of the network.
        images: measured.
        input: "batch × height × width" of the first batch.
        gflops_2mac: 10⁹ floating-point operations per image, a multiply-accumulate counting two; empty when
            only time was measured.
        gmacs: 10⁹ multiply-accumulates per image.
        patches: per image.
        fps: images per second end to end: letterboxed image in memory → detections in original pixels.
        fps_with_loading: the same including reading, decoding and letterboxing the file, in this process.
        stages_ms: median milliseconds per batch by stage.
        device: what it ran on.
    """

    parameters: int
    images: int
    input: str
    gflops_2mac: Spread | None
    gmacs: Spread | None
    patches: Spread
    fps: float
    fps_with_loading: float
    stages_ms: dict[str, StageStatistics]
    device: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def table(self) -> str:
        """The printed summary."""
        lines = [f"{self.images} images, input {self.input}, {self.device}, {self.parameters:,} parameters"]
        if self.gflops_2mac is not None and self.gmacs is not None:
            lines.append(
                f"GFLOPs (2 per multiply-accumulate) mean {self.gflops_2mac.mean:.2f}, least {self.gflops_2mac.least:.2f}, "
                f"most {self.gflops_2mac.most:.2f}; GMACs mean {self.gmacs.mean:.2f}"
            )
        lines.append(
            f"patches per image mean {self.patches.mean:.1f}, least {self.patches.least:.0f}, most {self.patches.most:.0f}"
        )
        lines.append(f"FPS {self.fps:.2f} end to end ({self.fps_with_loading:.2f} with reading the file)")
        lines += [
            f"  {name:<12} {stage.median_ms:8.2f} ms median {stage.p95_ms:8.2f} ms p95"
            for name, stage in self.stages_ms.items()
        ]
        return "\n".join(lines)


def measure(
    detector: Detector, batches: Iterable[Batch], config: PostprocessConfig, count_operations: bool = True
) -> Measurement:
    """Measure cost over the images of a loader (without worker processes, so that loading is timed too; batch size 1 gives each image's own cost).

    Args:
        detector: on its device.
        batches: of real images; the cost of a sparse detector depends on them.
        config: of the post-processing, which is timed.
        count_operations: also count operations (a second, slower pass over every batch).

    Raises:
        ValueError: there are no images.
    """
    frames, stages = StageTimer(detector.device), StageTimer(detector.device)
    flops: list[float] = []
    macs: list[float] = []
    patches: list[float] = []
    shape = ""
    loading = 0.0
    began = time.perf_counter()
    for batch in tqdm(batches, desc="measuring", unit="batch", leave=False):
        loading += time.perf_counter() - began
        images = len(batch.images)
        if not patches:
            shape = "×".join(str(n) for n in (images, *batch.images.shape[2:]))
            for _ in range(WARMUP_FRAMES):
                run_once(detector, batch, config, NO_TIMER)
        with frames.frame(images):
            kept = run_once(detector, batch, config, NO_TIMER)
        # Waiting for the device at every stage would slow the frame, so stages are timed in a pass of their own.
        with stages.frame(images):
            run_once(detector, batch, config, stages)
        patches += [kept / images] * images
        if count_operations:
            cost = _count(detector, batch)
            flops += [cost.gflops / images] * images
            macs += [cost.gmacs / images] * images
        began = time.perf_counter()
    if not patches:
        raise ValueError("there are no images to measure on: check the dataset's split")
    fps = frames.summary().fps
    return Measurement(
        parameters=count_parameters(detector.model),
        images=len(patches),
        input=shape,
        gflops_2mac=spread(flops) if flops else None,
        gmacs=spread(macs) if macs else None,
        patches=spread(patches),
        fps=fps,
        fps_with_loading=1 / (1 / fps + loading / len(patches)),
        stages_ms=stages.summary().stages,
        device=device_name(detector.device),
    )


@torch.inference_mode()
def run_once(detector: Detector, batch: Batch, config: PostprocessConfig, timer: StageTimer) -> int:
    """One batch from decoded images to detections; returns the number of patches."""
    with timer.stage("preprocess"):
        moved = batch.to(detector.device)
        images = moved.images.to(detector.dtype)
    output = detector.model(images, timer=timer)
    with timer.stage("nms"):
        postprocess(output, head_anchors(detector.model), [meta.letterbox for meta in batch.metas], config)
    return len(output.patches)


@torch.inference_mode()
def _count(detector: Detector, batch: Batch) -> FlopCount:
    """Operations of one forward pass over a batch."""
    images = batch.to(detector.device).images.to(detector.dtype)
    return count_flops(lambda: detector.model(images))


def spread(values: Sequence[float]) -> Spread:
    """Mean, least and most of at least one number."""
    return Spread(sum(values) / len(values), min(values), max(values))


def device_name(device: torch.device) -> str:
    """The processor's name and, for a CPU, the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {torch.get_num_threads()} threads"
