"""What the demo page shows, without the page: reading what was dropped, pictures of what was found, and what it cost.

The page itself is `engine.demo_page`; nothing here knows how it is served.
"""

from __future__ import annotations

import copy
import statistics
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.benchmark.counting import gflops_by_stage
from engine.inference import Detector
from engine.prediction import Prediction
from models.decode import PostprocessConfig
from models.esod import ESOD
from utils.cluster_picture import heatmap_on_image, patches_caption, plural
from utils.config import ModelOverrides
from utils.decoding import read_picture
from utils.draw import class_name, draw_boxes, draw_patches, overlay_heatmap
from utils.environment import device_name
from utils.images import ByteImage, ImageError
from utils.page import Html, bars, element, join, note, tiles

ROOT = Path(__file__).resolve().parent.parent
SHIPPED_WEIGHTS = (ROOT / "weights" / "sample_yolov5n.pt",)
"""Best first."""
SAMPLES = (ROOT / "data" / "images" / "sample_1.jpg", ROOT / "data" / "images" / "sample_2.jpg")
MOST_PIXELS = 50_000_000
SHOWN_PX = 1600
"""Longer side of the pictures that are shown; larger images are shrunk for them."""
DIMMED = 0.3
"""Brightness outside of the patches."""
REPEATS = 3
"""Timed passes of each model; their median is shown."""
STAGES = (
    ("preprocess", "to the device"),
    ("stem", "stem"),
    ("seeker", "heatmap head"),
    ("slicer", "slicing"),
    ("deep", "body, neck"),
    ("head", "head"),
    ("nms", "decode, NMS"),
)
"""Stage of the timer → what it is called here."""
ESOD_ONLY = ("seeker", "slicer")
"""Stages that a dense detector does not have."""
STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\x00", b"MM\x00*", b"RIFF")
"""First bytes of JPEG, PNG, BMP, TIFF (two) and WebP files."""


class RefusedError(ValueError):
    """Something that the page cannot work with; the message is for whoever gave it."""


@dataclass(frozen=True)
class Settings:
    """What the sliders say: least score of a detection, and most patches per image (0: no limit)."""

    confidence: float = 0.25
    max_patches: int = 0


@dataclass(frozen=True, eq=False)
class Seen:
    """An image as the detector saw it: three pictures (uint8 [H, W, 3] RGB, of one size) and a summary."""

    boxes: ByteImage
    heatmap: ByteImage
    patches: ByteImage
    summary: Html


@dataclass(frozen=True)
class StageCost:
    """One stage with and without slicing: 10⁹ operations (a multiply-accumulate counts two) and milliseconds."""

    name: str
    gflops: float
    dense_gflops: float
    ms: float
    dense_ms: float


@dataclass(frozen=True)
class CostComparison:
    """What an image costs, stage by stage, with ESOD and with the dense detector of the same weights.

    Attributes:
        stages: in the order in which they run.
        patches: that ESOD computed.
        input_hw: height and width of the network input.
        device: what it ran on.
    """

    stages: list[StageCost]
    patches: int
    input_hw: tuple[int, int]
    device: str

    def total(self, name: str) -> float:
        """Sum of one number (gflops, dense_gflops, ms, dense_ms) over the stages."""
        return sum(float(getattr(stage, name)) for stage in self.stages)


