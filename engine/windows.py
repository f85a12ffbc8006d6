"""How `detect.py` looks at a frame: as a whole, or in windows of a picture too large for the network at once."""

from __future__ import annotations

import logging
import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from engine.inference import Detector
from engine.prediction import Prediction
from engine.predictor import NetworkInput
from models.decode import PostprocessConfig
from models.slicer import STRIDE
from utils.background import Jobs, look_ahead
from utils.boxes import Letterbox, resized_hw
from utils.frames import Frame
from utils.logger import LOGGER_NAME
from utils.results import Detections
from utils.windows import STEP, Window, cut_into_windows, merge_windows

logger = logging.getLogger(f"{LOGGER_NAME}.windows")

HINT_SIDE = 4096
HINT_SHRUNK = 3.0
"""A picture of at least this longer side that is shrunk at least so many times is worth a hint."""
_MOST_READERS = 2
_NEWS_S = 10.0


class FramePredictor(Protocol):
    """What a run does with each frame."""

    def prepare(self, frame: Frame) -> NetworkInput | None:
        """What can be done ahead, by any thread."""

    def predict(self, frame: Frame, prepared: NetworkInput | None) -> Prediction:
        """What is found in the frame. Raises ImageError where its file turns out to be damaged."""


@dataclass
class WholePredictor:
    """Each frame as one network input.

    Attributes:
        detector, post, augment: see `Detector.detect`.
        img_size: see `Detector.predict`.
    """

    detector: Detector
    post: PostprocessConfig
    img_size: int | tuple[int, int]
    augment: bool = False
    _hinted: bool = False

    def prepare(self, frame: Frame) -> NetworkInput:
        """See `FramePredictor`."""
        return self.detector.prepare(frame.image, self.img_size)

    def predict(self, frame: Frame, prepared: NetworkInput | None) -> Prediction:
        """See `FramePredictor`."""
        prepared = prepared or self.prepare(frame)
        self._hint(frame, prepared.letterbox)
        return self.detector.detect([prepared], self.post, self.augment)[0]

    def _hint(self, frame: Frame, letterbox: Letterbox) -> None:
        """Say once that a very large picture loses its small objects."""
        if not self._hinted and max(frame.hw) >= HINT_SIDE and letterbox.scale * HINT_SHRUNK <= 1:
            self._hinted = True
            logger.info(
                "%s has %d×%d pixels and is shrunk %.1f times for the network; --window 4096 looks at all of them",
                frame.path, frame.hw[1], frame.hw[0], 1 / letterbox.scale,
            )  # fmt: skip


