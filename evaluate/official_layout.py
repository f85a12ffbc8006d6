"""From the label files of ``test.py --save-txt --save-conf`` to the files that the official toolkits read.

Boxes go back to original pixels, best first; every image gets its rows, also when there are none; names of greyed
copies (``x_masked.jpg``) become those of the originals. What the toolkits compute is in visdrone.py, uavdt.py and
tinyperson.py beside this file.
"""

from __future__ import annotations

import glob
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluate.arrays import EvaluationError, FloatArray, IntArray
from utils.files import write_text
from utils.images import MASKED_SUFFIX, image_hw

_COLUMNS = 6
_SHOWN = 3
_DECIMALS = 3


@dataclass(frozen=True, eq=False)
class ImageResult:
    """The detections of one image, best first.

    Attributes:
        image: the original, also when its greyed copy was looked at.
        xywh: float64 [N, 4] left, top, width, height in original pixels.
        score: float64 [N] in 0–1.
        label: int64 [N] class index.
    """

    image: Path
    xywh: FloatArray
    score: FloatArray
    label: IntArray


def read_results(folder: Path, images: Sequence[Path]) -> list[ImageResult]:
    """Detections of a split from label files, in the order of the images.

    Args:
        folder: of the label files: ``<stem>.txt``, or ``<folder of the image>/<stem>.txt``.
        images: of the split, as its list names them; read for their sizes only.

    Raises:
        EvaluationError: an image has no file, a file belongs to no image, or a line is not
            ``class cx cy w h score`` in 0–1.
        ImageError: an image is missing or damaged.
    """
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.txt"))}
    if not files:
        raise EvaluationError(
            f"{folder}: no label files in it; make them with test.py --task test --save-txt --save-conf"
        )
    found = [
        (image, next((files[name] for name in _file_names(image) if name in files), None)) for image in images
    ]
    missing = [str(image) for image, path in found if path is None]
    if missing:
        raise EvaluationError(
            f"{folder}: no results for {len(missing)} of {len(images)} images, among them "
            f"{', '.join(missing[:_SHOWN])}; are they of another split?"
        )
    unused = sorted(set(files.values()) - {path for _, path in found if path is not None})
    if unused:
        names = ", ".join(path.name for path in unused[:_SHOWN])
        raise EvaluationError(
            f"{folder}: {len(unused)} files belong to no image of the split, among them {names}; are they of another one?"
        )
    return [_read_image(image, path) for image, path in found if path is not None]


def original_image(image: Path) -> Path:
    """The image that a list entry stands for: without ``_masked``, where such an original is there."""
    stem = image.stem.removesuffix(MASKED_SUFFIX)
    if stem == image.stem:
        return image
    originals = [path for path in sorted(image.parent.glob(f"{glob.escape(stem)}.*")) if path.stem == stem]
    return originals[0] if originals else image


def _file_names(image: Path) -> list[str]:
    """Names its label file may have, best first."""
    stems = dict.fromkeys((image.stem, image.stem.removesuffix(MASKED_SUFFIX)))
    return [name for stem in stems for name in (f"{image.parent.name}/{stem}.txt", f"{stem}.txt")]


def _read_image(image: Path, path: Path) -> ImageResult:
    rows = _read_rows(path)
    rows = rows[np.argsort(-rows[:, 5], kind="stable")]
    height, width = image_hw(image)
    scale = np.array([width, height, width, height], dtype=np.float64)
    xywh = np.hstack([rows[:, 1:3] - rows[:, 3:5] / 2, rows[:, 3:5]]) * scale
    return ImageResult(original_image(image), xywh, rows[:, 5], rows[:, 0].astype(np.int64))


def _read_rows(path: Path) -> NDArray[np.float64]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        columns = line.split()
        if not columns:
            continue
        if len(columns) == _COLUMNS - 1:
            raise EvaluationError(f"{path}:{number}: no score; run test.py with --save-conf too")
        try:
            values = [float(column) for column in columns]
        except ValueError as error:
            raise EvaluationError(f"{path}:{number}: not numbers: {line[:80]!r}") from error
        if len(values) != _COLUMNS or not all(map(math.isfinite, values)) or not min(values[1:]) >= 0:
            raise EvaluationError(
                f"{path}:{number}: expected class cx cy w h score in 0–1, found {line[:80]!r}"
            )
        rows.append(values)
    return np.array(rows, dtype=np.float64).reshape(-1, _COLUMNS)


