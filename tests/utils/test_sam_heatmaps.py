"""Preparing images with masks: a tiny SAM with random weights, from its file to heatmap files and the report."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from scripts.data_prepare import main
from tests.utils.test_sam import save_tiny_sam, tiny_sam
from utils.datasets.base import BoxRows, DatasetSource, ImageJob, Split
from utils.heatmap import load_heatmap, render_heatmap
from utils.labels import load_labels
from utils.mask_heatmap import MaskMode
from utils.prepare import PrepareSettings, prepare_images
from utils.prepare_report import summarise, summary_table
from utils.sam import SamError
from utils.sam_heatmaps import SamHeatmaps

pytest.importorskip("segment_anything", reason="the package segment-anything is not installed")

HW = (80, 120)
BOXES = np.array([[10.0, 10, 30, 24], [70, 30, 20, 40], [50, 5, 2, 2]])
"""Left, top, width, height; the last is too small for a mask."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sam(tmp_path_factory.mktemp("sam") / "tiny.pth")


def load(weights: Path, mode: MaskMode) -> SamHeatmaps:
    return SamHeatmaps(weights, "vit_b", mode, "cpu", builders={"vit_b": tiny_sam})


def picture(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*HW, 3), value, dtype=np.uint8))
    return path


def jobs(folder: Path) -> list[ImageJob]:
    rows = BoxRows("a", BOXES, np.zeros(3, dtype=np.int64), np.zeros((0, 4)))
    return [ImageJob(picture(folder / "images" / f"{n}.png", 40 * n), rows) for n in (1, 2)]


@pytest.mark.parametrize("mode", ["sam", "hybrid"])
def test_heatmaps_are_made_once_and_say_what_they_are(tmp_path: Path, weights: Path, mode: MaskMode) -> None:
    work = jobs(tmp_path)
    first = list(prepare_images(work, PrepareSettings(), 1, load(weights, mode)))
    heatmap = load_heatmap(tmp_path / "heatmaps" / "1.npz")
    assert heatmap.mode == mode
    assert heatmap.fallbacks["tiny"] == 1
    assert all(report.changed and report.fallbacks for report in first)
    gaussian = render_heatmap([[51, 6, 2, 2]], HW, stride=4)
    assert (heatmap.values[gaussian > 0] >= np.rint(gaussian[gaussian > 0] * 255) - 1).all()
    unused = SamHeatmaps(weights, "vit_b", mode, "cpu", builders={})  # a second run loads no network
    again = list(prepare_images(work, PrepareSettings(), 1, unused))
    assert not any(report.changed for report in again)
    assert [report.fallbacks for report in again] == [report.fallbacks for report in first]
    found = load_labels([job.image for job in work], 1, progress=False)
    assert found.mask_tau.tolist() == [0.5, 0.5], "training has to use the file, not the boxes"


def test_another_mode_or_other_weights_make_them_anew(tmp_path: Path, weights: Path) -> None:
    work = jobs(tmp_path)
    list(prepare_images(work, PrepareSettings(), 1, load(weights, "hybrid")))
    other = tmp_path / "other.pth"
    state = torch.load(weights, weights_only=True)
    torch.save({name: value + 0.01 for name, value in state.items()}, other)
    assert all(r.changed for r in prepare_images(work, PrepareSettings(), 1, load(other, "hybrid")))
    assert all(r.changed for r in prepare_images(work, PrepareSettings(), 1, load(other, "sam")))
    assert all(r.changed for r in prepare_images(work, PrepareSettings(), 1))
    assert load_heatmap(tmp_path / "heatmaps" / "1.npz").mode == "gaussian"


def test_the_report_tells_the_share_of_fall_backs(tmp_path: Path, weights: Path) -> None:
    work = jobs(tmp_path)
    reports = {"train": list(prepare_images(work, PrepareSettings(), 1, load(weights, "hybrid")))}
    source = DatasetSource("coco", ["thing"], [Split("train", work, [])])
    summary = summarise(source, reports, {"heatmap": "hybrid"})
    split = summary["splits"]["train"]
    assert split["mask_fallbacks"]["tiny"] == 2
    assert split["mask_fallback_share"] == pytest.approx(sum(split["mask_fallbacks"].values()) / 6, abs=1e-4)
    assert "mask not used: tiny" in summary_table(summary)


def test_a_missing_weights_file_is_told_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(SamError, match=r"no such file.*sam_vit_b_01ec64.pth.*--heatmap gaussian"):
        main(["--dataset", "VisDrone", "--root", str(tmp_path), "--sam-weights", str(tmp_path / "sam.pth")])