@dataclass(frozen=True)
class WindowPredictor:
    """Each frame in windows, whose detections are merged.

    Attributes:
        detector, post, augment: see `Detector.detect`; post.max_det counts per window.
        size, overlap: pixels of the picture, see `cut_into_windows`.
        scale: network input pixels per pixel of the picture.
        workers: threads that read windows ahead of the network, at most two; 0: none.
    """

    detector: Detector
    post: PostprocessConfig
    size: int
    overlap: int
    scale: float = 1.0
    augment: bool = False
    workers: int = 0

    def prepare(self, frame: Frame) -> None:
        """Nothing: windows are read one by one while the network is busy."""

    def predict(self, frame: Frame, prepared: NetworkInput | None) -> Prediction:
        """See `FramePredictor`. The heatmap is that of all windows, over the whole picture."""
        windows = cut_into_windows(frame.hw, self.size, self.overlap)
        whole = _Whole(frame.hw, self.scale)
        readers = min(self.workers, _MOST_READERS)
        told = time.perf_counter()
        with closing(look_ahead(self._inputs(frame, windows), readers, readers)) as inputs:
            for number, (window, read) in enumerate(zip(windows, inputs, strict=True), start=1):
                started = time.perf_counter()
                prepared = read()
                waited_ms = (time.perf_counter() - started) * 1e3
                (prediction,) = self.detector.detect([prepared], self.post, self.augment)
                whole.add(window, prediction, waited_ms)
                if time.perf_counter() - told > _NEWS_S:
                    told = time.perf_counter()
                    logger.info("%s: window %d of %d", frame.path, number, len(windows))
        self._tell_of_full_windows(frame, whole.found)
        begin = time.perf_counter()
        merged = merge_windows(whole.found, windows, frame.hw, self.post.iou_thres, self.post.agnostic)
        return whole.prediction(merged, (time.perf_counter() - begin) * 1e3)

    def _tell_of_full_windows(self, frame: Frame, found: list[Detections]) -> None:
        """Windows of thousands of pixels may hold more objects than a picture is expected to."""
        full = sum(len(one) >= self.post.max_det for one in found)
        if full:
            logger.warning(
                "%s: in %d of %d windows the %d best detections are all that is kept; --max-det keeps more",
                frame.path, full, len(found), self.post.max_det,
            )  # fmt: skip

    def _inputs(self, frame: Frame, windows: list[Window]) -> Jobs[NetworkInput]:
        for window in windows:
            yield partial(self._input, frame, window)

    def _input(self, frame: Frame, window: Window) -> NetworkInput:
        pixels = frame.pixels.read(window.left, window.top, window.right, window.bottom)
        return self.detector.place(pixels, window_letterbox(window.hw, self.scale))


def window_letterbox(hw: tuple[int, int], scale: float) -> Letterbox:
    """A window in the upper left corner of the smallest input that holds it: exactly this scale, no shift."""
    height, width = (-(-side // STEP) * STEP for side in resized_hw(hw, scale))
    return Letterbox(hw, (height, width), scale, (0.0, 0.0))


class _Whole:
    """The predictions of windows, laid together as that of the picture."""

    def __init__(self, hw: tuple[int, int], scale: float) -> None:
        cells = [-(-side // STRIDE) for side in resized_hw(hw, scale)]
        self.found: list[Detections] = []
        self._letterbox = Letterbox(hw, (cells[0] * STRIDE, cells[1] * STRIDE), scale, (0.0, 0.0))
        self._heatmap: np.ndarray | None = None
        self._patches: list[np.ndarray] = []
        self._times_ms: dict[str, float] = {}

    def add(self, window: Window, prediction: Prediction, waited_ms: float) -> None:
        """Take what was found in a window, moved to where the window lies."""
        shift = np.array([window.left, window.top] * 2, np.float32)
        found = prediction.detections.to("cpu")
        self.found.append(Detections(found.xyxy + found.xyxy.new_tensor(shift), found.score, found.label))
        self._patches.append(prediction.patches_orig + shift)
        for stage, milliseconds in {"windows": waited_ms, **prediction.times_ms}.items():
            self._times_ms[stage] = self._times_ms.get(stage, 0.0) + milliseconds
        if prediction.heatmap is not None:
            self._lay_heatmap(window, prediction.heatmap)

    def prediction(self, merged: Detections, merging_ms: float) -> Prediction:
        """That of the picture, with its merged detections."""
        times = {**self._times_ms, "merge": merging_ms}
        return Prediction(merged, self._heatmap, np.concatenate(self._patches), self._letterbox, times)

    def _lay_heatmap(self, window: Window, heatmap: np.ndarray) -> None:
        """Where windows overlap the larger value counts; what lies in the padding is left out."""
        if self._heatmap is None:
            self._heatmap = np.zeros([side // STRIDE for side in self._letterbox.input_hw], np.float32)
        scale = self._letterbox.scale
        top, left = round(window.top * scale / STRIDE), round(window.left * scale / STRIDE)
        rows, columns = (-(-side // STRIDE) for side in resized_hw(window.hw, scale))
        place = self._heatmap[top : top + rows, left : left + columns]
        np.maximum(place, heatmap[: place.shape[0], : place.shape[1]], out=place)
