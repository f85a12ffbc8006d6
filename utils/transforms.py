"""From source images to network input: geometry as one affine matrix per source, colour, blending.

Everything geometric (letterbox, place in a mosaic, random affine, flips) is a 3×3 matrix; they are multiplied
first, so that each source is resampled once, straight into the final canvas, and only the part that can be
seen. Matrices map pixels (x, y, 1); pixel i covers [i, i+1). Reading files and choosing sources is elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from utils.boxes import Letterbox
from utils.config import HypConfig
from utils.heatmap import FloatArray, HeatmapFile, render_heatmap, warp_heatmap
from utils.images import ByteImage
from utils.warp import Matrix, Reader, channels_first, draw, resized, scaling, transform_boxes, translation

IntArray = npt.NDArray[np.int64]
BACKGROUND = 114
"""Grey value where no image is."""
MIN_SIDE_PX = 2.0
"""A box that augmentation leaves narrower or lower than this is dropped."""
MIN_VISIBLE = 0.1
"""A box of which less than this share of the area is left inside the canvas is dropped."""
MIXUP_BETA = 8.0
"""Both parameters of the beta distribution of mixup's blending factor."""
MOSAIC_MARGIN = 0.25
"""The joint of a mosaic keeps this share of the canvas away from its borders."""

STRIP_ROWS = 16
"""Rows of an image whose colours are changed at once."""
RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
"""NTSC, 1953; the rows of the colour differences add up to 0: greys have none."""

Geometry = Callable[[tuple[int, int], np.random.Generator], Matrix]
"""A random map from canvas to canvas: (height, width) of the canvas, random numbers → matrix."""


@dataclass(frozen=True, eq=False)
class Source:
    """One image and what is known about it, before it is read and placed.

    Attributes:
        hw: original height and width.
        xyxy: float32 [N, 4] boxes in original pixels.
        labels: int64 [N].
        heatmap: reads the heatmap file that knows more than the boxes do (masks); None: render it from boxes.
        read: gives the pixels.
    """

    hw: tuple[int, int]
    xyxy: FloatArray
    labels: IntArray
    heatmap: Callable[[], HeatmapFile] | None
    read: Reader


@dataclass(eq=False)
class Picture:
    """A network input in the making.

    Attributes:
        image: uint8 RGB [H, W, 3].
        xyxy: float32 [N, 4] boxes in input pixels.
        labels: int64 [N].
        heatmap: float32 [H/8, W/8] in 0–1.
    """

    image: ByteImage
    xyxy: FloatArray
    labels: IntArray
    heatmap: FloatArray


# ------------------------------------------------------------------------------------------ matrices


def letterbox_matrix(letterbox: Letterbox) -> Matrix:
    """Original pixels to the input pixels of a letterbox."""
    return translation(*letterbox.pad_xy) @ scaling(letterbox.scale, letterbox.scale)


def mosaic_matrices(
    sources_hw: Sequence[tuple[int, int]], canvas_hw: tuple[int, int], rng: np.random.Generator
) -> list[Matrix]:
    """Original pixels to canvas for four sources that meet, each with a corner, at a random joint.

    The order is top left, top right, bottom left, bottom right. Each source has the size it would have in the
    canvas alone; what lies over the border is not seen.
    """
    height, width = canvas_hw
    joint_x = rng.uniform(MOSAIC_MARGIN, 1 - MOSAIC_MARGIN) * width
    joint_y = rng.uniform(MOSAIC_MARGIN, 1 - MOSAIC_MARGIN) * height
    matrices = []
    for quarter, (source_h, source_w) in enumerate(sources_hw):
        scale = min(height / source_h, width / source_w)
        left = joint_x - (source_w * scale if quarter % 2 == 0 else 0)
        top = joint_y - (source_h * scale if quarter < 2 else 0)
        matrices.append(translation(left, top) @ scaling(scale, scale))
    return matrices


@dataclass(frozen=True)
class RandomAffine:
    """Rotation, scaling and shear about the centre of the canvas, then a shift.

    Attributes:
        degrees: rotation between −degrees and +degrees.
        translate: shift of up to this share of the canvas on each axis.
        scale: factor between 1 − scale and 1 + scale.
        shear: of each axis, between −shear and +shear degrees.
    """

    degrees: float
    translate: float
    scale: float
    shear: float

    def __call__(self, hw: tuple[int, int], rng: np.random.Generator) -> Matrix:
        height, width = hw
        angle = math.radians(rng.uniform(-self.degrees, self.degrees))
        factor = rng.uniform(1 - self.scale, 1 + self.scale)
        shear_x, shear_y = (math.tan(math.radians(rng.uniform(-self.shear, self.shear))) for _ in range(2))
        shift_x, shift_y = (rng.uniform(-self.translate, self.translate) for _ in range(2))
        cosine, sine = factor * math.cos(angle), factor * math.sin(angle)
        rotate = np.array([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]])
        shear = np.array([[1.0, shear_x, 0.0], [shear_y, 1.0, 0.0], [0.0, 0.0, 1.0]])
        back = translation(width * (0.5 + shift_x), height * (0.5 + shift_y))
        matrix: Matrix = back @ shear @ rotate @ translation(-width / 2, -height / 2)
        return matrix


