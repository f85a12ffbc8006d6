"""The adapter in SAHI's own hands, and the comparison with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sahi")

from sahi.predict import get_prediction, get_sliced_prediction
from sahi.slicing import slice_image

from engine import Detector, load_model
from engine.integrations.sahi import ESODDetectionModel
from engine.integrations.sahi_comparison import SlicePlan
from models.decode import PostprocessConfig
from tests.conftest import ROOT, RunCommand
from utils.decoding import read_picture
from utils.summary import spread_indices

SAMPLE = ROOT / "weights" / "sample_yolov5n.pt"


@pytest.fixture(scope="module")
def detector() -> Detector:
    return load_model(SAMPLE, "cpu")


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """A piece of a sample picture with objects in it, 288×352."""
    return np.ascontiguousarray(read_picture(ROOT / "data" / "images" / "sample_1.jpg")[:, 352:704][150:438])


def rows(result: Any) -> list[tuple[float, ...]]:
    """SAHI's objects as (score, class, x1, y1, x2, y2), best first."""
    found = [(one.score.value, one.category.id, *one.bbox.to_xyxy()) for one in result.object_prediction_list]
    return sorted((tuple(float(value) for value in row) for row in found), reverse=True)


def test_a_whole_image_gives_what_predict_gives(detector: Detector, image: np.ndarray) -> None:
    model = ESODDetectionModel(model=detector, device="cpu", confidence_threshold=0.1, image_size=352)
    expected = detector.predict(image, 352, conf_thres=0.1)
    found = rows(get_prediction(image, model))
    assert len(found) == len(expected.score) >= 3
    np.testing.assert_allclose([row[0] for row in found], expected.score.numpy(), atol=1e-6)
    np.testing.assert_allclose([row[2:] for row in found], expected.xyxy.numpy(), atol=1e-3)
    assert [row[1] for row in found] == expected.label.tolist()
    assert model.category_names == detector.names and model.num_categories == 10 and not model.has_mask
    names = {one.category.name for one in get_prediction(image, model).object_prediction_list}
    assert names == {detector.names[label] for label in expected.label}
    fewer = get_prediction(image, model, confidence_threshold=0.5)
    assert len(fewer.object_prediction_list) == int((expected.score > 0.5).sum())


def test_slices_lie_where_they_belong_alone_and_in_batches(detector: Detector, image: np.ndarray) -> None:
    model = ESODDetectionModel(model=detector, device="cpu", confidence_threshold=0.1)
    found = {}
    for batch_size in (1, 3):
        result = get_sliced_prediction(
            image, model, slice_height=160, slice_width=160, perform_standard_pred=False, batch_size=batch_size,
            postprocess_type="NMS", postprocess_match_metric="IOU", verbose=0,
        )  # fmt: skip
        found[batch_size] = rows(result)
    assert len(found[1]) == len(found[3]) >= 3
    np.testing.assert_allclose(found[1], found[3], atol=1e-2)
    # By hand: each slice by itself, shifted; what NMS keeps is among it.
    everything = []
    slices = slice_image(
        image, slice_height=160, slice_width=160, overlap_height_ratio=0.2, overlap_width_ratio=0.2
    )
    assert len(slices) == 6
    for piece, (x, y) in zip(slices.images, slices.starting_pixels, strict=True):
        alone = detector.predict(np.ascontiguousarray(piece), 160, conf_thres=0.1)
        everything += (alone.xyxy.numpy() + np.array([x, y, x, y])).tolist()
    for row in found[1]:
        assert np.abs(np.array(everything) - row[2:]).max(axis=1).min() < 0.01


def test_a_weights_file_and_the_thresholds_of_suppression(image: np.ndarray) -> None:
    model = ESODDetectionModel(
        model_path=str(SAMPLE), device="cpu", confidence_threshold=0.001, image_size=352,
        category_remapping={str(number): number + 100 for number in range(10)},
        post=PostprocessConfig(iou_thres=0.6, max_det=7, multi_label=True),
    )  # fmt: skip
    found = rows(get_prediction(image, model))
    assert len(found) == 7 and all(row[1] >= 100 for row in found)


