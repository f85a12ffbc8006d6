"""utils/labels.py: what is read, what is left out and said so, and the cache."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.heatmap import HeatmapFile, heatmap_path, save_heatmap
from utils.labels import (
    DataError,
    LabelSet,
    Problem,
    cache_path,
    check_labels,
    label_path,
    load_labels,
    parse_label_text,
)


def make(root: Path, name: str, text: str | None, hw: tuple[int, int] = (40, 60)) -> Path:
    """An image of some size under images/ and, if there is a text, its labels."""
    image = root / "images" / name
    image.parent.mkdir(parents=True, exist_ok=True)
    image.write_bytes(cv2.imencode(image.suffix, np.zeros((*hw, 3), np.uint8))[1].tobytes())
    if text is not None:
        labels = root / "labels" / f"{image.stem}.txt"
        labels.parent.mkdir(exist_ok=True)
        labels.write_text(text)
    return image


def load(images: list[Path], num_classes: int | None = 10) -> LabelSet:
    return load_labels(images, num_classes, progress=False)


@pytest.mark.parametrize(
    "line, reason",
    [
        ("0 0.5 0.5 0.1", "wrong number of columns: 4, expected 5"),
        ("0 0.5 0.5 0.1 0.1 0.9", "wrong number of columns: 6"),
        ("0 0.5 0.5 0.1 wide", "not a number: '0 0.5 0.5 0.1 wide'"),
        ("car 0.5 0.5 0.1 0.1", "not a number"),
        ("0,0.5,0.5,0.1,0.1", "wrong number of columns: 1"),
        ("0 nan 0.5 0.1 0.1", "not a finite number"),
        ("0 0.5 0.5 inf 0.1", "not a finite number"),
        ("3 0.5 0.5 0.1 0.1", "class out of range: 3, expected 0 to 2"),
        ("-1 0.5 0.5 0.1 0.1", "class out of range: -1"),
        ("1.5 0.5 0.5 0.1 0.1", "class out of range: 1.5"),
        ("1e99 0.5 0.5 0.1 0.1", "class out of range"),
        ("0 0.5 0.5 0 0.1", "no area: width 0, height 0.1"),
        ("0 0.5 0.5 0.1 -0.2", "no area"),
        ("0 320 240 50 60", "not normalised: 320 240 50 60"),
        ("0 -0.2 0.5 0.1 0.1", "not normalised"),
        ("0 0.5 1.2 0.1 0.1", "not normalised"),
        ("0 1.0005 0.5 0.0005 0.1", "no area inside the image: 1.0005 0.5 0.0005 0.1"),
        ("0 1.0005 0.5 0.001 0.1", "no area inside the image"),
        ("0 -0.0005 0.5 0.0005 0.1", "no area inside the image"),
        ("0 0.5 1.001 0.1 0.001", "no area inside the image"),
        ("0 0.5 0.5 0.1 1e-12", "no area inside the image"),
    ],
)
def test_bad_lines_are_named_and_the_good_one_stays(line: str, reason: str) -> None:
    parsed = parse_label_text(f"\n1 0.5 0.5 0.2 0.2\n{line}\n", 3, "labels/x.txt")
    assert len(parsed.rows) == 1
    (problem,) = parsed.problems
    assert str(problem).startswith(f"labels/x.txt:3: {reason}")


def test_good_lines() -> None:
    parsed = parse_label_text("0 0.5 0.25 0.1 0.2\r\n2.0\t0.125 .5 1e-1 0.5 \n\n", 3)
    assert (
        parsed.rows.tolist()
        == np.array([[0, 0.5, 0.25, 0.1, 0.2], [2, 0.125, 0.5, 0.1, 0.5]], np.float32).tolist()
    )
    assert parsed.rows.dtype == np.float32 and not parsed.problems and parsed.clipped == 0
    assert parse_label_text("", 3).rows.shape == (0, 5)


def test_duplicates_are_left_out_and_counted() -> None:
    parsed = parse_label_text("0 0.5 0.5 0.1 0.1\n1 0.5 0.5 0.1 0.1\n0 0.50 0.5 0.1 0.1\n", 3)
    assert len(parsed.rows) == 2
    assert parsed.problems == [Problem("labels", 3, "duplicate of an earlier line")]


def test_boxes_over_the_border_are_clipped_and_counted() -> None:
    parsed = parse_label_text("0 0.05 0.5 0.2 0.1\n0 0.0005 0.5 0.001 0.1\n0 0.9 0.9 0.2 0.2\n", 3)
    assert parsed.rows[0].tolist() == pytest.approx([0, 0.075, 0.5, 0.15, 0.1])
    assert parsed.clipped == 1 and not parsed.problems


def test_any_class_when_the_number_is_unknown() -> None:
    assert parse_label_text("79 0.5 0.5 0.1 0.1", None).rows[0, 0] == 79


@settings(max_examples=200, deadline=None)
@given(
    st.text("0123456789.-+einfa_ \n\t\r\x0b\u2028é½", max_size=80)
    | st.lists(st.floats(), max_size=12).map(lambda x: " ".join(map(str, x)))
)
def test_no_text_crashes_the_parser(text: str) -> None:
    parsed = parse_label_text(text, 5)
    rows = parsed.rows
    assert rows.shape[1] == 5 and np.isfinite(rows).all()
    lines = sum(bool(line.split()) for line in text.splitlines())
    assert len(rows) + len(parsed.problems) == lines  # nothing vanishes
    assert (rows[:, 3:] >= 0).all() and (rows[:, 1:3] >= 0).all() and (rows[:, 1:3] <= 1).all()


@pytest.mark.parametrize(
    "image, expected",
    [
        ("/d/images/train/a.jpg", "/d/labels/train/a.txt"),
        ("/images/d/images/a.PNG", "/images/d/labels/a.txt"),
        ("d/pictures/a.png", "d/pictures/a.txt"),
        ("d/images/a_masked.jpg", "d/labels/a.txt"),
    ],
)
def test_label_path(image: str, expected: str) -> None:
    assert label_path(Path(image)) == Path(expected)


def test_label_path_of_a_masked_image_prefers_its_own(tmp_path: Path) -> None:
    image = make(tmp_path, "a_masked.jpg", "")
    assert label_path(image).name == "a_masked.txt"
    label_path(image).unlink()
    assert label_path(image).name == "a.txt"


def test_a_split(tmp_path: Path) -> None:
    images = [
        make(tmp_path, "a.png", "1 0.5 0.5 0.5 0.5\n4 0.1 0.1 0.1 0.1"),
        make(tmp_path, "b.jpg", ""),
        make(tmp_path, "c.jpg", None, hw=(30, 20)),
        make(tmp_path, "d.jpg", "0 0.5 0.5 0.5"),
    ]
    broken = tmp_path / "images" / "e.jpg"
    broken.write_bytes(b"no image")
    found = load([*images, broken, tmp_path / "images" / "missing.jpg"])
    assert found.images == images
    assert found.image_hw.tolist() == [[40, 60], [40, 60], [30, 20], [40, 60]]
    assert [len(rows) for rows in found.labels] == [2, 0, 0, 0]
    report = found.report
    assert (report.images, report.objects, report.background, report.unlabelled) == (4, 2, 2, 1)
    assert report.skipped_images == 2 and report.per_class == {1: 1, 4: 1}
    text = "\n".join(report.lines(5))
    for part in ("d.txt:1: wrong number of columns", "e.jpg: image left out", "missing.jpg: image left out",
                 "1 images have no label file", "no object of class 0, 2, 3 (of 5 classes)"):  # fmt: skip
        assert part in text


def test_long_reports_end_in_counts(tmp_path: Path) -> None:
    image = make(tmp_path, "a.png", "0 0.5 0.5\n" * 30 + "x 0.1 0.1 0.1 0.1\n" * 5)
    lines = load([image]).report.lines(1)
    assert lines[-1] == "  and 15 more: 10 × wrong number of columns, 5 × not a number"


def test_unreadable_label_file_leaves_the_image_out(tmp_path: Path) -> None:
    image = make(tmp_path, "a.png", None)
    (tmp_path / "labels" / "a.txt").mkdir(parents=True)
    report = load([image]).report
    assert report.skipped_images == 1 and "cannot read its labels" in str(report.problems[0])


def test_not_text_is_reported(tmp_path: Path) -> None:
    image = make(tmp_path, "a.png", "")
    label_path(image).write_bytes(b"\xef\xbb\xbf0 0.5 0.5 0.1 0.1\n\xff\xfe\x00\x9c 1 2 3 4\n")
    found = load([image])
    assert len(found.labels[0]) == 1 and len(found.report.problems) == 1


def test_heatmap_files_with_masks_are_noticed(tmp_path: Path) -> None:
    for name, mode in (("a", "gaussian"), ("b", "hybrid"), ("c", "sam"), ("e", "sam")):
        image = make(tmp_path, f"{name}.png", "")
        hw = (40, 60) if name != "e" else (60, 40)
        values = np.zeros((hw[0] // 4, hw[1] // 4), np.uint8)
        save_heatmap(heatmap_path(image), HeatmapFile(values, mode, 0.4, hw, ""))  # type: ignore[arg-type]
    damaged = make(tmp_path, "d.png", "")
    heatmap_path(damaged).write_bytes(b"PK")
    found = load([tmp_path / "images" / f"{name}.png" for name in "abcde"])
    assert found.mask_tau.tolist() == [0, 0.4, 0.4, 0, 0]
    assert [Path(problem.file).name for problem in found.report.problems] == ["d.npz", "e.npz"]
    assert "the boxes are instead" in found.report.problems[0].reason


# --- cache


@pytest.fixture
def no_scan(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it to forbid reading files from then on."""

    def forbid() -> None:
        def scan(*_: Any) -> None:
            raise AssertionError("read again")

        monkeypatch.setattr("utils.labels._scan", scan)

    return forbid


