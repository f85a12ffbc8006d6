"""--batch-size -1: the largest batch that fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import engine.batch_size as batch_size
from engine.batch_size import TrainingStep, find_batch_size, input_hw, largest_fitting
from tests.conftest import RunCommand
from tests.engine.test_training import options
from utils.checkpoint import load_checkpoint
from utils.config import HypConfig, ModelConfig, TrainConfig
from utils.typed_data import ConfigError

CPU = torch.device("cpu")
TINY = ModelConfig(depth=0.33, width=0.125, num_classes=3)
CONFIG = TrainConfig(data="", img_size=64, batch_size=-1)


@pytest.mark.parametrize(
    ("free", "expected"),
    [(90, 0), (100, 1), (149, 1), (150, 2), (199, 2), (1000, 19), (100_000, 1999)],
)
def test_a_straight_line_through_two_steps(free: int, expected: int) -> None:
    assert largest_fitting(lambda images: 50 + 50 * images, free) == expected


def test_running_out_of_memory_is_an_answer() -> None:
    def needed(images: int) -> int:
        if images > 1:
            raise torch.OutOfMemoryError
        return 10

    def never(images: int) -> int:
        raise torch.OutOfMemoryError

    assert largest_fitting(needed, 1000) == 1
    assert largest_fitting(never, 1000) == 0


def test_noise_does_not_make_images_free_of_charge() -> None:
    assert largest_fitting(lambda images: 100 - images, 1000) < 50


def test_inputs_are_the_largest_of_the_training() -> None:
    assert input_hw(CONFIG) == (64, 64)
    assert input_hw(replace(CONFIG, img_size=[96, 160])) == (96, 160)
    assert input_hw(replace(CONFIG, multi_scale=True)) == (96, 96)


@pytest.mark.parametrize("slicer", ["grid", "none"])
def test_a_real_step_needs_memory(slicer: str) -> None:
    config = replace(TINY, slicer=replace(TINY.slicer, algorithm=slicer))  # type: ignore[arg-type]
    step = TrainingStep(config, replace(CONFIG, img_size=256), HypConfig(), CPU, None)
    assert step.bytes_needed(2) > 2**20 and step.state_bytes > 100_000


def test_the_answer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingStep, "bytes_needed", lambda self, images: images * 2**20)
    monkeypatch.setattr(batch_size, "available_memory", lambda: 2.0**40)
    assert find_batch_size(TINY, CONFIG, HypConfig(nominal_batch=16), CPU, None, 1) == 16
    assert find_batch_size(TINY, CONFIG, HypConfig(nominal_batch=16), CPU, None, 2) == 16
    monkeypatch.setattr(batch_size, "available_memory", lambda: 2.0**20)
    with pytest.raises(ConfigError, match="not even one image of 64 pixels fits"):
        find_batch_size(TINY, CONFIG, HypConfig(), CPU, None, 1)
    monkeypatch.setattr(batch_size, "available_memory", lambda: None)
    with pytest.raises(ConfigError, match="give a number"):
        find_batch_size(TINY, CONFIG, HypConfig(), CPU, None, 1)


def test_training_with_what_fits(
    tiny_dataset: Path, tmp_path: Path, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The found number is what the run records; activations are computed again on the way."""
    monkeypatch.setattr(batch_size, "largest_fitting", lambda needed, free: 3)
    line = options(tiny_dataset, tmp_path, epochs=1, batch_size=-1, checkpoint_activations=True)
    result = run_command("train.py", *line)
    assert result.status == 0, result.err
    assert "--batch-size -1: 3 images fit" in result.out
    recorded = load_checkpoint(tmp_path / "exp" / "weights" / "last.pt")["train"]
    assert recorded["batch_size"] == 3 and recorded["checkpoint_activations"] == "stem"
