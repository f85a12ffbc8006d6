"""The tables and lists of a detection run: their exact content, and that they are whole however a run ends."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from utils.boxes import Letterbox
from utils.decoding import VideoInfo
from utils.detection_output import DetectionOutput, OutputOptions
from utils.frames import Frame
from utils.record_files import (
    CocoFile,
    CsvTable,
    JsonLines,
    ReaderGoneError,
    RecordOptions,
    json_lines_file,
    open_records,
)
from utils.results import Detections
from utils.writers import GrowingJson

NAMES = ["car", "van, white"]
ALL = RecordOptions(csv=True, coco=True)


class Found:
    """One car and one van in a picture of 60×40, or nothing."""

    heatmap = None
    patches_orig = np.array([[0, 0, 24, 24]], np.float32)
    letterbox = Letterbox.fit((40, 60), (64, 64))
    times_ms: dict[str, float] = {}  # noqa: RUF012 - never changed

    def __init__(self, finds: bool = True) -> None:
        boxes = torch.tensor([[2.0, 3.0, 12.0, 13.5], [20.0, 8.0, 30.0, 28.0]])
        found = Detections(boxes, torch.tensor([0.9, 0.5]), torch.tensor([1, 0]))
        self.detections = found if finds else Detections.empty()


def frame(name: str = "in/a.jpg", number: int | None = None, index: int = 0) -> Frame:
    video = None if number is None else VideoInfo(29.97, 100, (40, 60))
    time_s = None if number is None else number / 29.97
    return Frame(np.zeros((40, 60, 3), np.uint8), Path(name), index, number, 2, video, time_s=time_s)


def write_all(folder: Path, frames: list[tuple[Frame, Any]], json_lines: Any = None) -> None:
    records = open_records(folder, ALL, NAMES, json_lines)
    options = OutputOptions(save_pictures=False)
    with DetectionOutput(folder, NAMES, options, lambda p: p.relative_to("in"), 0, records) as output:
        for one, prediction in frames:
            output.write(one, prediction)


def test_csv(tmp_path: Path) -> None:
    write_all(
        tmp_path,
        [(frame(), Found()), (frame("in/b.jpg"), Found(finds=False)), (frame("in/s/v.mp4", 12), Found())],
    )
    assert (tmp_path / "detections.csv").read_text() == (
        "image,frame,class,name,score,x1,y1,x2,y2\n"
        'in/a.jpg,,1,"van, white",0.9,2.0,3.0,12.0,13.5\n'
        "in/a.jpg,,0,car,0.5,20.0,8.0,30.0,28.0\n"
        'in/s/v.mp4,12,1,"van, white",0.9,2.0,3.0,12.0,13.5\n'
        "in/s/v.mp4,12,0,car,0.5,20.0,8.0,30.0,28.0\n"
    )


def test_coco(tmp_path: Path) -> None:
    write_all(
        tmp_path,
        [(frame(), Found()), (frame("in/b.jpg"), Found(finds=False)), (frame("in/s/v.mp4", 12), Found())],
    )
    data = json.loads((tmp_path / "detections.json").read_text())
    assert data["images"] == [
        {"id": 1, "file_name": "a.jpg", "width": 60, "height": 40},
        {"id": 2, "file_name": "b.jpg", "width": 60, "height": 40},
        {"id": 3, "file_name": "s/v_000012.jpg", "width": 60, "height": 40, "video": "s/v.mp4", "frame": 12},
    ]
    assert [(a["id"], a["image_id"], a["category_id"]) for a in data["annotations"]] == [
        (1, 1, 1), (2, 1, 0), (3, 3, 1), (4, 3, 0),
    ]  # fmt: skip
    assert data["annotations"][0]["bbox"] == [2.0, 3.0, 10.0, 10.5]
    assert [c["name"] for c in data["categories"]] == NAMES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["detections.csv", "detections.json"]


def test_json_lines(tmp_path: Path) -> None:
    with json_lines_file(str(tmp_path / "new" / "found.jsonl")) as file:
        write_all(tmp_path, [(frame(), Found()), (frame("in/v.mp4", 30), Found(finds=False))], file)
        text = (tmp_path / "new" / "found.jsonl").read_text()  # out already, before the file is closed
    first, second = (json.loads(line) for line in text.splitlines())
    assert (first["image"], first["frame"], first["time_s"], len(first["detections"])) == (
        "in/a.jpg",
        None,
        None,
        2,
    )
    assert (second["image"], second["frame"], second["time_s"]) == ("in/v.mp4", 30, 1.001)
    assert second["detections"] == [] and second["patches"] == [[0, 0, 24, 24]]


def test_a_run_without_a_frame_leaves_valid_files(tmp_path: Path) -> None:
    write_all(tmp_path, [])
    data = json.loads((tmp_path / "detections.json").read_text())
    assert data["images"] == data["annotations"] == [] and len(data["categories"]) == 2
    assert (tmp_path / "detections.csv").read_text() == "image,frame,class,name,score,x1,y1,x2,y2\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_run_that_ends_early_leaves_valid_files(tmp_path: Path, error: type[BaseException]) -> None:
    def interrupted() -> None:
        with DetectionOutput(
            tmp_path,
            NAMES,
            OutputOptions(save_pictures=False),
            lambda p: p,
            0,
            open_records(tmp_path, ALL, NAMES),
        ) as output:
            output.write(frame(), Found())
            assert not (tmp_path / "detections.json").exists()
            assert len((tmp_path / "detections.csv").read_text().splitlines()) == 3
            raise error

    with pytest.raises(error):
        interrupted()
    assert len(json.loads((tmp_path / "detections.json").read_text())["annotations"]) == 2
    assert len((tmp_path / "detections.csv").read_text().splitlines()) == 3


def test_an_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "detections.json"
    path.write_text("old")
    file = GrowingJson(path, "annotations")
    file.add([{"id": 1}])
    assert path.read_text() == "old"
    file.close({"annotations": [], "images": [{"id": 7}]})
    file.close({})
    assert json.loads(path.read_text()) == {"annotations": [{"id": 1}], "images": [{"id": 7}]}
    assert [p.name for p in tmp_path.iterdir()] == ["detections.json"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a file name is text")
def test_a_file_name_that_is_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"in/\xff\xe9.jpg")
    with json_lines_file(str(tmp_path / "f.jsonl")) as file:
        write_all(tmp_path, [(frame(name), Found())], file)
    assert b"in/\xff\xe9.jpg,,1" in (tmp_path / "detections.csv").read_bytes()
    assert json.loads((tmp_path / "f.jsonl").read_text())["image"] == name
    assert json.loads((tmp_path / "detections.json").read_text())["images"][0]["file_name"] == name[3:]


def test_csv_quotes_what_would_break_a_line(tmp_path: Path) -> None:
    table = CsvTable(tmp_path / "t.csv", ["a\nb"])
    table.add(frame('in/"x", y.jpg'), Path("x"), Found())
    table.close()
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert (rows[1]["image"], rows[1]["name"]) == ('in/"x", y.jpg', "a\nb")


# ------------------------------------------------------------------------------- standard output


def test_standard_output_holds_nothing_but_lines() -> None:
    code = (
        "import os, sys\nfrom utils.logger import get_logger\nfrom utils.record_files import json_lines_file\n"
        "print('before')\n"
        "with json_lines_file('-') as file:\n"
        "    get_logger().info('a message')\n    print('a print')\n    os.write(1, b'a library\\n')\n"
        "    file.write(b'{}\\n')\n"
        "print('after')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "before\n{}\nafter\n"
    assert result.stderr == "a message\na print\na library\n"


def test_a_reader_that_goes_is_noticed() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb", buffering=0) as file:
        lines = JsonLines(file, NAMES)
        lines.add(frame(), Path("a.jpg"), Found())
        os.close(reading)
        with pytest.raises(ReaderGoneError):
            lines.add(frame(), Path("a.jpg"), Found())


def test_coco_ids_go_on_over_images(tmp_path: Path) -> None:
    file = CocoFile(tmp_path / "c.json", NAMES)
    for number in range(3):
        file.add(frame(f"{number}.jpg"), Path(f"{number}.jpg"), Found())
    file.close()
    data = json.loads((tmp_path / "c.json").read_text())
    assert [a["id"] for a in data["annotations"]] == [1, 2, 3, 4, 5, 6]
    assert [a["image_id"] for a in data["annotations"]] == [1, 1, 2, 2, 3, 3]