@dataclass(frozen=True)
class RandomFlip:
    """Left and right, and top and bottom, changed over with the given probabilities."""

    left_right: float
    up_down: float

    def __call__(self, hw: tuple[int, int], rng: np.random.Generator) -> Matrix:
        matrix = np.eye(3)
        if rng.random() < self.left_right:
            matrix = translation(hw[1], 0) @ scaling(-1, 1) @ matrix
        if rng.random() < self.up_down:
            matrix = translation(0, hw[0]) @ scaling(1, -1) @ matrix
        return matrix


# -------------------------------------------------------------------------------------------- colour


@dataclass(frozen=True)
class ColourJitter:
    """Hue, saturation and value changed at random by one matrix over the colours of each pixel.

    Attributes:
        hue: colours turn around the axis of greys by up to this share of half a circle.
        saturation: their distance from grey is multiplied by a factor between 1 - this (at least 0) and 1 + this.
        value: brightness, likewise.
    """

    hue: float
    saturation: float
    value: float

    def __call__(self, image: ByteImage, rng: np.random.Generator) -> ByteImage:
        """An RGB image [H, W, 3] with other colours, as planes [3, H, W]; the image is left alone.

        A strip of rows goes through both steps before the next one: it stays in the processor's cache, and
        no other array of the image's size is made.
        """
        turn, saturation, value = rng.uniform(-1, 1, 3) * (self.hue, self.saturation, self.value)
        if not (self.hue or self.saturation or self.value):
            return channels_first(image)
        matrix = colour_matrix(turn * math.pi, max(1 + saturation, 0.0), 1 + value)
        planes = np.empty((3, *image.shape[:2]), dtype=np.uint8)
        for top in range(0, len(image), STRIP_ROWS):
            strip = np.asarray(cv2.transform(image[top : top + STRIP_ROWS], matrix), dtype=np.uint8)
            channels_first(strip, planes[:, top : top + STRIP_ROWS])
        return planes


def colour_matrix(turn: float, saturation: float, value: float) -> npt.NDArray[np.float64]:
    """[3, 3], RGB to RGB: colours turned around the axis of greys (red to yellow), then nearer to or further from it,
    then brighter.

    In YIQ, television's luma and two colour differences, all three are simple: IQ is turned by ``turn`` radians and
    multiplied by ``saturation`` · ``value``, Y by ``value``. Greys stay grey, and luma changes by ``value`` alone.
    """
    cosine, sine = (saturation * part for part in (math.cos(turn), math.sin(turn)))
    change = value * np.array([[1.0, 0.0, 0.0], [0.0, cosine, sine], [0.0, -sine, cosine]])
    matrix: npt.NDArray[np.float64] = np.linalg.inv(RGB_TO_YIQ) @ change @ RGB_TO_YIQ
    return matrix


# -------------------------------------------------------------------------------------------- policy


class TrainPolicy:
    """What happens at random to a training image: geometry by one matrix, and colour.

    The probabilities of mosaic and mixup are for whoever picks the sources. Colour comes last, when pictures
    have been blended, and leaves the image as planes.
    """

    def __init__(self, hyp: HypConfig) -> None:
        self.mosaic = hyp.mosaic
        self.mixup = hyp.mixup
        self.geometry: list[Geometry] = [
            RandomAffine(hyp.degrees, hyp.translate, hyp.scale, hyp.shear),
            RandomFlip(hyp.fliplr, hyp.flipud),
        ]
        self.colour = ColourJitter(hyp.hsv_h, hyp.hsv_s, hyp.hsv_v)
        self.tau = hyp.heatmap_tau

    def __call__(
        self, sources: Sequence[Source], canvas_hw: tuple[int, int], rng: np.random.Generator
    ) -> Picture:
        """One source letterboxed, or four as a mosaic, moved at random; colours as they are."""
        if len(sources) == 1:
            placed = [letterbox_matrix(Letterbox.fit(sources[0].hw, canvas_hw))]
        else:
            placed = mosaic_matrices([source.hw for source in sources], canvas_hw, rng)
        for geometry in self.geometry:
            matrix = geometry(canvas_hw, rng)
            placed = [matrix @ place for place in placed]
        return compose(sources, _on_whole_pixels(placed), canvas_hw, self.tau)


