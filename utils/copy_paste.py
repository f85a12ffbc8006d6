"""Copy-paste: objects of rare classes out of other images, put where there is room (idea: arXiv 1902.07296, 2012.07177).

Boxes, not masks: what lies around an object within its box comes along, and fades out beyond it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from utils.boxes import Letterbox
from utils.config import HypConfig
from utils.heatmap import FloatArray, render_heatmap
from utils.images import ByteImage
from utils.transforms import BACKGROUND, MIN_SIDE_PX, Picture, Source, to_centres

MARGIN = 0.15
"""Of an object's sides: how far around its box the surroundings come along, fading out."""
LARGEST_SHARE = 0.5
"""An object that would be longer than this share of the canvas is not pasted."""
CROWDED = 0.2
"""An object of whose box another one covers more than this share is not taken: a part of that would come along, unlabelled."""
MOST_GREY = 0.05
"""Share of a place that may have exactly the grey around pictures."""
TRIES = 20
"""Places looked at for an object; then it is left out."""

IntArray = npt.NDArray[np.int64]


class CopyPaste:
    """Pastes objects into pictures.

    Per picture a class is drawn, with a probability ∝ 1/√(its objects), and one of its objects; objects of that class in
    the image of that one are pasted, about ``hyp.copy_paste`` (Poisson), some of them several times where there are few.
    So a picture costs the reading of one more image. Sizes vary as ``hyp.scale`` and ``hyp.fliplr`` say.

    Args:
        labels: of the training set, per image [N, 5], the class first.
        hyp: strengths.
    """

    def __init__(self, labels: Sequence[npt.NDArray[np.float32]], hyp: HypConfig) -> None:
        self.hyp = hyp
        classes = np.concatenate([rows[:, 0] for rows in labels]).astype(np.int64)
        images = np.repeat(np.arange(len(labels)), [len(rows) for rows in labels])
        self.classes, counts = np.unique(classes, return_counts=True)
        self.image_of = [images[classes == label] for label in self.classes]
        share = 1 / np.sqrt(counts)
        self.share = share / share.sum()

    def __call__(
        self, picture: Picture, source: Callable[[int], Source], rng: np.random.Generator
    ) -> tuple[Picture, list[int]]:
        """A picture with objects pasted into it, and the images that they come from; its pixels are overwritten.

        Args:
            picture: in input pixels.
            source: gives an image of the training set by its index.
            rng: random numbers of this picture.
        """
        count = int(rng.poisson(self.hyp.copy_paste))
        chosen = int(rng.choice(len(self.classes), p=self.share))
        index = int(rng.choice(self.image_of[chosen]))
        if count == 0:
            return picture, []
        donor = source(index)
        rows = np.flatnonzero((donor.labels == self.classes[chosen]) & ~crowded(donor.xyxy))
        if not len(rows):
            return picture, []
        canvas_hw = (picture.image.shape[0], picture.image.shape[1])
        fitted = Letterbox.fit(donor.hw, canvas_hw).scale
        pixels, image_scale = donor.read(fitted * (1 + self.hyp.scale), None)
        taken = picture.xyxy
        for row in rng.choice(rows, size=count):
            scale = fitted * rng.uniform(1 - self.hyp.scale, 1 + self.hyp.scale)
            patch, inner = cut_object(pixels, donor.xyxy[row] * image_scale, scale / image_scale)
            if rng.random() < self.hyp.fliplr:
                patch, inner = mirrored(patch, inner)
            box = find_place(picture.image, patch, inner, taken, rng)
            if box is not None:
                lay(picture.image, patch, inner, box)
                taken = np.concatenate([taken, box[None]])
        new = taken[len(picture.xyxy) :]
        if not len(new):
            return picture, []
        heatmap = render_heatmap(to_centres(new), canvas_hw, self.hyp.heatmap_tau)
        labels = np.full(len(new), self.classes[chosen], dtype=np.int64)
        return Picture(
            picture.image,
            taken,
            np.concatenate([picture.labels, labels]),
            np.maximum(picture.heatmap, heatmap),
        ), [index]


def crowded(xyxy: FloatArray) -> npt.NDArray[np.bool_]:
    """Which boxes [N, 4] another one covers by more than `CROWDED`: bool [N]."""
    shared = covered_areas(xyxy, xyxy)
    np.fill_diagonal(shared, 0)
    area = (xyxy[:, 2:] - xyxy[:, :2]).prod(axis=1)
    result: npt.NDArray[np.bool_] = shared.max(axis=1, initial=0) > CROWDED * area
    return result


