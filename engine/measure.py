"""What a detector costs on real images: operations that really ran, time by stage, throughput, memory."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from engine.inference import Detector
from engine.throughput import Pool, Throughput, measure_throughput
from models.decode import PostprocessConfig, postprocess
from models.esod import NO_TIMER, ESODOutput
from models.slicer import STRIDE
from utils.cost_plot import CostSeries, plot_cost
from utils.data import Batch
from utils.environment import device_name
from utils.profile import (
    CounterMissingError,
    FlopCount,
    StageStatistics,
    StageTimer,
    count_flops,
    count_modules,
    peak_memory,
    reset_peak_memory,
    stage_statistics,
)
from utils.summary import LinearFit, Spread, linear_fit, spread

WARMUP_FRAMES = 3
AGREEMENT = 0.02
"""The two counters may differ by this share on the dense model."""
STAGE_TITLES = {"nms": "decode + NMS"}


@dataclass(frozen=True)
class ImageCost:
    """What one image costs alone.

    Attributes:
        file: the image.
        input_hw: height and width of the network input.
        patches: that were computed.
        occupancy: sum of their areas over the area of the map.
        ms: letterboxed image in memory → detections in original pixels.
        gflops_2mac: 10⁹ operations that ran, a multiply-accumulate counting two; None when only time was measured.
        gflops_thop: the same by thop's rules for modules; None without thop.
    """

    file: str
    input_hw: tuple[int, int]
    patches: int
    occupancy: float
    ms: float
    gflops_2mac: float | None
    gflops_thop: float | None


@dataclass(frozen=True)
class DenseCount:
    """Both counters on the same weights with one patch over the whole map and the head everywhere, first image.

    Attributes:
        gflops_2mac: by torch, what ran.
        gflops_thop: by thop, by module.
        difference: thop's number over torch's without attention, minus 1; None without thop.
        gflops_attention: of gflops_2mac, in scaled dot-product attention, which thop has no rule for.
    """

    gflops_2mac: float
    gflops_thop: float | None
    difference: float | None
    gflops_attention: float = 0.0

    def line(self) -> str:
        """The numbers in words, with why they may differ."""
        text = f"dense, first image: {self.gflops_2mac:.2f} GFLOPs by torch"
        if self.difference is None:
            return f"{text} (no second opinion)"
        if self.gflops_attention:
            text += f" ({self.gflops_attention:.2f} of them attention, which thop does not count)"
        verdict = "agree" if abs(self.difference) <= AGREEMENT else "DO NOT AGREE: trust neither"
        return (
            f"{text}, {self.gflops_thop:.2f} by thop: {abs(self.difference):.2%} apart, {verdict} within {AGREEMENT:.0%}\n"
            "  torch counts every convolution and matrix product that runs; thop counts module by module: also BatchNorm "
            "where it is\n  not folded, but nothing that runs outside of a module, as the sparse head does"
        )


@dataclass
class Measurement:
    """Cost of a detector on a set of images, taken one by one.

    Attributes:
        parameters: of the network.
        images: measured.
        input: "batch × height × width" of the first image.
        gflops_2mac: 10⁹ floating-point operations per image that ran, by torch's counter, a multiply-accumulate
            counting two; None when only time was measured.
        gflops_thop: the same by thop's rules for modules (see `utils.profile.count_modules`); None without thop.
        gmacs: 10⁹ multiply-accumulates per image, by torch's counter.
        dense: both counters on the dense model.
        patches, occupancy: per image, see `ImageCost`.
        latency_ms: per image, letterboxed image in memory → detections in original pixels.
        fps: images per second of the same.
        fps_with_loading: the same including reading, decoding and letterboxing the file, in this process.
        stages_ms: milliseconds per image by stage: load (file, labels and their heatmap), preprocess, stem, seeker,
            slicer, deep, head, nms (decoding and suppression).
        throughput: images per second over batch sizes.
        peak_memory_bytes: at batch 1; see `utils.profile.peak_memory` for what it counts on which device.
        fits: the lines gflops_2mac and ms = intercept + slope · occupancy over the images; None where the
            occupancy does not vary.
        device: what it ran on.
        notes: what the reader has to know.
        per_image: every image.
    """

    parameters: int
    images: int
    input: str
    gflops_2mac: Spread | None
    gflops_thop: Spread | None
    gmacs: Spread | None
    dense: DenseCount | None
    patches: Spread
    occupancy: Spread
    latency_ms: Spread
    fps: float
    fps_with_loading: float
    stages_ms: dict[str, StageStatistics]
    throughput: Throughput
    peak_memory_bytes: int
    fits: dict[str, LinearFit | None]
    device: str
    notes: list[str] = field(default_factory=list)
    per_image: list[ImageCost] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def table(self) -> str:
        """The printed summary."""
        lines = [f"{self.images} images, input {self.input}, {self.device}, {self.parameters:,} parameters"]
        if self.gflops_2mac is not None and self.gmacs is not None:
            lines.append(f"GFLOPs per image (2 per multiply-accumulate) {self.gflops_2mac.line()}")
            lines.append(f"GMACs per image {self.gmacs.line()}")
        if self.gflops_thop is not None:
            lines.append(f"GFLOPs of modules (thop) {self.gflops_thop.line()}")
        if self.dense is not None:
            lines.append(self.dense.line())
        lines += [
            f"patches per image {self.patches.line(1)}",
            f"occupancy {self.occupancy.line(3)}",
            f"ms per image {self.latency_ms.line(1)}",
            f"FPS {self.fps:.2f} end to end ({self.fps_with_loading:.2f} with reading the file)",
        ]
        lines += [
            f"  {STAGE_TITLES.get(name, name):<12} {stage.median_ms:8.2f} ms median {stage.mean_ms:8.2f} ms mean "
            f"{stage.p95_ms:8.2f} ms p95"
            for name, stage in self.stages_ms.items()
        ]
        lines.append(self.throughput.line())
        lines.append(f"peak memory {self.peak_memory_bytes / 2**20:.0f} MiB at batch 1")
        lines += [
            f"{name} ≈ {fit.formula('occupancy')}" for name, fit in self.fits.items() if fit is not None
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def plot(self, path: Path) -> Path:
        """Draw the cost of every image over its occupancy, with the fits, as PNG."""
        names = {"gflops_2mac": "GFLOPs per image", "ms": "ms per image"}
        series = [
            CostSeries(names[key], [getattr(image, key) for image in self.per_image], fit)
            for key, fit in self.fits.items()
        ]
        title = f"{self.images} images, one by one, on {self.device}"
        return plot_cost([image.occupancy for image in self.per_image], series, title, path)


def measure(
    detector: Detector,
    batches: Iterable[Batch],
    config: PostprocessConfig,
    count_operations: bool = True,
    larger_batch: int = 1,
) -> Measurement:
    """Measure cost over the images of a loader of batch size 1, without worker processes, so that loading is timed too.

    Every image runs once untimed first (the pass in which operations are counted), because a device prepares itself
    for every new shape and number of patches; the very first image `WARMUP_FRAMES` times more. Then come a timed pass
    without any waiting in between, and one that waits for the device at every stage.

    Args:
        detector: on its device.
        batches: of one real image each; the cost of a sparse detector depends on them.
        config: of the post-processing, which is timed.
        count_operations: also count operations.
        larger_batch: for the throughput on a CPU, see `measure_throughput`.

    Raises:
        ValueError: there are no images, or several in a batch.
    """
    meter = _Meter(detector, config, count_operations)
    began = time.perf_counter()
    for batch in tqdm(batches, desc="measuring", unit="image", leave=False):
        meter.add(batch, time.perf_counter() - began)
        began = time.perf_counter()
    return meter.result(larger_batch)


class _Meter:
    """Collects the costs of images."""

    def __init__(self, detector: Detector, config: PostprocessConfig, count_operations: bool) -> None:
        self.detector, self.config, self.count_operations = detector, config, count_operations
        self.frames, self.stages = StageTimer(detector.device), StageTimer(detector.device)
        self.loading: list[float] = []
        self.images: list[ImageCost] = []
        self.notes: list[str] = []
        self.has_thop = True
        self.dense: DenseCount | None = None
        self.pool = Pool()
        reset_peak_memory(detector.device)

    def add(self, batch: Batch, loading: float) -> None:
        """Measure one image, which took ``loading`` seconds to load."""
        if len(batch.images) != 1:
            raise ValueError(f"cost is measured image by image, not in batches of {len(batch.images)}")
        self.loading.append(loading)
        self.pool.add(batch)
        if not self.images:
            for _ in range(WARMUP_FRAMES):
                self.run(batch)
            if self.count_operations:
                self.dense = self._count_dense(batch)
        ran: FlopCount | None = None
        modules: FlopCount | None = None
        if self.count_operations:
            ran, modules = self._count(batch)
        else:
            self.run(batch)
        with self.frames.frame():
            output = self.run(batch)
        # Waiting for the device at every stage would slow the frame, so stages are timed in a pass of their own.
        with self.stages.frame():
            self.run(batch, self.stages)
        height, width = batch.images.shape[2:]
        self.images.append(
            ImageCost(
                file=str(batch.metas[0].path),
                input_hw=(height, width),
                patches=len(output.patches),
                occupancy=occupancy(output, (height, width)),
                ms=self.frames.frame_ms[-1],
                gflops_2mac=None if ran is None else ran.gflops,
                gflops_thop=None if modules is None else modules.gflops,
            )
        )

    def run(self, batch: Batch, timer: StageTimer = NO_TIMER) -> ESODOutput:
        """A batch from letterboxed images in memory to detections."""
        return run_once(self.detector, batch, self.config, timer)

    @torch.no_grad()  # in inference mode torch's counter fails where a module is given a parameter, as GPViT's are
    def _count(self, batch: Batch) -> tuple[FlopCount, FlopCount | None]:
        """Operations of one forward pass over a batch: those that ran, and by module.

        Always uncompiled: torch's counter sees nothing of generated code.
        """
        with torch.compiler.set_stance("force_eager"):
            return self._count_eager(batch)

    def _count_eager(self, batch: Batch) -> tuple[FlopCount, FlopCount | None]:
        model = self.detector.model
        images = batch.to(self.detector.device).images.to(self.detector.dtype)
        by_module: list[FlopCount] = []
        if self.has_thop:
            try:
                ran = count_flops(lambda: by_module.append(count_modules(model, images)))
                return ran, by_module[0]
            except CounterMissingError as missing:
                self.has_thop = False
                self.notes.append(f"no second opinion on GFLOPs: {missing}")
        return count_flops(lambda: model(images)), None

    def _count_dense(self, batch: Batch) -> DenseCount:
        """Both counters on the dense model; afterwards the model is as before."""
        model = self.detector.model
        configured = model.config
        model.config = replace(
            configured,
            slicer=replace(configured.slicer, algorithm="none"),
            head=replace(configured.head, sparse=False),
        )
        try:
            ran, modules = self._count(batch)
        finally:
            model.config = configured
        if modules is None:
            return DenseCount(ran.gflops, None, None)
        difference = modules.flops / (ran.flops - ran.attention) - 1
        return DenseCount(ran.gflops, modules.gflops, difference, ran.attention / 1e9)

    def result(self, larger_batch: int) -> Measurement:
        """The summary of all images."""
        if not self.images:
            raise ValueError("there are no images to measure on: check the dataset's split")
        device, images = self.detector.device, self.images
        peak = peak_memory(device)  # before larger batches raise it
        fps = self.frames.summary().fps
        flops = [image.gflops_2mac for image in images if image.gflops_2mac is not None]
        modules = [image.gflops_thop for image in images if image.gflops_thop is not None]
        occupied, ms = [image.occupancy for image in images], [image.ms for image in images]
        fits = {"gflops_2mac": linear_fit(occupied, flops)} if flops else {}
        height, width = images[0].input_hw
        if device.type == "cpu":
            self.notes.append(
                "peak memory on a CPU is that of the whole process since it began, Python included"
            )
        return Measurement(
            parameters=self.detector.model.num_parameters,
            images=len(images),
            input=f"1×{height}×{width}",
            gflops_2mac=spread(flops) if flops else None,
            gflops_thop=spread(modules) if modules else None,
            gmacs=spread([value / 2 for value in flops]) if flops else None,
            dense=self.dense,
            patches=spread([float(image.patches) for image in images]),
            occupancy=spread(occupied),
            latency_ms=spread(ms),
            fps=fps,
            fps_with_loading=1 / (1 / fps + sum(self.loading) / len(images)),
            stages_ms={"load": stage_statistics(self.loading), **self.stages.summary().stages},
            throughput=measure_throughput(self.run, self.pool.commonest(), device, larger_batch),
            peak_memory_bytes=peak,
            fits=fits | {"ms": linear_fit(occupied, ms)},
            device=device_name(device),
            notes=self.notes,
            per_image=images,
        )


@torch.inference_mode()
def run_once(detector: Detector, batch: Batch, config: PostprocessConfig, timer: StageTimer) -> ESODOutput:
    """One batch from decoded images to detections; returns the model's output."""
    with timer.stage("preprocess"):
        moved = batch.to(detector.device)
        images = moved.images.to(detector.dtype)
    output = detector.forward(images, timer)
    with timer.stage("nms"):
        postprocess(output, detector.model.coder, [meta.letterbox for meta in batch.metas], config)
    return output


def occupancy(output: ESODOutput, input_hw: tuple[int, int]) -> float:
    """Sum of the areas of a batch's patches over the area of one image's map; above 1 where patches overlap much."""
    height_cell, width_cell = output.patches.size_cell
    cells = (input_hw[0] // STRIDE) * (input_hw[1] // STRIDE)
    return len(output.patches) * height_cell * width_cell / cells