class Demo:
    """A detector behind a page: one request at a time, each with settings of its own.

    Args:
        detector: not compiled.
        img_size: longer side of the network input, or (height, width) to fit into.

    Raises:
        RefusedError: the detector is an exported file.
    """

    def __init__(self, detector: Detector, img_size: int | tuple[int, int]) -> None:
        esod_of(detector)
        self.detector = detector
        self.img_size = img_size
        self._lock = threading.Lock()

    def look(self, image: ByteImage, settings: Settings) -> Seen:
        """Detect in an image, uint8 [H, W, 3] RGB, and draw what was found and where was looked."""
        detector = with_changes(self.detector, ModelOverrides(max_patches=settings.max_patches))
        with self._lock:
            (prediction,) = detector.predict([image], self.img_size, conf_thres=settings.confidence)
        small, scale = shrunk(image)
        hw = (small.shape[0], small.shape[1])
        found = prediction.detections
        heated = small
        if prediction.heatmap is not None:
            heated = overlay_heatmap(small, heatmap_on_image(prediction.heatmap, prediction.letterbox, hw))
        return Seen(
            draw_boxes(small, found.xyxy * scale, found.label, found.score, detector.names),
            heated,
            spotlight(small, prediction.patches_orig * scale),
            summary(prediction, detector.names),
        )

    def cost(self, image: ByteImage, settings: Settings) -> CostComparison:
        """Count operations and time stages on an image, as it is and dense."""
        detector = with_changes(self.detector, ModelOverrides(max_patches=settings.max_patches))
        dense = with_changes(self.detector, ModelOverrides(slicer="none", head="dense"))
        config = PostprocessConfig(settings.confidence, 0.45)
        prepared = detector.prepare(image, self.img_size)
        pixels = prepared.pixels[None].to(detector.device).to(detector.dtype) / 255
        with self._lock:
            flops = [gflops_by_stage(esod_of(one), pixels) for one in (detector, dense)]
            times: tuple[list[dict[str, float]], list[dict[str, float]]] = ([], [])
            for _ in range(1 + REPEATS):
                for one, rounds in zip((detector, dense), times, strict=True):
                    (prediction,) = one.detect([prepared], config)
                    rounds.append(prediction.times_ms)
                    if one is detector:
                        patches = len(prediction.patches_orig)
        stages = [
            StageCost(
                title,
                flops[0].get(name, 0.0),
                0.0 if name in ESOD_ONLY else flops[1].get(name, 0.0),
                _median(times[0][1:], name),
                0.0 if name in ESOD_ONLY else _median(times[1][1:], name),
            )
            for name, title in STAGES
        ]
        height, width = prepared.pixels.shape[1:]
        return CostComparison(stages, patches, (height, width), device_name(detector.device))


def default_weights() -> Path:
    """The best weights file that this project ships and that is there.

    Raises:
        RefusedError: none is.
    """
    for path in SHIPPED_WEIGHTS:
        if path.is_file():
            return path
    raise RefusedError(f"{SHIPPED_WEIGHTS[0]} is not there: give --weights")


def esod_of(detector: Detector) -> ESOD:
    """The network of a detector.

    Raises:
        RefusedError: it is an exported file, whose operations cannot be counted.
    """
    if not isinstance(detector.model, ESOD):
        raise RefusedError(
            "the operations of an exported file cannot be counted: give the .pt file that it was made from"
        )
    return detector.model


def with_changes(detector: Detector, changes: ModelOverrides) -> Detector:
    """A detector with the same weights, not copied, that slices otherwise; the given one stays as it is."""
    model = copy.copy(detector.model)
    model.config = changes.apply(detector.model.config)
    return Detector(model, detector.names, detector.device)


