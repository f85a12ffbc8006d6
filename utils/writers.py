"""What detection leaves behind: Darknet label files, crops, JSON, videos, and names that never clash.

Every file appears whole or not at all. What the pictures show is drawn elsewhere (utils/draw.py,
utils/cluster_picture.py); which files a run writes is decided in utils/detection_output.py.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from utils.boxes import clip_boxes, xyxy_to_cxcywh
from utils.draw import save_image
from utils.files import write_text
from utils.images import ByteImage
from utils.large_picture import LargePicture
from utils.records import class_name, coco_results
from utils.results import Detections

VIDEO_CODECS: dict[str, tuple[tuple[str, str], ...]] = {
    "vp9": (("VP90", ".webm"), ("mp4v", ".mp4")),
    "vp8": (("VP80", ".webm"), ("mp4v", ".mp4")),
    "mpeg4": (("mp4v", ".mp4"),),
}
"""Name → (OpenCV's name, suffix), best first. Browsers play VP9 and VP8; OpenCV's wheels write neither H.264 nor AV1."""
BEST_CODEC = "vp9"


class VideoWriteError(RuntimeError):
    """A video that cannot be written; the message names the file and says what to try."""


class OutputNames:
    """Gives every output a name of its own, so that nothing already made is overwritten.

    Two files whose names differ in capitals only are one file on some systems, and count as equal.
    """

    def __init__(self) -> None:
        self._used: set[str] = set()

    def claim(self, wanted: Path, endings: Sequence[str] = ("",)) -> Path:
        """The wanted path without suffix, or ``wanted_2``, ``wanted_3``, …: the first that is still free.

        Args:
            wanted: path without suffix.
            endings: what will be written is this path plus each of these; all of them are claimed.
        """
        numbered = (wanted.with_name(f"{wanted.name}_{number}") for number in itertools.count(2))
        for candidate in itertools.chain([wanted], numbered):
            names = {f"{candidate}{ending}".casefold() for ending in endings}
            if names.isdisjoint(self._used):
                self._used |= names
                return candidate
        raise AssertionError("an endless supply of names ended")


def write_darknet(
    path: Path, detections: Detections, image_hw: tuple[int, int], save_conf: bool = False
) -> None:
    """Write a Darknet label file: a line ``class cx cy w h [score]`` for each detection, best first.

    Coordinates are divided by the image's width and height, clipped to it, with 6 decimals. Without
    detections the file is there and empty: "looked at, nothing found".

    Args:
        path: the file; its folder is made when missing.
        detections: in pixels of the image.
        image_hw: height and width of the image.
        save_conf: append the score.
    """
    height, width = image_hw
    found = detections.to("cpu")
    boxes = xyxy_to_cxcywh(clip_boxes(found.xyxy.double(), image_hw)).reshape(-1, 4)
    boxes_norm = boxes / boxes.new_tensor([width, height, width, height])
    lines = []
    for label, box, score in zip(
        found.label.tolist(), boxes_norm.tolist(), found.score.tolist(), strict=True
    ):
        numbers = [*box, score] if save_conf else box
        lines.append(" ".join([str(label), *(f"{number:.6f}" for number in numbers)]) + "\n")
    _write_text(path, "".join(lines))


def crop_paths(
    labels: Sequence[int], names: Sequence[str], folder: Path, stem: Path, used: OutputNames
) -> list[Path]:
    """Where the crops of an image's detections go: ``folder/<class name>/<stem>_<number>.jpg``, from 0.

    Args:
        labels: class index of each detection, best score first.
        names: class names; characters that no file name may have become "_".
        folder: where the class folders go.
        stem: of the image, may have folders of its own.
        used: gives a crop another name where its own is taken.
    """
    wanted = [
        folder / _file_name(class_name(names, label)) / stem.with_name(f"{stem.name}_{number}")
        for number, label in enumerate(labels)
    ]
    return [Path(f"{used.claim(path)}.jpg") for path in wanted]


def save_crops(picture: LargePicture, detections: Detections, paths: Sequence[Path]) -> None:
    """Save what is inside each box.

    Args:
        picture: the detections are in.
        detections: in its pixels; boxes are rounded outwards and hold at least one pixel.
        paths: where each goes, see `crop_paths`.
    """
    height, width = picture.hw
    for path, box in zip(paths, detections.xyxy.tolist(), strict=True):
        x1, x2 = _pixel_range(box[0], box[2], width)
        y1, y2 = _pixel_range(box[1], box[3], height)
        save_image(path, np.ascontiguousarray(picture.read(x1, y1, x2, y2)))


class CocoJsonWriter:
    """Collects detections and writes them as a COCO results file: a JSON list of `coco_results`."""

    def __init__(self, path: Path, category_ids: Sequence[int] | None = None) -> None:
        """category_ids[label] is the id of a class in the annotation file; None: the label itself."""
        self.path = path
        self._category_ids = category_ids
        self._entries: list[dict[str, Any]] = []

    def add(self, image_id: int | str, detections: Detections) -> None:
        """Collect the detections of one image, known by its number or by the stem of its file."""
        self._entries += coco_results(image_id, detections, self._category_ids)

    def write(self) -> Path:
        """Write what has been collected, also when that is nothing, and return the file."""
        _write_text(self.path, json.dumps(self._entries))
        return self.path


class GrowingJson:
    """A JSON object with one long list, which is written entry by entry instead of being kept in memory.

    Until it is closed it is a hidden ``.….part`` file beside its place.
    """

    def __init__(self, path: Path, key: str) -> None:
        """path: replaced, in one go, when this is closed. key: of the list in the object."""
        self.path, self.count = path, 0
        """The file, and the number of its entries so far."""
        self._key = key
        self._part = path.with_name(f".{path.name}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._part.open("w", encoding="ascii", newline="\n")
        self._file.write(f"{{{json.dumps(key)}: [")

    def add(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Append entries to the list."""
        lines = [json.dumps(entry) for entry in entries]
        if lines:
            self._file.write((",\n" if self.count else "\n") + ",\n".join(lines))
            self.count += len(lines)

    def close(self, rest: Mapping[str, Any]) -> None:
        """Write the rest of the object (its list left out, which is there) and give the file its name."""
        if self._file.closed:
            return
        with self._file:
            self._file.write("\n]")
            for key, value in rest.items():
                if key != self._key:
                    self._file.write(f",\n{json.dumps(key)}: {json.dumps(value)}")
            self._file.write("\n}\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        self._part.replace(self.path)


class VideoWriter:
    """Writes frames as a video: VP9 or VP8 in WebM, which browsers play, or MPEG-4, also where OpenCV has no VP9.

    The frame rate is constant; frames that have times are shown so long as their times say, repeated or left out
    where the rate needs it. An odd height or width is padded by one pixel, which the codecs need. The file
    gets its name when it is closed; until then it is a hidden ``.….part`` file beside it. Use it in a
    ``with`` block: whatever ends the block, the frames so far become a playable file.
    """

    def __init__(self, stem: Path, fps: float, codec: str = BEST_CODEC) -> None:
        """stem: the file without suffix; the codec, one of `VIDEO_CODECS`, decides on that. fps: above 0."""
        if not fps > 0:
            raise ValueError(f"{stem}: a video needs frames per second above 0, found {fps}")
        self.path: Path | None = None
        """The file, once it has been closed; None before, and when there was no frame."""
        self.frame_count = 0
        """Of the file: repeated frames count."""
        self._stem, self._fps, self._formats = stem, fps, VIDEO_CODECS[codec]
        self._hw: tuple[int, int] = (0, 0)
        self._writer: cv2.VideoWriter | None = None
        self._part = self._final = stem
        self._last: NDArray[Any] | None = None

    def write(self, image: ByteImage, time_s: float | None = None) -> None:
        """Append a frame, uint8 [H, W, 3] RGB; all frames have the size of the first.

        time_s: since the first frame; the last frame is shown until then. None: one frame after the last.

        Raises ValueError for another size, VideoWriteError when OpenCV can write no video here.
        """
        hw = (image.shape[0], image.shape[1])
        if self._writer is None:
            self._hw = hw
            self._writer = self._open(hw)
        if hw != self._hw:
            raise ValueError(f"{self._stem}: a frame is {hw} (height, width), the first one was {self._hw}")
        place = self.frame_count if time_s is None else round(time_s * self._fps)
        while self._last is not None and self.frame_count < place:
            self._append(self._last)
        if self.frame_count <= place:  # else it comes before the last one was shown as long as a frame is
            self._last = cv2.cvtColor(_pad_to_even(image), cv2.COLOR_RGB2BGR)
            self._append(self._last)

    def close(self) -> None:
        """Finish the file and give it its name; closing twice does nothing."""
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        if not self._part.is_file() or not self._part.stat().st_size:
            raise VideoWriteError(f"{self._final}: nothing could be written; is the disk full?")
        self._part.replace(self._final)
        self.path = self._final

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, bgr: NDArray[Any]) -> None:
        if self._writer is not None:
            self._writer.write(bgr)
            self.frame_count += 1

    def _open(self, hw: tuple[int, int]) -> cv2.VideoWriter:
        self._stem.parent.mkdir(parents=True, exist_ok=True)
        size = (hw[1] + hw[1] % 2, hw[0] + hw[0] % 2)
        for codec, suffix in self._formats:
            self._final = self._stem.with_name(self._stem.name + suffix)
            self._part = self._stem.with_name(f".{self._stem.name}.part{suffix}")
            writer = cv2.VideoWriter(str(self._part), cv2.VideoWriter.fourcc(*codec), self._fps, size)
            if writer.isOpened():
                return writer
            writer.release()
            self._part.unlink(missing_ok=True)
        tried = ", ".join(codec for codec, _ in self._formats)
        raise VideoWriteError(
            f"{self._stem}: OpenCV can write no video here (tried {tried}); "
            "install opencv-python from PyPI, check the folder, or use --nosave"
        )


def _pad_to_even(image: ByteImage) -> ByteImage:
    bottom, right = image.shape[0] % 2, image.shape[1] % 2
    return np.pad(image, ((0, bottom), (0, right), (0, 0)), mode="edge") if bottom or right else image


def _pixel_range(start: float, stop: float, length: int) -> tuple[int, int]:
    """Whole pixels [first, end) that hold start…stop, at least one, inside 0…length."""
    first = min(max(int(np.floor(start)), 0), length - 1)
    return first, min(max(int(np.ceil(stop)), first + 1), length)


def _file_name(name: str) -> str:
    """A class name as a folder name: separators and what some systems forbid become "_"."""
    return re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", name).strip(" .") or "_"


def _write_text(path: Path, text: str) -> None:
    write_text(path, text)
