"""VisDrone's annotation files and folders: what is read, what is dropped and told, what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.datasets.base import ImageAnnotations, PrepareError, without_own_copies
from utils.datasets.visdrone import VisDroneFile, find_visdrone, parse_annotations
from utils.labels import parse_label_text
from utils.prepare import label_rows, label_text

HW = (100, 200)
CAR = "10,20,30,40,1,4,0,0"
FUZZ_EXAMPLES = 3000 if os.environ.get("ESOD_FULL_FUZZ") else 150


def parse(text: str | bytes, hw: tuple[int, int] = HW) -> ImageAnnotations:
    return parse_annotations(text if isinstance(text, bytes) else text.encode(), hw, "a.txt")


@pytest.mark.parametrize(
    "content",
    [
        CAR,
        CAR + "\n",
        CAR + "\r\n",
        CAR + "\r",
        CAR + ",\r\n",
        CAR + ",,\n\n\n",
        "\r\n \t\r\n" + CAR + "\r\n\r\n",
        " 10 , 20,30 ,\t40,1,4,0,0 \n",
        "10.0,20.,3e1,+40,1,4,0,0",
        b"\xef\xbb\xbf" + CAR.encode(),
    ],
)
def test_one_car_however_it_is_written(content: str | bytes) -> None:
    found = parse(content)
    assert found.boxes.tolist() == [[10, 20, 40, 60]]
    assert found.labels.tolist() == [3]
    assert (found.dropped, found.messages, found.clipped) == ({}, [], 0)


@pytest.mark.parametrize(
    "line, reason",
    [
        ("10,20,30,40,1,4,0", "malformed line"),
        ("10,20,30,40,1,4,0,0,7", "malformed line"),
        ("10 20 30 40 1 4 0 0", "malformed line"),
        ("10,20,,40,1,4,0,0", "malformed line"),
        ("10,20,3x,40,1,4,0,0", "malformed line"),
        ("nan,20,30,40,1,4,0,0", "malformed line"),
        ("10,20,1e999,40,1,4,0,0", "malformed line"),
        ("10,20,30,40,1,4.5,0,0", "malformed line"),
        ("1_0,20,30,40,1,4,0,0", "malformed line"),
        ("１０,20,30,40,1,4,0,0", "malformed line"),
        ("10,20,30,40,1,12,0,0", "category out of range"),
        ("10,20,30,40,1,-1,0,0", "category out of range"),
        ("10,20,0,40,1,4,0,0", "zero or negative size"),
        ("10,20,30,-40,1,4,0,0", "zero or negative size"),
        ("200,20,30,40,1,4,0,0", "outside the image"),
        ("-30,20,30,40,1,4,0,0", "outside the image"),
        ("10,100,30,40,1,0,0,0", "outside the image"),
    ],
)
def test_a_wrong_line_is_counted_and_told_and_the_others_stay(line: str, reason: str) -> None:
    found = parse(f"{CAR}\n\n{line}\r\n50,50,10,10,1,1,0,0")
    assert found.labels.tolist() == [3, 0]
    assert found.dropped == {reason: 1}
    assert found.messages == [f"a.txt:3: {reason}: {line!r}"]
    assert len(found.ignored) == 0


def test_every_category() -> None:
    found = parse("".join(f"{10 * category},20,8,8,1,{category},0,0\n" for category in range(12)))
    assert found.labels.tolist() == list(range(10))
    assert found.ignored.tolist() == [[0, 20, 8, 28], [110, 20, 118, 28]]
    assert found.dropped == {"ignored region": 1, "others": 1}
    assert found.messages == []


def test_an_object_of_score_zero_is_an_ignored_region() -> None:
    found = parse("10,20,30,40,0,4,0,0\n")
    assert (len(found.labels), found.ignored.tolist()) == (0, [[10, 20, 40, 60]])
    assert found.dropped == {"score 0": 1}


def test_boxes_are_clipped_to_the_image_and_counted() -> None:
    found = parse("-10,-5,30,40,1,4,0,0\n190,90,30,40,1,4,0,0\n0,0,200,100,1,4,0,0\n")
    assert found.boxes.tolist() == [[0, 0, 20, 35], [190, 90, 200, 100], [0, 0, 200, 100]]
    assert found.clipped == 2


def test_duplicates_go_but_the_same_box_of_another_class_stays() -> None:
    found = parse(f"{CAR}\n{CAR},\n10,20,30,40,1,5,0,0\n10,20,30,40,1,4,1,2\n")
    assert found.labels.tolist() == [3, 4]
    assert found.dropped == {"duplicate": 2}


def test_many_wrong_lines_give_few_messages_but_are_all_counted() -> None:
    found = parse("x\n" * 1000)
    assert found.dropped == {"malformed line": 1000}
    assert len(found.messages) == 6
    assert found.messages[-1] == "a.txt: 995 more lines are wrong"


def test_an_empty_file_is_an_image_without_objects() -> None:
    found = parse("")
    assert (found.boxes.shape, found.labels.shape, found.ignored.shape) == ((0, 4), (0,), (0, 4))
    assert label_text(label_rows(found, HW)) == ""


def check_parsed(content: bytes, hw: tuple[int, int]) -> ImageAnnotations:
    """What holds for any content: nothing is lost unseen, and what is kept is a valid label file."""
    found = parse(content, hw)
    rows = label_rows(found, hw)
    parsed = parse_label_text(label_text(rows), num_classes=10)
    assert parsed.problems == []
    assert len(parsed.rows) == len(found.labels) == len(found.boxes)
    for boxes in (found.boxes, found.ignored):
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= (hw[1], hw[0])).all()
        assert (boxes[:, :2] < boxes[:, 2:]).all()
    return found


sizes = st.tuples(st.integers(1, 5000), st.integers(1, 5000))


@settings(max_examples=FUZZ_EXAMPLES, deadline=None)
@given(st.binary(max_size=400), sizes)
def test_any_bytes_are_read_without_an_exception(content: bytes, hw: tuple[int, int]) -> None:
    check_parsed(content, hw)


whole = st.integers(-50, 6000)
field = st.one_of(
    whole.map(str),
    st.floats(allow_nan=True).map(repr),
    st.text(alphabet="0123456789+-.eE,_ nafix\t\x00\x0b\u2028\ufeff", max_size=8),
)
good_line = st.tuples(whole, whole, whole, whole, st.integers(0, 1), st.integers(0, 11)).map(
    lambda row: ",".join(map(str, row)) + ",0,0"
)
line = st.one_of(good_line, st.lists(field, max_size=10).map(",".join))


@settings(max_examples=FUZZ_EXAMPLES, deadline=None)
@given(st.lists(line, max_size=12), st.sampled_from(["\n", "\r\n", ",\r\n"]), sizes)
def test_any_lines_are_a_label_or_a_counted_loss(lines: list[str], end: str, hw: tuple[int, int]) -> None:
    found = check_parsed(end.join(lines).encode(), hw)
    # The mark of byte order is taken off the file's start before lines are looked at.
    texts = [text.removeprefix("\ufeff") if i == 0 else text for i, text in enumerate(lines)]
    assert len(found.labels) + sum(found.dropped.values()) == sum(bool(text.strip(" \t,")) for text in texts)


def test_own_copies_are_not_images_but_pictures_of_that_name_are() -> None:
    names = ["a.png", "a_masked.jpg", "b_masked.jpg", "c.jpg", "c_masked.jpg"]
    kept = without_own_copies(map(Path, names), annotated_stems=["a", "b_masked", "c", "c_masked"])
    assert [path.name for path in kept] == ["a.png", "b_masked.jpg", "c.jpg", "c_masked.jpg"]


def make_files(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


VAL, CHALLENGE = "VisDrone2019-DET-val", "VisDrone2019-DET-test-challenge"


def test_splits_that_are_there_are_found_with_their_pairs(tmp_path: Path) -> None:
    make_files(tmp_path / VAL, "images/b.jpg", "images/a.PNG", "images/._a.jpg", "images/notes.txt")
    make_files(
        tmp_path / VAL, "images/a_masked.jpg", "annotations/a.txt", "annotations/b.txt", "annotations/._b.txt"
    )
    make_files(tmp_path / CHALLENGE, "images/c.jpg")
    val, challenge = find_visdrone(tmp_path).splits
    assert (val.name, val.problems) == ("val", [])
    texts = tmp_path / VAL / "annotations"
    assert [(job.image.name, job.annotations) for job in val.jobs] == [
        ("a.PNG", VisDroneFile(texts / "a.txt")),
        ("b.jpg", VisDroneFile(texts / "b.txt")),
    ]
    assert (challenge.name, challenge.problems) == ("test-challenge", [])
    assert [(job.image.name, job.annotations) for job in challenge.jobs] == [("c.jpg", None)]


def test_what_does_not_pair_up_is_told_by_name(tmp_path: Path) -> None:
    names = ["images/alone.jpg", "images/good.jpg", "images/good.png", "images/x.jpg", "images/x_masked.jpg"]
    make_files(tmp_path / VAL, *names, "images/line\nbreak.jpg", os.fsdecode(b"images/\xff.jpg"))
    texts = ["good", "x", "x_masked", "gone", "line\nbreak"]
    make_files(tmp_path / VAL, *(f"annotations/{stem}.txt" for stem in texts))
    (val,) = find_visdrone(tmp_path).splits
    assert [job.image.name for job in val.jobs] == ["good.jpg", "x_masked.jpg"]
    told = "\n".join(val.problems)
    assert "alone.jpg: no annotation file; expected annotations/alone.txt" in told
    assert "gone.txt: no image; expected images/gone.jpg" in told
    assert "good.png: shares its label file with good.jpg" in told
    assert "x.jpg: its greyed copy would replace x_masked.jpg" in told
    assert r"line\nbreak.jpg': a list file cannot hold this name" in told
    assert r"\udcff.jpg': a list file cannot hold this name" in told
    assert len(val.problems) == 6


@pytest.mark.parametrize(
    "names, expected, found",
    [
        (["val/images/a.jpg", "readme"], "VisDrone2019-DET-val", "found readme, val"),
        (["images/a.jpg", "annotations/a.txt"], "images and annotations", "found annotations, images"),
        ([], "VisDrone2019-DET-train", "there is no such folder"),
        ([f"{VAL}/{VAL}/images/a.jpg"], "expected a folder 'images'", f"found {VAL}"),
        ([f"{VAL}/images/a.jpg"], "expected a folder 'annotations'", "found images"),
    ],
)
def test_a_wrong_layout_says_what_was_expected_and_what_is_there(
    tmp_path: Path, names: list[str], expected: str, found: str
) -> None:
    make_files(tmp_path / "root", *names) if names else None
    with pytest.raises(PrepareError) as error:
        find_visdrone(tmp_path / "root")
    assert expected in str(error.value)
    assert found in str(error.value)


def test_a_split_without_images_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / VAL / "images").mkdir(parents=True)
    (tmp_path / VAL / "annotations").mkdir()
    (val,) = find_visdrone(tmp_path).splits
    assert val.jobs == []
    assert val.problems == [f"{tmp_path / VAL / 'images'}: no images in it"]


def test_boxes_are_float64_corners() -> None:
    found = parse("1,2,3,4,1,1,0,0\n5,6,7,8,1,10,0,0")
    assert found.boxes.dtype == np.float64
    np.testing.assert_array_equal(found.boxes, [[1, 2, 4, 6], [5, 6, 12, 14]])
