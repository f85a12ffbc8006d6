"""One set of weights used in three ways on labelled images: ESOD, dense, and dense on the slices of SAHI.

Everything runs interleaved, image by image and in an order that rotates, so that what else the machine does hits all
ways alike. Each image is taken twice by each: with the thresholds of detect.py, which is timed and is what a user
sees, and with those of test.py, from which AP and the missed objects are counted (evaluate/detection.py and
evaluate/missed.py; ignored regions are greyed in the images, as for test.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from sahi.predict import LOW_MODEL_CONFIDENCE, get_sliced_prediction
from torch import Tensor

from engine.inference import Detector
from engine.integrations.sahi import ESODDetectionModel
from evaluate.detection import DetectionEvaluator, DetectionMetrics
from evaluate.missed import MissedEvaluator, MissedMetrics
from models.decode import PostprocessConfig
from utils.boxes import Letterbox, cxcywh_to_xyxy, letterbox_shape
from utils.data import DetectionDataset
from utils.images import ByteImage, read_image
from utils.results import Detections
from utils.summary import Spread, spread

IN_USE = PostprocessConfig(0.25, 0.45)
"""As detect.py: what is timed."""
FOR_SCORES = PostprocessConfig(0.001, 0.6, multi_label=True)
"""As test.py: what AP is computed from."""


@dataclass(frozen=True)
class SlicePlan:
    """How SAHI slices.

    Attributes:
        img_size: longer side of the input when whole images run; slices have the same scale, so that objects are
            as large in all three ways.
        slice_px: side of a slice in the network.
        overlap: of neighbouring slices, share of their side.
        standard: whether the whole image, shrunk to the size of a slice, runs too (SAHI's default).
        batch_size: slices that run together.
    """

    img_size: int
    slice_px: int = 640
    overlap: float = 0.2
    standard: bool = True
    batch_size: int = 1

    def slice_orig(self, hw: tuple[int, int]) -> int:
        """Side of a slice in pixels of an original image of (height, width)."""
        scale = Letterbox.fit(hw, letterbox_shape(hw, self.img_size)).scale
        return max(1, round(self.slice_px / scale))

    def pixels(self, hw: tuple[int, int]) -> tuple[int, int]:
        """(number of slices, input pixels that the network sees in all) for an image of (height, width)."""
        side = self.slice_orig(hw)
        count = math.prod(_steps(length, side, self.overlap) for length in hw)
        area = count * math.prod(letterbox_shape((min(hw[0], side), min(hw[1], side)), self.slice_px))
        if self.standard and count > 1:
            area += math.prod(letterbox_shape(hw, self.slice_px))
        return count, area


def _steps(length: int, side: int, overlap: float) -> int:
    """Slices of a side that SAHI needs along a length."""
    step = side - int(overlap * side)
    return 1 if length <= side else 1 + math.ceil((length - side) / step)


Run = Callable[[ByteImage, PostprocessConfig], Detections]
"""From uint8 RGB [H, W, 3] in memory to detections in its pixels, on the CPU."""


def whole_image(detector: Detector, img_size: int) -> Run:
    """A detector on the whole image."""

    def run(image: ByteImage, config: PostprocessConfig) -> Detections:
        return detector.detect([detector.prepare(image, img_size)], config)[0].detections

    return run


def sliced(detector: Detector, plan: SlicePlan) -> Run:
    """A detector on SAHI's slices; merged as SAHI does by default (below confidence 0.1 that is suppression)."""

    def run(image: ByteImage, config: PostprocessConfig) -> Detections:
        model = ESODDetectionModel(
            model=detector, device=detector.device.type, confidence_threshold=config.conf_thres,
            image_size=plan.slice_px, post=config,
        )  # fmt: skip
        side = plan.slice_orig((image.shape[0], image.shape[1]))
        # What SAHI would do by itself, but with a warning for every image.
        low = config.conf_thres < LOW_MODEL_CONFIDENCE
        result = get_sliced_prediction(
            image, model, slice_height=side, slice_width=side, overlap_height_ratio=plan.overlap,
            overlap_width_ratio=plan.overlap, perform_standard_pred=plan.standard, batch_size=plan.batch_size, verbose=0,
            postprocess_type="NMS" if low else "GREEDYNMM", postprocess_match_metric="IOU" if low else "IOS",
        )  # fmt: skip
        return _detections(result.object_prediction_list, config.max_det)

    return run


def _detections(objects: Sequence[Any], max_det: int) -> Detections:
    """SAHI's objects, the best max_det."""
    if not objects:
        return Detections.empty()
    score = torch.tensor([float(one.score.value) for one in objects])
    best = score.argsort(descending=True, stable=True)[:max_det]
    xyxy = torch.tensor([[float(value) for value in one.bbox.to_xyxy()] for one in objects])
    return Detections(xyxy, score, torch.tensor([int(one.category.id) for one in objects])).select(best)


@dataclass
class Way:
    """One way of using the weights, and what it found so far."""

    name: str
    run: Run
    names: list[str]
    use_s: list[float] = field(default_factory=list)
    scores_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scores = DetectionEvaluator(self.names, FOR_SCORES.max_det)
        self.missed = MissedEvaluator(self.names)
        self.missed_in_use = MissedEvaluator(self.names)

    def take(self, number: int, image: ByteImage, boxes_orig: Tensor, label: Tensor) -> None:
        """Run on one image with both thresholds; evaluate."""
        begin = time.perf_counter()
        found = self.run(image, IN_USE)
        middle = time.perf_counter()
        everything = self.run(image, FOR_SCORES)
        self.scores_s.append(time.perf_counter() - middle)
        self.use_s.append(middle - begin)
        hw = (image.shape[0], image.shape[1])
        self.scores.update(number, everything, boxes_orig, label, hw)
        # Raw predictions would only tell causes, which nobody asks for here.
        nothing = torch.zeros(0, 4), torch.zeros(0, len(self.names))
        self.missed.update(number, everything, boxes_orig, label, *nothing)
        self.missed_in_use.update(number, found, boxes_orig, label, *nothing)

    def result(self) -> WayResult:
        """What all images gave."""
        detection = self.scores.compute()
        return WayResult(
            self.name,
            detection,
            self.missed.compute(detection.best_confidence, FOR_SCORES.conf_thres),
            self.missed_in_use.compute(IN_USE.conf_thres, IN_USE.conf_thres),
            spread(self.use_s),
            spread(self.scores_s),
        )


@dataclass(frozen=True)
class WayResult:
    """Numbers of one way.

    Attributes:
        detection: AP and more, at test.py's thresholds.
        missed: objects that are not found at the confidence of the best F1, as test.py --analyse counts them.
        missed_in_use: objects that are not found with detect.py's thresholds.
        use_s, scores_s: seconds per image with detect.py's and with test.py's thresholds.
    """

    name: str
    detection: DetectionMetrics
    missed: MissedMetrics
    missed_in_use: MissedMetrics
    use_s: Spread
    scores_s: Spread

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; causes of misses, which are not looked for, left out."""
        return {
            "name": self.name,
            "detection": self.detection.to_dict(curves=False),
            "missed": _missed_dict(self.missed),
            "missed_in_use": _missed_dict(self.missed_in_use),
            "seconds_in_use": vars(self.use_s).copy(),
            "seconds_for_scores": vars(self.scores_s).copy(),
        }


def _missed_dict(metrics: MissedMetrics) -> dict[str, Any]:
    groups = {"all": metrics.total, **{group.name: group for group in metrics.by_size}}
    return {
        "protocol": metrics.protocol,
        "confidence": metrics.confidence,
        **{name: {"labels": group.labels, "missed": group.missed} for name, group in groups.items()},
    }


def compare(
    ways: Sequence[Way],
    data: DetectionDataset,
    indices: Sequence[int],
    progress: Callable[[Iterable[int]], Iterable[int]],
) -> list[WayResult]:
    """Run every way on the images at some indices of a dataset, interleaved.

    Args:
        ways: what to compare.
        data: labelled images.
        indices: which of them.
        progress: goes around the loop (a progress bar).
    """
    first = read_image(data.images[indices[0]])
    for way in ways:  # memory and kernels are chosen in a first pass, which is not of interest
        way.run(first, IN_USE)
    for turn, index in enumerate(progress(indices)):
        image = read_image(data.images[index])
        rows = torch.from_numpy(data.labels[index])
        height, width = image.shape[:2]
        boxes = cxcywh_to_xyxy(rows[:, 1:]) * rows.new_tensor([width, height, width, height])
        for number in range(len(ways)):
            ways[(turn + number) % len(ways)].take(index, image, boxes, rows[:, 0].long())
    return [way.result() for way in ways]


def table(results: Sequence[WayResult]) -> str:
    """The results as a Markdown table, the first way being what the others are compared with."""
    lines = [
        "| | AP | AP50 | AP small | missed | missed, small | missed in use | s per image | times the first | s for AP |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        small = next(group for group in one.missed.by_size if group.name == "small")
        cells = [
            one.name,
            *(_percent(value) for value in (one.detection.ap, one.detection.ap50, one.detection.ap_small)),
            f"{one.missed.total.missed} of {one.missed.total.labels}",
            f"{small.missed} of {small.labels}",
            str(one.missed_in_use.total.missed),
            f"{one.use_s.median:.3f}",
            f"{one.use_s.median / results[0].use_s.median:.2f}",
            f"{one.scores_s.median:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def make_ways(esod: Detector, dense: Detector, plan: SlicePlan) -> list[Way]:
    """ESOD on the whole image; the dense detector on it, on SAHI's slices, and (plan.standard) on both of these."""
    names, algorithm = esod.names, esod.model.config.slicer.algorithm
    slices = replace(plan, standard=False)
    ways = [
        Way(f"ESOD ({algorithm}), whole image", whole_image(esod, plan.img_size), names),
        Way("dense, whole image", whole_image(dense, plan.img_size), names),
        Way("dense, SAHI's slices", sliced(dense, slices), names),
    ]
    if plan.standard:
        ways.append(Way("dense, SAHI's slices and small whole image", sliced(dense, plan), names))
    return ways
