"""scripts/benchmark_export.py, export_table.py and export_results.sh: what they measure, say and refuse."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.export.pair import export_pair, prepare
from engine.export.single import export_single
from engine.inference import load_model
from models.build import build_model
from tests.conftest import ROOT, RunCommand
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.config import DatasetConfig, ModelConfig
from utils.export_cli import parse_export_options
from utils.test_cli import parse_test_options
from utils.typed_data import config_to_dict, load_config

BENCHMARK, TABLE, RESULTS = (
    f"scripts/{name}" for name in ("benchmark_export.py", "export_table.py", "export_results.sh")
)


@pytest.fixture(scope="module")
def weights(tiny_dataset: Path) -> Path:
    """An untrained ESOD that finds much."""
    dataset = load_config(DatasetConfig, tiny_dataset)
    config = load_config(ModelConfig, tiny_dataset.parent / "model.yaml")
    config = replace(config, num_classes=dataset.nc, names=dataset.names)
    torch.manual_seed(1)
    model = build_model(config)
    assert model.seeker is not None
    torch.nn.init.normal_(model.seeker.predict.weight, std=40.0)  # type: ignore[arg-type]
    torch.nn.init.zeros_(model.seeker.predict.bias)  # type: ignore[arg-type]
    state = model.state_dict()
    for name, tensor in state.items():
        if name.endswith(("obj_pred.bias", "cls_pred.bias")):
            tensor.copy_(torch.linspace(-1.0, 1.0, len(tensor)))
    path = tiny_dataset.parent / "exported.pt"
    content = {"config": config_to_dict(config), "model": state, "names": config.names}
    save_checkpoint(path, content)
    return path


def test_boxes_and_time(
    weights: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    run_command: RunCommand,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from deploy.metadata import SingleSettings

    detector = load_model(weights, "cpu")
    source = prepare(detector.model, detector.names)  # type: ignore[arg-type]
    stem, _ = export_pair(source, tmp_path, "tiny")
    single = export_single(
        source, SingleSettings(1, 96, 160, 4, 0.1, 0.45, 500, False, 3840), tmp_path, "tiny"
    )
    output = tmp_path / "speed.json"
    done = run_command(
        BENCHMARK, "--weights", weights, "--exported", stem, single, "--source", tiny_dataset.parent / "list.txt",
        "--pictures", 3, "--rounds", 2, "--img-size", 160, "--conf-thres", 0.1, "--output", output,
    )  # fmt: skip
    assert done.status == 0, done.err
    content = json.loads(output.read_text())
    plain, usual, pair, one = content["rows"]
    assert [row["name"] for row in content["rows"]] == [
        "torch, plain",
        "torch",
        "tiny_stem.onnx",
        "tiny_k4.onnx",
    ]
    assert plain["ratio_to_plain"] == 1 and "box_px" not in usual
    for row in (pair, one):
        assert (
            row["detections"] > 20 and row["box_px"] < 0.01 and row["score"] < 1e-4 and row["median_ms"] > 0
        )
        assert "within 0.5 px" in done.out and "NOT" not in done.out
    assert set(content["runtimes"]) >= {"onnxruntime", "openvino"}
    assert len(content["pictures"]) == 3 and "/" not in content["options"]["weights"]
    changed = load_checkpoint(weights)
    for name, tensor in changed["model"].items():
        if name.endswith("reg_pred.bias"):
            tensor.add_(0.3)
    save_checkpoint(tmp_path / "changed.pt", changed)
    done = run_command(BENCHMARK, "--weights", tmp_path / "changed.pt", "--exported", stem, "--img-size", 160, "--rounds", 1,
                       "--source", tiny_dataset.parent / "list.txt", "--pictures", 1, "--conf-thres", 0.1)  # fmt: skip
    assert done.status == 0 and "NOT within 0.5 px" in done.out


def metrics(folder: Path, name: str, ap: float, **options: Any) -> None:
    """What test.py leaves, as far as the table reads it."""
    content = {
        "detection": {"ap": ap, "ap50": 0.2, "ap75": None, "ap_small": 0.05, "protocol": "COCO AP"},
        "selector": {"occupancy": 0.5},
        "options": {"weights": f"/somewhere/{name}.onnx", "data": "d.yaml", "img_size": 640, "batch_size": 1} | options,
        "dataset_note": "compares with nothing",
        "environment": {"cpu": "CPU", "threads": 2, "torch": "3", "git_commit": "abc", "git_dirty": False},
    }  # fmt: skip
    (folder / f"test-{name}").mkdir(parents=True)
    (folder / f"test-{name}" / "metrics.json").write_text(json.dumps(content))


def test_the_table_judges(tmp_path: Path, run_command: RunCommand) -> None:
    for name, ap in (("torch", 0.1), ("near", 0.1009), ("far", 0.0985)):
        metrics(tmp_path / "runs", name, ap)
    rows = [{"name": "torch, plain", "median_ms": 10.0, "ratio_to_plain": 1.0},
            {"name": "slow.onnx", "median_ms": 11.0, "ratio_to_plain": 1.1, "detections": 5, "box_px": 0.6, "score": 0.0}]  # fmt: skip
    speed = {"rows": rows, "pictures": ["a.jpg"], "runtimes": {"openvino": "2026"}, "options": {"img_size": 640, "rounds": 3, "conf_thres": 0.25},
             "environment": {"cpu": "CPU", "threads": 2, "torch": "3", "git_commit": "abc", "git_dirty": True}}  # fmt: skip
    (tmp_path / "speed.json").write_text(json.dumps(speed))
    output = tmp_path / "results" / "export"
    line = [TABLE, "--runs", tmp_path / "runs", "--output", output, "--speed", tmp_path / "speed.json"]
    done = run_command(*line, "--rows", "torch", "near=torch")
    assert done.status == 0, done.err
    assert "holds for all 1" in done.out and "+0.090" in done.out and "compares with nothing" in done.out
    assert "does not hold for slow.onnx" in done.out and "openvino 2026" in done.out and "0.6000" in done.out
    page = output.with_suffix(".md").read_text()
    assert page.startswith("# Exported files") and "/somewhere" not in page and "`near.onnx`" in page
    output.with_suffix(".md").write_text(page + "\nBy hand.\n")
    assert run_command(*line, "--rows", "torch", "near=torch", "far=torch").status == 0
    page = output.with_suffix(".md").read_text()
    assert "does not hold for far**" in page and page.endswith("By hand.\n")
    assert json.loads(output.with_suffix(".json").read_text())["rows"][2]["ap_difference"] == pytest.approx(
        -0.15
    )
    metrics(tmp_path / "runs", "other", 0.1, img_size=320)
    for rows_given, message in (
        (["torch", "gone"], "test.py with --project"),
        (["near=torch"], "no row before it"),
        (["torch", "other=torch"], "different img_size"),
    ):
        done = run_command(*line, "--rows", *rows_given)
        assert done.status == 1 and message in done.err


def test_all_of_it_in_one_script() -> None:
    environment = {**os.environ, "DRY_RUN": "1", "PATCHES": "7"}
    done = subprocess.run(
        ["bash", RESULTS], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    exports = [parse_export_options(c[2:]) for c in commands if c[1] == "export.py"]
    tests = [parse_test_options(c[2:]) for c in commands if c[1] == "test.py"]
    assert [one.max_patches for one in exports] == [7, 7, 7, 42]
    written = {f"{one.output}/best_k{one.max_patches}.onnx" for one in exports}
    assert {
        str(one.weights) for one in tests if "_k" in str(one.weights) and "onnx" in str(one.weights)
    } <= written
    (table,) = [c for c in commands if c[1] == TABLE]
    rows = table[table.index("--rows") + 1 : table.index("--speed")]
    assert [f"test-{row.partition('=')[0]}" for row in rows] == [one.name for one in tests]
    wrong = subprocess.run(
        ["bash", RESULTS], cwd=ROOT, env={**environment, "STEPS": "what"}, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert wrong.returncode == 2 and "unknown step what" in wrong.stderr
