"""The images of an evaluation in which most objects were missed: pictures with the missed ones marked, and counts.

A labelled object is found by a detection of its class with IoU ≥ 0.5 at a given confidence; detections take objects
best score first, as for precision and recall in `evaluate.detection`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import cv2
import numpy as np

from engine.outputs import true_boxes
from evaluate.arrays import BoolArray, FloatArray, IntArray, Objects, to_array
from evaluate.matching import match_by_score, overlapping_pairs
from utils.data import Batch
from utils.dist import gather_objects
from utils.draw import GREEN, Colour, class_name, draw_boxes, save_image
from utils.files import write_json
from utils.images import ByteImage, ImageError, read_image
from utils.logger import get_logger
from utils.results import Detections

WORST_FILE = "worst.json"
COUNT = 6
FOUND_IOU = 0.5
DEFAULT_CONFIDENCE = 0.25
"""Where no confidence is the best, because nothing is found at any."""
MISSED: Colour = (255, 32, 96)
FALSE_ALARM: Colour = (255, 214, 0)
PICTURE_PX = 1280
CLOSER_PX = 640
CLOSER_SHARE = 4
"""The close-up shows a square of the image's longer side over this, but at least `CLOSER_LEAST_PX`."""
CLOSER_LEAST_PX = 192


@dataclass(frozen=True)
class ImageObjects:
    """What is labelled and what was found in one image; boxes in original pixels, detections best first."""

    index: int
    path: Path
    xyxy: FloatArray
    score: FloatArray
    label: IntArray
    truth_xyxy: FloatArray
    truth_label: IntArray


@dataclass(frozen=True)
class Verdict:
    """Which labelled objects [N] were found, and which detections [M] are shown and which of these are false alarms."""

    found: BoolArray
    shown: BoolArray
    false_alarm: BoolArray

    @property
    def missed(self) -> int:
        """Number of objects that were not found."""
        return int((~self.found).sum())


@dataclass(frozen=True)
class WorstImage:
    """An entry of ``worst.json``: the image, its counts, and its pictures relative to the run folder."""

    file: str
    labels: int
    missed: int
    false_alarms: int
    missed_by_class: dict[str, int]
    picture: str
    closer: str


