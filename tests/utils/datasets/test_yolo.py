"""People's own Darknet labels: pairs, splits, names; nothing of theirs is changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.utils.datasets.conftest import MakeImage
from utils.datasets.base import ImageAnnotations, PrepareError
from utils.datasets.yolo import find_yolo

HW = (100, 200)


def add(root: Path, name: str, label: str | None, make_image: MakeImage) -> None:
    make_image(root / "images" / name, HW)
    if label is not None:
        path = (root / "labels" / name).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(label)


def read(annotations: object) -> ImageAnnotations:
    return annotations.read(HW)  # type: ignore[attr-defined,no-any-return]


def test_labels_are_read_where_the_darknet_rule_says(tmp_path: Path, make_image: MakeImage) -> None:
    add(tmp_path, "a.jpg", "1 0.5 0.5 0.1 0.2\n0 0.05 0.5 0.2 0.2\noops\n", make_image)
    source = find_yolo(tmp_path / "images", ["car", "van"])
    assert (source.keep_labels, source.class_names) == (True, ["car", "van"])
    train, val = source.splits
    found = read(train.jobs[0].annotations)
    np.testing.assert_allclose(found.boxes, [[90, 40, 110, 60], [0, 40, 30, 60]], atol=1e-4)
    np.testing.assert_array_equal(found.labels, [1, 0])
    assert (found.clipped, found.dropped) == (1, {"wrong number of columns": 1})
    assert val.jobs == []


def test_folders_called_train_and_val_are_the_splits(tmp_path: Path, make_image: MakeImage) -> None:
    for name in ("train/a.jpg", "train/deep/b.jpg", "valid/c.jpg"):
        add(tmp_path, name, "", make_image)
    train, val = find_yolo(tmp_path / "images").splits
    assert [job.image.name for job in train.jobs] == ["a.jpg", "b.jpg"]
    assert [job.image.name for job in val.jobs] == ["c.jpg"]


def test_otherwise_a_fixed_share_is_held_out(tmp_path: Path, make_image: MakeImage) -> None:
    for number in range(10):
        add(tmp_path, f"{number}.jpg", "3 0.5 0.5 0.1 0.1", make_image)
    first, again = (find_yolo(tmp_path / "images", val_share=0.3) for _ in range(2))
    assert [len(split.jobs) for split in first.splits] == [7, 3]
    assert [split.jobs for split in first.splits] == [split.jobs for split in again.splits]
    assert first.class_names == ["class 0", "class 1", "class 2", "class 3"]


@pytest.mark.parametrize("place", ["images/classes.txt", "labels/classes.txt", "obj.names"])
def test_names_from_a_file(tmp_path: Path, make_image: MakeImage, place: str) -> None:
    add(tmp_path, "a.jpg", "0 0.5 0.5 0.1 0.2", make_image)
    (tmp_path / place).write_text("Boot\nSchwimmer é\n\n", encoding="utf-8")
    source = find_yolo(tmp_path / "images")
    assert source.class_names == ["Boot", "Schwimmer é"]
    assert [split.problems for split in source.splits] == [[], []]


def test_what_does_not_pair_up_is_told(tmp_path: Path, make_image: MakeImage) -> None:
    add(tmp_path, "a.jpg", "", make_image)
    add(tmp_path, "alone.jpg", None, make_image)
    (tmp_path / "labels" / "orphan.txt").write_text("")
    make_image(tmp_path / "images" / "a_masked.jpg")
    (tmp_path / "labels" / "a_masked.txt").write_text("")
    problems = [problem for split in find_yolo(tmp_path / "images").splits for problem in split.problems]
    assert len(problems) == 2
    assert "alone.jpg: no label file; expected" in problems[0] + problems[1]
    assert "orphan.txt: no image belongs to it" in problems[0] + problems[1]


def test_no_folder_and_no_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match="no such folder"):
        find_yolo(tmp_path / "images")
    (tmp_path / "images").mkdir()
    with pytest.raises(PrepareError, match="no images in it"):
        find_yolo(tmp_path / "images")
