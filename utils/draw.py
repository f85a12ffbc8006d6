"""Drawing on images: boxes with labels, patches, heatmaps; and saving a picture.

Images are uint8 RGB [H, W, 3]; the functions return a new picture and leave the given one as it is.
Pictures of many images are in `utils.mosaic`, charts in `utils.plots`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from utils.files import write_atomic

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]
Array = Tensor | NDArray[Any]

PALETTE: tuple[Colour, ...] = (
    (255, 82, 82),  # red
    (66, 135, 255),  # blue
    (255, 214, 0),  # yellow
    (105, 240, 174),  # mint
    (224, 64, 251),  # magenta
    (255, 145, 0),  # orange
    (179, 136, 255),  # lavender
    (174, 234, 0),  # lime
    (255, 128, 171),  # pink
    (0, 229, 255),  # cyan
    (188, 143, 110),  # tan
    (29, 233, 182),  # teal
    (186, 104, 200),  # purple
    (255, 255, 255),  # white
    (255, 183, 77),  # apricot
    (130, 200, 255),  # sky
    (139, 195, 74),  # leaf
    (240, 98, 146),  # rose
    (144, 164, 174),  # slate
    (255, 238, 140),  # cream
)
"""Bright colours that stay apart from each other and from asphalt, grass and roofs."""
GREEN: Colour = (0, 255, 72)
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
FONT = cv2.FONT_HERSHEY_SIMPLEX
SMALL_BOX_PX = 14.0
"""Boxes with a shorter side are drawn with a line of one pixel, outside of the object."""
LARGE_BOX_PX = 100
"""Boxes of at least this shorter side may have labels on them: enough of the object stays visible."""
MAX_HIDDEN = 0.1
"""A label may lie on other objects with this share of its area at most (in a crowd)."""
CROWD = 40
"""With more boxes than this, labels get smaller and must not lie on other objects."""


class PictureError(ValueError):
    """Something that cannot be drawn or saved; the message says what, and what was expected."""


def draw_boxes(
    image: Image,
    xyxy: Array,
    labels: Array,
    scores: Array | None = None,
    names: Sequence[str] | None = None,
    line_thickness: int | None = None,
    hide_labels: bool = False,
    hide_conf: bool = False,
    palette: Sequence[Colour] = PALETTE,
) -> Image:
    """The image with boxes, coloured by class, and their labels where there is room for them.

    The best-scored box is drawn last, on top. A label lies above its box, or inside where the picture
    ends; it gets smaller when there are many boxes and is left out where it would cover another label,
    so that hundreds of boxes stay readable.

    Args:
        image: uint8 RGB [H, W, 3].
        xyxy: [N, 4] corners in pixels of the image; what lies outside is cut off.
        labels: [N] class index.
        scores: [N] in 0–1, or None for labelled objects.
        names: class names; the index is shown for a class without one.
        line_thickness: pixels; None: by the size of the image and the number of boxes.
        hide_labels: boxes only.
        hide_conf: names only.
        palette: colours by class index, repeated.
    """
    picture: Image = checked_image(image).copy()
    boxes = _checked_boxes(xyxy)
    label = to_numpy(labels).reshape(-1).astype(np.int64)
    score = None if scores is None else to_numpy(scores).reshape(-1).astype(np.float64)
    if len(label) != len(boxes) or (score is not None and len(score) != len(boxes)):
        counts = f"{len(label)} labels and {'no' if score is None else len(score)} scores"
        raise PictureError(f"{len(boxes)} boxes with {counts}; expected one of each per box")
    height, width = picture.shape[:2]
    order = np.arange(len(boxes)) if score is None else np.argsort(-score, kind="stable")
    inside = np.all((boxes[:, 2:] > 0) & (boxes[:, :2] < [width, height]), axis=1)
    order = order[inside[order]]
    boxes, label = boxes[order], label[order]
    thickness = line_thickness or max(1, round((height + width) / (2000 if len(boxes) > CROWD else 1000)))
    colours = [palette[index % len(palette)] for index in label.tolist()]
    for box, colour in zip(boxes[::-1], colours[::-1], strict=True):
        _draw_box(picture, box, colour, thickness)
    if not hide_labels:
        texts = [class_name(index, names) for index in label.tolist()]
        if score is not None and not hide_conf:
            texts = [f"{text} {value:.2f}" for text, value in zip(texts, score[order].tolist(), strict=True)]
        _draw_labels(picture, boxes, texts, colours, thickness)
    return picture


def class_name(label: int, names: Sequence[str] | None) -> str:
    """The name of a class index; the index itself when it has none."""
    return names[label] if names is not None and 0 <= label < len(names) else str(label)


def draw_patches(
    image: Image, xyxy: Array, colour: Colour = GREEN, line_thickness: int | None = None
) -> Image:
    """The image with patches [K, 4] (corners in pixels of the image) as frames, inside their area."""
    picture: Image = checked_image(image).copy()
    thickness = line_thickness or max(1, round(sum(picture.shape[:2]) / 1000))
    height, width = picture.shape[:2]
    for x1, y1, x2, y2 in _checked_boxes(xyxy).round().astype(int).tolist():
        left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
        for inset in range(thickness):
            if right - left > 2 * inset and bottom - top > 2 * inset:
                first, last = (left + inset, top + inset), (right - 1 - inset, bottom - 1 - inset)
                cv2.rectangle(picture, first, last, colour, 1)
    return picture


def overlay_heatmap(image: Image, heatmap: Array, alpha: float = 0.6, smooth: bool = True) -> Image:
    """The image with a heatmap over it: what is cold stays as it is, what is hot glows.

    Args:
        image: uint8 RGB [H, W, 3].
        heatmap: [h, w] or [1, h, w] in 0–1, stretched over the whole image.
        alpha: opacity at 1, in 0–1; it falls to 0 with the value.
        smooth: linear interpolation; False shows the cells.
    """
    picture = checked_image(image)
    values = to_numpy(heatmap).astype(np.float32)
    if values.ndim == 3 and values.shape[0] == 1:
        values = values[0]
    if values.ndim != 2 or values.size == 0:
        raise PictureError(f"heatmap has shape {values.shape}; expected [h, w] or [1, h, w]")
    if not np.isfinite(values).all():
        raise PictureError("heatmap has values that are not finite; expected 0–1")
    height, width = picture.shape[:2]
    method = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST
    heat = cv2.resize(values.clip(0, 1), (width, height), interpolation=method)
    colours = cv2.applyColorMap((heat * 255).round().astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    opacity = alpha * heat[..., None]
    mixed = picture * (1 - opacity) + colours * opacity
    return np.asarray(mixed.round().clip(0, 255).astype(np.uint8))


def to_image(image: Array) -> Image:
    """A uint8 RGB picture [H, W, 3] of such a picture, or of a tensor [3, H, W], uint8 or floating in 0–1."""
    array = to_numpy(image)
    if array.ndim == 3 and isinstance(image, Tensor) and array.shape[0] == 3:
        array = array.transpose(1, 2, 0)
    if np.issubdtype(array.dtype, np.floating):
        array = (np.nan_to_num(array).clip(0, 1) * 255).round().astype(np.uint8)
    return np.ascontiguousarray(checked_image(array))


def save_image(path: str | Path, image: Image, quality: int = 92) -> Path:
    """Write a picture; the suffix says the format. A reader sees the old file or the new one, never a half.

    Args:
        path: any characters; missing folders are made.
        image: uint8 RGB [H, W, 3].
        quality: of JPEG and WebP, 1–100.

    Raises:
        PictureError: a suffix that is not one of `SUFFIXES`, or an array that is no picture.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise PictureError(f"cannot save {path}: suffix {suffix!r} is not one of {', '.join(SUFFIXES)}")
    options = {
        ".jpg": cv2.IMWRITE_JPEG_QUALITY,
        ".jpeg": cv2.IMWRITE_JPEG_QUALITY,
        ".webp": cv2.IMWRITE_WEBP_QUALITY,
    }
    parameters = [options[suffix], quality] if suffix in options else []
    done, encoded = cv2.imencode(suffix, checked_image(image)[..., ::-1], parameters)
    if not done:
        raise PictureError(f"cannot save {path}: OpenCV could not encode {image.shape} as {suffix}")
    write_atomic(path, lambda file: file.write(encoded.tobytes()))
    return path


