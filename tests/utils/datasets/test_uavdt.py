"""UAVDT: its text files, sequences and splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.utils.datasets.conftest import MakeImage
from utils.datasets.base import ImageAnnotations, PrepareError
from utils.datasets.uavdt import (
    FRAMES,
    TEST_SEQUENCES,
    TRUTH,
    Frame,
    add_ignored_regions,
    find_uavdt,
    parse_sequence,
)

HW = (54, 102)


def add_sequence(root: Path, name: str, frames: int, truth: str | None, make_image: MakeImage) -> None:
    for number in range(1, frames + 1):
        make_image(root / FRAMES / name / f"img{number:06d}.jpg", HW)
    (root / TRUTH).mkdir(parents=True, exist_ok=True)
    if truth is not None:
        (root / TRUTH / f"{name}_gt_whole.txt").write_text(truth)


def read(job_annotations: object) -> ImageAnnotations:
    return job_annotations.read(HW)  # type: ignore[attr-defined,no-any-return]


def test_rows_go_to_their_frames_in_any_order() -> None:
    text = "2,1,10,20,8,6,1,1,1\r\n1,1,11,21,8,6,1,1,3,\r\n2,2,30,5,4,4,1,1,2\n\n2,3,1,1,4,4,1,1,9\nx,y\n0,1,1,1,2,2,1,1,1"
    frames, faults = parse_sequence(text.encode(), "M_gt_whole.txt", single_class=False)
    assert frames[2].xywh == [[10, 20, 8, 6], [30, 5, 4, 4]]
    assert (frames[1].labels, frames[2].labels) == ([2], [0, 1])
    assert frames[2].dropped == {"category out of range": 1}
    assert "M_gt_whole.txt:5: category out of range" in frames[2].messages[0]
    assert [fault.split(": ")[0] for fault in faults] == ["M_gt_whole.txt:6", "M_gt_whole.txt:7"]


def test_one_class_when_asked() -> None:
    frames, _ = parse_sequence(b"1,1,1,1,4,4,1,1,3\n1,2,9,9,4,4,1,1,2", "f", single_class=True)
    assert frames[1].labels == [0, 0]


def test_ignored_regions_have_no_fixed_number_of_columns() -> None:
    frames: dict[int, Frame] = {}
    faults = add_ignored_regions(frames, b"3,1,5,6,7,8,1,-1,-1\n4,1,5,6,7,8\n4,2,oops", "i.txt")
    assert (frames[3].ignored, frames[4].ignored) == ([[5, 6, 7, 8]], [[5, 6, 7, 8]])
    assert faults == ["i.txt:3: malformed line: '4,2,oops'"]
    assert add_ignored_regions({}, b"", "empty is normal") == []


@settings(max_examples=100)
@given(st.binary(max_size=300))
def test_any_bytes_are_read_without_an_exception(content: bytes) -> None:
    frames, _ = parse_sequence(content, "f", False)
    add_ignored_regions(frames, content, "i")
    for frame in frames.values():
        assert len(frame.xywh) == len(frame.labels)
        assert np.isfinite(np.array(frame.xywh + frame.ignored)).all()


def test_splits(tmp_path: Path, make_image: MakeImage) -> None:
    for name in ("M0101", "M0201", "M0202", "M0203"):
        add_sequence(tmp_path, name, 2, "1,1,10,20,8,6,1,1,1\n2,1,10,20,8,6,1,1,2\n", make_image)
    source = find_uavdt(tmp_path)
    splits = {split.name: {job.image.parent.name for job in split.jobs} for split in source.splits}
    assert splits["test"] == {"M0203"}
    assert splits["train"] | splits["valid"] == {"M0101", "M0201", "M0202"}
    assert len(splits["valid"]) == 1
    assert all(split.thinned == 10 and not split.problems for split in source.splits)
    assert source.class_names == ("car", "truck", "bus")
    assert find_uavdt(tmp_path, single_class=True).class_names == ("vehicle",)
    assert len(TEST_SEQUENCES) == len(set(TEST_SEQUENCES)) == 20


def test_a_frame_has_its_boxes_less_those_in_ignored_regions(tmp_path: Path, make_image: MakeImage) -> None:
    add_sequence(tmp_path, "M0101", 3, "2,1,10,20,8,6,1,1,1\n2,2,60,20,8,6,1,1,3\n", make_image)
    (tmp_path / TRUTH / "M0101_gt_ignore.txt").write_text("2,1,50,10,30,30,1,-1,-1")
    (split,) = find_uavdt(tmp_path).splits
    empty, full, last = (read(job.annotations) for job in split.jobs)
    assert len(empty.labels) == len(last.labels) == 0
    np.testing.assert_array_equal(full.boxes, [[10, 20, 18, 26]])
    np.testing.assert_array_equal(full.ignored, [[50, 10, 80, 40]])
    assert full.dropped == {"centre in an ignored region": 1}


def test_what_does_not_fit_together_is_told(tmp_path: Path, make_image: MakeImage) -> None:
    add_sequence(
        tmp_path, "M0101", 1, "1,1,1,1,4,4,1,1,1\n5,1,1,1,4,4,1,1,1\n6,1,1,1,4,4,1,1,1\n", make_image
    )
    add_sequence(tmp_path, "M0201", 1, None, make_image)
    add_sequence(tmp_path, "M0203", 0, "1,1,1,1,4,4,1,1,1\n", make_image)
    make_image(tmp_path / FRAMES / "M0101" / "cover.jpg", HW)
    for group, name in (("train", "M0203"), ("test", "M0101"), ("train", "M0101")):
        path = tmp_path / "M_attr" / group / f"{name}_attr.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    problems = "\n".join(problem for split in find_uavdt(tmp_path).splits for problem in split.problems)
    for expected in (
        "M0101: 2 annotated frames have no image: img000005.jpg, img000006.jpg",
        "cover.jpg: not a frame",
        "M0201: no annotations; expected UAV-benchmark-MOTD_v1.0/GT/M0201_gt_whole.txt",
        "M0203_gt_whole.txt: no frames; expected UAV-benchmark-M/M0203",
        "train/M0203_attr.txt: contradicts",
        "test/M0101_attr.txt: contradicts",
    ):
        assert expected in problems
    assert problems.count("\n") == 5


def test_a_wrong_layout_says_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "M0101").mkdir()
    with pytest.raises(PrepareError, match=r"UAV-benchmark-M is missing, found M0101"):
        find_uavdt(tmp_path)
    (tmp_path / FRAMES).mkdir()
    with pytest.raises(PrepareError, match=r"UAV-benchmark-MOTD_v1.0/GT is missing"):
        find_uavdt(tmp_path)
    (tmp_path / TRUTH).mkdir(parents=True)
    with pytest.raises(PrepareError, match="one folder per sequence; found nothing in it"):
        find_uavdt(tmp_path)


def test_real_annotations(shared_dir: Path) -> None:
    truth = shared_dir / "data" / "UAVDT" / TRUTH
    frames, faults = parse_sequence((truth / "M0202_gt_whole.txt").read_bytes(), "M0202", False)
    assert faults == []
    assert sum(len(frame.xywh) for frame in frames.values()) == 3817
    assert add_ignored_regions(frames, (truth / "M0202_gt_ignore.txt").read_bytes(), "ignore") == []
    assert sum(len(frame.ignored) for frame in frames.values()) == 67
