"""What is made for one image: clipping, label text, greying, grid occupancy, files written once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.datasets.base import BoxRows, ImageAnnotations, ImageJob, PrepareError, clip_box
from utils.images import read_image
from utils.prepare import (
    GREY,
    PrepareSettings,
    empty_grid_cells,
    grey_out,
    label_rows,
    label_text,
    prepare_image,
    prepare_images,
    remove_leftovers,
    write_if_changed,
)

HW = (80, 160)


def annotations(
    boxes: list[list[float]], labels: list[int], ignored: list[list[float]] | None = None
) -> ImageAnnotations:
    return ImageAnnotations(
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array(labels, dtype=np.int64),
        np.array(ignored or [], dtype=np.float64).reshape(-1, 4),
        {},
        0,
        [],
    )


@dataclass(frozen=True)
class NoBoxes:
    """Annotations of an image without objects, from a file that has to be there."""

    path: Path

    def read(self, hw: tuple[int, int]) -> ImageAnnotations:
        self.path.read_bytes()
        return annotations([], [])


@pytest.mark.parametrize(
    "xywh, expected",
    [
        ((10, 20, 30, 40), (10, 20, 40, 60)),
        ((-5, -5, 10, 10), (0, 0, 5, 5)),
        ((155, 75, 10, 10), (155, 75, 160, 80)),
        ((-1e300, -1e300, 2e300, 2e300), (0, 0, 160, 80)),
        ((160, 0, 5, 5), None),
        ((-5, 0, 5, 5), None),
        ((5, 5, 0, 5), None),
        ((5, 5, 5, -1), None),
        ((159.99, 5, 5, 5), None),
    ],
)
def test_clip_box(xywh: tuple[float, ...], expected: tuple[float, ...] | None) -> None:
    assert clip_box(xywh, HW) == expected


def test_label_rows_and_text_are_darknet() -> None:
    rows = label_rows(annotations([[0, 0, 160, 80], [40, 20, 60, 50]], [0, 9]), HW)
    assert rows.tolist() == [[0, 0.5, 0.5, 1, 1], [9, 0.3125, 0.4375, 0.125, 0.375]]
    assert label_text(rows) == (
        "0 0.500000 0.500000 1.000000 1.000000\n9 0.312500 0.437500 0.125000 0.375000\n"
    )


def test_greying_spares_labelled_objects_and_the_original() -> None:
    image = np.random.default_rng(0).integers(0, 100, (*HW, 3), dtype=np.uint8)
    before = image.copy()
    grey = grey_out(image, np.array([[10.0, 10, 50.5, 40]]), np.array([[40.0, 30, 60, 50]]))
    np.testing.assert_array_equal(image, before)
    expected = image.copy()
    expected[10:40, 10:51] = GREY
    expected[30:50, 40:60] = image[30:50, 40:60]
    np.testing.assert_array_equal(grey, expected)


@pytest.mark.parametrize(
    "boxes, occupied",
    [
        ([], 0),
        ([[0, 0, 160, 80]], 64),
        ([[0, 0, 20, 10]], 1),
        ([[0, 0, 20.5, 10]], 2),
        ([[19, 9, 21, 11]], 4),
        ([[155, 75, 160, 80], [0, 0, 1, 1], [2, 2, 3, 3]], 2),
        ([[0, 35, 160, 36]], 8),
    ],
)
def test_empty_grid_cells(boxes: list[list[float]], occupied: int) -> None:
    assert empty_grid_cells(annotations(boxes, [0] * len(boxes)).boxes, HW) == 64 - occupied


def test_a_file_is_written_only_when_it_differs(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.txt"
    assert write_if_changed(path, b"one")
    stamp = path.stat().st_mtime_ns
    assert not write_if_changed(path, b"one")
    assert path.stat().st_mtime_ns == stamp
    assert write_if_changed(path, b"two")
    assert path.read_bytes() == b"two"
    assert write_if_changed(path, b"two", force=True)


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "labels").write_text("a file in the place of a folder")
    with pytest.raises(PrepareError, match=r"cannot write .*a\.txt: .*what has been prepared is kept"):
        write_if_changed(tmp_path / "labels" / "a.txt", b"")


def test_leftovers_of_killed_runs_go_and_nothing_else(tmp_path: Path) -> None:
    kept = ["a.txt", ".a.txt.tmp", "a.12-34.tmp", ".hidden"]
    for name in [*kept, ".a.txt.12-34.tmp"]:
        (tmp_path / name).touch()
    remove_leftovers([tmp_path, tmp_path / "missing"])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def make_job(folder: Path, name: str = "a.png") -> ImageJob:
    image, text = folder / "images" / name, folder / "annotations" / f"{Path(name).stem}.txt"
    for path in (image, text):
        path.parent.mkdir(parents=True, exist_ok=True)
    _, data = cv2.imencode(image.suffix, np.full((*HW, 3), 50, dtype=np.uint8))
    image.write_bytes(bytes(data))
    text.touch()
    return ImageJob(image, NoBoxes(text))


@pytest.mark.parametrize("damage", [b"", b"not a picture", "cut"])
def test_an_unreadable_image_is_reported_not_raised(tmp_path: Path, damage: bytes | str) -> None:
    job = make_job(tmp_path, "é b.jpg")
    job.image.write_bytes(damage if isinstance(damage, bytes) else job.image.read_bytes()[:-20])
    report = prepare_image(job, PrepareSettings())
    assert report.listed is None
    assert "é b.jpg" in report.problem


def test_a_missing_annotation_file_is_reported_by_name(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    assert isinstance(job.annotations, NoBoxes)
    job.annotations.path.unlink()
    report = prepare_image(job, PrepareSettings())
    assert report.listed is None
    assert str(job.annotations.path) in report.problem


def test_the_greyed_copy_keeps_size_and_the_pixels_around(tmp_path: Path) -> None:
    image = make_job(tmp_path).image
    rows = BoxRows("a", np.array([[0.0, 0, 30, 30]]), np.array([1]), np.array([[64.0, 32, 64, 32]]))
    job = ImageJob(image, rows)
    report = prepare_image(job, PrepareSettings())
    assert report.listed == job.image.with_name("a_masked.jpg")
    copy = read_image(report.listed)
    assert copy.shape == (*HW, 3)
    assert abs(copy[32:64, 64:128].astype(int) - GREY).max() <= 2
    assert abs(copy[:24].astype(int) - 50).max() <= 2


def test_workers_report_in_the_order_of_the_jobs(tmp_path: Path) -> None:
    jobs = [make_job(tmp_path, f"{i}.png") for i in range(10)]
    jobs[3].image.write_bytes(b"broken")
    reports = list(prepare_images(jobs, PrepareSettings(), workers=2))
    assert [report.image for report in reports] == [job.image for job in jobs]
    assert [bool(report.problem) for report in reports] == [i == 3 for i in range(10)]


def test_an_error_in_a_worker_reaches_the_caller(tmp_path: Path) -> None:
    jobs = [make_job(tmp_path, f"{i}.png") for i in range(6)]
    (tmp_path / "labels").write_text("a file in the place of a folder")
    with pytest.raises(PrepareError, match="cannot write"):
        list(prepare_images(jobs, PrepareSettings(), workers=2))