# ------------------------------------------------------------------------------------------- helpers


def _draw_box(picture: Image, box: NDArray[np.float64], colour: Colour, thickness: int) -> None:
    """One box, in place. The line of a small object lies outside of it, so that the object stays visible."""
    height, width = picture.shape[:2]
    x1, y1, x2, y2 = box.round().astype(int).tolist()
    if min(box[2] - box[0], box[3] - box[1]) < SMALL_BOX_PX:
        # At least 5 pixels wide, or it would be a dot.
        spread = max(0, 5 - min(x2 - x1, y2 - y1)) // 2
        first, last = (x1 - 1 - spread, y1 - 1 - spread), (x2 + spread, y2 + spread)
        cv2.rectangle(picture, first, last, colour, 1)
    else:
        first, last = (max(x1, 0), max(y1, 0)), (min(x2, width - 1), min(y2, height - 1))
        cv2.rectangle(picture, first, last, colour, thickness)


def _draw_labels(
    picture: Image,
    boxes: NDArray[np.float64],
    texts: Sequence[str],
    colours: Sequence[Colour],
    thickness: int,
) -> None:
    """The labels, in place, most important first; in a crowd only those with a free place."""
    height, width = picture.shape[:2]
    crowded = len(boxes) > CROWD
    scale = float(np.clip((height + width) / 4400, 0.4, 1.5)) * (0.85 if crowded else 1.0)
    weight = max(1, round(scale))
    spots = boxes.round().astype(int).clip(0, [width, height, width, height])
    objects = np.zeros((height, width), dtype=bool)
    for x1, y1, x2, y2 in spots.tolist():
        if min(x2 - x1, y2 - y1) < LARGE_BOX_PX:
            objects[y1:y2, x1:x2] = True
    taken = np.zeros((height, width), dtype=bool)
    for spot, text, colour in zip(spots.tolist(), texts, colours, strict=True):
        (text_w, text_h), baseline = cv2.getTextSize(text, FONT, scale, weight)
        size = (text_w + 4, text_h + baseline + 2)
        place = _label_place(spot, size, taken, objects, thickness)
        if place is None and not crowded:
            place = _label_place(spot, size, taken, np.zeros_like(objects), thickness)
        if place is None:
            continue
        left, top = place
        taken[top : top + size[1], left : left + size[0]] = True
        cv2.rectangle(picture, place, (left + size[0] - 1, top + size[1] - 1), colour, -1)
        origin = (left + 2, top + 1 + text_h)
        cv2.putText(picture, text, origin, FONT, scale, ink_on(colour), weight, cv2.LINE_AA)


