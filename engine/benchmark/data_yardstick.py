"""A straightforward training pipeline of the usual kind: the yardstick that ours is timed against.

Four images are read whole, resized, pasted into a canvas of twice the input's size and warped, image and
full-resolution mask alike; the mask is pooled to the heatmap at the end. Nothing but the benchmark uses it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.config import HypConfig
from utils.images import ByteImage
from utils.transforms import BACKGROUND, MIN_SIDE_PX, MIN_VISIBLE, MIXUP_BETA

FloatArray = npt.NDArray[np.float32]
Mask = npt.NDArray[Any]
"""[H, W], float32 in 0–1 or uint8."""
HEATMAP_STRIDE = 8
PERCENT = 255


def paint_mask(xyxy: FloatArray, image_hw: tuple[int, int], tau: float) -> npt.NDArray[np.uint8]:
    """The Gaussians of boxes (paper eq. 3) at every pixel of an image; uint8 [H, W], 255 is 1."""
    mask = np.zeros(image_hw, dtype=np.float32)
    for left, top, right, bottom in xyxy:
        x1, y1 = max(int(left), 0), max(int(top), 0)
        x2, y2 = min(math.ceil(right), image_hw[1]), min(math.ceil(bottom), image_hw[0])
        dx = (np.arange(x1, x2) + 0.5 - (left + right) / 2) / max((right - left) / 2, 1e-9)
        dy = (np.arange(y1, y2) + 0.5 - (top + bottom) / 2) / max((bottom - top) / 2, 1e-9)
        values = np.exp((dx[None] ** 2 + dy[:, None] ** 2) * (0.5 * math.log(tau)))
        mask[y1:y2, x1:x2] = np.maximum(mask[y1:y2, x1:x2], values)
    return np.asarray(np.rint(mask * PERCENT), dtype=np.uint8)


class YardstickPipeline:
    """Training samples with mosaic and mixup, one per index; a sample is (image, boxes, labels, heatmap)."""

    def __init__(
        self,
        images: Sequence[Path],
        masks: Sequence[Path],
        labels: Sequence[FloatArray],
        size: int,
        hyp: HypConfig,
        seed: int = 0,
    ) -> None:
        """
        Args:
            images: the files.
            masks: ``.npy`` files beside them, float32 or uint8 [H, W], full resolution.
            labels: per image [N, 5]: class, (x1, y1, x2, y2) in pixels of the image.
            size: both sides of a sample.
            hyp: scale, translate, colour, mixup; every sample is a mosaic.
            seed: of the random choices.
        """
        self._images, self._masks, self._labels = images, masks, labels
        self._size, self._hyp, self._seed = size, hyp, seed

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Image uint8 [3, S, S] RGB, labels float32 [N, 5] (class, x1, y1, x2, y2 in pixels), heatmap [1, S/8, S/8]."""
        rng = np.random.default_rng([self._seed, index])
        image, mask, labels = self._mosaic(index % len(self), rng)
        if rng.random() < self._hyp.mixup:
            image_2, mask_2, labels_2 = self._mosaic(int(rng.integers(len(self))), rng)
            share = rng.beta(MIXUP_BETA, MIXUP_BETA)
            image = (image * share + image_2 * (1 - share)).astype(np.uint8)
            mask, labels = np.maximum(mask, mask_2), np.concatenate([labels, labels_2])
        image = self._colour(image, rng)
        if rng.random() < self._hyp.fliplr:
            image, mask = np.fliplr(image), np.fliplr(mask)
            labels[:, [1, 3]] = self._size - labels[:, [3, 1]]
        planes = np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1))
        full = torch.from_numpy(np.ascontiguousarray(mask))[None, None].float()
        heatmap = F.max_pool2d(full, HEATMAP_STRIDE)[0]
        return torch.from_numpy(planes), torch.from_numpy(labels), heatmap

    def _load(self, index: int) -> tuple[ByteImage, Mask, float]:
        """Image (BGR) and mask with the longer side at the sample's size, and the scale."""
        image = np.asarray(cv2.imread(str(self._images[index])), dtype=np.uint8)
        mask = np.load(self._masks[index], allow_pickle=False)
        scale = self._size / max(image.shape[:2])
        if scale == 1:
            return image, mask, scale
        hw = [int(side * scale) for side in image.shape[:2]]
        resized = [cv2.resize(a, (hw[1], hw[0]), interpolation=cv2.INTER_LINEAR) for a in (image, mask)]
        return np.asarray(resized[0], dtype=np.uint8), resized[1], scale

    def _mosaic(self, index: int, rng: np.random.Generator) -> tuple[ByteImage, Mask, FloatArray]:
        """Four images around a random joint of a canvas of twice the size, warped to the size."""
        size = self._size
        joint_x, joint_y = (int(rng.uniform(size / 2, size * 3 / 2)) for _ in range(2))
        canvas: ByteImage = np.full((2 * size, 2 * size, 3), BACKGROUND, dtype=np.uint8)
        canvas_mask: Mask | None = None
        found = []
        for quarter, source in enumerate([index, *rng.integers(len(self), size=3).tolist()]):
            image, mask, scale = self._load(source)
            if canvas_mask is None:
                canvas_mask = np.zeros((2 * size, 2 * size), dtype=mask.dtype)
            height, width = image.shape[:2]
            left = joint_x - (width if quarter % 2 == 0 else 0)
            top = joint_y - (height if quarter < 2 else 0)
            x1, y1 = max(left, 0), max(top, 0)
            x2, y2 = min(left + width, 2 * size), min(top + height, 2 * size)
            canvas[y1:y2, x1:x2] = image[y1 - top : y2 - top, x1 - left : x2 - left]
            canvas_mask[y1:y2, x1:x2] = mask[y1 - top : y2 - top, x1 - left : x2 - left]
            moved = self._labels[source].copy()
            moved[:, 1:] = moved[:, 1:] * scale + np.array([left, top, left, top], dtype=np.float32)
            found.append(moved)
        assert canvas_mask is not None
        return self._warp(canvas, canvas_mask, np.concatenate(found), rng)

    def _warp(
        self,
        canvas: ByteImage,
        mask: Mask,
        labels: FloatArray,
        rng: np.random.Generator,
    ) -> tuple[ByteImage, Mask, FloatArray]:
        """The canvas scaled about its centre and shifted into the sample; boxes clipped, small ones dropped."""
        size, hyp = self._size, self._hyp
        factor = rng.uniform(1 - hyp.scale, 1 + hyp.scale)
        shift = rng.uniform(0.5 - hyp.translate, 0.5 + hyp.translate, 2) * size
        matrix = np.array([[factor, 0, shift[0] - factor * size], [0, factor, shift[1] - factor * size]])
        image = cv2.warpAffine(canvas, matrix, (size, size), borderValue=(BACKGROUND,) * 3)
        warped = cv2.warpAffine(mask, matrix, (size, size), borderValue=0)
        whole = labels[:, 1:] * factor + np.tile(matrix[:, 2], 2).astype(np.float32)
        clipped = np.clip(whole, 0, size)
        sides, full = clipped[:, 2:] - clipped[:, :2], whole[:, 2:] - whole[:, :2]
        visible = sides.prod(1) / np.maximum(full.prod(1), 1e-9)
        keep = (sides >= MIN_SIDE_PX).all(1) & (visible >= MIN_VISIBLE)
        labels = np.concatenate([labels[keep, :1], clipped[keep]], axis=1).astype(np.float32)
        return np.asarray(image, dtype=np.uint8), warped, labels

    def _colour(self, image: ByteImage, rng: np.random.Generator) -> ByteImage:
        """Hue, saturation and value multiplied by random factors."""
        factors = 1 + rng.uniform(-1, 1, 3) * (self._hyp.hsv_h, self._hyp.hsv_s, self._hyp.hsv_v)
        hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2HSV))
        steps = np.arange(256, dtype=np.float64)
        tables = [np.clip(steps * factor, 0, 255).astype(np.uint8) for factor in factors]
        tables[0] = ((steps * factors[0]) % 180).astype(np.uint8)
        changed = cv2.merge([cv2.LUT(a, t) for a, t in zip((hue, saturation, value), tables, strict=True)])
        return np.asarray(cv2.cvtColor(changed, cv2.COLOR_HSV2BGR), dtype=np.uint8)