# ------------------------------------------------------------------------------------------- VisDrone


def write_visdrone(results: Sequence[ImageResult], folder: Path, category_ids: Sequence[int]) -> Path:
    """One file per image, a line ``x,y,w,h,score,category,-1,-1`` per detection, best first.

    Args:
        results: of a split.
        folder: for the files, e.g. ``DET_results-test-dev``.
        category_ids: by class index: 1 pedestrian … 10 motor.
    """
    for result in results:
        lines = [
            f"{box},{score:.6f},{category_ids[label]},-1,-1\n"
            for box, score, label in zip(_box_texts(result), result.score, result.label, strict=True)
        ]
        _write(folder / f"{result.image.stem}.txt", "".join(lines))
    return folder


# ---------------------------------------------------------------------------------------------- UAVDT


def write_uavdt(results: Sequence[ImageResult], folder: Path) -> Path:
    """One file per sequence, a line ``frame,-1,x,y,w,h,score,1,class`` per detection, by frame and best first.

    Args:
        results: frames ``<sequence>/img000001.jpg``.
        folder: for the files, e.g. ``RES_DET/<name of the detector>``.

    Raises EvaluationError for an image whose name is not a frame's.
    """
    sequences: defaultdict[str, list[tuple[int, ImageResult]]] = defaultdict(list)
    for result in results:
        digits = result.image.stem.removeprefix("img")
        if digits == result.image.stem or not digits.isdecimal():
            raise EvaluationError(f"{result.image}: not a frame of UAVDT (<sequence>/img000001.jpg)")
        sequences[result.image.parent.name].append((int(digits), result))
    for name, frames in sequences.items():
        lines = [
            f"{frame},-1,{box},{score:.6f},1,{label + 1}\n"
            for frame, result in sorted(frames, key=lambda item: item[0])
            for box, score, label in zip(_box_texts(result), result.score, result.label, strict=True)
        ]
        _write(folder / f"{name}.txt", "".join(lines))
    return folder


# ----------------------------------------------------------------------------------------- TinyPerson


def write_tinyperson(results: Sequence[ImageResult], path: Path, annotations: Path) -> Path:
    """A COCO results file with the image ids of an annotation file; best first in each image.

    Args:
        results: of its images. path: of the JSON file. annotations: the official JSON.

    Raises EvaluationError when an image is not in the annotation file.
    """
    content = json.loads(annotations.read_text(encoding="utf-8"))
    ids = tinyperson_ids([result.image for result in results], annotations)
    category = content["categories"][0]["id"]
    entries = []
    for result in results:
        for box, score in zip(result.xywh.tolist(), result.score.tolist(), strict=True):
            entries.append(
                {
                    "image_id": ids[result.image],
                    "category_id": category,
                    "bbox": [round(value, _DECIMALS) for value in box],
                    "score": round(score, 6),
                }
            )
    _write(path, json.dumps(entries))
    return path


def tinyperson_ids(images: Sequence[Path], annotations: Path) -> dict[Path, int]:
    """The ids that an annotation file gives to images.

    Two images of one name in different folders are told apart by these (``labeled_images/a.jpg``); a file that names
    images without folder is understood where the name alone is enough.

    Raises EvaluationError for an image that the file does not have, or has several of by that name.
    """
    by_name: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for entry in json.loads(annotations.read_text(encoding="utf-8"))["images"]:
        listed = Path(entry["file_name"])
        by_name[listed.name][listed.parent.name] = entry["id"]
    ids = {}
    for image in images:
        folders = by_name.get(image.name, {})
        if image.parent.name in folders:
            ids[image] = folders[image.parent.name]
        elif len(folders) == 1:
            ids[image] = next(iter(folders.values()))
        elif folders:
            raise EvaluationError(
                f"{image}: {annotations} has {len(folders)} images of that name, in other folders"
            )
        else:
            raise EvaluationError(f"{image}: not an image of {annotations}")
    return ids


def _box_texts(result: ImageResult) -> list[str]:
    return [",".join(f"{value:.{_DECIMALS}f}" for value in box) for box in result.xywh.tolist()]


def _write(path: Path, text: str) -> None:
    write_text(path, text)
