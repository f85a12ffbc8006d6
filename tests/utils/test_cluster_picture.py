"""The --view-cluster picture: what its panels show and where, and the cases that must not break it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.boxes import Letterbox
from utils.cluster_picture import (
    PANEL_PX,
    BoxStyle,
    GroundTruth,
    draw_cluster_picture,
    heatmap_on_image,
    label_heatmap,
    load_ground_truth,
    patches_caption,
)
from utils.draw import GREEN
from utils.results import Detections

NAMES = ["car", "van"]


@dataclass
class FakePrediction:
    letterbox: Letterbox
    heatmap: np.ndarray | None = None
    patches_orig: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    detections: Detections = field(default_factory=Detections.empty)
    times_ms: dict[str, float] = field(default_factory=dict)


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


def red_pixels(picture: np.ndarray) -> np.ndarray:
    values = picture.astype(int)
    return (values[..., 0] > values[..., 1] + 40) & (values[..., 0] > values[..., 2] + 40)


# ----------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize(
    "letterbox",
    [
        Letterbox.fit((480, 640), (480, 640)),  # as it is
        Letterbox.fit((480, 640), (960, 1280)),  # enlarged
        Letterbox.fit((480, 640), (640, 640)),  # padded above and below
        Letterbox.fit((480, 640), (480, 960)),  # padded left and right
        Letterbox.fit((765, 1360), (384, 640)),  # shrunk, odd sizes, padded
        Letterbox.fit((640, 360), (1536, 864)),  # portrait
    ],
)
@pytest.mark.parametrize("shrink", [1.0, 0.5])
def test_heatmap_lies_on_its_object(letterbox: Letterbox, shrink: float) -> None:
    height, width = letterbox.original_hw
    box = torch.tensor([[0.55 * width, 0.2 * height, 0.85 * width, 0.5 * height]])
    shown_hw = (round(height * shrink), round(width * shrink))
    shown = heatmap_on_image(label_heatmap(box, letterbox), letterbox, shown_hw)
    assert shown.shape == shown_hw and shown.dtype == np.float32
    assert shown.min() >= 0.0 and shown.max() <= 1.0
    mass = shown / shown.sum()
    x = float((mass.sum(axis=0) * (np.arange(shown_hw[1]) + 0.5)).sum()) / shrink
    y = float((mass.sum(axis=1) * (np.arange(shown_hw[0]) + 0.5)).sum()) / shrink
    cell_orig = 8 / letterbox.scale
    assert x == pytest.approx(0.7 * width, abs=0.5 * cell_orig)
    assert y == pytest.approx(0.35 * height, abs=0.5 * cell_orig)


def test_heatmap_of_padding_alone_is_not_shown() -> None:
    letterbox = Letterbox.fit((320, 640), (640, 640))  # 160 px of padding above: 20 rows of cells
    heatmap = np.zeros((80, 80), np.float32)
    heatmap[:19] = 1.0
    assert heatmap_on_image(heatmap, letterbox, (320, 640)).max() == 0.0


# -------------------------------------------------------------------------------------------- panels


def test_panels_with_and_without_labels() -> None:
    image, letterbox = grey(480, 640), Letterbox.fit((480, 640), (480, 640))
    box = torch.tensor([[96.0, 96.0, 160.0, 160.0]])
    prediction = FakePrediction(
        letterbox,
        label_heatmap(box, letterbox),
        np.array([[320, 240, 400, 320]], np.float32),
        Detections(box + 200, torch.tensor([0.9]), torch.tensor([0])),
    )
    picture = draw_cluster_picture(image, prediction, NAMES)
    panel_height = picture.shape[0] - 480  # height of the caption bar
    assert 10 < panel_height < 30 and picture.shape[1] == 2 * 640 + 6
    left, right = picture[panel_height:, :640], picture[panel_height:, 646:]
    green = (left == GREEN).all(axis=2)
    rows, columns = np.nonzero(green)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (240, 319, 320, 399)
    hot = np.abs(left.astype(int) - 90).max(axis=2) > 20
    hot[240:320, 320:400] = False
    rows, columns = np.nonzero(hot)
    assert rows.min() >= 88 and rows.max() < 168 and columns.min() >= 88 and columns.max() < 168
    rows, columns = np.nonzero(red_pixels(right))  # the box of class 0, label above it
    assert 250 < rows.min() <= 296 and 355 <= rows.max() <= 360 and 290 <= columns.min() <= 296
    assert not red_pixels(right)[310:345, 310:345].any()

    truth = truth_of(box)
    both = draw_cluster_picture(image, prediction, NAMES, truth, BoxStyle(line_thickness=1, hide_labels=True))
    assert both.shape == (2 * picture.shape[0] + 6, picture.shape[1], 3)
    lower_right = both[picture.shape[0] + 6 + panel_height :, 646:]
    rows, columns = np.nonzero(red_pixels(lower_right))
    assert 94 <= rows.min() <= 97 and 158 <= rows.max() <= 161


def truth_of(box: torch.Tensor) -> GroundTruth:

    return GroundTruth(box, torch.zeros(len(box), dtype=torch.int64), [])


@pytest.mark.parametrize("hw", [(480, 640), (640, 480), (37, 23), (30, 2000), (1, 1), (240, 2400)])
@pytest.mark.parametrize("dense", [False, True])
def test_nothing_found_anywhere(hw: tuple[int, int], dense: bool) -> None:
    letterbox = Letterbox.fit(hw, (480, 640))
    heatmap = None if dense else np.zeros((60, 80), np.float32)
    patches = np.array([[0, 0, hw[1], hw[0]]], np.float32) if dense else np.zeros((0, 4), np.float32)
    prediction = FakePrediction(letterbox, heatmap, patches)
    picture = draw_cluster_picture(grey(*hw), prediction, NAMES, truth_of(torch.zeros(0, 4)))
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    assert max(picture.shape[:2]) <= 2.2 * PANEL_PX[1] and max(picture.shape[:2]) >= PANEL_PX[0]
    without = draw_cluster_picture(grey(*hw), prediction, NAMES)
    assert without.shape[1] == picture.shape[1] and without.shape[0] < picture.shape[0]


def test_caption_counts_area_inside_the_image() -> None:
    letterbox = Letterbox.fit((100, 200), (512, 1024))
    patches = np.array([[0, 0, 50, 50], [150, 50, 250, 150]], np.float32)  # the second reaches out of it
    heatmap = np.zeros((64, 128), np.float32)
    assert (
        patches_caption(FakePrediction(letterbox, heatmap, patches))
        == "heatmap and 2 patches, 25% of the image"
    )
    assert patches_caption(FakePrediction(letterbox, heatmap)) == "heatmap and 0 patches, 0% of the image"
    whole = np.array([[0, 0, 200, 100]], np.float32)
    assert (
        patches_caption(FakePrediction(letterbox, None, whole))
        == "1 patch, 100% of the image; no heatmap (dense)"
    )


# -------------------------------------------------------------------------------------- ground truth


def write_labels(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_labels_of_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_labels(tmp_path / "labels" / "a.txt", "1 0.5 0.25 0.1 0.2\n0 0.1 0.1 0.1 0.1\n7 0.5 0.5 0.1 0.1\n")
    (tmp_path / "images").mkdir()
    truth = load_ground_truth(tmp_path / "images" / "a.png", (100, 200), 2)
    assert truth is not None
    assert truth.xyxy[0].tolist() == pytest.approx([90.0, 15.0, 110.0, 35.0], abs=1e-4)
    assert truth.label.tolist() == [1, 0]
    assert len(truth.problems) == 1 and "class out of range" in str(truth.problems[0])
    monkeypatch.chdir(tmp_path / "images")  # a relative path without "images" in it
    assert load_ground_truth(Path("a.png"), (100, 200), 2) is not None


def test_what_is_no_label_file_is_no_ground_truth(tmp_path: Path) -> None:
    assert load_ground_truth(tmp_path / "images" / "none.png", (10, 10), 2) is None
    write_labels(tmp_path / "b.txt", "notes about the picture b.png\n")  # beside a picture outside images/
    assert load_ground_truth(tmp_path / "b.png", (10, 10), 2) is None
    (tmp_path / "c.txt").write_bytes(bytes(range(256)) * 20)
    assert load_ground_truth(tmp_path / "c.png", (10, 10), 2) is None
    write_labels(tmp_path / "labels" / "d.txt", "")
    truth = load_ground_truth(tmp_path / "images" / "d.png", (10, 10), 2)
    assert truth is not None and len(truth.xyxy) == 0