def covered_areas(xyxy: npt.NDArray[Any], others: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Area that each of the boxes [N, 4] shares with each of the others [M, 4]: [N, M]."""
    low = np.maximum(xyxy[:, None, :2], others[None, :, :2])
    high = np.minimum(xyxy[:, None, 2:], others[None, :, 2:])
    result: npt.NDArray[np.float64] = np.clip(high - low, 0, None).prod(axis=2, dtype=np.float64)
    return result


def cut_object(image: ByteImage, xyxy: npt.NDArray[Any], scale: float) -> tuple[ByteImage, FloatArray]:
    """An object with its margin, resized.

    Args:
        image: uint8 RGB [H, W, 3].
        xyxy: [4] its box in pixels of that.
        scale: output pixels per pixel of the image.

    Returns:
        uint8 [h, w, 3], and the box [4] in its pixels.
    """
    around = np.concatenate([xyxy[2:] - xyxy[:2]] * 2) * MARGIN * (-1, -1, 1, 1)
    height, width = image.shape[:2]
    limit = (width, height, width, height)
    outer = np.clip(np.concatenate([np.floor((xyxy + around)[:2]), np.ceil((xyxy + around)[2:])]), 0, limit)
    left, top, right, bottom = outer.astype(int).tolist()
    part = image[top:bottom, left:right]
    size = (max(round(part.shape[1] * scale), 1), max(round(part.shape[0] * scale), 1))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = np.asarray(cv2.resize(part, size, interpolation=method), dtype=np.uint8)
    ratio = np.array([size[0] / part.shape[1], size[1] / part.shape[0]] * 2)
    return resized, ((xyxy - (left, top, left, top)) * ratio).astype(np.float32)


def mirrored(patch: ByteImage, inner: FloatArray) -> tuple[ByteImage, FloatArray]:
    """Left and right changed over, of an object and its box in it."""
    width = patch.shape[1]
    box = np.array([width - inner[2], inner[1], width - inner[0], inner[3]], dtype=np.float32)
    return np.ascontiguousarray(patch[:, ::-1]), box


def find_place(
    canvas: ByteImage, patch: ByteImage, inner: FloatArray, taken: FloatArray, rng: np.random.Generator
) -> FloatArray | None:
    """Where an object's box comes to lie in a canvas: [4] in its pixels; None when no place was found.

    All of the patch lies inside, on no object and not in the grey around pictures.
    """
    height, width = patch.shape[:2]
    side = inner[2:] - inner[:2]
    too_large = max(height, width) > LARGEST_SHARE * min(canvas.shape[:2])
    if too_large or side.min() < MIN_SIDE_PX:
        return None
    for _ in range(TRIES):
        left = int(rng.integers(canvas.shape[1] - width + 1))
        top = int(rng.integers(canvas.shape[0] - height + 1))
        outer = np.array([[left, top, left + width, top + height]], dtype=np.float32)
        empty = (canvas[top : top + height, left : left + width] == BACKGROUND).all(axis=2)
        if empty.mean() <= MOST_GREY and not covered_areas(outer, taken).any():
            moved: FloatArray = inner + np.array([left, top] * 2, dtype=np.float32)
            return moved
    return None


def lay(canvas: ByteImage, patch: ByteImage, inner: FloatArray, box: FloatArray) -> None:
    """Put a patch into a canvas, where its inner box becomes ``box``; its margin fades out. In place."""
    left, top = np.rint(box[:2] - inner[:2]).astype(int).tolist()
    height, width = patch.shape[:2]
    rows, columns = _fade(height, inner[1], inner[3]), _fade(width, inner[0], inner[2])
    alpha = np.minimum(rows[:, None], columns[None])[..., None]
    place = canvas[top : top + height, left : left + width]
    place[...] = np.rint(place * (1 - alpha) + patch * alpha).astype(np.uint8)


def _fade(length: int, first: float, last: float) -> npt.NDArray[np.float64]:
    """Along one side: 1 between the borders of the box, down to 0 at the ends. [length]."""
    middle = np.arange(length) + 0.5
    before = np.ones(length) if first <= 0 else np.clip(middle / first, 0, 1)
    after = np.ones(length) if last >= length else np.clip((length - middle) / (length - last), 0, 1)
    return np.minimum(before, after)
