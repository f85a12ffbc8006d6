"""What was found as rows, JSON records and COCO entries, by hand; and COCO files as others read them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from utils.boxes import Letterbox
from utils.records import (
    COLUMNS,
    class_name,
    coco_annotations,
    coco_dataset,
    coco_image,
    coco_results,
    detection_rows,
    image_record,
)
from utils.results import Detections

NAMES = ["car", "van"]


def found(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    """Detections of rows (x1, y1, x2, y2, score, class)."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].long())


TWO = found((10, 20, 30.5, 50, 0.9, 1), (0.12345, 0, 1, 2.25, 0.1234567, 2))
"""A van, and something of a class without a name."""


def prediction(detections: Detections, patches: Any = ()) -> Any:
    letterbox = Letterbox.fit((40, 60), (64, 64))
    return SimpleNamespace(
        detections=detections, patches_orig=np.array(patches, np.float32), letterbox=letterbox
    )


def test_rows_of_a_table() -> None:
    rows = detection_rows("s/a.jpg", TWO, NAMES, frame=12)
    assert all(tuple(row) == COLUMNS for row in rows)
    assert [list(row.values()) for row in rows] == [
        ["s/a.jpg", 12, 1, "van", 0.9, 10.0, 20.0, 30.5, 50.0],
        ["s/a.jpg", 12, 2, "2", 0.123457, 0.123, 0.0, 1.0, 2.25],
    ]
    assert detection_rows("a.jpg", found((0, 0, 1, 1, 0.5, 0)), NAMES)[0]["frame"] is None
    assert detection_rows("a.jpg", Detections.empty(), NAMES) == []


def test_record_of_an_image() -> None:
    record = image_record("a.jpg", prediction(TWO, [[0, 0, 24.00049, 24]]), NAMES)
    assert record == {
        "image": "a.jpg",
        "frame": None,
        "time_s": None,
        "width": 60,
        "height": 40,
        "detections": [
            {"class": 1, "name": "van", "score": 0.9, "xyxy": [10.0, 20.0, 30.5, 50.0]},
            {"class": 2, "name": "2", "score": 0.123457, "xyxy": [0.123, 0.0, 1.0, 2.25]},
        ],
        "patches": [[0.0, 0.0, 24.0, 24.0]],
    }
    assert json.loads(json.dumps(record)) == record  # plain numbers, nothing of numpy's


def test_record_of_an_image_in_which_nothing_was_found() -> None:
    record = image_record("v.mp4", prediction(Detections.empty()), NAMES, frame=7, time_s=7 / 29.97)
    assert (record["frame"], record["time_s"]) == (7, 0.234)
    assert record["detections"] == record["patches"] == []


def test_coco_results() -> None:
    assert coco_results(7, TWO.select(torch.tensor([0]))) == [
        {"image_id": 7, "category_id": 1, "bbox": [10.0, 20.0, 20.5, 30.0], "score": 0.9}
    ]
    assert [entry["category_id"] for entry in coco_results("a", TWO, [11, 12, 13])] == [12, 13]
    assert coco_results("a", Detections.empty()) == []


def test_coco_dataset() -> None:
    image = coco_image(3, "s/a.jpg", (40, 60), frame=None, video="v.mp4")
    assert image == {"id": 3, "file_name": "s/a.jpg", "width": 60, "height": 40, "video": "v.mp4"}
    entries = coco_annotations(3, TWO, first_id=5)
    assert entries[0] == {
        "id": 5, "image_id": 3, "category_id": 1, "bbox": [10.0, 20.0, 20.5, 30.0], "score": 0.9,
        "area": 615.0, "iscrowd": 0,
    }  # fmt: skip
    assert entries[1]["id"] == 6
    dataset = coco_dataset([image], entries, NAMES)
    assert dataset["categories"] == [{"id": 0, "name": "car"}, {"id": 1, "name": "van"}]
    assert dataset["images"] == [image] and dataset["annotations"] == entries
    assert json.loads(json.dumps(dataset)) == dataset


def test_a_coco_evaluation_takes_the_file_alone(tmp_path: Path) -> None:
    """As labels and as results: detections scored against themselves are perfect, class number 0 included."""
    coco = pytest.importorskip("faster_coco_eval")
    evaluation = coco.COCOeval_faster
    images = [coco_image(number, f"{number}.jpg", (40, 60)) for number in (1, 2)]
    first = coco_annotations(1, found((10, 20, 30.5, 50, 0.9, 1), (1, 2, 9, 9, 0.3, 0)))
    second = coco_annotations(2, found((5, 5, 25, 35, 0.8, 0)), first_id=3)
    path = tmp_path / "detections.json"
    path.write_text(json.dumps(coco_dataset(images, [*first, *second], NAMES)))
    labels = coco.COCO(str(path))
    results = labels.loadRes(json.loads(path.read_text())["annotations"])
    evaluator = evaluation(labels, results, "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    assert evaluator.stats[0] == pytest.approx(1.0)


def test_class_name_outside_the_list() -> None:
    assert [class_name(["car"], label) for label in (0, 1, -1)] == ["car", "1", "-1"]
