"""TinyPerson's official protocol: one small case per quirk, and files that are wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from evaluate.arrays import EvaluationError
from evaluate.tinyperson import evaluate_tinyperson
from evaluate.tinyperson_io import TinyPersonData, read_tinyperson
from evaluate.tinyperson_overlaps import Flags

Box = tuple[float, float, float, float]

FAR: Box = (500, 500, 10, 10)


def truth(box: Box, **fields: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": 7,
        "image_id": 0,
        "category_id": 1,
        "bbox": list(box),
        "area": box[2] * box[3],
    }
    return entry | fields


def found(box: Box, score: float, image: int = 0) -> dict[str, Any]:
    return {"image_id": image, "category_id": 1, "bbox": list(box), "score": score}


def write(folder: Path, objects: Any, results: Any, images: int = 1) -> tuple[Path, Path]:
    paths = folder / "gt.json", folder / "results.json"
    content = {
        "images": [{"id": index} for index in range(images)],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": objects,
    }
    paths[0].write_text(json.dumps(content))
    paths[1].write_text(json.dumps(results))
    return paths


def load(folder: Path, objects: Any, results: Any, images: int = 1) -> TinyPersonData:
    return read_tinyperson(*write(folder, objects, results, images))


def metrics(
    folder: Path, objects: Any, results: Any, images: int = 1, flags: Flags | None = None
) -> dict[str, float]:
    return evaluate_tinyperson(load(folder, objects, results, images), flags).metrics()


def test_both_ends_of_a_size_belong_to_it(tmp_path: Path) -> None:
    got = metrics(tmp_path, [truth((0, 0, 8, 8))], [found((0, 0, 8, 8), 0.5)])
    with_object = {key.split("_")[1] for key, value in got.items() if key.startswith("AP50") and value > 0.99}
    assert with_object == {"all", "tiny", "tiny1", "tiny2"}
    assert got["AP50_tiny3"] == -1 and got["AR50_small"] == -1
    assert (got["MR50_tiny1"], got["MR50_tiny2"], got["MR50_tiny3"], got["MR50_All"]) == (0, 0, -100, 0)


def test_the_size_of_an_object_is_its_area_field(tmp_path: Path) -> None:
    got = metrics(tmp_path, [truth((0, 0, 8, 8), area=500.0)], [found((0, 0, 8, 8), 0.5)])
    assert (got["AP50_tiny"], got["AP50_small"]) == (-1, pytest.approx(1))
    assert (got["MR50_tiny"], got["MR50_small"]) == (-100, 100), "8 pixels is not within 20/1.25 to 32·1.25"


def test_the_object_of_id_zero_is_used_up_without_a_hit(tmp_path: Path) -> None:
    box = (0, 0, 10, 10)
    results = [found(box, 0.9), found(box, 0.8)]
    got = metrics(tmp_path, [truth(box, id=0)], results, images=100)
    assert (got["AP50_all"], got["AR50_all"], got["MR50_All"]) == (0, 0, 100)
    # ignored by size in "small": the detections, themselves too small, are ignored, and so they are in MR
    other = truth((100, 100, 25, 25))
    got = metrics(tmp_path, [truth(box, id=0), other], [*results, found((100, 100, 25, 25), 0.1)], images=100)
    assert (got["AP50_small"], got["MR50_small"]) == (pytest.approx(1), 0)


def test_an_ignored_object_of_id_zero_still_ignores(tmp_path: Path) -> None:
    box = (0, 0, 10, 10)
    other = truth((100, 100, 10, 10))
    results = [found(box, 0.9), found((100, 100, 10, 10), 0.5)]
    got = metrics(tmp_path, [truth(box, id=0, ignore=True), other], results)
    assert (got["AP50_tiny"], got["MR50_tiny"]) == (pytest.approx(1), 0)


def test_an_ignored_object_is_taken_once_by_overlap(tmp_path: Path) -> None:
    box, other = (0, 0, 10, 10), (100, 100, 10, 10)
    results = [found(box, 0.9), found(box, 0.8), found(other, 0.5)]
    plain = Flags(use_iod_for_ignore=False)
    ignored = [truth(box, ignore=True), truth(other, id=8)]
    got = metrics(tmp_path, ignored, results, flags=plain)
    assert got["AP50_all"] == pytest.approx(0.5), "the second detection is false"
    assert metrics(tmp_path, ignored, results)["AP50_all"] == pytest.approx(1)
    crowd = [truth(box, iscrowd=1), truth(other, id=8)]
    assert metrics(tmp_path, crowd, results, flags=plain)["AP50_all"] == pytest.approx(1)


def test_the_second_look_uses_the_object_up(tmp_path: Path) -> None:
    # Part of the region: IoU 1/4, q = 0.2 · (1 + 100 / 50) = 0.6. Twice the region: IoU 1/2, which matches a free
    # object, but q = 1/3 · (1 + 100 / 400) = 0.42.
    part, twice, other = (0, 0, 5, 10), (0, 0, 40, 10), (100, 100, 10, 10)
    objects = [truth((0, 0, 20, 10), ignore=True, area=100.0), truth(other, id=8)]
    results = [found(twice, 0.8), found(other, 0.5)]
    assert metrics(tmp_path, objects, results)["AP50_all"] == pytest.approx(1)
    results.append(found(part, 0.9))
    assert metrics(tmp_path, objects, results)["AP50_all"] == pytest.approx(0.5)


def test_miss_rate_takes_the_measure_of_the_iod(tmp_path: Path) -> None:
    # Three tenths of the detections lie in a region 100 times as large: IoD 0.3, q = 0.3 / 1.3 · 101.
    other, last = (300, 300, 10, 10), (400, 400, 10, 10)
    objects = [truth((0, 0, 100, 100), ignore=True), truth(other, id=8), truth(last, id=9)]
    results = [found(other, 0.95), found(last, 0.5), *[found((-7, 0, 10, 10), 0.9)] * 2]
    got = metrics(tmp_path, objects, results)
    assert got["MR50_tiny"] == 0
    assert metrics(tmp_path, objects, results, flags=Flags(use_iod_for_ignore=False))["MR50_tiny"] == (
        pytest.approx(50)
    ), "two false positives in one image, where one is allowed"
    # The AP's measure begins with the IoU, and so is the IoD.
    assert got["AP25_tiny"] == pytest.approx(1)
    assert got["AP50_tiny"] == pytest.approx((51 + 50 / 2) / 101)


@pytest.mark.parametrize("area, rate", [(50.0, 50), (51.0, 0)])
def test_the_second_look_of_the_miss_rate_is_strict(tmp_path: Path, area: float, rate: float) -> None:
    # Half of the detections lies in the region: at 0.75 no match, and q = 0.5 / 1.5 · (1 + 50 / 100) = 0.5.
    assert 0.5 / 1.5 * (1 + 50 / 100) == 0.5
    other, last = (300, 300, 10, 10), (400, 400, 10, 10)
    objects = [truth((0, 0, 10, 10), ignore=True, area=area), truth(other, id=8), truth(last, id=9)]
    results = [found(other, 0.95), found(last, 0.5), *[found((5, 0, 10, 10), 0.9)] * 2]
    assert metrics(tmp_path, objects, results)["MR75_tiny"] == pytest.approx(rate)


def test_no_rank_below_a_point_takes_the_last_one(tmp_path: Path) -> None:
    box, other = (0, 0, 10, 10), (100, 100, 10, 10)
    objects = [truth(box), truth(other, id=8)]
    first_false = [found(FAR, 0.9), found(box, 0.8)]
    # One image: one false positive is 1 per image, within the last point only; before it the last row is taken.
    assert metrics(tmp_path, objects, first_false)["MR50_tiny"] == pytest.approx(50)
    # A hit in front: the ranks before the false positive qualify, with a recall of one half.
    three = [found(box, 0.9), found(FAR, 0.8), found(other, 0.7)]
    assert metrics(tmp_path, objects, three)["MR50_tiny"] == 0
    three = [found(box, 0.9), found(FAR, 0.8), found(FAR, 0.7), found(other, 0.6)]
    assert metrics(tmp_path, objects, three)["MR50_tiny"] == pytest.approx(50)


def test_a_neutral_row_in_front_is_a_rank(tmp_path: Path) -> None:
    ignored, box = (0, 0, 10, 10), (100, 100, 10, 10)
    objects = [truth(ignored, ignore=True), truth(box, id=8), truth((200, 0, 10, 10), id=9)]
    results = [found(FAR, 0.8), found(FAR, 0.7), found(box, 0.6)]
    assert metrics(tmp_path, objects, results)["MR50_tiny"] == pytest.approx(100 * 0.5 ** (8 / 9)), (
        "index -1 at all points but the last"
    )
    results.insert(0, found(ignored, 0.9))
    assert metrics(tmp_path, objects, results)["MR50_tiny"] == pytest.approx(100), (
        "recall 0 at the neutral row"
    )


@pytest.mark.parametrize("side, kept", [(1.59, False), (1.6, True), (9.99, True), (10.0, False)])
def test_detections_of_another_size_vanish_from_the_miss_rate(
    tmp_path: Path, side: float, kept: bool
) -> None:
    # tiny1 is 2 to 8, detections 1.6 up to but not including 10; a kept one is a false positive.
    objects = [truth((0, 0, 5, 5)), truth((50, 0, 5, 5), id=8)]
    results = [found((0, 0, 5, 5), 0.9), *[found((300, 300, side, side), 0.8)] * 2, found((50, 0, 5, 5), 0.7)]
    assert metrics(tmp_path, objects, results)["MR50_tiny1"] == pytest.approx(50 if kept else 0)


def test_low_visibility_is_ignored_by_the_miss_rate_only(tmp_path: Path) -> None:
    got = metrics(tmp_path, [truth((0, 0, 10, 10), vis_ratio=0.64)], [found((0, 0, 10, 10), 0.5)])
    assert (got["AP50_tiny"], got["MR50_tiny"]) == (pytest.approx(1), -100)
    assert metrics(tmp_path, [truth((0, 0, 10, 10), vis_ratio=0.65)], [])["MR50_tiny"] == 100


def test_crowds_are_ordinary_objects_of_the_miss_rate(tmp_path: Path) -> None:
    got = metrics(tmp_path, [truth((0, 0, 10, 10), iscrowd=1)], [found((0, 0, 10, 10), 0.5)])
    assert (got["AP50_tiny"], got["MR50_tiny"]) == (-1, 0)


def test_two_hundred_detections_for_ap_and_more_for_the_miss_rate(tmp_path: Path) -> None:
    box = (0, 0, 10, 10)
    crowded = [found(FAR, 0.9)] * 200 + [found(box, 0.1)]
    got = metrics(tmp_path, [truth(box)], crowded)
    assert got["AR50_tiny"] == 0
    assert got["MR50_tiny"] == pytest.approx(0), "index -1: the last row, which is the hit"
    got = metrics(tmp_path, [truth(box)], [found(FAR, 0.9)] * 1000 + [found(box, 0.1)])
    assert got["MR50_tiny"] == 100


def test_no_detections(tmp_path: Path) -> None:
    got = metrics(tmp_path, [truth((0, 0, 10, 10))], [])
    assert (got["AP50_tiny"], got["AR50_tiny"], got["MR50_tiny"], got["AP50_small"]) == (0, 0, 100, -1)


def test_no_objects(tmp_path: Path) -> None:
    got = metrics(tmp_path, [], [found(FAR, 0.5)])
    assert set(got.values()) == {-1, -100}


def test_a_box_without_area_is_no_match(tmp_path: Path) -> None:
    got = metrics(tmp_path, [truth((0, 0, 10, 10))], [found((0, 0, 0, 10), 0.9), found((0, 0, 10, 10), 0.5)])
    assert got["AR50_tiny"] == 1


@pytest.mark.parametrize(
    "change, fault",
    [
        ({"image_id": 5}, "image_id 5 is not in the ground truth"),
        ({"category_id": 2}, "category_id 2 is not in the ground truth"),
        ({"score": math.nan}, "score nan; expected a finite number"),
        ({"score": None}, "score None"),
        ({"bbox": [1, 2, 3]}, "bbox .1, 2, 3."),
        ({"bbox": [1, 2, 3, "4"]}, "finite numbers"),
        ({"bbox": [1, 2, 3, 10**400]}, "finite numbers"),
    ],
)
def test_a_wrong_result_is_named(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    good = found(FAR, 0.5)
    with pytest.raises(EvaluationError, match=fault) as error:
        load(tmp_path, [truth(FAR)], [good, good | change])
    assert f"{tmp_path / 'results.json'}: results[1]: " in str(error.value)


@pytest.mark.parametrize(
    "objects, fault",
    [
        ([truth(FAR), truth(FAR)], r"annotations\[1\]: id 7"),
        ([truth(FAR, image_id=3)], r"annotations\[0\]: image_id 3"),
        ([truth(FAR, area="1")], "area '1'"),
        ([{"id": 1}], "category_id None"),
        ([3], "expected an object"),
        ({}, "expected a list 'annotations'"),
    ],
)
def test_wrong_ground_truth(tmp_path: Path, objects: Any, fault: str) -> None:
    with pytest.raises(EvaluationError, match=fault):
        load(tmp_path, objects, [])


def test_files_of_another_kind(tmp_path: Path) -> None:
    good, results = write(tmp_path, [truth(FAR)], {"a": 1})
    with pytest.raises(EvaluationError, match="expected a list of"):
        read_tinyperson(good, results)
    results.write_text("[\n{]")
    with pytest.raises(EvaluationError, match="results.json:2: not JSON"):
        read_tinyperson(good, results)
    for content in ([], {"images": []}, {"images": [{"id": 1}, {"id": 1}]}, {"images": [{"id": "1"}]}):
        good.write_text(json.dumps(content))
        with pytest.raises(EvaluationError, match="gt.json"):
            read_tinyperson(good, results)
