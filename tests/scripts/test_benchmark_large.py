"""scripts/benchmark_large.py and benchmark_video.py: what they count, by hand, and end to end on small pictures."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.conftest import RunCommand
from utils.windows import cut_into_windows


@pytest.fixture
def script(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmark_large.py as a module."""
    spec = importlib.util.spec_from_file_location("benchmark_large", root / "scripts" / "benchmark_large.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark_large", module)
    spec.loader.exec_module(module)
    return module


def test_objects_on_seams(script: ModuleType) -> None:
    windows = cut_into_windows((160, 160), 96, 32)
    assert {window.span(0) for window in windows} == {(0, 96), (64, 160)}
    boxes = torch.tensor(
        [[60, 10, 70, 20], [10, 90, 20, 100], [70, 70, 90, 90], [64, 10, 80, 20], [150, 10, 160, 20]]
    )
    assert script.on_seams(boxes, windows, 160).tolist() == [True, True, False, False, False]


def test_found_twice_and_pieces(script: ModuleType) -> None:
    truth = script.Objects(
        torch.tensor([[0.0, 0, 20, 10], [100, 0, 120, 10], [200, 0, 220, 10], [300, 0, 320, 10]]),
        torch.tensor([0, 0, 0, 0]),
    )
    boxes = [
        [0, 0, 20, 10], [1, 0, 20, 10],  # the first, twice
        [100, 0, 120, 10], [100, 0, 108, 10],  # the second, and a piece of it
        [200, 0, 208, 10],  # of the third a piece only: cut
    ]  # fmt: skip
    found = script.Objects(torch.tensor(boxes, dtype=torch.float32), torch.zeros(5, dtype=torch.int64))
    everything = torch.ones(4, dtype=torch.bool)
    assert script.compare(truth, found, everything) == script.Share(objects=4, found=2, twice=1, pieces=1)
    assert script.compare_near(truth, found, everything, 512) == script.Share(4, 2, 1, 1)
    assert script.compare(truth, found, torch.tensor([True, False, False, True])) == script.Share(2, 1, 1, 0)
    other = script.Objects(found.xyxy, found.label + 1)
    assert script.compare(truth, other, everything) == script.Share(4, 0, 0, 0)


@pytest.mark.slow
def test_large_pictures_end_to_end(tiny_dataset: Path, tmp_path: Path, run_command: RunCommand) -> None:
    options = ("--size", 640, "--window", 256, "--overlap", 64, "--output", tmp_path / "kept")
    images = tiny_dataset.parent / "VisDrone2019-DET-val" / "images"
    result = run_command(
        "scripts/benchmark_large.py",
        *options,
        "--formats",
        "jpg",
        "--images",
        images,
        "--json",
        tmp_path / "out.json",
    )
    assert result.status == 0, result.err
    (row,) = json.loads((tmp_path / "out.json").read_text())["results"]
    assert row["windows"] == 9 and row["peak_mib"] > 100 and row["on_seams"]["objects"] > 5
    assert row["elsewhere"]["found"] > 0.3 * row["elsewhere"]["objects"]
    assert "| 640² .jpg |" in result.out
    assert (tmp_path / "kept" / "large" / "large.jpg").is_file(), "the drawn picture"
    assert not (tmp_path / "kept" / "large.jpg").exists(), "the picture itself is removed"
    empty = run_command("scripts/benchmark_large.py", "--images", tmp_path)
    assert empty.status == 1 and "make_sample.py" in empty.err


def test_video_codecs_end_to_end(run_command: RunCommand) -> None:
    result = run_command(
        "scripts/benchmark_video.py", "--height", 90, "--width", 128, "--frames", 2, "--img-size", 128
    )
    assert result.status == 0, result.err
    for name in ("vp9", "vp8", "mpeg4", "network"):
        assert name in result.out
