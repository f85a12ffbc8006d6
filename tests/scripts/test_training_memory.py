"""scripts/training_memory.py end to end on tiny models, and its parts."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

from models.training_patches import MIN_PATCHES
from tests.conftest import ROOT, RunCommand

SCRIPT = "scripts/training_memory.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("training_memory", ROOT / SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["training_memory"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("family", ["gpvit", pytest.param("yolov5n", marks=pytest.mark.slow)])
def test_dense_needs_more_than_esod(run_command: RunCommand, tmp_path: Path, family: str) -> None:
    config = yaml.safe_load((ROOT / "models" / "cfg" / f"{family}.yaml").read_text(encoding="utf-8"))
    config |= {"width": 0.125, "depth": 0.25}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    out = tmp_path / "out.json"
    options = ["--cfg", tmp_path / "model.yaml", "--img-size", 512, "--kept", 0.125, "--json", out]
    result = run_command(SCRIPT, *options, "--device", "cpu")
    assert result.status == 0, result.err
    data = json.loads(out.read_text(encoding="utf-8"))
    dense, esod = data["cases"]
    assert (dense["name"], dense["patches"], dense["kept"]) == ("dense", 1, 1.0)
    assert (esod["name"], esod["patches"], esod["kept"]) == ("esod", 8, 0.125)
    assert 0 < esod["step_mib"] < dense["step_mib"] < dense["peak_mib"]
    assert esod["memory_share"] == pytest.approx(esod["step_mib"] / dense["step_mib"])
    assert "--img-size 512" in data["command"] and data["environment"]["torch"] == torch.__version__
    assert "512       esod" in result.out and data["failed"] == []


def test_sizes_cases_and_times(run_command: RunCommand, tmp_path: Path) -> None:
    """Several sizes and cases; one that does not finish is told and left out."""
    config = yaml.safe_load((ROOT / "models" / "cfg" / "yolov5n.yaml").read_text(encoding="utf-8"))
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(config | {"width": 0.125}), encoding="utf-8")
    out = tmp_path / "out.json"
    cases = ["uniform", "esod-stem"]
    options = [
        "--cfg",
        tmp_path / "model.yaml",
        "--img-size",
        "256x512",
        256,
        "--cases",
        *cases,
        "--repeats",
        2,
    ]
    result = run_command(SCRIPT, *options, "--kept", 0.25, "--device", "cpu", "--threads", 1, "--json", out)
    assert result.status == 0, result.err
    rows = json.loads(out.read_text(encoding="utf-8"))["cases"]
    assert [(row["image_size"], row["name"]) for row in rows] == [
        (size, name) for size in ([256, 512], 256) for name in cases
    ]
    assert all(len(row["repeated_s"]) == 2 for row in rows)
    assert [row["patches"] for row in rows[:2]] == [64, 16]
    assert rows[0]["memory_share"] == rows[0]["time_share"] == 1
    assert "256x512   esod-stem" in result.out


def test_the_same_share_of_every_image(script: ModuleType) -> None:
    patches = script.RandomPatches(0.25, 8)(torch.zeros(3, 1, 64, 64))
    assert patches.image_index.bincount().tolist() == [16, 16, 16]
    assert len(patches.xyxy_cell.unique(dim=0)) > 16, "all images have the same patches"
    assert len(script.RandomPatches(0.0, 8)(torch.zeros(2, 1, 64, 64))) == 2 * MIN_PATCHES


def test_a_step_that_fails_is_told(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(
        script.CaseFailedError, match=r"the dense step at 1024 did not finish: .*missing\.yaml"
    ):
        script.run_case("dense", ["--cfg", str(tmp_path / "missing.yaml"), "--device", "cpu"])