def same(a: LabelSet, b: LabelSet) -> bool:
    return (
        a.images == b.images
        and np.array_equal(a.image_hw, b.image_hw)
        and all(np.array_equal(x, y) for x, y in zip(a.labels, b.labels, strict=True))
        and np.array_equal(a.mask_tau, b.mask_tau)
        and a.report == b.report
    )


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "c.jpg").write_bytes(b"broken")
    return [
        make(tmp_path, "a.png", "1 0.05 0.5 0.5 0.5\n1 0.1 0.1 0.1\n"),
        make(tmp_path, "b.png", ""),
        tmp_path / "images" / "c.jpg",
        make(tmp_path, "d.png", None),
        make(tmp_path, "e.png", "2 0.5 0.5 0.5 0.5"),
    ]


def test_second_time_comes_from_the_cache(images: list[Path], no_scan: Any) -> None:
    first = load(images)
    no_scan()
    assert same(load(images), first)


def test_cache_is_plain_data(images: list[Path]) -> None:
    load(images)
    path = cache_path(images, 10)
    assert (
        path.name.startswith("labels.")
        and path.name.endswith(".cache.pt")
        and path.parent == images[0].parent.parent
    )
    assert set(torch.load(path, weights_only=True)) == {"key", "hw", "count", "rows", "flags", "problems"}


