"""Fixtures shared by the whole suite."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from utils.cli import run_main

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository root."""
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Reference data beside the checkout (real images, real checkpoints); most users do not have it."""
    folder = Path(os.environ.get("ESOD_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder} (set ESOD_SHARED to its folder)")
    return folder


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@dataclass
class CommandResult:
    """What a command line left: exit status, what it printed."""

    status: int
    out: str
    err: str


RunCommand = Callable[..., CommandResult]


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunCommand:
    """Runs a script of the project in this process: ``run_command("test.py", "--task", "val")``."""

    def run(script: str, *arguments: object) -> CommandResult:
        name = script.removesuffix(".py").replace("/", "_") + "_command"
        spec = importlib.util.spec_from_file_location(name, ROOT / script)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        spec.loader.exec_module(module)
        capsys.readouterr()
        try:
            status = run_main(module.main)
        except SystemExit as error:  # argparse
            status = int(error.code or 0)
        printed = capsys.readouterr()
        return CommandResult(status, printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The YAML of a drawn and prepared dataset of 8 + 4 images of 256×160, and a model of tiny width beside it."""
    root = tmp_path_factory.mktemp("tiny dataset")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for command in (
        [
            "scripts/make_sample.py",
            "--output",
            root,
            "--train",
            8,
            "--val",
            4,
            "--width",
            256,
            "--height",
            160,
        ],
        [
            "scripts/data_prepare.py",
            "--dataset",
            "VisDrone",
            "--root",
            root,
            "--detect-list",
            root / "list.txt",
        ],
    ):
        line = [sys.executable, *map(str, command), "--workers", "1"]
        subprocess.run(line, check=True, capture_output=True, env=environment, cwd=ROOT)
    data = yaml.safe_load((ROOT / "data" / "sample.yaml").read_text(encoding="utf-8"))
    (root / "data.yaml").write_text(yaml.safe_dump(data | {"path": str(root)}), encoding="utf-8")
    model = yaml.safe_load((ROOT / "models" / "cfg" / "yolov5n.yaml").read_text(encoding="utf-8"))
    (root / "model.yaml").write_text(yaml.safe_dump(model | {"width": 0.125}), encoding="utf-8")
    return root / "data.yaml"