def test_what_is_missing_is_said(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="neither model_path nor model is given"):
        ESODDetectionModel(device="cpu")
    with pytest.raises(TypeError, match="model is a Linear; give what engine.load_model returns"):
        ESODDetectionModel(model=torch.nn.Linear(1, 1), device="cpu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"call load_model\(\) first"):
        get_prediction(image, ESODDetectionModel(model_path="a.pt", device="cpu", load_at_init=False))


@pytest.mark.parametrize("hw", [(765, 1360), (1000, 640), (100, 100), (640, 640), (641, 640), (1080, 1920)])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.33])
def test_slices_are_counted_as_sahi_cuts_them(hw: tuple[int, int], overlap: float) -> None:
    plan = SlicePlan(img_size=max(hw), slice_px=320, overlap=overlap)
    side = plan.slice_orig(hw)
    cut = slice_image(
        np.zeros((*hw, 3), np.uint8), slice_height=side, slice_width=side, overlap_height_ratio=overlap,
        overlap_width_ratio=overlap,
    )  # fmt: skip
    assert plan.pixels(hw)[0] == len(cut)


def test_slices_have_the_scale_of_the_whole_image() -> None:
    assert SlicePlan(1536, 640).slice_orig((1080, 1920)) == 800
    assert SlicePlan(1536, 640).slice_orig((540, 960)) == 400
    count, area = SlicePlan(960, 480, 0.0).pixels((480, 960))
    assert (count, area) == (2, 2 * 480 * 480 + 256 * 480)


def test_images_are_spread() -> None:
    assert spread_indices(4, 0) == spread_indices(4, 9) == [0, 1, 2, 3]
    assert spread_indices(10, 3) == [0, 3, 6]


def test_the_comparison(tiny_dataset: Path, tmp_path: Path, run_command: RunCommand) -> None:
    """Its ESOD row is what test.py says, to the last digit of the file."""
    page, numbers = tmp_path / "sahi.md", tmp_path / "sahi.json"
    shared = ["--data", tiny_dataset, "--weights", SAMPLE, "--img-size", 256, "--device", "cpu"]
    result = run_command(
        "scripts/compare_sahi.py", *shared, "--slice", 128, "--json", numbers, "--page", page
    )
    assert result.status == 0, result.err
    content = json.loads(numbers.read_text())
    assert [way["name"] for way in content["ways"]] == [
        "ESOD (grid), whole image", "dense, whole image", "dense, SAHI's slices", "dense, SAHI's slices and small whole image",
    ]  # fmt: skip
    assert (
        run_command(
            "test.py", *shared, "--batch-size", 1, "--workers", 0, "--analyse", "--project", tmp_path
        ).status
        == 0
    )
    tested = json.loads((tmp_path / "exp" / "metrics.json").read_text())["detection"]
    missed = json.loads((tmp_path / "exp" / "analysis.json").read_text())
    esod = content["ways"][0]
    for key in ("ap", "ap50", "ap_small", "labels", "detections", "best_confidence"):
        assert esod["detection"][key] == pytest.approx(tested[key], abs=1e-9), key
    assert tested["ap"] > 0.01
    assert esod["missed"]["all"] == {key: missed["total"][key] for key in ("labels", "missed")}
    assert all(way["seconds_in_use"]["median"] > 0 for way in content["ways"])
    text = page.read_text()
    assert content["table"] in text and "python scripts/compare_sahi.py --data data.yaml" in text
    assert str(tmp_path) not in text and str(tiny_dataset.parent) not in numbers.read_text()
    again = run_command("scripts/compare_sahi.py", *shared, "--slice", 100)
    assert again.status == 1 and "--slice 100 is not a multiple of 32" in again.err
