"""TinyPerson as its official evaluation reads it: COCO-style ground truth and results, as sorted arrays.

Reading only; what counts is decided in evaluate/tinyperson_ap.py and evaluate/tinyperson_missrate.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluate.arrays import BoolArray, EvaluationError, IntArray
from evaluate.candidates import GroupedBoxes, best_first, place_in_group
from evaluate.number_files import read_json

MAX_DETECTIONS = 1000
"""Per image and category, the most that any of the two metrics looks at."""
_HUGE = 1e300


@dataclass(frozen=True)
class TinyPersonObjects:
    """Annotations sorted by category, then image id, then file order; N rows.

    Attributes:
        boxes: x, y, w, h in original pixels; a group is one category in one image.
        category: int64 [N] 0, 1, … in the order of the category ids.
        area: float64 [N] the field of the file, square pixels; not w·h.
        has_id_zero: bool [N] the one annotation of id 0, which the official programs confuse with "none".
        ignore, crowd, uncertain: bool [N] the flags of the file; absent: False.
        visibility: float64 [N] the field vis_ratio, absent: 1.
    """

    boxes: GroupedBoxes
    category: IntArray
    area: NDArray[np.float64]
    has_id_zero: BoolArray
    ignore: BoolArray
    crowd: BoolArray
    uncertain: BoolArray
    visibility: NDArray[np.float64]


@dataclass(frozen=True)
class TinyPersonDetections:
    """The first `MAX_DETECTIONS` of each category and image, sorted by these (as the objects), in each best
    score first; N rows.

    Attributes:
        boxes: x, y, w, h in original pixels; a group is one category in one image.
        category: int64 [N].
        score: float64 [N].
        place: int64 [N] how many of the group are before it.
        area: float64 [N] w·h.
    """

    boxes: GroupedBoxes
    category: IntArray
    score: NDArray[np.float64]
    place: IntArray
    area: NDArray[np.float64]


@dataclass(frozen=True)
class TinyPersonData:
    """What is evaluated: all images and categories of the ground-truth file, annotations, detections.

    Attributes:
        images: number of images, with or without annotations.
        categories: names, in the order of their ids.
        results: number of rows of the results file.
    """

    images: int
    categories: list[str]
    objects: TinyPersonObjects
    detections: TinyPersonDetections
    results: int

    def ranking(self, category: int, rows: BoolArray) -> IntArray:
        """Indices of the chosen detections of a category, best score of all images first.

        Args:
            category: 0, 1, …
            rows: [D] the chosen ones.
        """
        chosen = np.flatnonzero(rows & (self.detections.category == category))
        return chosen[np.argsort(-self.detections.score[chosen], kind="stable")]


def read_tinyperson(ground_truth: Path, results: Path) -> TinyPersonData:
    """Read a ground-truth file and a results file.

    An empty list of results is a set without detections (the official programs stop there).

    Raises:
        EvaluationError: not such files; a value that is missing or no finite number; an image or category id
            that the ground truth does not name; an id that occurs twice. The message names the entry.
        OSError: a file cannot be read.
    """
    content = read_json(ground_truth)
    if not isinstance(content, dict):
        raise EvaluationError(f"{ground_truth}: expected an object with images, categories and annotations")
    images = _ids(content, "images", ground_truth)
    categories = _ids(content, "categories", ground_truth)
    names = {entry["id"]: str(entry.get("name", entry["id"])) for entry in content["categories"]}
    detections = read_json(results)
    if not isinstance(detections, list):
        raise EvaluationError(f"{results}: expected a list of {{image_id, category_id, bbox, score}}")
    return TinyPersonData(
        images=len(images),
        categories=[names[number] for number in categories],
        objects=_objects(content, _Entries(ground_truth, "annotations", images, categories)),
        detections=_detections(detections, _Entries(results, "results", images, categories)),
        results=len(detections),
    )


def _ids(content: dict[str, Any], key: str, path: Path) -> dict[int, int]:
    """Id → number in the order of the ids."""
    entries = content.get(key)
    if not isinstance(entries, list) or not entries:
        raise EvaluationError(f"{path}: expected a list {key!r} that is not empty")
    ids: list[Any] = [entry.get("id") if isinstance(entry, dict) else None for entry in entries]
    for index, number in enumerate(ids):
        if type(number) is not int:
            raise EvaluationError(f"{path}: {key}[{index}]: the id is {number!r}; expected a whole number")
    if len(set(ids)) != len(ids):
        raise EvaluationError(f"{path}: {key}: an id occurs twice")
    return {number: place for place, number in enumerate(sorted(ids))}


@dataclass(frozen=True)
class _Entries:
    """Checks of the entries of one list of a file; the messages name file, list and index."""

    path: Path
    key: str
    images: dict[int, int]
    categories: dict[int, int]

    def group(self, index: int, entry: object) -> int:
        """Number of the entry's category and image together, in the order of evaluation."""
        if not isinstance(entry, dict):
            raise self.fault(index, f"{entry!r}; expected an object")
        places = []
        for name, known in (("category_id", self.categories), ("image_id", self.images)):
            number = entry.get(name)
            if type(number) is not int or number not in known:
                raise self.fault(index, f"{name} {number!r} is not in the ground truth")
            places.append(known[number])
        return places[0] * len(self.images) + places[1]

    def box(self, index: int, entry: dict[str, Any]) -> list[float]:
        """x, y, w, h in pixels."""
        box = entry.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            raise self.fault(index, f"bbox {box!r}; expected [x, y, width, height], finite numbers")
        return box

    def number(self, index: int, entry: dict[str, Any], name: str, default: float | None = None) -> float:
        """A field that is a finite number."""
        value: Any = entry.get(name, default)
        if not _is_number(value):
            raise self.fault(index, f"{name} {value!r}; expected a finite number")
        return float(value)

    def fault(self, index: int, what: str) -> EvaluationError:
        """The error that names the entry."""
        return EvaluationError(f"{self.path}: {self.key}[{index}]: {what}")


