"""Evaluation of a model on a dataset: detections against labels, patches against labels."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from engine.outputs import image_heatmap, image_patches, true_boxes
from engine.views import decode_views
from evaluate.arrays import EvaluationError
from evaluate.detection import DetectionEvaluator, DetectionMetrics
from evaluate.heatmap import SelectorEvaluator, SelectorMetrics
from models.decode import PostprocessConfig, decode, suppress_all
from models.esod import DIRECTLY, ESODOutput, Network, PartRunner
from utils.background import WorkBehind
from utils.data import Batch, ImageMeta
from utils.dist import gather_objects, is_main
from utils.profile import StageTimer
from utils.results import Detections
from utils.summary import Throughput

OnBatch = Callable[[Batch, ESODOutput, list[Detections]], None]


@dataclass
class Evaluation:
    """What `evaluate` found, and how quickly (on the main process, with its share of the images)."""

    detection: DetectionMetrics
    selector: SelectorMetrics
    throughput: Throughput

    @property
    def fitness(self) -> float:
        """What training selects the best epoch by: AP, 0 when nothing can be said."""
        return self.detection.ap or 0.0

    def scalars(self) -> dict[str, float]:
        """The numbers of results.csv; NaN where a value is not defined."""
        detection, selector = self.detection, self.selector
        values = {
            "val/AP": detection.ap,
            "val/AP50": detection.ap50,
            "val/AP75": detection.ap75,
            "val/AP_small": detection.ap_small,
            "val/AP_medium": detection.ap_medium,
            "val/AP_large": detection.ap_large,
            "val/precision": detection.precision,
            "val/recall": detection.recall,
            "val/missing_rate": selector.missing_rate,
            "val/empty_rate": selector.empty_rate,
        }
        return {name: math.nan if value is None else value for name, value in values.items()}

    def to_dict(self) -> dict[str, Any]:
        """For metrics.json, without curves."""
        return {
            "detection": self.detection.to_dict(curves=False),
            "selector": self.selector.to_dict(),
            "throughput": self.throughput.to_dict(),
        }

    def line(self) -> str:
        """One line for the log."""
        numbers = self.scalars()
        shown = (
            ("AP", "val/AP"),
            ("AP50", "val/AP50"),
            ("missing", "val/missing_rate"),
            ("empty", "val/empty_rate"),
        )
        return "  ".join(f"{name} {numbers[key]:.3f}" for name, key in shown)


@torch.inference_mode()
def evaluate(
    model: Network,
    batches: Iterable[Batch],
    names: list[str],
    config: PostprocessConfig,
    device: torch.device,
    *,
    amp_dtype: torch.dtype | None = None,
    augment: bool = False,
    single_class: bool = False,
    progress: bool = False,
    on_batch: OnBatch | None = None,
    runner: PartRunner = DIRECTLY,
) -> Evaluation | None:
    """Run a model over a labelled dataset and measure it, in one process or in several.

    Several processes each look at their own images; what they found meets on the main process, and is what a
    single process would have found, to the last bit on a CPU. Every process has to call this, also one without
    images. If one fails the others wait for it: the failing one has to end, and torchrun then ends them all.

    A batch is scored by another thread, in order, while the model is busy with the next one.

    Args:
        model: on device; put into evaluation mode, its training mode restored at the end.
        batches: of a loader without augmentation, with this process's images (`engine.loaders.evaluation_loader`).
        names: class names by index.
        config: of the post-processing.
        device: of the model.
        amp_dtype: autocast type; None: the model's own.
        augment: test-time augmentation, see `engine.views`.
        single_class: what is found counts as class 0 whatever its class; labels must be so too.
        progress: show a progress bar.
        on_batch: called with every batch of this process, output and detections (writing results, drawing), one
            after the other, by that thread.
        runner: runs the parts of the model.

    Returns:
        The metrics of all images; None but on the main process.

    Raises:
        EvaluationError: two processes looked at the same image.
    """
    begin = time.perf_counter()
    scores = _Scores(model, names, config.max_det, single_class, on_batch)
    config = replace(config, agnostic=config.agnostic or single_class)
    was_training = model.training
    model.eval()
    dtype = model.dtype
    timer = StageTimer(device, waiting=False)
    behind = WorkBehind(workers=1, limit=1)  # one batch, because its output stays on the device as long
    try:
        for loaded in tqdm(batches, desc="evaluating", unit="batch", disable=not progress, leave=False):
            with timer.frame(len(loaded.metas)):
                batch = loaded.to(device, non_blocking=True)
                with torch.autocast(
                    device.type, dtype=amp_dtype or torch.bfloat16, enabled=amp_dtype is not None
                ):
                    output = model(batch.images.to(dtype), runner=runner)
                    decoded = decode(output, model.coder, config.conf_thres)
                    if augment:
                        decoded = decode_views(model, batch.images.to(dtype), decoded, config.conf_thres)
                _refuse_nan(output, batch.metas)
                found = suppress_all(decoded, [meta.letterbox for meta in batch.metas], config)
            behind.run(partial(scores.add, batch, output, found), in_order=True)
    finally:
        behind.finish()
    model.train(was_training)
    metrics = scores.compute()
    if metrics is None:
        return None
    elapsed, model_s = time.perf_counter() - begin, sum(timer.frame_ms) / 1e3
    return Evaluation(*metrics, Throughput(timer.summary().images, elapsed, model_s))


def _refuse_nan(output: ESODOutput, metas: list[ImageMeta]) -> None:
    """NaN fails every comparison with a threshold: without this a diverged model would find nothing, silently.

    Raises:
        EvaluationError: the model gave NaN; names the images of the batch.
    """
    maps = [level.raw for level in output.levels]
    if output.heatmap_logits is not None:
        maps.append(output.heatmap_logits)
    if bool(torch.stack([values.isnan().any() for values in maps]).any()):
        files = ", ".join(str(meta.path) for meta in metas)
        raise EvaluationError(
            f"the model's predictions are NaN for {files}: it has diverged, or its weights are damaged "
            "(with --half: try without)"
        )


class _Scores:
    """Both evaluators of one `evaluate`."""

    def __init__(
        self, model: Network, names: list[str], max_det: int, single_class: bool, on_batch: OnBatch | None
    ) -> None:
        self.model, self.single_class, self.on_batch = model, single_class, on_batch
        self.detection = DetectionEvaluator(names, max_det)
        self.selector = SelectorEvaluator(names)

    @torch.inference_mode()  # is of one thread, and this runs in another than the model
    def add(self, batch: Batch, output: ESODOutput, found: list[Detections]) -> None:
        """Score a batch, and pass it on."""
        if self.single_class:
            found = [replace(f, label=torch.zeros_like(f.label)) for f in found]
        for index, detections in enumerate(found):
            self._add_image(batch, output, detections, index)
        if self.on_batch is not None:
            self.on_batch(batch, output, found)

    def compute(self) -> tuple[DetectionMetrics, SelectorMetrics] | None:
        """The metrics of the images of all processes; None but on the main process."""
        # The main process's own images come back in its own state, so that one process and several are one case.
        states = gather_objects((self.detection.state(), self.selector.state()))
        if not is_main():
            return None
        self.detection.reset()
        self.selector.reset()
        self.detection.merge(state for state, _ in states)
        self.selector.merge(state for _, state in states)
        return self.detection.compute(), self.selector.compute()

    def _add_image(self, batch: Batch, output: ESODOutput, found: Detections, index: int) -> None:
        meta = batch.metas[index]
        boxes_px, label = true_boxes(batch, index)
        boxes_orig = meta.letterbox.to_original(boxes_px)
        self.detection.update(meta.index, found.to("cpu"), boxes_orig, label, meta.letterbox.original_hw)
        height, width = batch.images.shape[2:]
        self.selector.update(
            image_heatmap(output, index),
            image_patches(output, index),
            boxes_px,
            (height // 8, width // 8),
            threshold=self.model.config.slicer.threshold,
            label_heatmap=batch.heatmaps[index].cpu() if output.heatmap_logits is not None else None,
            gt_area_orig=(boxes_orig[:, 2:] - boxes_orig[:, :2]).prod(dim=1),
            gt_label=label,
        )
