"""Detection in windows, end to end: the same objects as in the whole picture, drawn and written where they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from engine.inference import Detector, load_model
from engine.windows import WholePredictor, WindowPredictor, window_letterbox
from models.decode import PostprocessConfig
from tests.conftest import RunCommand
from utils.frames import Frame
from utils.results import Detections

ROOT = Path(__file__).resolve().parent.parent.parent
POST = PostprocessConfig(0.3, 0.45, 500)


@pytest.fixture(scope="module")
def detector() -> Detector:
    """The shipped weights."""
    return load_model(ROOT / "weights" / "sample_yolov5n.pt", "cpu")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """A drawn scene of 1280 × 832 pixels with many small objects."""
    folder = tmp_path_factory.mktemp("scene")
    line = [
        "scripts/make_sample.py",
        "--output",
        folder,
        "--train",
        1,
        "--val",
        1,
        "--width",
        1280,
        "--height",
        832,
    ]
    subprocess.run(
        [sys.executable, *map(str, line), "--workers", "1"], cwd=ROOT, check=True, capture_output=True
    )
    (path,) = (folder / "VisDrone2019-DET-val" / "images").glob("*0.jpg")
    image = cv2.imread(str(path))
    assert image is not None and image.shape[:2] == (832, 1280)
    return np.ascontiguousarray(image[..., ::-1])


def frame_of(image: np.ndarray) -> Frame:
    return Frame(image, Path("scene.png"), 0, None, 1, None)


def matched(one: Detections, other: Detections) -> float:
    """Share of one's detections that the other has, too: same class, IoU at least 0.5."""
    iou = box_iou(one.xyxy, other.xyxy) * (one.label[:, None] == other.label)
    return float((iou.max(dim=1).values >= 0.5).float().mean())


@pytest.mark.parametrize("workers", [0, 2])
def test_windows_find_what_the_whole_picture_has(detector: Detector, scene: np.ndarray, workers: int) -> None:
    frame = frame_of(scene)
    whole_way = WholePredictor(detector, POST, 1280)
    whole = whole_way.predict(frame, whole_way.prepare(frame))
    windows = WindowPredictor(detector, POST, 512, 128, workers=workers).predict(frame, None)
    assert len(whole.detections) > 20
    sure = whole.detections.select(whole.detections.score > 0.5)
    assert matched(sure, windows.detections) >= 0.95
    sure = windows.detections.select(windows.detections.score > 0.5)
    assert matched(sure, whole.detections) >= 0.95
    overlaps = torch.triu(box_iou(sure.xyxy, sure.xyxy) * (sure.label[:, None] == sure.label), diagonal=1)
    assert overlaps.max() < 0.45, "nothing twice"
    assert abs(len(sure) - int((whole.detections.score > 0.5).sum())) <= 0.1 * len(sure)
    assert windows.heatmap is not None and windows.heatmap.shape == (104, 160)
    assert whole.heatmap is not None and np.abs(windows.heatmap - whole.heatmap).mean() < 0.02
    corners = [
        (p[:, :2].min(axis=0), p[:, 2:].max(axis=0)) for p in (windows.patches_orig, whole.patches_orig)
    ]
    assert np.abs(np.array(corners[0]) - np.array(corners[1])).max() <= 128, "over the whole picture"
    assert {"windows", "stem", "merge"} <= set(windows.times_ms)


def test_a_picture_smaller_than_a_window_is_one_input_of_its_own_size(
    detector: Detector, scene: np.ndarray
) -> None:
    part = np.ascontiguousarray(scene[:480, :640])
    one = WindowPredictor(detector, POST, 1024, 128).predict(frame_of(part), None)
    whole = detector.predict([part], img_size=640, conf_thres=0.3)[0]
    assert one.letterbox.input_hw == whole.letterbox.input_hw == (480, 640)
    assert torch.allclose(one.detections.xyxy, whole.detections.xyxy, atol=1e-2)
    assert one.heatmap is not None and np.allclose(one.heatmap, whole.heatmap, atol=1e-4)


def test_scale_and_odd_sizes(detector: Detector, scene: np.ndarray) -> None:
    box = window_letterbox((500, 333), 1.5)
    assert (box.input_hw, box.scale, box.pad_xy) == ((768, 512), 1.5, (0.0, 0.0))
    part = np.ascontiguousarray(scene[:701, :997])
    found = WindowPredictor(detector, POST, 512, 128, scale=1.5).predict(frame_of(part), None)
    assert found.letterbox.original_hw == (701, 997) and found.heatmap is not None
    assert found.heatmap.shape == (132, 187) and len(found.detections) > 5
    assert float(found.detections.xyxy.min()) >= 0 and float(found.detections.xyxy[:, 2].max()) <= 997


def test_command_on_a_picture_too_large_to_be_drawn_whole(
    weights: Path, tmp_path: Path, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utils.frames.DRAWN_SIDE", 400)
    cv2.imwrite(str(tmp_path / "a.png"), np.random.default_rng(0).integers(0, 255, (500, 800, 3), np.uint8))
    common = ("--weights", weights, "--device", "cpu", "--project", tmp_path / "runs", "--conf-thres", 0.0)
    every = ("--save-txt", "--save-crop", "--view-cluster", "--max-det", 5)
    result = run_command(
        "detect.py", *common, "--source", tmp_path / "a.png", "--window", 256, "--overlap", 64, *every
    )
    assert result.status == 0, result.err
    folder = tmp_path / "runs" / "exp"
    drawn = cv2.imread(str(folder / "a.png"))
    assert drawn is not None and drawn.shape == (250, 400, 3)
    rows = np.loadtxt(folder / "labels" / "a.txt").reshape(-1, 5)
    assert len(rows) and rows[:, 1:].min() >= 0 and rows[:, 1:3].max() > 0.6, "shares of the whole picture"
    crops = sorted((folder / "crops").rglob("*.jpg"))
    assert len(crops) == len(rows)
    sides = sorted(round(row[3] * 800) for row in rows)
    widths = sorted(cv2.imread(str(path)).shape[1] for path in crops)
    assert np.abs(np.array(sides) - widths).max() <= 2, (
        "crops have the pixels of the picture, not of the drawing"
    )
    assert cv2.imread(str(folder / "a_cluster.jpg")) is not None


@pytest.mark.parametrize("max_det, told", [(3, True), (500, False)])
def test_windows_that_are_full_are_told(
    detector: Detector, scene: np.ndarray, caplog: pytest.LogCaptureFixture, max_det: int, told: bool
) -> None:
    post = PostprocessConfig(0.3, 0.45, max_det)
    WindowPredictor(detector, post, 512, 128).predict(frame_of(scene), None)
    assert ("windows the 3 best detections are all that is kept" in caplog.text) == told


def test_a_hint_is_given_once(weights: Path, tmp_path: Path, run_command: RunCommand) -> None:
    for name in "ab":
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((64, 4100, 3), np.uint8))
    common = ("--weights", weights, "--device", "cpu", "--project", tmp_path / "runs", "--source", tmp_path)
    result = run_command("detect.py", *common, "--img-size", 640)
    assert result.status == 0 and (result.out + result.err).count("--window 4096") == 1
    assert "--window" not in run_command("detect.py", *common, "--window", 512, "--nosave").out
