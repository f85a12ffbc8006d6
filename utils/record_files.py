"""The tables and lists of a detection run: JSON lines, CSV, COCO JSON; they grow with the run.

What an entry looks like is decided in utils/records.py and utils/geojson.py; pictures, videos and label files are in
utils/detection_output.py. Entries are written at once, in the order of
the frames, by the thread that asks for it, and nothing but the names of images is kept in memory.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from utils.frames import Frame
from utils.geojson import GeoJsonFile
from utils.records import COLUMNS, coco_annotations, coco_dataset, coco_image, detection_rows, image_record
from utils.results import PredictionLike
from utils.writers import GrowingJson

STDOUT = "-"
"""As the name of the file for JSON lines: standard output."""


class ReaderGoneError(Exception):
    """Whoever read the JSON lines has stopped reading (``| head``): nobody needs the rest."""


@dataclass(frozen=True)
class RecordOptions:
    """Which of the files in the run's folder are wanted."""

    csv: bool = False
    coco: bool = False
    geojson: bool = False


class RecordFile(Protocol):
    """A file with an entry for each detection, or for each frame."""

    def add(self, frame: Frame, relative: Path, prediction: PredictionLike) -> None:
        """Write what was found in a frame; relative: its file's name below the root of the source."""

    def close(self) -> None:
        """Finish the file; what was added is in it, whole, whatever ended the run."""


class JsonLines:
    """One JSON object a line for each frame, see `image_record`; a line is out before the next frame begins."""

    def __init__(self, file: BinaryIO, names: Sequence[str]) -> None:
        self._file, self._names = file, names

    def add(self, frame: Frame, relative: Path, prediction: PredictionLike) -> None:
        """Write the line of a frame. Raises ReaderGoneError when it goes to a pipe that nobody reads any more."""
        record = image_record(str(frame.path), prediction, self._names, frame.frame_number, frame.time_s)
        try:
            self._file.write(json.dumps(record).encode("ascii") + b"\n")
            self._file.flush()
        except BrokenPipeError as error:
            raise ReaderGoneError from error

    def close(self) -> None:
        """Every line is out already; whoever opened the file closes it."""


class CsvTable:
    """A table with a row for each detection, see `COLUMNS`; an image without detections has none."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        """path: replaced if it exists."""
        self._names = names
        path.parent.mkdir(parents=True, exist_ok=True)
        # A file name need not be text: what UTF-8 cannot say stays as the bytes it was.
        self._file = path.open("w", encoding="utf-8", errors="surrogateescape", newline="")
        self._write([dict(zip(COLUMNS, COLUMNS, strict=True))])

    def add(self, frame: Frame, relative: Path, prediction: PredictionLike) -> None:
        """Write the rows of a frame."""
        self._write(detection_rows(str(frame.path), prediction.detections, self._names, frame.frame_number))

    def close(self) -> None:
        """Close the file; every row is in it already."""
        self._file.close()

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        text = io.StringIO()  # so that whole lines go out, however the run ends
        csv.DictWriter(text, COLUMNS, lineterminator="\n").writerows(rows)
        self._file.write(text.getvalue())
        self._file.flush()


class CocoFile:
    """A COCO dataset of all frames and their detections, see `coco_dataset`.

    Images are called as they lie below the root of the source; frame 12 of ``sub/v.mp4`` is
    ``sub/v_000012.jpg``, with ``video`` and ``frame`` saying where it is from.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self._names = names
        self._images: list[dict[str, Any]] = []
        self._file = GrowingJson(path, "annotations")

    def add(self, frame: Frame, relative: Path, prediction: PredictionLike) -> None:
        """Write the annotations of a frame."""
        image_id, name, video = len(self._images) + 1, relative, None
        if frame.frame_number is not None:
            name, video = (
                relative.with_name(f"{relative.stem}_{frame.frame_number:06d}.jpg"),
                relative.as_posix(),
            )
        image_hw = prediction.letterbox.original_hw
        self._images.append(
            coco_image(image_id, name.as_posix(), image_hw, video=video, frame=frame.frame_number)
        )
        self._file.add(coco_annotations(image_id, prediction.detections, self._file.count + 1))

    def close(self) -> None:
        """Give the file its name."""
        self._file.close(coco_dataset(self._images, [], self._names))


def open_records(
    folder: Path, options: RecordOptions, names: Sequence[str], json_lines: BinaryIO | None = None
) -> list[RecordFile]:
    """The files that are wanted, open: ``detections.csv``, ``.json`` and ``.geojson`` in the folder of the run.

    Args:
        folder: of the run.
        options: which files.
        names: class names.
        json_lines: where JSON lines go, see `json_lines_file`; None: nowhere.

    Raises GeoreferenceError when rasterio is wanted and missing.
    """
    records: list[RecordFile] = []
    if json_lines is not None:
        records.append(JsonLines(json_lines, names))
    if options.csv:
        records.append(CsvTable(folder / "detections.csv", names))
    if options.coco:
        records.append(CocoFile(folder / "detections.json", names))
    if options.geojson:
        records.append(GeoJsonFile(folder / "detections.geojson", names))
    return records


@contextmanager
def json_lines_file(target: str | None) -> Iterator[BinaryIO | None]:
    """The file for JSON lines, open in a ``with`` block.

    Args:
        target: a path, replaced if it exists; `STDOUT`; or None, which gives None. While lines go to standard
            output nothing else does: messages, also those of libraries, go to standard error.
    """
    if target is None:
        yield None
    elif target != STDOUT:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        with Path(target).open("wb") as file:
            yield file
    else:
        sys.stdout.flush()
        kept = os.dup(1)
        os.dup2(2, 1)
        lines = os.fdopen(os.dup(kept), "wb")
        try:
            yield lines
        finally:
            with suppress(BrokenPipeError):
                lines.close()
            sys.stdout.flush()
            os.dup2(kept, 1)
            os.close(kept)
