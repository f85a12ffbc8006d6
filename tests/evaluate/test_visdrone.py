"""VisDrone-DET's official protocol: golden cases, a slow reference, every quirk, files that are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from evaluate.arrays import EvaluationError
from evaluate.visdrone import IOU_THRESHOLDS, MAX_DETECTIONS, VisDroneMetrics, evaluate_visdrone
from evaluate.visdrone_io import ImageSizes, VisDroneImage, read_visdrone
from evaluate.visdrone_regions import RegionMap, without_ignored_regions
from tests.conftest import RunCommand

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "visdrone"
CASES = sorted(path.name for path in GOLDEN.iterdir())
DESCRIPTION = {
    "dataset", "case", "visibility", "annotations", "tolerance_abs", "toolkit", "result_row_order", "patches",
}  # fmt: skip

Row = tuple[float, ...]


def image(
    objects: list[Row], detections: list[Row], name: str = "a", size_wh: tuple[int, int] = (100, 100)
) -> VisDroneImage:
    """Rows (x, y, w, h, score, category) of both kinds as an image."""
    truth, found = (np.array(rows, dtype=np.float64).reshape(-1, 6) for rows in (objects, detections))
    return VisDroneImage(
        name, truth[:, :4], truth[:, 4] != 0, truth[:, 5].astype(np.int64),
        found[:, :4], found[:, 4], found[:, 5].astype(np.int64), size_wh,
    )  # fmt: skip


def ap50(metrics: VisDroneMetrics, category: int) -> float:
    return float(metrics.ap_by_class[category - 1, 0])


# --- golden cases ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_golden_case(case: str, tmp_path: Path, run_command: RunCommand) -> None:
    folder = GOLDEN / case
    out = tmp_path / "out.json"
    result = run_command(
        "evaluate/visdrone.py", "--annotations", folder / "annotations", "--results", folder / "results",
        "--image-sizes", folder / "image_sizes.json", "--json", out,
    )  # fmt: skip
    assert result.status == 0, result.err
    expected = json.loads((folder / "expected.json").read_text())
    found = json.loads(out.read_text())
    for key in expected.keys() - DESCRIPTION:
        assert_close(found[key], expected[key], key)
    printed = expected["metrics_as_printed_2_decimals"]
    assert f"maxDets=500 ] = {printed['AP']:.2f}%" in result.out
    assert f"maxDets=  1 ] = {printed['AR1']:.2f}%" in result.out
    assert "official protocol" in result.out and f"{len(expected['gt_rows_kept'])} images" in result.out


def assert_close(found: Any, expected: Any, where: str) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_close(found[key], value, f"{where}/{key}")
    elif isinstance(expected, list) and expected and not isinstance(expected[0], str):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9, err_msg=where)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-9), where
    else:
        assert found == expected, where


# --- the slow way, straight from the description ---------------------------------------------------------------


def pixel_map(regions: np.ndarray, size_wh: tuple[int, int]) -> np.ndarray:
    width, height = size_wh
    painted = np.zeros((height + 1, width + 1), dtype=np.int64)  # row and column 0 are not used
    for x, y, w, h in np.maximum(regions, 1).astype(int):
        painted[y : min(height, y + h) + 1, x : min(width, x + w) + 1] = 1
    return painted


def slowly_dropped(box: np.ndarray, painted: np.ndarray) -> bool:
    height, width = (side - 1 for side in painted.shape)
    x, y, w, h = (max(1, int(np.sign(v) * np.floor(abs(v) + 0.5))) for v in box)
    x0, y0, x1, y1 = min(width, x), min(height, y), min(width, x + w), min(height, y + h)
    return bool(painted[y0 + 1 : y1 + 1, x0 + 1 : x1 + 1].sum() / (w * h) >= 0.5)


def slow_overlap(detection: np.ndarray, truth: np.ndarray, ignored: bool) -> float:
    sides = [
        min(detection[k] + detection[k + 2], truth[k] + truth[k + 2]) - max(detection[k], truth[k])
        for k in (0, 1)
    ]
    if min(sides) <= 0:
        return 0.0
    common, area = sides[0] * sides[1], detection[2] * detection[3]
    return float(common / (area if ignored else area + truth[2] * truth[3] - common))


def slow_matches(one: VisDroneImage, category: int, threshold: float, limit: int) -> list[tuple[float, int]]:
    """(score, 1 hit, 0 false, -1 neutral) of an image, best score first."""
    truths = [
        (box, not c) for box, c, k in zip(one.xywh, one.counts, one.category, strict=True) if k == category
    ]
    truths.sort(key=lambda pair: pair[1])
    first = range(min(limit, len(one.score)))
    rows = sorted((r for r in first if one.detection_category[r] == category), key=lambda r: -one.score[r])
    taken, found = [0] * len(truths), []
    for row in rows:
        best, match = threshold, -1
        for index, (box, ignored) in enumerate(truths):
            if taken[index] == 1:
                continue
            if match >= 0 and ignored:
                break
            overlap = slow_overlap(one.detection_xywh[row], box, ignored)
            if overlap >= best:
                best, match = overlap, index
        state = 0 if match < 0 else -1 if truths[match][1] else 1
        if state == 1:
            taken[match] = 1
        found.append((float(one.score[row]), state))
    return found


def slow_area(hits: np.ndarray, alarms: np.ndarray, objects: int) -> float:
    hits, alarms = np.cumsum(hits), np.cumsum(alarms)
    recall = np.concatenate(([0], hits / max(1, objects), [1]))
    precision = np.concatenate(([0], hits / np.maximum(1, hits + alarms), [0]))
    for index in range(len(precision) - 2, -1, -1):
        precision[index] = max(precision[index], precision[index + 1])
    return float(sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall))))


def slow_metrics(images: list[VisDroneImage]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    ap, ar = np.zeros((10, 10)), {limit: np.zeros((10, 10)) for limit in MAX_DETECTIONS}
    for category in range(1, 11):
        count = sum(int((one.category == category).sum()) for one in images)
        for column, threshold in enumerate(IOU_THRESHOLDS):
            for limit in MAX_DETECTIONS:
                rows = [row for one in images for row in slow_matches(one, category, threshold, limit)]
                state = np.array([s for _, s in sorted(rows, key=lambda row: -row[0])])
                ar[limit][category - 1, column] = 100 * (state == 1).sum() / max(1, count)
                if limit == MAX_DETECTIONS[-1] and len(rows):
                    ap[category - 1, column] = 100 * slow_area(state == 1, state == 0, count)
    return ap, ar


def drawn_image(rng: np.random.Generator, name: str) -> VisDroneImage:
    """Few positions, sizes and scores, so that almost everything is a tie."""

    def boxes(count: int) -> np.ndarray:
        return np.concatenate(
            (rng.integers(-2, 8, (count, 2)) * 4, rng.integers(1, 6, (count, 2)) * 4), axis=1
        )

    objects = np.column_stack(
        (boxes(20), rng.uniform(size=20) > 0.3, rng.choice([0, 1, 1, 1, 2, 2, 2, 11], 20))
    )
    detections = np.column_stack(
        (
            boxes(60) + rng.choice([0, 0.5, 1], (60, 4)),
            rng.integers(1, 6, 60) / 5,
            rng.choice([0, 1, 2, 11], 60),
        )
    )
    objects[objects[:, 5] == 0, 2:4] = 6
    return image(list(map(tuple, objects)), list(map(tuple, detections)), name, size_wh=(30, 25))


@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_the_slow_way(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = [drawn_image(rng, name) for name in "abcd"]
    kept = []
    for one in images:
        fast = without_ignored_regions(one)
        painted = pixel_map(one.xywh[one.category == 0], (30, 25))
        stays = [not slowly_dropped(box, painted) for box in one.detection_xywh]
        np.testing.assert_array_equal(fast.detection_xywh, one.detection_xywh[stays])
        stays = [
            k != 0 and not slowly_dropped(b, painted) for b, k in zip(one.xywh, one.category, strict=True)
        ]
        np.testing.assert_array_equal(fast.xywh, one.xywh[stays])
        kept.append(fast)
    metrics = evaluate_visdrone(images)
    ap, ar = slow_metrics(kept)
    np.testing.assert_allclose(metrics.ap_by_class, ap, rtol=0, atol=1e-9)
    for limit in MAX_DETECTIONS:
        np.testing.assert_allclose(metrics.ar_by_class[limit], ar[limit], rtol=0, atol=1e-9)


# --- ignored regions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "box, dropped",
    [
        ((10, 10, 10, 10), True),  # columns 11–20 of region columns 10–20
        ((15, 10, 10, 10), True),  # columns 16–20, exactly half
        ((16, 10, 10, 10), False),
        ((4, 10, 10, 10), True),  # columns 10–14: half; were column x0 counted and x1 not, it would be less
        ((3, 10, 10, 10), False),
        ((15.5, 10, 10, 10), False),  # rounds to 16
        ((14.5, 10, 10, 10), True),  # to 15, as half to even would not: 14
        ((3.5, 10, 10, 10), True),  # to 4
        ((2.5, 10, 10, 10), False),  # to 3 and not to 2
    ],
)
def test_share_of_a_region(box: Row, dropped: bool) -> None:
    region = RegionMap.of(np.array([[10, 0, 10, 99.0]]), (100, 100))
    assert region.drops(np.array([box])).tolist() == [dropped]


def test_a_region_is_one_pixel_larger_than_its_numbers() -> None:
    region = RegionMap.of(np.array([[10, 10, 1, 1.0]]), (100, 100))
    # 2 × 2 pixels, of which a box at 9 covers columns and rows 10 to 11
    assert region.drops(np.array([[9, 9, 2, 4.0], [9, 9, 3, 3.0], [10, 10, 1, 1.0]])).tolist() == [
        True,
        False,
        True,
    ]


def test_the_area_of_a_box_is_not_clipped_to_the_image() -> None:
    everything = RegionMap.of(np.array([[0, 0, 100, 100.0]]), (100, 100))
    boxes = np.array(
        [[90, 90, 10, 10], [95, 90, 10, 10], [96, 90, 10, 10], [-50, -50, 60, 60]], dtype=np.float64
    )
    assert everything.drops(boxes).tolist() == [True, True, False, True]


def test_overlapping_regions_count_once_and_may_lie_outside() -> None:
    regions = np.array([[10, 10, 3, 9], [10, 10, 3, 9], [500, 500, 3, 3], [0, -5, 0, 0]], dtype=np.float64)
    assert RegionMap.of(regions, (100, 100)).drops(
        np.array([[9, 9, 10, 10.0], [9, 9, 8, 10.0]])
    ).tolist() == [
        False,
        True,
    ]


def test_without_a_region_nothing_is_dropped_and_no_size_is_needed() -> None:
    one = image([(-90, -90, 5, 5, 1, 4)], [(-90, -90, 5, 5, 0.5, 4)], size_wh=(0, 0))
    assert without_ignored_regions(one) is one


# --- matching and means ----------------------------------------------------------------------------------------


def test_the_first_rows_of_the_file_are_taken_and_not_the_best_scores() -> None:
    bad = [(50, 50, 10, 10, 0.1, 0)] * 5 + [(50, 50, 10, 10, 0.1, 11)] * 5
    metrics = evaluate_visdrone([image([(0, 0, 10, 10, 1, 4)], [*bad, (0, 0, 10, 10, 0.9, 4)])])
    assert (metrics.ar[10], metrics.ar[100]) == (0, 100)


def test_rows_in_ignored_regions_do_not_count_for_the_limit() -> None:
    inside = (20, 20, 10, 10, 0.1, 4)
    objects = [(0, 0, 10, 10, 1, 4), (15, 15, 30, 30, 0, 0)]
    assert evaluate_visdrone([image(objects, [inside, inside, (0, 0, 10, 10, 0.9, 4)])]).ar[1] == 100


def test_ignored_objects_are_neutral_and_stay_in_the_recall() -> None:
    objects = [(0, 0, 10, 10, 1, 4), (50, 50, 40, 40, 0, 4)]
    detections = [(50, 50, 10, 10, 0.9, 4), (60, 60, 10, 10, 0.8, 4), (0, 0, 10, 10, 0.7, 4)]
    metrics = evaluate_visdrone([image(objects, detections)])
    assert ap50(metrics, 4) == pytest.approx(50)
    assert metrics.ar[500] == pytest.approx(50)


def test_a_class_with_ignored_objects_only_has_weight() -> None:
    metrics = evaluate_visdrone(
        [image([(0, 0, 10, 10, 1, 4), (50, 50, 9, 9, 0, 5)], [(0, 0, 10, 10, 0.9, 4)])]
    )
    assert metrics.ap50 == pytest.approx(50)
    assert metrics.class_images.tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 0, 0]


def test_a_class_weighs_as_much_as_it_has_images() -> None:
    car, bus = (0, 0, 10, 10, 1, 4), (50, 50, 10, 10, 1, 9)
    found = [(0, 0, 10, 10, 0.9, 4)]
    metrics = evaluate_visdrone(
        [image([car, bus], found, "a"), image([car], found, "b"), image([car], found, "c")]
    )
    assert metrics.ap50 == pytest.approx(75)


def test_overlap_at_the_threshold_counts_and_the_last_of_equals_is_taken() -> None:
    # The first detection reaches both objects equally; were the first taken, the second would find none.
    objects = [(0, 0, 10, 10, 1, 4), (10, 0, 10, 10, 1, 4)]
    detections = [(5, 0, 10, 10, 0.9, 4), (0, 0, 10, 5, 0.8, 4)]
    assert evaluate_visdrone([image(objects, detections)]).ar_by_class[500][3, 0] == 50
    wide = [(0, 0, 20, 10, 0.9, 4), (0, 0, 10, 5, 0.8, 4)]  # IoU 0.5 with each
    assert evaluate_visdrone([image(objects, wide)]).ar_by_class[500][3, 0] == 100


def test_equal_scores_keep_the_order_of_images() -> None:
    found, lost = (0, 0, 10, 10, 0.5, 4), (50, 50, 10, 10, 0.5, 4)
    first = evaluate_visdrone([image([(*found[:4], 1, 4)], [found]), image([], [lost], "b")])
    second = evaluate_visdrone([image([], [lost], "b"), image([(*found[:4], 1, 4)], [found])])
    assert (ap50(first, 4), ap50(second, 4)) == (100, 50)


def test_the_area_takes_all_points() -> None:
    objects = [(20 * k, 0, 10, 10, 1, 4) for k in range(3)]
    hits = [(20 * k, 0, 10, 10, score, 4) for k, score in enumerate((0.9, 0.7, 0.5))]
    metrics = evaluate_visdrone([image(objects, [*hits, (50, 50, 10, 10, 0.8, 4)])])
    assert ap50(metrics, 4) == pytest.approx(100 * (1 + 3 / 4 + 3 / 4) / 3)


def test_no_detections_at_all() -> None:
    metrics = evaluate_visdrone([image([(0, 0, 10, 10, 1, 4)], [])])
    assert set(metrics.metrics().values()) == {0}
    assert "n/a" in metrics.table()


def test_nothing_to_evaluate_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="nothing to evaluate"):
        evaluate_visdrone([image([(0, 0, 10, 10, 1, 11)], [(0, 0, 10, 10, 0.5, 4)])])


# --- files -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """One image whose files have CRLF, a trailing comma, and no end of the last line."""
    annotations, results = tmp_path / "annotations", tmp_path / "results"
    annotations.mkdir()
    results.mkdir()
    (annotations / "a.txt").write_bytes(b"0,0,10,10,1,4,0,0,\r\n50,50,20,20,0,0,0,0,\r\n\r\n20,0,9,9,1,5,0,0")
    (results / "a.txt").write_bytes(b"0,0,10,10,0.9,4,-1,-1\r\n20.5,0,9,9,1e-1,5,-1,-1,")
    return annotations, results


def read(folders: tuple[Path, Path], **sizes: Path) -> list[VisDroneImage]:
    return read_visdrone(*folders, ImageSizes(**sizes))


def sizes_file(folder: Path, content: object) -> Path:
    path = folder / "sizes.json"
    path.write_text(json.dumps(content))
    return path


def test_files_are_read(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (one,) = read(folders, file=sizes_file(tmp_path, {"a": [100, 80]}))
    assert one.category.tolist() == [4, 0, 5] and one.counts.tolist() == [True, False, True]
    assert one.detection_xywh.tolist() == [[0, 0, 10, 10], [20.5, 0, 9, 9]]
    assert (one.score.tolist(), one.size_wh, one.name) == ([0.9, 0.1], (100, 80), "a")


def test_sizes_come_from_image_headers(folders: tuple[Path, Path], tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((80, 100, 3), np.uint8))
    assert read(folders, images=tmp_path)[0].size_wh == (100, 80)


@pytest.mark.parametrize(
    "content, message",
    [
        ({}, "no entry 'a'"),
        ({"a": [100]}, "expected .width, height."),
        ({"a": [100, 0]}, "expected .width, height."),
        ([1], "expected {name"),
    ],
)
def test_wrong_sizes(folders: tuple[Path, Path], tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        read(folders, file=sizes_file(tmp_path, content))


def test_missing_sizes_say_what_to_give(
    folders: tuple[Path, Path], run_command: RunCommand, tmp_path: Path
) -> None:
    options = ("--annotations", folders[0], "--results", folders[1])
    result = run_command("evaluate/visdrone.py", *options)
    assert result.status == 1 and "--image-sizes" in result.err and "--images" in result.err
    with pytest.raises(EvaluationError, match="no image a"):
        read(folders, images=tmp_path)
    (folders[0] / "a.txt").write_text("0,0,10,10,1,4,0,0\n")
    assert run_command("evaluate/visdrone.py", *options).status == 0


@pytest.mark.parametrize(
    "folder, line, fault",
    [
        (0, "1,2,3,4,1,4,0", "7 fields"),
        (0, "1,2,3,4,1,4,0,0,0", "9 fields"),
        (0, "1,2,3,4,1,12,0,0", "'12' is no category"),
        (0, "1,2,3,4,1,4.5,0,0", "'4.5' is no category"),
        (0, "1,2,x,4,1,4,0,0", "'x' is no w"),
        (0, "1.5,2,3,4,0,0,0,0", "whole pixels"),
        (1, "1,2,3,4,nan,4,-1,-1", "'nan' is no score"),
        (1, "1,2,3,4,inf,4,-1,-1", "'inf' is no score"),
        (1, "1,2,3,4,0.5", "5 fields"),
        (1, "1 2 3 4 0.5 4", "1 fields"),
        (1, "1,,3,4,0.5,4", "'' is no y"),
        (1, "1_0,2,3,4,0.5,4", "'1_0' is no x"),
    ],
)
def test_a_malformed_line_is_named(
    folders: tuple[Path, Path], tmp_path: Path, folder: int, line: str, fault: str
) -> None:
    path = folders[folder] / "a.txt"
    good = path.read_text().splitlines()[0]
    path.write_text(f"{good}\n\n{line}\n{good}\n")
    with pytest.raises(EvaluationError, match=fault) as error:
        read(folders, file=sizes_file(tmp_path, {"a": [100, 80]}))
    assert f"{path}:3: " in str(error.value)


def test_empty_result_file_missing_file_and_unknown_file(folders: tuple[Path, Path], tmp_path: Path) -> None:
    sizes = sizes_file(tmp_path, {"a": [100, 80]})
    result = folders[1] / "a.txt"
    result.write_bytes(b"")
    assert len(read(folders, file=sizes)[0].score) == 0
    (folders[1] / "b.txt").write_bytes(b"")
    with pytest.raises(EvaluationError, match="without annotation file: b"):
        read(folders, file=sizes)
    result.unlink()
    with pytest.raises(EvaluationError, match="no result file for a"):
        read(folders, file=sizes)
    with pytest.raises(EvaluationError, match="no such folder"):
        read((tmp_path / "none", folders[1]))
    with pytest.raises(EvaluationError, match="no annotation files"):
        read((tmp_path, folders[1]))