def _label_place(
    box: list[int],
    size: tuple[int, int],
    taken: NDArray[np.bool_],
    objects: NDArray[np.bool_],
    thickness: int,
) -> tuple[int, int] | None:
    """Left and top of a label (width, height) beside its box: the first of four places that is free.

    ``taken`` are the pixels of other labels, ``objects`` those of boxes that must stay visible.
    """
    height, width = taken.shape
    x1, y1, x2, y2 = box
    label_w, label_h = size
    half = thickness // 2
    above, below = y1 - label_h - half, y2 + half + 1
    places = [(x1 - half, above), (x1 - half, below), (x2 + half + 1, y1), (x1 - label_w - half, y1)]
    if x2 - x1 > 1.5 * label_w and y2 - y1 > 3 * label_h:
        places.insert(1, (x1, y1))  # inside of a large box
    for left, top in places:
        # Shifted sideways into the picture; above and below there is another place instead.
        left = min(max(left, 0), width - label_w)
        if left < 0 or top < 0 or top + label_h > height:
            continue
        region = np.s_[top : top + label_h, left : left + label_w]
        if not taken[region].any() and objects[region].mean() < MAX_HIDDEN:
            return left, top
    return None


def ink_on(background: Colour) -> Colour:
    """Black or white, whichever reads better (ITU-R BT.601 brightness)."""
    brightness = 0.299 * background[0] + 0.587 * background[1] + 0.114 * background[2]
    return (0, 0, 0) if brightness > 120 else (255, 255, 255)


def to_numpy(values: Array) -> NDArray[Any]:
    """The values of an array or of a tensor on any device; bfloat16 as float32."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return np.asarray(values.float() if values.is_floating_point() else values)
    return np.asarray(values)


def checked_image(image: NDArray[Any]) -> Image:
    """The image, contiguous; PictureError when it is not uint8 RGB [H, W, 3]."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise PictureError(f"image is {image.dtype} {image.shape}; expected uint8 RGB [H, W, 3]")
    return np.ascontiguousarray(image)


def _checked_boxes(xyxy: Array) -> NDArray[np.float64]:
    boxes = to_numpy(xyxy).astype(np.float64)
    if boxes.size == 0:
        return np.zeros((0, 4))
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise PictureError(f"boxes have shape {boxes.shape}; expected [N, 4]")
    if not np.isfinite(boxes).all():
        raise PictureError("boxes have values that are not finite")
    return boxes
