"""test.py --analyse on a drawn dataset; what an evaluation that fails or is interrupted leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
import yaml

from engine.inference import load_model
from engine.missed import head_positions_near, image_levels, raw_scores
from engine.test_outputs import TestOutputs
from models.decode import decode
from models.esod import ESOD, ESODOutput
from models.levels import LevelOutput
from models.slicer import Patches
from tests.conftest import RunCommand
from utils.config import ModelOverrides


@pytest.fixture
def common(tiny_dataset: Path, weights: Path, tmp_path: Path) -> list[object]:
    return ["--data", tiny_dataset, "--weights", weights, "--img-size", "160", "--device", "cpu",
            "--project", tmp_path, "--workers", 0]  # fmt: skip


@pytest.mark.parametrize(
    "extra, impossible",
    [
        ([], {"no_head_position"}),
        (["--head", "sparse", "--max-patches", 2], set()),
        (["--slicer", "none"], {"no_patch", "no_head_position"}),
        (["--single-cls"], {"no_head_position", "wrong_class"}),
    ],
)
def test_analyse(
    tmp_path: Path, common: list[object], run_command: RunCommand, extra: list[object], impossible: set[str]
) -> None:
    result = run_command("test.py", *common, "--analyse", *extra)
    assert result.status == 0, result.err
    content = json.loads((tmp_path / "exp" / "analysis.json").read_text())
    total = content["total"]
    assert (
        total["labels"] == json.loads((tmp_path / "exp" / "metrics.json").read_text())["detection"]["labels"]
    )
    assert 0 < total["missed"] == sum(total["causes"].values()), "an untrained model misses"
    assert not any(total["causes"][key] for key in impossible)
    if "--max-patches" in extra:
        assert total["causes"]["no_patch"] > 0
    assert "missed objects, 4 images, no ignore regions" in result.out
    assert "YOLOv5-style mAP, 500 detections per image, 4 images, no ignore regions" in result.out
    assert cv2.imread(str(tmp_path / "exp" / "analysis.png")) is not None


def test_nothing_is_analysed_unasked(tmp_path: Path, common: list[object], run_command: RunCommand) -> None:
    assert run_command("test.py", *common).status == 0
    assert not list((tmp_path / "exp").glob("analysis*"))


def test_one_image_of_a_batch_has_the_predictions_of_itself_alone(weights: Path) -> None:
    """Cutting a batch's output loses nothing, and the scores are those that suppression sees."""
    detector = load_model(weights, "cpu", ModelOverrides(None, "sparse", None, None))
    with torch.inference_mode():
        output = detector.model(torch.rand(3, 3, 96, 160))
    coder = detector.model.head.coder
    whole = decode(output, coder)
    assert len(whole.image_index)
    for image in range(3):
        part = decode(image_levels(output, image), coder)
        rows = whole.image_index == image
        assert (part.image_index == image).all()
        torch.testing.assert_close(part.cxcywh_px, whole.cxcywh_px[rows])
        score = whole.objectness[rows].unsqueeze(1) * whole.class_prob[rows]
        torch.testing.assert_close(raw_scores(part, single_class=False), score)
        torch.testing.assert_close(raw_scores(part, single_class=True)[:, 0], score.amax(dim=1))


def test_head_positions_are_compared_in_input_pixels() -> None:
    patches = Patches(torch.tensor([0, 0]), torch.tensor([[0, 0, 4, 4], [10, 2, 14, 6]]), (4, 4))
    # Patch 1, row 1, column 0 at stride 16: its cell is 80–96 × 32–48, the middle (88, 40).
    level = LevelOutput(torch.zeros(1, 3, 6), torch.tensor([[1, 1, 0]]), 16, (2, 2))
    boxes = torch.tensor([[84.0, 36, 92, 44], [100, 52, 108, 60], [101, 36, 109, 44]]).double().numpy()
    assert head_positions_near([level], patches, boxes).tolist() == [True, True, False]


@pytest.mark.parametrize("part", ["head", "heatmap"])
def test_nan_predictions_are_an_error(
    tmp_path: Path, common: list[object], run_command: RunCommand, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """NaN fails every comparison: unchecked, an overflow would be AP 0 without complaint. (NaN weights are refused
    when they are loaded.)"""
    forward = ESOD.forward

    def diverged(self: ESOD, *arguments: Any, **more: Any) -> ESODOutput:
        output = forward(self, *arguments, **more)
        assert output.heatmap_logits is not None
        values = output.levels[0].raw[..., 4] if part == "head" else output.heatmap_logits
        values.fill_(float("nan"))
        return output

    monkeypatch.setattr(ESOD, "forward", diverged)
    result = run_command("test.py", *common, "--analyse")
    assert result.status == 1 and "predictions are NaN" in result.err and "diverged" in result.err
    assert not list((tmp_path / "exp").glob("*.json"))


def test_an_interrupted_evaluation_leaves_no_half_written_file(
    tmp_path: Path, common: list[object], run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = TestOutputs.add

    def interrupt(self: TestOutputs, *batch: object) -> None:
        if self.batches == 1:
            raise KeyboardInterrupt
        add(self, *batch)  # type: ignore[arg-type]

    monkeypatch.setattr(TestOutputs, "add", interrupt)
    options = ("--batch-size", 1, "--save-txt", "--save-json", "--analyse")
    assert run_command("test.py", *common, *options).status == 130
    left = {
        path.relative_to(tmp_path / "exp").as_posix()
        for path in (tmp_path / "exp").rglob("*")
        if path.is_file()
    }
    whole = {"batch0_labels.jpg", "batch0_predictions.jpg"}
    assert whole <= left
    assert all(name.startswith("labels/") and name.endswith(".txt") for name in left - whole), left


def test_no_images_and_no_labels(
    tiny_dataset: Path, tmp_path: Path, common: list[object], run_command: RunCommand
) -> None:
    data = yaml.safe_load(tiny_dataset.read_text())
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "empty.yaml").write_text(yaml.safe_dump(data | {"val": str(tmp_path / "empty.txt")}))
    result = run_command("test.py", *common, "--data", tmp_path / "empty.yaml", "--analyse")
    assert result.status == 1 and "is empty" in result.err

    pictures = tmp_path / "bare" / "images"
    pictures.mkdir(parents=True)
    cv2.imwrite(str(pictures / "a.png"), torch.randint(0, 255, (96, 160, 3)).byte().numpy())
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump(data | {"val": str(pictures)}))
    result = run_command(
        "test.py", *common, "--data", tmp_path / "bare.yaml", "--name", "bare_run", "--analyse"
    )
    assert result.status == 0, result.err
    metrics = json.loads((tmp_path / "bare_run" / "metrics.json").read_text())
    assert metrics["detection"]["ap"] is None and metrics["detection"]["yolo"]["map"] is None
    assert json.loads((tmp_path / "bare_run" / "analysis.json").read_text())["total"]["missed"] == 0


@pytest.mark.parametrize("extra", [["--augment"], ["--task", "measure"], ["--task", "speed"]])
def test_contradictions_are_told(common: list[object], run_command: RunCommand, extra: list[object]) -> None:
    result = run_command("test.py", *common, "--analyse", *extra)
    assert result.status == 2 and "--analyse" in result.err