def _is_number(value: object) -> bool:
    # Limits instead of isfinite, which stops at whole numbers too large for a float (JSON has them).
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -_HUGE < value < _HUGE


def _objects(content: dict[str, Any], entries: _Entries) -> TinyPersonObjects:
    annotations = content.get("annotations")
    if not isinstance(annotations, list):
        raise EvaluationError(f"{entries.path}: expected a list 'annotations'")
    group = np.array([entries.group(i, entry) for i, entry in enumerate(annotations)], dtype=np.int64)
    xywh = [entries.box(i, entry) for i, entry in enumerate(annotations)]
    area = [entries.number(i, entry, "area") for i, entry in enumerate(annotations)]
    visibility = [entries.number(i, entry, "vis_ratio", 1.0) for i, entry in enumerate(annotations)]
    seen: set[int] = set()
    for index, entry in enumerate(annotations):
        number = entry.get("id")
        if type(number) is not int or number in seen:
            raise entries.fault(index, f"id {number!r}; expected a whole number that occurs once")
        seen.add(number)
    order = np.argsort(group, kind="stable")

    def flag(name: str) -> BoolArray:
        return np.array([bool(entry.get(name, False)) for entry in annotations], dtype=np.bool_)[order]

    return TinyPersonObjects(
        boxes=GroupedBoxes(np.array(xywh, dtype=np.float64).reshape(-1, 4)[order], group[order]),
        category=group[order] // len(entries.images),
        area=np.array(area, dtype=np.float64)[order],
        has_id_zero=np.array([entry["id"] == 0 for entry in annotations], dtype=np.bool_)[order],
        ignore=flag("ignore"),
        crowd=flag("iscrowd"),
        uncertain=flag("uncertain"),
        visibility=np.array(visibility, dtype=np.float64)[order],
    )


def _detections(results: list[Any], entries: _Entries) -> TinyPersonDetections:
    group = np.array([entries.group(i, entry) for i, entry in enumerate(results)], dtype=np.int64)
    xywh = np.array([entries.box(i, entry) for i, entry in enumerate(results)], dtype=np.float64)
    score = np.array([entries.number(i, entry, "score") for i, entry in enumerate(results)], dtype=np.float64)
    xywh = xywh.reshape(-1, 4)
    order = best_first(group, score)
    order = order[place_in_group(group[order]) < MAX_DETECTIONS]
    return TinyPersonDetections(
        boxes=GroupedBoxes(xywh[order], group[order]),
        category=group[order] // len(entries.images),
        score=score[order],
        place=place_in_group(group[order]),
        area=xywh[order, 2:].prod(axis=1),
    )