@pytest.mark.parametrize(
    "change", ["edit", "same size", "new file", "removed", "image", "heatmap", "classes", "parser"]
)
def test_changes_are_noticed(images: list[Path], change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load(images)
    scanned: list[Path] = []
    real = __import__("utils.labels", fromlist=["_scan"])._scan
    monkeypatch.setattr(
        "utils.labels._scan", lambda image, classes: scanned.append(image) or real(image, classes)
    )
    labels = images[0].parent.parent / "labels"
    time.sleep(0.01)  # file times are only so fine
    if change == "edit":
        (labels / "e.txt").write_text("2 0.5 0.5 0.5 0.5\n2 0.1 0.1 0.1 0.1")
    elif change == "same size":
        (labels / "e.txt").write_text("2 0.5 0.5 0.5 0.4")
    elif change == "new file":
        (labels / "d.txt").write_text("2 0.5 0.5 0.5 0.5")
    elif change == "removed":
        (labels / "e.txt").unlink()
    elif change == "image":
        make(images[4].parent.parent, "e.png", None, hw=(20, 20))
    elif change == "heatmap":
        save_heatmap(
            heatmap_path(images[4]), HeatmapFile(np.zeros((10, 15), np.uint8), "sam", 0.5, (40, 60), "")
        )
    elif change == "parser":
        monkeypatch.setattr("utils.labels.PARSER_VERSION", 99)
    again = load(images, 2 if change == "classes" else 10)
    assert len(scanned) == len(images)
    expected = {
        "edit": 2,
        "same size": 1,
        "new file": 1,
        "removed": 0,
        "image": 1,
        "heatmap": 1,
        "classes": 0,
        "parser": 1,
    }
    assert len(again.labels[-1]) == expected[change] or (change == "new file" and len(again.labels[2]) == 1)
    assert same(load(images, 2 if change == "classes" else 10), again)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not really", b"\x80\x02cos\nsystem\n."])
def test_damaged_cache_is_made_anew(
    images: list[Path], content: bytes, capsys: pytest.CaptureFixture[str], no_scan: Any
) -> None:
    first = load(images)
    cache_path(images, 10).write_bytes(content)
    assert same(load(images), first)
    assert "damaged label cache" in capsys.readouterr().out
    no_scan()
    assert same(load(images), first)


def test_truncated_cache_and_wrong_content(images: list[Path]) -> None:
    first = load(images)
    path = cache_path(images, 10)
    path.write_bytes(path.read_bytes()[:-100])
    assert same(load(images), first)
    data = torch.load(path, weights_only=True)
    torch.save({**data, "rows": data["rows"][:0], "problems": "[["}, path)
    assert same(load(images), first)


def test_two_lists_of_one_folder_do_not_share_a_cache(images: list[Path], no_scan: Any) -> None:
    load(images)
    load(images[:2])
    no_scan()
    assert len(load(images).images) == 4 and len(load(images[:2]).images) == 2


def test_read_only_folder(
    images: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("utils.labels.write_atomic", refuse)
    assert len(load(images).images) == 4
    assert "labels are not cached" in capsys.readouterr().out


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_really_read_only_folder(images: list[Path]) -> None:
    images[0].parent.parent.chmod(0o555)
    try:
        assert len(load(images).images) == 4
    finally:
        images[0].parent.parent.chmod(0o755)


# --- what to do about it


def test_an_empty_list_and_no_usable_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images are given"):
        load([])
    with pytest.raises(DataError, match=r"none of 1 images can be used.*missing\.jpg"):
        check_labels(load([tmp_path / "missing.jpg"]), 3, 0.5, needed=False)


def test_no_labels_stop_training_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = load([make(tmp_path, "a.png", None)])
    with pytest.raises(
        DataError, match=r"no labels to train with in 1 images; to .*a\.png belongs .*labels/a\.txt"
    ):
        check_labels(found, 3, 0.5, needed=True)
    check_labels(found, 3, 0.5, needed=False)
    assert "accuracy cannot be measured" in capsys.readouterr().out


def test_heatmaps_of_another_tau_are_mentioned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = make(tmp_path, "a.png", "0 0.5 0.5 0.2 0.2")
    save_heatmap(heatmap_path(image), HeatmapFile(np.zeros((10, 15), np.uint8), "hybrid", 0.3, (40, 60), ""))
    check_labels(load([image]), 1, 0.3, needed=True)
    assert "tau" not in capsys.readouterr().out
    check_labels(load([image]), 1, 0.5, needed=True)
    assert "1 heatmap files were made with tau 0.3, not heatmap_tau 0.5" in capsys.readouterr().out
