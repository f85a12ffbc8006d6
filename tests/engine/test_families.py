"""Every family and every head: 30 steps from scratch lower the loss; then resume, test and detect."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.conftest import ROOT, RunCommand

HYP = {
    "lr0": 0.01, "lrf": 0.5, "weight_decay": 0.0, "warmup_epochs": 0.5, "warmup_bias_lr": 0.01, "momentum": 0.9,
    "nominal_batch": 2, "mosaic": 0.0, "scale": 0.0, "translate": 0.0, "fliplr": 0.0, "hsv_h": 0.0, "hsv_s": 0.0,
    "hsv_v": 0.0, "anchor_t": 2.0,
}  # fmt: skip
TINY: dict[str, dict[str, Any]] = {
    "yolov5n": {"width": 0.125},
    "yolov5n_v6": {"width": 0.125},
    "yolov5m-center": {"depth": 0.33, "width": 0.125},
    "yolov5m-tr": {"depth": 0.33, "width": 0.125},
    "yolov5n-p2": {"width": 0.125},
    "yolov8n": {"width": 0.125},
    "yolov8m-anchor": {"depth": 0.33, "width": 0.125},
    "retinanet": {"width": 0.125},
    "rtmdet_tiny": {"width": 0.125},
    "gpvit": {"depth": 0.25, "width": 0.125},
}
"""Name of the configuration → what makes it tiny."""
IMAGE_SIZE = {"yolov8n": "192x320"}
"""Other than 96×160: the distance head hardly begins on objects of 4 pixels in 30 steps."""
EPOCHS = 8
"""Of four steps each."""


@pytest.mark.parametrize("name", list(TINY))
def test_trains_resumes_tests_and_detects(
    name: str, tiny_dataset: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    torch.set_num_threads(1)
    size = IMAGE_SIZE.get(name, "96x160")
    config = yaml.safe_load((ROOT / "models" / "cfg" / f"{name}.yaml").read_text(encoding="utf-8"))
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(config | TINY[name]), encoding="utf-8")
    (tmp_path / "hyp.yaml").write_text(yaml.safe_dump(HYP), encoding="utf-8")
    where = ["--device", "cpu", "--project", tmp_path]
    quiet = "--no-report"  # takes longer than the rest; tests/scripts/test_report.py has it
    trained = run_command(
        "train.py", "--data", tiny_dataset, "--cfg", tmp_path / "model.yaml", "--hyp", tmp_path / "hyp.yaml",
        "--weights", "none", "--optimizer", "adamw", "--epochs", EPOCHS, "--batch-size", 2, "--img-size", size,
        "--workers", 0, "--amp", "off", "--save-period", EPOCHS // 2, "--notest", quiet, *where,
    )  # fmt: skip
    assert trained.status == 0, trained.err
    run = tmp_path / "exp"
    losses = epoch_losses(run / "results.csv")
    assert len(losses) == EPOCHS
    assert losses[-1] < 0.8 * losses[0], losses

    resumed = run_command(
        "train.py", "--resume", run / "weights" / f"epoch{EPOCHS // 2}.pt", "--device", "cpu"
    )
    assert resumed.status == 0, resumed.err
    assert epoch_losses(run / "results.csv") == pytest.approx(losses, rel=1e-4), (
        "the same run again from its middle"
    )

    weights = run / "weights" / "best.pt"
    for number, extra in enumerate(([], ["--slicer", "none"], ["--head", "sparse", "--slicer", "greedy"])):
        tested = run_command(
            "test.py", "--data", tiny_dataset, "--weights", weights, "--img-size", size, "--workers", 0,
            "--name", f"test{number}", quiet, *where, *extra,
        )  # fmt: skip
        assert tested.status == 0, tested.err
        metrics = json.loads((tmp_path / f"test{number}" / "metrics.json").read_text(encoding="utf-8"))
        assert 0 <= metrics["detection"]["ap50"] <= 1
    found = run_command(
        "detect.py", "--weights", weights, "--source", tiny_dataset.parent / "list.txt", "--img-size", size,
        "--conf-thres", 0.01, "--save-txt", "--name", "found", *where,
    )  # fmt: skip
    assert found.status == 0, found.err
    assert list((tmp_path / "found").rglob("*.jpg")), "pictures with boxes"


def epoch_losses(path: Path) -> list[float]:
    """Sum of the training losses of each epoch."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [{key.strip(): value for key, value in row.items()} for row in csv.DictReader(stream)]
    return [
        sum(float(v) for k, v in row.items() if k.startswith("train/") and k.endswith("_loss"))
        for row in rows
    ]
