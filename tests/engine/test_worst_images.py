"""The images with most missed objects: what counts as missed, which images are chosen, what is drawn."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from engine.worst_images import (
    FALSE_ALARM,
    MISSED,
    ImageObjects,
    WorstImages,
    densest_window,
    draw_verdict,
    judge,
    worst_images,
)
from utils.draw import GREEN

BOX = [10.0, 10.0, 30.0, 30.0]
OTHER = [60.0, 40.0, 80.0, 60.0]


def image(
    truths: list[tuple[list[float], int]],
    found: list[tuple[list[float], int, float]],
    index: int = 0,
    path: Path = Path("a.jpg"),
) -> ImageObjects:
    return ImageObjects(
        index,
        path,
        np.array([box for box, _, _ in found], dtype=np.float32).reshape(-1, 4),
        np.array([score for _, _, score in found], dtype=np.float32),
        np.array([label for _, label, _ in found], dtype=np.int64),
        np.array([box for box, _ in truths], dtype=np.float32).reshape(-1, 4),
        np.array([label for _, label in truths], dtype=np.int64),
    )


def test_found_needs_class_overlap_and_confidence() -> None:
    near = [12.0, 10.0, 32.0, 30.0]
    for detection, found in (
        ((near, 0, 0.9), True),
        ((near, 1, 0.9), False),
        ((near, 0, 0.2), False),
        (([25.0, 10.0, 45.0, 30.0], 0, 0.9), False),
    ):
        verdict = judge(image([(BOX, 0)], [detection]), 0.5)
        assert verdict.found.tolist() == [found]
        assert verdict.shown.tolist() == [detection[2] >= 0.5]
        assert verdict.false_alarm.tolist() == [detection[2] >= 0.5 and not found]


def test_one_detection_finds_one_object() -> None:
    verdict = judge(image([(BOX, 0), (BOX, 0)], [(BOX, 0, 0.9)]), 0.5)
    assert verdict.missed == 1 and not verdict.false_alarm.any()
    verdict = judge(image([(BOX, 0)], [(BOX, 0, 0.9), (BOX, 0, 0.8)]), 0.5)
    assert verdict.missed == 0 and verdict.false_alarm.tolist() == [False, True]


def test_nothing_labelled_and_nothing_found() -> None:
    assert judge(image([], []), 0.5).missed == 0
    assert judge(image([], [(BOX, 0, 0.9)]), 0.5).false_alarm.tolist() == [True]
    assert judge(image([(BOX, 0)], []), 0.5).missed == 1


def test_the_worst_come_first_and_faultless_images_not_at_all() -> None:
    perfect = image([(BOX, 0)], [(BOX, 0, 0.9)], index=0)
    one_of_two = image([(BOX, 0), (OTHER, 0)], [(BOX, 0, 0.9)], index=1)
    one_of_one = image([(BOX, 0)], [], index=2)
    two = image([(BOX, 0), (OTHER, 0)], [], index=3)
    chosen = worst_images([perfect, one_of_two, one_of_one, two], 0.5)
    assert [entry.index for entry, _ in chosen] == [3, 2, 1]
    assert [verdict.missed for _, verdict in chosen] == [2, 1, 1]
    assert len(worst_images([two] * 10, 0.5, count=4)) == 4


def test_the_window_holds_most_of_the_missed_and_stays_in_the_image() -> None:
    crowd = [[900.0 + 5 * i, 500, 904.0 + 5 * i, 504] for i in range(5)]
    left, top, right, bottom = densest_window(np.array([[10.0, 10, 20, 20], *crowd]), (600, 1000))
    assert right - left == bottom - top == 250 and left >= 0 and right <= 1000 and top >= 0 and bottom <= 600
    assert left <= 900 and right >= 926 and top <= 500
    assert densest_window(np.array([BOX]), (40, 100)) == (0, 0, 40, 40), "not larger than the image"


def colours_at(picture: np.ndarray, x: slice, y: slice) -> set[tuple[int, ...]]:
    return {tuple(pixel) for pixel in picture[y, x].reshape(-1, 3).tolist()}


def test_colours_say_what_happened() -> None:
    pixels = np.full((80, 100, 3), 50, dtype=np.uint8)
    objects = image([(BOX, 0), (OTHER, 0)], [(BOX, 0, 0.9), ([60.0, 10, 80, 30], 0, 0.8)])
    picture = draw_verdict(pixels, objects, judge(objects, 0.5), (0, 0, 100, 80), 100)
    assert picture.shape == pixels.shape
    assert GREEN in colours_at(picture, slice(5, 35), slice(5, 35))
    assert FALSE_ALARM in colours_at(picture, slice(55, 85), slice(5, 35))
    assert MISSED in colours_at(picture, slice(55, 85), slice(36, 65))
    closer = draw_verdict(pixels, objects, judge(objects, 0.5), (50, 30, 100, 80), 200)
    assert closer.shape == (200, 200, 3)
    assert MISSED in colours_at(closer, slice(30, 130), slice(30, 130)), "boxes move with the window"
    assert GREEN not in colours_at(closer, slice(0, 200), slice(0, 200))


def test_pictures_and_list_are_written(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    cv2.imwrite(str(path), np.full((80, 100, 3), 50, dtype=np.uint8))
    collector = WorstImages(["car", "van"])
    collector.images = [
        image([(BOX, 1)], [], index=1, path=path),
        image([(BOX, 1), (OTHER, 0), (OTHER, 1)], [], index=0, path=tmp_path / "gone.png"),
    ]
    collector.gather()
    assert [entry.index for entry in collector.images] == [0, 1]
    (saved,) = collector.save(tmp_path, None)
    assert saved.missed == 1 and saved.missed_by_class == {"van": 1}, "an image that is gone is left out"
    stored = json.loads((tmp_path / "worst.json").read_text())
    assert stored["confidence"] == 0.25 and stored["images"][0]["file"] == str(path)
    for name in (saved.picture, saved.closer):
        assert cv2.imread(str(tmp_path / name)) is not None