class WorstImages:
    """Collects batch by batch; `save` draws. In several processes every one calls `gather` in between."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.images: list[ImageObjects] = []

    def add(self, batch: Batch, found: list[Detections]) -> None:
        """Keep the objects of a batch."""
        for number, (meta, detections) in enumerate(zip(batch.metas, found, strict=True)):
            boxes_px, label = true_boxes(batch, number)
            self.images.append(
                ImageObjects(
                    meta.index,
                    meta.path,
                    to_array(detections.xyxy).astype(np.float32),
                    to_array(detections.score).astype(np.float32),
                    to_array(detections.label).astype(np.int64),
                    to_array(meta.letterbox.to_original(boxes_px)).astype(np.float32),
                    to_array(label).astype(np.int64),
                )
            )

    def gather(self) -> None:
        """Bring the images of all processes together."""
        self.images = sorted(chain(*gather_objects(self.images)), key=lambda image: image.index)

    def save(self, folder: Path, confidence: float | None) -> list[WorstImage]:
        """Draw the worst images into ``folder/worst`` and list them in ``folder/worst.json``.

        Args:
            folder: of the run.
            confidence: of the best F1; None: `DEFAULT_CONFIDENCE`.
        """
        threshold = DEFAULT_CONFIDENCE if confidence is None else confidence
        saved: list[WorstImage] = []
        for image, verdict in worst_images(self.images, threshold):
            try:
                saved.append(self._draw(folder, len(saved) + 1, image, verdict))
            except ImageError as error:
                get_logger().warning(f"no picture of a badly detected image: {error}")
        content = {"confidence": threshold, "iou": FOUND_IOU, "images": [asdict(one) for one in saved]}
        write_json(folder / WORST_FILE, content)
        return saved

    def _draw(self, folder: Path, rank: int, image: ImageObjects, verdict: Verdict) -> WorstImage:
        pixels = read_image(image.path)
        missed = image.truth_xyxy[~verdict.found]
        whole = (0, 0, pixels.shape[1], pixels.shape[0])
        window = densest_window(missed, (pixels.shape[0], pixels.shape[1]))
        files = f"worst/{rank}.jpg", f"worst/{rank}_closer.jpg"
        for file, part, side in zip(files, (whole, window), (PICTURE_PX, CLOSER_PX), strict=True):
            save_image(folder / file, draw_verdict(pixels, image, verdict, part, side))
        classes = Counter(
            class_name(label, self.names) for label in image.truth_label[~verdict.found].tolist()
        )
        return WorstImage(
            str(image.path),
            len(image.truth_label),
            verdict.missed,
            int(verdict.false_alarm.sum()),
            dict(classes.most_common()),
            *files,
        )


def judge(image: ImageObjects, confidence: float) -> Verdict:
    """What was found in an image by detections of at least this score."""
    shown = image.score >= np.float32(confidence)
    chosen = np.flatnonzero(shown)
    detections = Objects(np.zeros(len(chosen), np.int64), image.xyxy[chosen], image.label[chosen])
    truths = Objects(np.zeros(len(image.truth_label), np.int64), image.truth_xyxy, image.truth_label)
    pairs = overlapping_pairs(detections, truths, FOUND_IOU)
    pairs = pairs.select(detections.label[pairs.detection] == truths.label[pairs.truth])
    matched = match_by_score(pairs, len(truths.label))
    found = np.zeros(len(truths.label), dtype=bool)
    found[matched.truth] = True
    false_alarm = shown.copy()
    false_alarm[chosen[matched.detection]] = False
    return Verdict(found, shown, false_alarm)


def worst_images(
    images: Iterable[ImageObjects], confidence: float, count: int = COUNT
) -> list[tuple[ImageObjects, Verdict]]:
    """At most so many images with missed objects: most missed first, of equals the one with fewer labels."""
    judged = ((image, judge(image, confidence)) for image in images)
    bad = [(image, verdict) for image, verdict in judged if verdict.missed]
    bad.sort(key=lambda entry: (-entry[1].missed, len(entry[0].truth_label), entry[0].index))
    return bad[:count]


def densest_window(xyxy: FloatArray, image_hw: tuple[int, int]) -> tuple[int, int, int, int]:
    """The square (x1, y1, x2, y2) in an image, around one of the boxes [N, 4], that holds most of their centres.

    Its side is the longer side of the image over `CLOSER_SHARE`, at least `CLOSER_LEAST_PX` and at most the shorter side.
    """
    height, width = image_hw
    side = min(max(max(image_hw) // CLOSER_SHARE, CLOSER_LEAST_PX), height, width)
    centre = (xyxy[:, :2] + xyxy[:, 2:]) / 2
    corner = np.floor((centre - side / 2).clip(0, (width - side, height - side)))
    inside = (centre[None] >= corner[:, None]) & (centre[None] <= corner[:, None] + side)
    best = int(inside.all(axis=2).sum(axis=1).argmax())
    left, top = int(corner[best, 0]), int(corner[best, 1])
    return left, top, left + side, top + side


def draw_verdict(
    pixels: ByteImage,
    image: ImageObjects,
    verdict: Verdict,
    window: tuple[int, int, int, int],
    longer_side: int,
) -> ByteImage:
    """A part of an image with found objects in green, false alarms in yellow and missed objects on top in red.

    Args:
        pixels: uint8 [H, W, 3] RGB, the image.
        image, verdict: what is in it.
        window: (x1, y1, x2, y2) of the part, in pixels of the image.
        longer_side: of the picture that is returned; the part is shrunk or, a close-up, enlarged to it.
    """
    left, top, right, bottom = window
    part = pixels[top:bottom, left:right]
    whole = part.shape == pixels.shape
    scale = longer_side / max(part.shape[:2])
    if whole:
        scale = min(scale, 1.0)
    size = (max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    picture: ByteImage = np.asarray(cv2.resize(part, size, interpolation=method), dtype=np.uint8)
    groups = [
        (image.truth_xyxy[verdict.found], GREEN, 1),
        (image.xyxy[verdict.false_alarm], FALSE_ALARM, 1),
        (image.truth_xyxy[~verdict.found], MISSED, 2),
    ]
    for boxes, colour, thickness in groups:
        shifted = (boxes - [left, top, left, top]) * scale
        label = np.zeros(len(boxes), dtype=np.int64)
        picture = draw_boxes(
            picture, shifted, label, line_thickness=thickness, hide_labels=True, palette=[colour]
        )
    return picture
