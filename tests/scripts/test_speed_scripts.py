"""scripts/latency_knob.py, compare_modes.py, int8_speed.py and gradient_speed.py end to end on a tiny model, and their errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
import torch
import yaml

from engine.latency import BudgetResult, budget_table
from models.build import build_model
from tests.conftest import ROOT, RunCommand
from utils.checkpoint import save_checkpoint
from utils.config import DatasetConfig, ModelConfig
from utils.typed_data import config_to_dict, load_config

KNOB, MODES, INT8 = "scripts/latency_knob.py", "scripts/compare_modes.py", "scripts/int8_speed.py"
GRADIENTS = "scripts/gradient_speed.py"


@pytest.fixture(scope="module")
def weights(tiny_dataset: Path) -> Path:
    """An untrained ESOD whose heatmap lights up on some cells."""
    dataset = load_config(DatasetConfig, tiny_dataset)
    config = load_config(ModelConfig, tiny_dataset.parent / "model.yaml")
    config = replace(config, num_classes=dataset.nc, names=dataset.names)
    torch.manual_seed(1)
    model = build_model(config)
    assert model.seeker is not None
    torch.nn.init.normal_(model.seeker.predict.weight, std=40.0)  # type: ignore[arg-type]
    torch.nn.init.zeros_(model.seeker.predict.bias)  # type: ignore[arg-type]
    path = tiny_dataset.parent / "speed.pt"
    content = {"config": config_to_dict(config), "model": model.state_dict(), "names": config.names}
    save_checkpoint(path, content)
    return path


def test_the_budget_bounds_the_patches(
    tiny_dataset: Path, weights: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    result = run_command(
        KNOB, "--weights", weights, "--data", tiny_dataset, "--img-size", "160x256", "--max-patches", 1, 3, 0,
        "--rounds", 1, "--device", "cpu", "--json", tmp_path / "k.json", "--plot", tmp_path / "k.png",
    )  # fmt: skip
    assert result.status == 0, result.err
    one, three, free = json.loads((tmp_path / "k.json").read_text())["budgets"]
    assert one["patches"] <= 1 and one["patches"] <= three["patches"] <= 3 < free["patches"]
    assert free["binds"] == 0 and one["binds"] == 1
    for budget in (one, three, free):
        assert len(budget["ms"]) == 4 and budget["p50_ms"] <= budget["p99_ms"] and 0 <= budget["ap"] <= 1
    assert "p99/p50" in result.out and "4 images" in result.out
    picture = cv2.imread(str(tmp_path / "k.png"))
    assert picture is not None and picture.shape[1] > 800


def test_the_tail_of_the_times() -> None:
    one = BudgetResult(8, 0.5, 7.5, [10.0] * 99 + [30.0], 0.25, None)
    assert one.percentile(0.5) == 10 and one.tail == pytest.approx(1.02, abs=1e-6)
    assert "25.00" in budget_table([one]) and "50%" in budget_table([one])


def test_modes_are_compared(
    tiny_dataset: Path,
    weights: Path,
    tmp_path: Path,
    run_command: RunCommand,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ["--weights", weights, "--data", tiny_dataset, "--img-size", 160, "--device", "cpu"]
    result = run_command(MODES, *options, "--modes", "fast", "--json", tmp_path / "m.json")
    assert result.status == 0, result.err
    plain, fast = json.loads((tmp_path / "m.json").read_text())["modes"]
    assert plain["mode"] == "plain" and plain["difference"] == 0 and fast["allowed"] == 0.02
    assert fast["difference"] == pytest.approx(fast["ap"] - plain["ap"]) and fast["holds"]
    assert result.out.splitlines()[-1].startswith("fast: AP")


def test_a_mode_that_differs_too_much_fails_the_command() -> None:
    from tests.scripts.test_benchmark import load

    score = load(MODES).ModeScore
    assert score("bf16", 20.0, 40.0, -0.05, 0.1).holds and not score("bf16", 20.0, 40.0, -0.2, 0.1).holds


@pytest.mark.parametrize("script", [KNOB, MODES])
def test_other_classes_are_refused(
    tiny_dataset: Path, weights: Path, tmp_path: Path, run_command: RunCommand, script: str
) -> None:
    data = yaml.safe_load(tiny_dataset.read_text(encoding="utf-8"))
    other = tiny_dataset.parent / "one_class.yaml"
    other.write_text(yaml.safe_dump(data | {"nc": 1, "names": ["thing"]}), encoding="utf-8")
    budget = ["--max-patches", 1, "--rounds", 1] if script == KNOB else []
    result = run_command(
        script, "--weights", weights, "--data", other, "--img-size", 160, "--device", "cpu", *budget
    )
    assert result.status == 1 and "the dataset has 1" in result.err


@pytest.mark.slow
def test_int8(tiny_dataset: Path, tmp_path: Path, run_command: RunCommand) -> None:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)
    result = run_command(
        INT8, "--cfg", tiny_dataset.parent / "model.yaml", "--img-size", "64x96", "--rounds", 2,
        "--json", tmp_path / "i.json",
    )  # fmt: skip
    assert result.status == 0, result.err
    content = json.loads((tmp_path / "i.json").read_text())
    assert [part["name"] for part in content["parts"]] == [
        "PyTorch float32", "ONNX Runtime float32", "ONNX Runtime int8",
    ] * 2  # fmt: skip
    assert all(min(part["ms"]) > 0 for part in content["parts"]) and content["vnni"] in (True, False, None)
    assert "× best float32" in result.out


def test_attention_is_not_exported(run_command: RunCommand) -> None:
    pytest.importorskip("onnxruntime")
    result = run_command(INT8, "--cfg", ROOT / "models/cfg/gpvit_l1.yaml")
    assert result.status == 1 and "give a convolutional model" in result.err


def test_gradients_both_ways(tmp_path: Path, run_command: RunCommand) -> None:
    cfg, output = ROOT / "models/cfg/yolov5n.yaml", tmp_path / "gradients.json"
    result = run_command(
        GRADIENTS, "--cfg", cfg, "--img-size", "512x256", "--rounds", 2, "--threads", 1, "--json", output
    )
    assert result.status == 0, result.err
    content = json.loads(output.read_text())
    details = [layers["detail"] for layers in content["layers"]]
    assert any("13×13 depth-wise" in detail for detail in details) and any(
        " 3×3," in detail for detail in details
    )
    assert [(part["name"], part["detail"]) for part in content["parts"]] == [
        (way, detail) for detail in details for way in ("PyTorch", "ours")
    ]
    assert all(len(part["ms"]) == 2 and min(part["ms"]) > 0 for part in content["parts"])
    assert result.out.splitlines()[-1].startswith("all") and "times as fast" in result.out


def test_no_gradients_to_compare(tmp_path: Path, run_command: RunCommand) -> None:
    cfg = tmp_path / "dense.yaml"
    cfg.write_text("{depth: 0.33, width: 0.25, seeker: {kind: none}, slicer: {algorithm: none}}")
    result = run_command(GRADIENTS, "--cfg", cfg, "--img-size", 64, "--rounds", 1, "--threads", 1)
    assert result.status == 0, result.err
    assert "used everywhere" in result.out