def read_dropped(path: Path) -> ByteImage:
    """The pixels of a file that somebody dropped on the page, uint8 [H, W, 3] RGB, upright.

    Neither its name nor what the browser says of it is believed, and nothing large is decoded before its size is known.

    Raises:
        RefusedError: it is not a picture, too large, or damaged.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with path.open("rb") as file:
            start = file.read(8)
        if not start.startswith(STARTS):
            raise RefusedError(
                f"{path.name} is not a picture that can be read here: give a JPEG, PNG, WebP, TIFF or BMP file"
            )
        with Image.open(path) as picture:
            width, height = picture.size
    except FileNotFoundError as error:
        raise RefusedError(f"{path.name} is not here any more: drop it again") from error
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, RefusedError):
            raise
        raise RefusedError(f"{path.name} cannot be read as a picture: it is damaged, or too large") from error
    if width * height > MOST_PIXELS:
        raise RefusedError(
            f"{path.name} has {width} × {height} pixels, more than the {MOST_PIXELS // 1_000_000} million that this page "
            "takes: detect.py takes larger ones"
        )
    try:
        return read_picture(path)
    except ImageError as error:
        raise RefusedError(f"{path.name} cannot be read as a picture: it is damaged") from error


def shrunk(image: ByteImage) -> tuple[ByteImage, float]:
    """The image with its longer side at most `SHOWN_PX`, and its size as a multiple of the image's."""
    scale = min(1.0, SHOWN_PX / max(image.shape[:2]))
    if scale == 1.0:
        return image, scale
    size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8), scale


def spotlight(image: ByteImage, patches: NDArray[np.floating]) -> ByteImage:
    """The image dark outside of the patches [K, 4] (pixels of the image), which have green frames."""
    height, width = image.shape[:2]
    picture: ByteImage = (image * DIMMED).astype(np.uint8)
    corners = np.asarray(patches).reshape(-1, 4).round().astype(int).clip(0, (width, height, width, height))
    for left, top, right, bottom in corners.tolist():
        picture[top:bottom, left:right] = image[top:bottom, left:right]
    return draw_patches(picture, corners)


def summary(prediction: Prediction, names: list[str]) -> Html:
    """What was found and where was looked, in two lines."""
    found = prediction.detections
    counts = Counter(class_name(label, names) for label in found.label.tolist())
    classes = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    height, width = prediction.letterbox.original_hw
    size = f"image {width} × {height}, network input {prediction.letterbox.input_hw[1]} × {prediction.letterbox.input_hw[0]}"
    milliseconds = f"{sum(prediction.times_ms.values()):.0f} ms"
    return join([
        element("p", element("b", plural(len(found), "detection")), f": {classes}" if classes else ""),
        element("p", f"{patches_caption(prediction)} · {size} · {milliseconds}", class_="soft"),
    ])  # fmt: skip


def cost_html(cost: CostComparison) -> Html:
    """The cost panel: totals, and bars stage by stage."""
    gflops, dense_gflops = cost.total("gflops"), cost.total("dense_gflops")
    ms, dense_ms = cost.total("ms"), cost.total("dense_ms")
    heads = ("dense", "ESOD")
    return join([
        tiles([
            ("GFLOPs with ESOD", f"{gflops:.2f}"),
            ("GFLOPs dense", f"{dense_gflops:.2f}"),
            ("ms with ESOD", f"{ms:.1f}"),
            ("ms dense", f"{dense_ms:.1f}"),
            ("of dense GFLOPs", _share(gflops, dense_gflops)),
            ("of dense time", _share(ms, dense_ms)),
        ]),
        element("h3", "GFLOPs by stage"),
        bars(heads, [(s.name, (s.dense_gflops, s.gflops)) for s in cost.stages if s.gflops or s.dense_gflops], "", 2),
        element("h3", "Milliseconds by stage"),
        bars(heads, [(s.name, (s.dense_ms, s.ms)) for s in cost.stages], "ms", 1),
        element("p", f"{plural(cost.patches, 'patch', 'patches')}, network input {cost.input_hw[1]} × {cost.input_hw[0]}, "
                f"{cost.device}; median of {REPEATS} passes. Dense: the same weights on the whole image, without heatmap "
                "head and slicing. A multiply-accumulate counts two operations.", class_="soft"),
    ])  # fmt: skip


def refusal_html(error: Exception) -> Html:
    """A message that cannot be overlooked, also by a screen reader."""
    return element("div", note(str(error)), role="alert")


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole > 0 else "n/a"


def _median(rounds: list[dict[str, float]], name: str) -> float:
    return statistics.median(times.get(name, 0.0) for times in rounds)
