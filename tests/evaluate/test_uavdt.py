"""UAVDT-DET's official protocol: golden cases, a slow reference, every quirk, files that are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evaluate.arrays import EvaluationError
from evaluate.uavdt import OBJECT_ATTRIBUTES, SEQUENCE_ATTRIBUTES, UavdtMetrics, evaluate_uavdt
from evaluate.uavdt_io import NUM_FRAMES, UavdtSequence, read_num_frames, read_uavdt
from tests.conftest import RunCommand

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "uavdt"
CASES = sorted(path.name for path in GOLDEN.iterdir())

Lines = str
"""Rows of a file, separated by spaces."""


class Folders:
    """Ground truth and results on disk, from short texts."""

    def __init__(self, root: Path) -> None:
        self.truth, self.results = root / "GT", root / "det"
        self.truth.mkdir()
        self.results.mkdir()
        self.num_frames: dict[str, int] = {}

    def add(
        self,
        name: str,
        objects: Lines,
        detections: Lines | None,
        regions: Lines | None = None,
        frames: int = 5,
    ) -> Folders:
        self.num_frames[name] = frames
        files = {
            self.truth / f"{name}_gt_whole.txt": objects,
            self.truth / f"{name}_gt_ignore.txt": regions,
            self.results / f"{name}.txt": detections,
        }
        for path, text in files.items():
            if text is not None:
                path.write_text("\n".join(text.split()))
        return self

    def read(self) -> list[UavdtSequence]:
        return read_uavdt(self.truth, self.results, self.num_frames)

    def evaluate(self) -> UavdtMetrics:
        return evaluate_uavdt(self.read())


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


# --- golden cases ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_golden_case(case: str, tmp_path: Path, run_command: RunCommand) -> None:
    folder, out, frames = GOLDEN / case, tmp_path / "out.json", tmp_path / "frames.json"
    expected = json.loads((folder / "expected.json").read_text())
    frames.write_text(json.dumps(expected["num_frames"]))
    result = run_command(
        "evaluate/uavdt.py", "--gt", folder / "GT", "--results", folder / "RES_DET" / "det_TEST",
        "--num-frames", frames, "--json", out,
    )  # fmt: skip
    assert result.status == 0, result.err
    found = json.loads(out.read_text())
    for key in ("num_frames", "iou_threshold", "overall"):
        assert found[key] == pytest.approx(expected[key], abs=1e-9)
    for found_group, expected_group in [
        (found["sequence_attributes"], expected["sequence_attributes"]),
        *zip(found["object_attributes"].values(), expected["object_attributes"].values(), strict=True),
    ]:
        assert found_group.keys() == expected_group.keys()
        for name, score in expected_group.items():
            assert found_group[name] == pytest.approx(score, abs=1e-9), name
    assert found["object_attributes"].keys() == expected["object_attributes"].keys()
    assert f"{expected['overall']['AP_as_printed_2_decimals']:.2f}" in result.out
    assert f"{len(expected['num_frames'])} of 20 sequences" in result.out


# --- the slow way, straight from the description ---------------------------------------------------------------


def slow_iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = [min(a[k] + a[k + 2], b[k] + b[k + 2]) - max(a[k], b[k]) for k in (0, 1)]
    common = sides[0] * sides[1]
    return float(common / (a[2] * a[3] + b[2] * b[3] - common)) if min(sides) > 0 else 0.0


def slow_ap(sequences: list[UavdtSequence], usable: dict[str, np.ndarray]) -> tuple[float, float]:
    """AP and largest recall when only some objects can be matched."""
    rows: list[tuple[float, bool]] = []
    for one in sequences:
        for frame in range(1, one.frames + 1):
            regions = one.region_xywh[one.region_frame == frame]
            truths = one.xywh[one.frame == frame]
            taken = ~usable[one.name][one.frame == frame]
            found = [r for r in range(len(one.score)) if one.detection_frame[r] == frame]
            for row in sorted(found, key=lambda r: -one.score[r]):
                x, y, w, h = one.detection_xywh[row]
                if any(x > a and y > b and x + w < a + c and y + h < b + d for a, b, c, d in regions):
                    continue
                best, match = 0.7, -1
                for index, truth in enumerate(truths):
                    overlap = slow_iou(one.detection_xywh[row], truth)
                    if not taken[index] and overlap >= best:
                        best, match = overlap, index
                if match >= 0:
                    taken[match] = True
                rows.append((float(one.score[row]), match >= 0))
    hit = np.array([h for _, h in sorted(rows, key=lambda row: -row[0])])
    count = sum(len(one.frame) for one in sequences)
    recall = np.concatenate(([0], np.cumsum(hit) / max(1, count), [1]))
    precision = np.concatenate(([0], np.cumsum(hit) / np.arange(1, len(hit) + 1), [0]))
    for index in range(len(precision) - 2, -1, -1):
        precision[index] = max(precision[index], precision[index + 1])
    return 100 * float((np.diff(recall) * precision[1:]).sum()), float(recall[-2])


def drawn_sequence(rng: np.random.Generator, name: str, frames: int) -> UavdtSequence:
    """Few positions and scores, so that almost everything is a tie."""

    def boxes(count: int, side: int) -> np.ndarray:
        corner = rng.integers(0, 3, (count, 2)) * 10
        return np.concatenate(
            (corner, np.full((count, 2), side) + rng.integers(-1, 2, (count, 2))), axis=1
        ).astype(float)

    def numbers(count: int) -> np.ndarray:
        return rng.integers(1, frames + 1, count)

    return UavdtSequence(
        name, frames, numbers(20), boxes(20, 12), rng.integers(1, 4, (20, 3)),
        numbers(4), boxes(4, 16) - 1, numbers(60), boxes(60, 12), rng.integers(1, 5, 60) / 4,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_the_slow_way(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sequences = [drawn_sequence(rng, name, 4) for name in ("M0203", "M0209", "M1401")]
    metrics = evaluate_uavdt(sequences[::-1])
    everything = {one.name: np.ones(len(one.frame), bool) for one in sequences}
    score = metrics.overall
    assert (score.ap, score.max_recall) == pytest.approx(slow_ap(sequences, everything), abs=1e-9)
    night = metrics.sequence_attributes["night"]
    assert (night.ap, night.max_recall) == pytest.approx(slow_ap(sequences[:1], everything), abs=1e-9)
    for group, (column, values) in OBJECT_ATTRIBUTES.items():
        for kind, used in (("as_shipped", 9), ("intended_column", column)):
            for value, label in enumerate(values, start=1):
                usable = {one.name: one.attributes[:, used - 7] == value for one in sequences}
                score = metrics.object_attributes[f"{group}_{kind}"][label]
                assert (score.ap, score.max_recall) == pytest.approx(slow_ap(sequences, usable), abs=1e-9)


# --- quirks ----------------------------------------------------------------------------------------------------


def test_a_region_holds_what_lies_strictly_inside_in_its_frame(folders: Folders) -> None:
    region = "1,-1,100,100,50,50,1,-1,-1"
    detections = (
        "1,-1,101,101,48,48,.9 1,-1,100,101,48,48,.9 1,-1,101,100,48,48,.9 1,-1,101,101,49,48,.9 "
        "1,-1,101,101,48,49,.9 2,-1,101,101,48,48,.9"
    )
    metrics = folders.add("M0203", "1,1,0,0,9,9,1,1,1", detections, region).evaluate()
    assert (metrics.overall.num_det, metrics.ignored_detections) == (5, 1)


@pytest.mark.parametrize("name, num_det", [("M0209", 1), ("M0801", 1), ("M0203", 0)])
def test_two_sequences_have_no_regions(folders: Folders, name: str, num_det: int) -> None:
    folders.add(name, "1,1,0,0,9,9,1,1,1", "1,-1,2,2,2,2,.9", "1,-1,0,0,50,50,1,-1,-1")
    assert folders.evaluate().overall.num_det == num_det


def test_ground_truth_in_a_region_stays(folders: Folders) -> None:
    folders.add("M0203", "1,1,2,2,9,9,1,1,1", "", "1,-1,0,0,50,50,1,-1,-1")
    assert folders.evaluate().overall.num_gt == 1


def test_frames_outside_the_sequence_do_not_exist(folders: Folders) -> None:
    objects = "0,1,0,0,9,9,1,1,1 6,1,0,0,9,9,1,1,1 5,1,0,0,9,9,1,1,1"
    metrics = folders.add("M0203", objects, "0,-1,0,0,9,9,.9 6,-1,0,0,9,9,.9 5,-1,0,0,9,9,.8").evaluate()
    assert (metrics.overall.num_gt, metrics.overall.num_det, metrics.overall.ap) == (1, 1, 100)


def test_an_iou_of_exactly_the_threshold_is_a_match(folders: Folders) -> None:
    # 70 of 100 pixels, and just less
    objects = "1,1,0,0,10,10,1,1,1 2,1,0,0,10,10,1,1,1"
    metrics = folders.add("M0203", objects, "1,-1,0,0,7,10,.9 2,-1,0,0,6.999,10,.8").evaluate()
    assert metrics.overall.max_recall == 0.5


def test_objects_of_another_value_are_taken_and_stay_in_the_recall(folders: Folders) -> None:
    objects = "1,1,0,0,10,10,3,2,1 1,2,50,50,10,10,1,1,2"
    metrics = folders.add("M0203", objects, "1,-1,50,50,10,10,.9,1,1 1,-1,0,0,10,10,.8,1,2").evaluate()
    car = metrics.object_attributes["obj1_as_shipped"]["car"]
    assert (car.ap, car.num_gt, car.num_det, car.max_recall) == (25, 2, 2, 0.5)
    assert metrics.overall.ap == 100
    assert metrics.object_attributes["obj2_as_shipped"]["lagre-occ"].ap == 50
    assert metrics.object_attributes["obj2_intended_column"]["lagre-occ"].ap == 25
    assert metrics.object_attributes["obj3_intended_column"]["no-out"].ap == 50
    assert metrics.object_attributes["obj3_intended_column"]["small-out"].ap == 25


def test_equal_scores_keep_the_order_of_sequences_and_frames(folders: Folders) -> None:
    folders.add("M1401", "1,1,0,0,10,10,1,1,1", "1,-1,0,0,10,10,.5")
    folders.add("M0203", "2,1,0,0,10,10,1,1,1", "2,-1,0,0,10,10,.5 1,-1,0,0,10,10,.5")
    # M0203 frame 1 (false), frame 2 (hit), then M1401 (hit): precision 0, 1/2, 2/3
    assert folders.evaluate().overall.ap == pytest.approx(100 * 2 / 3)


def test_more_than_500_detections_count(folders: Folders) -> None:
    lost = " ".join(["1,-1,90,90,5,5,.9"] * 600)
    assert (
        folders.add("M0203", "1,1,0,0,10,10,1,1,1", f"{lost} 1,-1,0,0,10,10,.1").evaluate().overall.max_recall
        == 1
    )


def test_a_subset_without_detections_has_no_ap(folders: Folders) -> None:
    folders.add("M0203", "1,1,0,0,9,9,1,1,1", "1,-1,0,0,9,9,.9")
    folders.add("M0601", "1,1,0,0,9,9,1,1,1", None)
    metrics = folders.evaluate()
    high = metrics.sequence_attributes["high"]
    assert (high.ap, high.num_gt, high.num_det, high.max_recall) == (None, 1, 0, 0)
    assert metrics.overall.ap == 50
    assert "n/a" in metrics.table()


def test_no_detections_at_all(folders: Folders) -> None:
    metrics = folders.add("M0203", "1,1,0,0,9,9,1,1,1", None).evaluate()
    assert (metrics.overall.ap, metrics.overall.num_gt) == (None, 1)
    assert metrics.object_attributes["obj1_as_shipped"]["car"].ap is None
    assert metrics.to_dict()["overall"]["AP_as_printed_2_decimals"] is None


def test_detections_without_objects(folders: Folders) -> None:
    metrics = folders.add("M0203", "", "1,-1,0,0,9,9,.9").evaluate()
    assert (metrics.overall.ap, metrics.overall.num_det, metrics.overall.max_recall) == (0, 1, 0)


def test_attributes_are_positions_in_the_whole_list(folders: Folders) -> None:
    folders.add("M1101", "1,1,0,0,9,9,1,1,1", "1,-1,0,0,9,9,.9")  # the 16th
    having = {name for name, s in folders.evaluate().sequence_attributes.items() if s.num_gt}
    assert having == {"night", "low", "front", "side"}
    assert sum(map(len, SEQUENCE_ATTRIBUTES.values())) == 12 + 5 + 3 + 8 + 10 + 2 + 12 + 9 + 4 + 2
    assert (len(NUM_FRAMES), sum(NUM_FRAMES.values())) == (20, 16592)


# --- files -----------------------------------------------------------------------------------------------------


def test_line_ends_and_empty_files(folders: Folders) -> None:
    folders.add("M0203", "", "", "")
    (folders.truth / "M0203_gt_whole.txt").write_bytes(b"1,1,0,0,9,9,1,1,1,\r\n2,1,0,0,9,9,1,1,1,")
    (folders.truth / "M0203_gt_ignore.txt").write_bytes(b"")
    (folders.results / "M0203.txt").write_bytes(b"1,-1,0,0,9,9,0.9,car\r\n1,-1,0,0,9,9,0.8")
    (one,) = folders.read()
    assert (one.frame.tolist(), one.score.tolist(), len(one.region_frame)) == ([1, 2], [0.9, 0.8], 0)


@pytest.mark.parametrize(
    "file, line, fault",
    [
        ("GT/M0203_gt_whole.txt", "1,1,0,0,9,9,1,1", "8 fields"),
        ("GT/M0203_gt_whole.txt", "1.5,1,0,0,9,9,1,1,1", "'1.5' is no frame"),
        ("GT/M0203_gt_ignore.txt", "1,1,0,0,9", "5 fields"),
        ("det/M0203.txt", "1,-1,0,0,9,9", "6 fields"),
        ("det/M0203.txt", "1,-1,0,0,9,9,NaN", "'NaN' is no score"),
        ("det/M0203.txt", "1,-1,0,zero,9,9,.5", "'zero' is no y"),
    ],
)
def test_a_malformed_line_is_named(
    folders: Folders, tmp_path: Path, file: str, line: str, fault: str
) -> None:
    folders.add("M0203", "1,1,0,0,9,9,1,1,1", "1,-1,0,0,9,9,.9", "1,-1,0,0,5,5,1,-1,-1")
    path = tmp_path / file
    path.write_text(f"{path.read_text()}\n{line}\n")
    with pytest.raises(EvaluationError, match=fault) as error:
        folders.read()
    assert f"{path}:2: " in str(error.value)


def test_wrong_folders(folders: Folders, tmp_path: Path) -> None:
    folders.add("M0203", "1,1,0,0,9,9,1,1,1", None)
    (folders.results / "det_TEST").mkdir()
    with pytest.raises(EvaluationError, match="no result file of any sequence .* it holds det_TEST"):
        folders.read()
    with pytest.raises(EvaluationError, match="no such folder"):
        read_uavdt(tmp_path / "none", folders.results)
    (folders.truth / "M0203_gt_whole.txt").unlink()
    (folders.results / "M0203.txt").touch()
    with pytest.raises(EvaluationError, match="needs its ground truth"):
        folders.read()


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"M0001": 5}', "M0001"),
        ("{}", "no sequence"),
        ('{"M0203": 0}', "number of frames"),
        ("[1]", "number of frames"),
    ],
)
def test_wrong_numbers_of_frames(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "frames.json"
    path.write_text(content)
    with pytest.raises(EvaluationError, match=message) as error:
        read_num_frames(path)
    assert str(path) in str(error.value)


def test_numbers_of_frames_take_the_official_order(tmp_path: Path) -> None:
    path = tmp_path / "frames.json"
    path.write_text('{"M1401": 2, "M0203": 3}')
    assert list(read_num_frames(path).items()) == [("M0203", 3), ("M1401", 2)]
    path.write_text('{"num_frames": {"M1401": 2}}')
    assert read_num_frames(path) == {"M1401": 2}


def test_a_sequence_given_twice_is_refused(folders: Folders) -> None:
    (one,) = folders.add("M0203", "1,1,0,0,9,9,1,1,1", None).read()
    with pytest.raises(EvaluationError, match="twice"):
        evaluate_uavdt([one, one])
