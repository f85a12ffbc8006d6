"""scripts/benchmark_data.py, and the straightforward pipeline that it compares ours with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.benchmark.data_bench import (
    CASES,
    OURS,
    YARDSTICK,
    Pictures,
    build_pipeline,
    draw_pictures,
    take_pictures,
    write_masks,
)
from engine.benchmark.data_yardstick import YardstickPipeline, paint_mask
from tests.conftest import RunCommand
from utils.config import HypConfig
from utils.data import Sample
from utils.heatmap import block_maximum, render_heatmap
from utils.transforms import to_centres
from utils.typed_data import ConfigError

HW = (160, 256)
SIZE = 128


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    """Four drawn pictures with labels and masks."""
    drawn = draw_pictures(tmp_path_factory.mktemp("bench") / "pictures", 4, HW, 0)
    write_masks(drawn, "float32", 0.5)
    return drawn


def test_masks_are_the_label_heatmap_at_full_resolution() -> None:
    boxes = np.array([[10, 20, 50, 40], [100.5, 3.2, 111.7, 30.9]], np.float32)
    mask = paint_mask(boxes, HW, 0.5)
    assert mask.shape == HW
    expected = render_heatmap(to_centres(boxes), HW, 0.5)
    assert np.abs(block_maximum(mask, 8) / 255 - expected).max() < 0.02


@pytest.mark.parametrize("mixup", [0.0, 1.0])
def test_yardstick_samples_agree_with_themselves(pictures: Pictures, mixup: float) -> None:
    """Boxes lie in the sample, and the heatmap is lit in the middle of each that is large enough."""
    hyp = replace(HypConfig(), mixup=mixup)
    pipeline = YardstickPipeline(pictures.images, pictures.masks, pictures.boxes(), SIZE, hyp)
    seen = 0
    for index in range(12):
        image, labels, heatmap = pipeline[index]
        assert image.shape == (3, SIZE, SIZE) and image.dtype == torch.uint8
        assert heatmap.shape == (1, SIZE // 8, SIZE // 8) and heatmap.min() >= 0 and heatmap.max() <= 1
        boxes = labels[:, 1:]
        assert (boxes >= 0).all() and (boxes <= SIZE).all() and (boxes[:, 2:] > boxes[:, :2]).all()
        inside = (boxes > 1).all(1) & (boxes < SIZE - 1).all(1)
        for x1, y1, x2, y2 in boxes[inside & ((boxes[:, 2:] - boxes[:, :2]).amin(1) > 4)].tolist():
            assert heatmap[0, int((y1 + y2) / 16), int((x1 + x2) / 16)] > 0.5
            seen += 1
    assert seen > 10


def test_all_pipelines_make_samples_of_one_kind(pictures: Pictures) -> None:
    for case in CASES:
        make = build_pipeline(case, pictures, SIZE, HypConfig(), 0)
        for number in (0, 7):
            found = make(number)
            image = found.image if isinstance(found, Sample) else found[0]  # type: ignore[index]
            assert image.shape == (3, SIZE, SIZE)
    make = build_pipeline(OURS, pictures, SIZE, HypConfig(), 0)
    first, again, next_epoch = make(1), make(1), make(5)
    assert isinstance(first, Sample) and isinstance(again, Sample) and isinstance(next_epoch, Sample)
    assert torch.equal(first.image, again.image) and not torch.equal(first.image, next_epoch.image)


def test_pictures_of_another_folder(pictures: Pictures, tmp_path: Path) -> None:
    taken = take_pictures(tmp_path / "taken", pictures.folder / "images", 3, HW)
    assert len(taken.images) == 3
    assert [b.tolist() for b in taken.boxes()] == [b.tolist() for b in pictures.boxes()[:3]]
    with pytest.raises(ConfigError, match="4 labelled JPEG files of 256×160 pixels, 9 are wanted"):
        take_pictures(tmp_path / "more", pictures.folder / "images", 9, HW)


def test_command(tmp_path: Path, run_command: RunCommand) -> None:
    out = tmp_path / "data.json"
    result = run_command(
        "scripts/benchmark_data.py", "--count", 3, "--picture-size", "160x256", "--img-size", 128,
        "--samples", 3, "--warmup", 1, "--mask-type", "uint8", "--json", out,
    )  # fmt: skip
    assert result.status == 0, result.err
    content = json.loads(out.read_text())
    assert set(content["cases"]) == set(CASES)
    for row in content["cases"].values():
        assert len(row["cpu_ms"]) == 3 and row["mean_cpu_ms"] > 0 and row["memory_peak_mib"] > 50
    ratio = content["cases"][YARDSTICK]["mean_cpu_ms"] / content["cases"][OURS]["mean_cpu_ms"]
    assert content["times_faster_from_jpeg"] == pytest.approx(ratio)
    assert "times as fast (target 2.5)" in result.out and "of the yardstick's" in result.out
    wrong = run_command("scripts/benchmark_data.py", "--picture-size", "large")
    assert wrong.status == 2 and "--picture-size" in wrong.err