def compose(
    sources: Sequence[Source], matrices: Sequence[Matrix], canvas_hw: tuple[int, int], tau: float
) -> Picture:
    """Warp sources that do not overlap into one canvas; boxes and heatmap move with them.

    Boxes are clipped; those of which too little is left (`MIN_SIDE_PX`, `MIN_VISIBLE`) are dropped, and do
    not appear in the heatmap either, unless a heatmap file knows them.
    """
    canvas = np.full((*canvas_hw, 3), BACKGROUND, dtype=np.uint8)
    boxes, labels, rendered, maps = [], [], [], []
    for source, matrix in zip(sources, matrices, strict=True):
        matrix = draw(canvas, source.hw, source.read, matrix)
        moved = transform_boxes(source.xyxy, matrix)
        clipped = np.clip(moved, 0, (canvas_hw[1], canvas_hw[0]) * 2).astype(np.float32)
        keep = worth_keeping(moved, clipped)
        boxes.append(clipped[keep])
        labels.append(source.labels[keep])
        if source.heatmap is None:
            rendered.append(clipped[keep])
        else:
            maps.append(warp_heatmap(source.heatmap(), matrix[:2], canvas_hw))
    maps.append(render_heatmap(to_centres(np.concatenate([np.zeros((0, 4)), *rendered])), canvas_hw, tau))
    return Picture(canvas, np.concatenate(boxes), np.concatenate(labels), np.maximum.reduce(maps))


def _on_whole_pixels(matrices: list[Matrix]) -> list[Matrix]:
    """All moved together so that the last one's corner, where a mosaic's sources meet, is on a pixel's border."""
    corner = matrices[-1][:2, 2]
    shift = translation(*(np.rint(corner) - corner))
    return [shift @ matrix for matrix in matrices]


def blend(first: Picture, second: Picture, rng: np.random.Generator) -> Picture:
    """Mixup: two pictures of one size averaged with a random weight; all boxes, the maximum of the heatmaps.

    The first one's pixels are overwritten.
    """
    share = float(rng.beta(MIXUP_BETA, MIXUP_BETA))
    mixed = cv2.addWeighted(first.image, share, second.image, 1 - share, 0, dst=first.image)
    return Picture(
        np.asarray(mixed, dtype=np.uint8),
        np.concatenate([first.xyxy, second.xyxy]),
        np.concatenate([first.labels, second.labels]),
        np.maximum(first.heatmap, second.heatmap),
    )


# --------------------------------------------------------------------------------------------- boxes


def worth_keeping(whole: npt.NDArray[Any], clipped: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which boxes [N, 4] are still large and whole enough after being clipped; bool [N]."""
    size, full = clipped[:, 2:] - clipped[:, :2], whole[:, 2:] - whole[:, :2]
    visible = size.prod(1) / np.maximum(full.prod(1), 1e-9)
    keep: npt.NDArray[np.bool_] = (size >= MIN_SIDE_PX).all(1) & (visible >= MIN_VISIBLE)
    return keep


def to_centres(xyxy: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Corners [N, 4] to centre and size (cx, cy, w, h); the numpy twin of `utils.boxes.xyxy_to_cxcywh`."""
    top_left, bottom_right = xyxy[:, :2], xyxy[:, 2:]
    return np.concatenate([(top_left + bottom_right) / 2, bottom_right - top_left], axis=1)


# -------------------------------------------------------------------------------------------- images


def letterbox_image(image: ByteImage, letterbox: Letterbox, image_scale: float = 1.0) -> ByteImage:
    """An image resized, once, and pasted where a letterbox says; uint8 RGB [H, W, 3].

    Args:
        image: uint8 RGB [h, w, 3].
        letterbox: made for the original image.
        image_scale: pixels of ``image`` per original pixel, where a smaller version has been read.
    """
    ratio = letterbox.scale / image_scale
    if ratio != 1:
        image = resized(image, ratio)
    height, width = letterbox.input_hw
    left, top = (int(pad) for pad in letterbox.pad_xy)
    image = image[: height - top, : width - left]
    if image.shape[:2] == (height, width):
        return image
    canvas = np.full((height, width, 3), BACKGROUND, dtype=np.uint8)
    canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas
