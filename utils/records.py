"""What was found in one image as plain data: rows of a table, a JSON record, entries of a COCO file.

Pure functions, the one place that says how these look; `detect.py`, `test.py` and the Python interface all use
them. Boxes are in pixels of the original image, with 3 decimals; scores have 6. A class is known by its number,
as in Darknet's label files, in every format: COCO's ``category_id`` is that number, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from utils.results import Detections, PredictionLike

COLUMNS = ("image", "frame", "class", "name", "score", "x1", "y1", "x2", "y2")
"""Of a table of detections, see `detection_rows`."""

Record = dict[str, Any]


def class_name(names: Sequence[str], label: int) -> str:
    """Name of a class, or its number where the list is too short."""
    return names[label] if 0 <= label < len(names) else str(label)


def detection_rows(
    image: str, found: Detections, names: Sequence[str], frame: int | None = None
) -> list[Record]:
    """A table of what was found, one row per detection, best first; the keys are `COLUMNS`.

    Args:
        image: how the image is called, the same in every row.
        found: in its pixels.
        names: class names.
        frame: number in its video, from 0; None for a picture.
    """
    return [
        {
            "image": image, "frame": frame, "class": label, "name": class_name(names, label), "score": score,
            "x1": x1, "y1": y1, "x2": x2, "y2": y2,
        }
        for (x1, y1, x2, y2), score, label in _values(found)
    ]  # fmt: skip


def image_record(
    image: str,
    prediction: PredictionLike,
    names: Sequence[str],
    frame: int | None = None,
    time_s: float | None = None,
) -> Record:
    """Everything about one image as an object for JSON, also when nothing was found.

    Args:
        image: how it is called.
        prediction: for it.
        names: class names.
        frame: number in its video, from 0; None for a picture.
        time_s: seconds since the beginning of the video, where known.

    Returns:
        ``{"image", "frame", "time_s", "width", "height", "detections", "patches"}``: detections
        ``{"class", "name", "score", "xyxy": [x1, y1, x2, y2]}``, best first; patches ``[x1, y1, x2, y2]``.
    """
    height, width = prediction.letterbox.original_hw
    patches = np.asarray(prediction.patches_orig, dtype=np.float64).reshape(-1, 4)
    return {
        "image": image,
        "frame": frame,
        "time_s": None if time_s is None else round(time_s, 3),
        "width": width,
        "height": height,
        "detections": [
            {"class": label, "name": class_name(names, label), "score": score, "xyxy": box}
            for box, score, label in _values(prediction.detections)
        ],
        "patches": patches.round(3).tolist(),
    }


def coco_results(
    image_id: int | str, found: Detections, category_ids: Sequence[int] | None = None
) -> list[Record]:
    """COCO's form of results, one entry a detection: ``{"image_id", "category_id", "bbox", "score"}``.

    Args:
        image_id: of the image in the annotation file.
        found: in pixels of the image; ``bbox`` is ``[x, y, width, height]``.
        category_ids: id of each class in the annotation file; None: the class number itself.
    """
    return [
        {
            "image_id": image_id,
            "category_id": label if category_ids is None else category_ids[label],
            "bbox": _corner_and_size(box),
            "score": score,
        }
        for box, score, label in _values(found)
    ]


def coco_annotations(image_id: int | str, found: Detections, first_id: int = 1) -> list[Record]:
    """COCO's annotations of one image: its results, see `coco_results`, with ``id``, ``area`` and ``iscrowd``.

    first_id: of the first detection, the others follow; ids are those of the whole file, from 1 (evaluation
    programs take an annotation 0 for none).
    """
    entries = []
    for number, result in enumerate(coco_results(image_id, found), start=first_id):
        width, height = result["bbox"][2:]
        entries.append({"id": number, **result, "area": round(width * height, 3), "iscrowd": 0})
    return entries


def coco_image(image_id: int | str, file_name: str, image_hw: tuple[int, int], **more: object) -> Record:
    """COCO's entry of one image; more: other fields of it, left out where None."""
    known = {name: value for name, value in more.items() if value is not None}
    return {
        "id": image_id, "file_name": file_name, "width": image_hw[1], "height": image_hw[0], **known,
    }  # fmt: skip


def coco_dataset(
    images: Sequence[Mapping[str, Any]], annotations: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> Record:
    """COCO's form of a dataset, usable without any other file: images, annotations with scores, all classes."""
    return {
        "info": {"description": "detections; category ids are class numbers, annotations have a score"},
        "images": list(images),
        "annotations": list(annotations),
        "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
    }


def _values(found: Detections) -> list[tuple[list[float], float, int]]:
    """(box, score, class) of each detection, rounded."""
    found = found.to("cpu")
    boxes = found.xyxy.double().numpy().reshape(-1, 4).round(3).tolist()
    scores = found.score.double().numpy().round(6).tolist()
    return list(zip(boxes, scores, found.label.tolist(), strict=True))


def _corner_and_size(xyxy: Sequence[float]) -> list[float]:
    x1, y1, x2, y2 = xyxy
    return [x1, y1, round(x2 - x1, 3), round(y2 - y1, 3)]
