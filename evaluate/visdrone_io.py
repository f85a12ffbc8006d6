"""VisDrone-DET as its official evaluation reads it: annotation and result files, image sizes.

Reading only, and other rules than preparation for training (utils/datasets/visdrone.py): file order matters here, and
nothing is clipped or dropped. What counts is decided in evaluate/visdrone.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluate.arrays import BoolArray, EvaluationError
from evaluate.number_files import Column, read_json, read_rows, row_place, text_files
from utils.images import IMAGE_SUFFIXES, image_hw, is_image

IGNORED_REGION = 0
"""Category of the rows that are no objects but areas in which nothing is counted."""

_BOX = (Column("x"), Column("y"), Column("w"), Column("h"))
_ANNOTATION = (
    *_BOX, Column("score"), Column("category", whole=True, least=0, most=11), Column("truncation"), Column("occlusion"),
)  # fmt: skip
_RESULT = (*_BOX, Column("score"), Column("category", whole=True))
_RESULT_FIELDS = 8
_SHOWN_NAMES = 3


@dataclass(frozen=True)
class VisDroneImage:
    """One image as its two files say, rows in file order.

    Attributes:
        name: of the files, without ending.
        xywh: float64 [A, 4] annotations: left, top, width, height in original pixels.
        counts: bool [A] whether the annotation's score is not 0; an object of score 0 is ignored.
        category: int64 [A] 0 ignored region, 1–10 the evaluated classes, 11 others.
        detection_xywh: float64 [D, 4] as ``xywh``.
        score: float64 [D].
        detection_category: int64 [D]; any number.
        size_wh: width and height of the image in pixels; None: not known, which is enough without regions.
    """

    name: str
    xywh: NDArray[np.float64]
    counts: BoolArray
    category: NDArray[np.int64]
    detection_xywh: NDArray[np.float64]
    score: NDArray[np.float64]
    detection_category: NDArray[np.int64]
    size_wh: tuple[int, int] | None

    @property
    def is_region(self) -> BoolArray:
        """[A] which annotations are ignored regions."""
        regions: BoolArray = self.category == IGNORED_REGION
        return regions


class ImageSizes:
    """Where the width and height of an image are looked up: a JSON file, or the headers of the images.

    Args:
        file: JSON ``{name: [width, height]}``, names without ending.
        images: folder of the images.

    Raises:
        EvaluationError: the file is no such JSON, or there is no such folder.
    """

    def __init__(self, file: Path | None = None, images: Path | None = None) -> None:
        self._file, self._images = file, images
        self._sizes: dict[str, object] = {}
        self._paths: dict[str, Path] = {}
        if file is not None:
            sizes = read_json(file)
            if not isinstance(sizes, dict):
                raise EvaluationError(f"{file}: expected {{name: [width, height], …}}")
            self._sizes = sizes
        if images is not None:
            if not images.is_dir():
                raise EvaluationError(f"{images}: no such folder")
            self._paths = {path.stem: path for path in sorted(images.iterdir()) if is_image(path)}

    def size_wh(self, name: str) -> tuple[int, int]:
        """Width and height of an image in pixels.

        Raises:
            EvaluationError: it is not known; the message says what to give.
            ImageError: the image cannot be read.
        """
        if name in self._sizes:
            return self._checked(name, self._sizes[name])
        if name in self._paths:
            height, width = image_hw(self._paths[name])
            return width, height
        if self._file is not None:
            raise EvaluationError(f"{self._file}: no entry {name!r}, which has ignored regions")
        if self._images is not None:
            endings = ", ".join(sorted(IMAGE_SUFFIXES))
            raise EvaluationError(f"{self._images}: no image {name} ({endings}), which has ignored regions")
        raise EvaluationError(
            f"image {name} has ignored regions, for which its width and height are needed: give --images DIR "
            "(folder of the images; only their headers are read) or --image-sizes FILE (JSON {name: [width, height]})"
        )

    def _checked(self, name: str, size: object) -> tuple[int, int]:
        if isinstance(size, list) and len(size) == 2:
            width, height = size
            if type(width) is int and type(height) is int and min(width, height) > 0:
                return width, height
        raise EvaluationError(f"{self._file}: {name!r} is {size!r}; expected [width, height] in whole pixels")


def read_visdrone(annotations: Path, results: Path, sizes: ImageSizes) -> list[VisDroneImage]:
    """All images of a set, in order of the names of their annotation files.

    A 0-byte result file is an image without detections (the toolkit stops at one).

    Raises:
        EvaluationError: no annotation files; a result file is missing or belongs to no annotation file; a line
            is malformed; an image with ignored regions has no size.
    """
    annotation_files, result_files = text_files(annotations), text_files(results)
    if not annotation_files:
        raise EvaluationError(f"{annotations}: no annotation files (*.txt)")
    for wrong, folder, what in (
        (annotation_files.keys() - result_files.keys(), results, "no result file for"),
        (result_files.keys() - annotation_files.keys(), results, "result files without annotation file:"),
    ):
        if wrong:
            names = ", ".join(sorted(wrong)[:_SHOWN_NAMES]) + (", …" if len(wrong) > _SHOWN_NAMES else "")
            raise EvaluationError(
                f"{folder}: {what} {names} ({len(wrong)} of {len(annotation_files)} images); every image needs "
                "a result file of the same name, empty when nothing was detected"
            )
    return [_read_image(path, result_files[name], sizes) for name, path in annotation_files.items()]


def _read_image(annotation: Path, result: Path, sizes: ImageSizes) -> VisDroneImage:
    objects = read_rows(annotation, _ANNOTATION, most_fields=len(_ANNOTATION))
    detections = read_rows(result, _RESULT, most_fields=_RESULT_FIELDS)
    region = objects[:, 5] == IGNORED_REGION
    broken = np.flatnonzero(region & (objects[:, :4] % 1 != 0).any(axis=1))
    if broken.size:
        raise EvaluationError(
            f"{row_place(annotation, int(broken[0]))}: an ignored region of {objects[broken[0], :4].tolist()}; "
            "regions are in whole pixels"
        )
    return VisDroneImage(
        name=annotation.stem,
        xywh=objects[:, :4],
        counts=objects[:, 4] != 0,
        category=objects[:, 5].astype(np.int64),
        detection_xywh=detections[:, :4],
        score=detections[:, 4],
        detection_category=detections[:, 5].astype(np.int64),
        size_wh=sizes.size_wh(annotation.stem) if region.any() else None,
    )
