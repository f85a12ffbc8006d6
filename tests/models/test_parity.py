"""What the released code and plain YOLOv5 compute, reproduced from their own checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from models.build import build_model
from models.convert.networks import RETINANET, YOLOV5, config_of_released, rename_released
from models.weights import read_weights
from tests.conftest import ROOT, RunCommand
from utils.checkpoint import CheckpointError, load_checkpoint
from utils.config import HeadConfig, ModelConfig, SeekerConfig, SlicerConfig
from utils.pickle_reader import PickledNetwork

GOLDEN = ROOT / "tests" / "golden" / "yolov5_visdrone"
Array = npt.NDArray[Any]


def assert_same_detections(found: Array, expected: Array, *, px: float, score: float, free: int = 0) -> None:
    """As sets: every expected box is found, but for ``free`` ties at the cut."""
    a, b = torch.from_numpy(found), torch.from_numpy(expected)
    assert len(a) == len(b)
    near = (a[:, None, :4] - b[None, :, :4]).abs().amax(dim=2) <= px
    same = near & ((a[:, None, 4] - b[None, :, 4]).abs() <= score) & (a[:, None, 5] == b[None, :, 5])
    assert (~same.any(dim=0)).sum() <= free and (~same.any(dim=1)).sum() <= free


def golden_cases(folder: Path) -> Iterator[tuple[Path, Array]]:
    for image in sorted(folder.glob("image*.png")):
        yield image, np.load(folder / f"expected{image.name[5]}.npz")


def check_case(folder: Path, weights: Path, head: str, output: Path, run_command: RunCommand) -> None:
    for image, expected in golden_cases(folder):
        result = run_command(
            "scripts/dump_outputs.py",
            "--weights",
            weights,
            "--image",
            image,
            "--head",
            head,
            "--output",
            output,
        )
        assert result.status == 0, result.err
        found = np.load(output)
        if "heatmap_logits" in expected:
            np.testing.assert_allclose(
                found["heatmap_logits"], expected["heatmap_logits"], rtol=1e-3, atol=1e-4
            )
            np.testing.assert_array_equal(found["patches"], expected["patches"])
        decoded = expected[f"{head}_head_decoded"]
        np.testing.assert_allclose(found["decoded"], decoded, rtol=1e-3, atol=1e-5)
        # The 1000 best of many near-equal scores: a few boxes at the cut may be others.
        assert_same_detections(
            found["detections"], expected[f"{head}_head_detections"], px=0.05, score=1e-3, free=10
        )


@pytest.mark.parametrize("head", ["dense", "sparse"])
@pytest.mark.parametrize("convert", [True, False], ids=["converted", "raw"])
def test_released_esod(head: str, convert: bool, tmp_path: Path, run_command: RunCommand) -> None:
    weights = GOLDEN / "checkpoint.pt"
    if convert:
        result = run_command("scripts/model_convert.py", "--weights", weights, "--output", tmp_path / "x.pt")
        assert result.status == 0 and "434 of 434 tensors matched" in result.out
        weights = tmp_path / "x.pt"
    check_case(GOLDEN, weights, head, tmp_path / "out.npz", run_command)


@pytest.mark.parametrize("head", ["dense", "sparse"])
def test_all_images_of_the_reference_data(
    shared_dir: Path, head: str, tmp_path: Path, run_command: RunCommand
) -> None:
    folder = shared_dir / "golden" / "checkpoints" / "yolov5_visdrone"
    check_case(folder, folder / "checkpoint.pt", head, tmp_path / "out.npz", run_command)


@pytest.mark.parametrize("convert", [True, False], ids=["converted", "raw"])
@pytest.mark.parametrize("head", ["dense", "sparse"])
def test_released_retinanet(head: str, convert: bool, tmp_path: Path, run_command: RunCommand) -> None:
    folder = GOLDEN.parent / "retinanet_visdrone"
    weights = folder / "checkpoint.pt"
    if convert:
        result = run_command("scripts/model_convert.py", "--weights", weights, "--output", tmp_path / "x.pt")
        assert result.status == 0 and "410 of 410 tensors matched" in result.out, result.out
        weights = tmp_path / "x.pt"
    check_case(folder, weights, head, tmp_path / "out.npz", run_command)


def test_released_dense_network(shared_dir: Path, tmp_path: Path, run_command: RunCommand) -> None:
    folder = shared_dir / "golden" / "checkpoints" / "vanilla_yolov5_visdrone"
    check_case(folder, folder / "checkpoint.pt", "dense", tmp_path / "out.npz", run_command)


@pytest.mark.parametrize("name", ["yolov5s_v5.0_coco", "yolov5n_v6.1_coco", "yolov8n_coco", "yolov8s_coco"])
def test_coco_checkpoint_keeps_its_head(
    shared_dir: Path, tmp_path: Path, run_command: RunCommand, name: str
) -> None:
    source = shared_dir / "weights" / f"{name}.pt"
    converted = tmp_path / "coco.pt"
    result = run_command(
        "scripts/model_convert.py", "--weights", source, "--output", converted, "--keep-head"
    )
    assert result.status == 0, result.err
    data = load_checkpoint(converted)
    assert data["config"]["bn_eps"] == 1e-3 and len(data["names"]) == 80
    expected = np.load(shared_dir / "golden" / "coco_models" / f"{name}.npz")
    for index in range(2):
        image = shared_dir / "golden" / "coco_models" / f"image{index}_544x960.png"
        line = ["--image", image, "--slicer", "none", "--conf-thres", 0.25, "--iou-thres", 0.45]
        result = run_command(
            "scripts/dump_outputs.py", "--weights", converted, *line, "--output", tmp_path / "o.npz"
        )
        assert result.status == 0, result.err
        found = np.load(tmp_path / "o.npz")["detections"]
        assert_same_detections(found, expected[f"detections_{index}"], px=1, score=0.01)


def test_yolov5_coco_checkpoint_as_initialisation(
    shared_dir: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    source, converted = shared_dir / "weights" / "yolov5s_v5.0_coco.pt", tmp_path / "init.pt"
    result = run_command("scripts/model_convert.py", "--weights", source, "--output", converted)
    assert result.status == 0 and "354 of 434 tensors matched" in result.out
    assert "head.levels.0.predict.weight" in result.out, "what is not used is named"
    weights = read_weights(converted)
    assert weights.config.bn_eps == 1e-3 and weights.config.seeker.kind == "conv"
    refused = run_command("detect.py", "--weights", converted, "--source", GOLDEN, "--device", "cpu")
    assert refused.status == 1 and "initialisation" in refused.err


@pytest.mark.parametrize(
    "name",
    [
        "esod_visdrone_yolov5s",
        "esod_visdrone_yolov5m",
        "esod_tinyperson_yolov5m",
        "esod_uavdt_yolov5m",
        "vanilla_visdrone_yolov5m",
        "esod_visdrone_retinanet",
        "vanilla_visdrone_retinanet",
    ],
)
def test_every_key_of_the_released_models_has_a_place(name: str) -> None:
    """Names and shapes of the published checkpoints, UAVDT's SPP seeker among them."""
    listed = json.loads((GOLDEN.parent / "keys" / f"{name}.json").read_text())
    state = {key: torch.zeros(shape) for key, shape in listed["state_dict"].items()}
    layout = RETINANET if "retinanet" in name else YOLOV5
    renamed, left_over = rename_released(state, layout)
    assert left_over == []
    seeker = "spp" if "uavdt" in name else "none" if "vanilla" in name else "conv"
    config = ModelConfig(
        family=layout.family,
        depth=listed["depth_multiple"],
        width=listed["width_multiple"],
        num_classes=listed["num_classes"],
        seeker=SeekerConfig(kind=seeker),  # type: ignore[arg-type]
        slicer=SlicerConfig(algorithm="none" if seeker == "none" else "grid"),
    )
    with torch.device("meta"):
        model = build_model(config)
    target = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in renamed.items()} == target
    assert sum(p.numel() for p in model.parameters()) == listed["parameters"]


def test_settings_of_a_released_model_are_taken_over() -> None:
    weights = read_weights(GOLDEN / "checkpoint.pt")
    assert weights.config.slicer == SlicerConfig(
        algorithm="grid", patches_per_side=8, threshold=0.5, shift="edge"
    )
    assert weights.config.head == HeadConfig(kind="decoupled") and weights.config.spp_kernels == [3, 5, 7]
    assert weights.config.anchors[0][0] == [6, 8]


def test_another_family_is_refused_by_name() -> None:
    state = {"model.0.conv.weight": torch.zeros(16, 3, 3, 3)}
    network = PickledNetwork(
        state_dict=state, yaml={}, names=["a"], bn_eps=1e-3, strides=[8.0, 16.0, 32.0], extra={},
        activation="SiLU", activations={"SiLU": 1}, num_parameters=0,
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="none of those that can be converted"):
        config_of_released(network)
