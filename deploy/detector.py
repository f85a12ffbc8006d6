"""An exported detector to call on pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from deploy.decoding import decode, suppress
from deploy.metadata import ExportedFileError
from deploy.network import MAX_STRIDE, SingleGraph, open_network
from deploy.slicing import FloatArray, IntArray

BACKGROUND = 114
"""Grey value where no image is."""
ByteImage = npt.NDArray[np.uint8]


class Result(NamedTuple):
    """What was found in one picture, best first: xyxy [N, 4] in its pixels, score [N], label [N]."""

    xyxy: FloatArray
    score: FloatArray
    label: IntArray


class Placement(NamedTuple):
    """How a picture was placed in the network's input: input = original · scale + (left, top)."""

    scale: float
    left: int
    top: int


class ExportedDetector:
    """An exported network with its class names.

    Args:
        path, threads, device: see `deploy.network.open_network`.
    """

    def __init__(self, path: str | Path, threads: int = 0, device: str = "cpu") -> None:
        self.network = open_network(path, threads, device)
        self.names = self.network.info.names

    def detect(
        self,
        image: ByteImage,
        img_size: int = 1536,
        conf_thres: float | None = None,
        iou_thres: float | None = None,
        max_det: int = 500,
    ) -> Result:
        """Detect objects in one picture.

        Args:
            image: uint8 RGB [H, W, 3].
            img_size: longer side of the network's input; a single file takes its own.
            conf_thres, iou_thres: None: as in the file. In a single file a higher conf_thres is possible.
            max_det: at most so many come back.

        Raises:
            ExportedFileError: a single file is asked for thresholds that it does not have.
        """
        info = self.network.info
        conf = info.conf_thres if conf_thres is None else conf_thres
        iou = info.iou_thres if iou_thres is None else iou_thres
        if isinstance(self.network, SingleGraph):
            xyxy, score, label, place = self._single(self.network, image, conf, iou)
            xyxy, score, label = xyxy[:max_det], score[:max_det], label[:max_det]
        else:
            pixels, place = letterbox(image, input_size(image.shape[:2], img_size))
            output = self.network(to_input(pixels))
            boxes = decode(output.levels, output.patches, info.config, conf)
            xyxy, score, label = suppress(boxes.xyxy_px, boxes.scores, conf, iou, max_det)
        shift = np.array([place.left, place.top] * 2, dtype=np.float32)
        height, width = image.shape[:2]
        xyxy = ((xyxy - shift) / np.float32(place.scale)).clip(0, [width, height, width, height])
        return Result(xyxy.astype(np.float32), score, label)

    @staticmethod
    def _single(
        network: SingleGraph, image: ByteImage, conf: float, iou: float
    ) -> tuple[Any, Any, Any, Placement]:
        fixed = network.settings
        if conf < fixed.conf_thres or iou != fixed.iou_thres:
            raise ExportedFileError(
                f"confidence {conf:g} and overlap {iou:g}: this file has {fixed.conf_thres:g} (or more) and "
                f"{fixed.iou_thres:g} in it; export with others"
            )
        pixels, place = letterbox(image, (fixed.height, fixed.width))
        (found,) = network(to_input(pixels))
        above = found.score > conf
        return found.xyxy[above], found.score[above], found.label[above], place


def input_size(hw: tuple[int, ...], img_size: int) -> tuple[int, int]:
    """(height, width) of the smallest input, in multiples of 32, for a picture whose longer side becomes img_size."""
    scale = min(img_size / hw[0], img_size / hw[1])
    height, width = (math.ceil(max(1, round(side * scale)) / MAX_STRIDE) * MAX_STRIDE for side in hw[:2])
    return height, width


def letterbox(image: ByteImage, input_hw: tuple[int, int]) -> tuple[ByteImage, Placement]:
    """The largest version of a picture [H, W, 3] that fits into an input, centred on grey; and how it was placed."""
    hw = image.shape[:2]
    ratios = (input_hw[0] / hw[0], input_hw[1] / hw[1])
    largest = [max(1, round(side * max(ratios))) for side in hw]
    # The larger ratio also fits when rounding hides its excess (utils/boxes.py does the same).
    scale = max(ratios) if largest[0] <= input_hw[0] and largest[1] <= input_hw[1] else min(ratios)
    height, width = (max(1, round(side * scale)) for side in hw)
    left, top = (input_hw[1] - width) // 2, (input_hw[0] - height) // 2
    image = resized(image, scale)
    image = image[: input_hw[0] - top, : input_hw[1] - left]
    canvas = np.full((*input_hw, 3), BACKGROUND, dtype=np.uint8)
    canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas, Placement(scale, left, top)


def resized(image: ByteImage, scale: float) -> ByteImage:
    """A picture with its sides times scale: bilinear, behind averages of whole blocks below half (utils/warp.py too)."""
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    step = min(int(1 / scale + 1e-6), *image.shape[:2])
    if step > 1:
        more = (-image.shape[0] % step, -image.shape[1] % step)
        image = np.asarray(cv2.copyMakeBorder(image, 0, more[0], 0, more[1], cv2.BORDER_REPLICATE), np.uint8)
        blocks = cv2.resize(image, None, fx=1 / step, fy=1 / step, interpolation=cv2.INTER_AREA)
        image, scale = np.asarray(blocks, dtype=np.uint8), scale * step
    if scale != 1:
        image = np.asarray(
            cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR), dtype=np.uint8
        )
    return image[:height, :width]


def to_input(pixels: ByteImage) -> FloatArray:
    """uint8 RGB [H, W, 3] → float32 [1, 3, H, W] in 0–1."""
    planes: FloatArray = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]).astype(np.float32)
    planes /= np.float32(255)
    return planes
