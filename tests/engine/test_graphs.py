"""Padding the number of patches, and the keeping of graphs; recording itself needs a GPU (tests/test_gpu.py)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from engine.graphs import GraphRunner, PaddedRunner, _Recorded, padded_count
from engine.modes import Mode, put_into
from models.build import build_model
from models.esod import ESOD, Part
from utils.config import HeadConfig, ModelConfig, SlicerConfig
from utils.typed_data import ConfigError

FAMILIES = {
    "yolov5": ModelConfig(width=0.125, depth=0.33, num_classes=2),
    "transformer": ModelConfig(width=0.125, depth=0.33, num_classes=2, transformer=True),
    "yolov8": ModelConfig(family="yolov8", width=0.125, num_classes=2, head=HeadConfig("dfl")),
    "rtmdet": ModelConfig(family="rtmdet", width=0.125, num_classes=2),
    "gpvit": ModelConfig(family="gpvit", depth=0.25, width=12 / 216, num_classes=2),
}


def build(config: ModelConfig) -> ESOD:
    torch.manual_seed(2)
    model = build_model(config)
    assert model.seeker is not None
    torch.nn.init.normal_(model.seeker.predict.weight, std=30.0)  # type: ignore[arg-type]
    torch.nn.init.zeros_(model.seeker.predict.bias)  # type: ignore[arg-type]
    return model.eval()


def test_numbers_of_patches() -> None:
    assert [padded_count(n) for n in (0, 1, 2, 7, 8, 9, 10, 11, 16, 17, 20, 21, 33, 56, 64, 65)] == [
        0, 1, 2, 7, 8, 10, 10, 12, 16, 20, 20, 24, 40, 56, 64, 80,
    ]  # fmt: skip
    for count in range(1, 2000):
        assert count <= padded_count(count) <= 1.25 * count
        assert padded_count(padded_count(count)) == padded_count(count)
    assert len({padded_count(n) for n in range(257)}) <= 30


class Generous(PaddedRunner):
    """Always some more."""

    def padded(self, count: int) -> int:
        return count + 3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("threshold", [0.5, 1.0])
@torch.inference_mode()
def test_padding_changes_nothing(family: str, sparse: bool, threshold: float) -> None:
    config = FAMILIES[family]
    model = build(
        replace(config, head=replace(config.head, sparse=sparse), slicer=SlicerConfig(threshold=threshold))
    )
    images = torch.rand(2, 3, 128, 160)
    expected, found = model(images), model(images, runner=Generous())
    assert (len(expected.patches) > 0) == (threshold < 1)
    assert torch.equal(found.patches.xyxy_cell, expected.patches.xyxy_cell)
    for a, b in zip(found.levels, expected.levels, strict=True):
        assert torch.equal(a.position, b.position) and a.grid_hw == b.grid_hw
        torch.testing.assert_close(a.raw, b.raw, atol=1e-6, rtol=1e-5)


class FakeGraph:
    """What a CUDA graph does: runs a part on the tensors that it was recorded with."""

    def __init__(self, part: Part, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
        self.part, self.inputs, self.outputs = part, inputs, outputs

    def replay(self) -> None:
        for output, new in zip(self.outputs, self.part(*self.inputs), strict=True):
            output.copy_(new)


class Recorder:
    """Records as `record_graph` does, on a CPU."""

    count = 0

    def __call__(self, part: Part, inputs: tuple[Tensor, ...]) -> _Recorded:
        self.count += 1
        with torch.inference_mode(False), torch.no_grad():
            fixed = tuple(torch.empty_like(x).copy_(x) for x in inputs)
            outputs = tuple(torch.empty_like(x).copy_(x) for x in part(*fixed))
        return _Recorded(FakeGraph(part, fixed, outputs), fixed, outputs)  # type: ignore[arg-type]


@torch.inference_mode()
def test_replayed_parts_give_what_the_network_gives() -> None:
    model = build(FAMILIES["yolov5"])
    record = Recorder()
    runner = GraphRunner(record=record)
    pictures = [torch.rand(1, 3, 128, 160) for _ in range(4)]
    held = []
    for images in pictures:
        output = model(images, runner=runner)
        held.append((output, model(images)))
    assert record.count >= 3 and len(runner) == record.count
    for found, expected in held:  # looked at only now: no replay may have overwritten an earlier result
        assert found.heatmap_logits is not None
        torch.testing.assert_close(found.heatmap_logits, expected.heatmap_logits)
        for a, b in zip(found.levels, expected.levels, strict=True):
            torch.testing.assert_close(a.raw, b.raw, atol=1e-5, rtol=1e-5)


def test_a_graph_is_recorded_for_a_shape_that_comes_again_and_few_are_kept() -> None:
    def double(x: Tensor) -> tuple[Tensor]:
        return (2 * x,)

    record = Recorder()
    runner = GraphRunner(max_graphs=2, record=record)
    for _ in range(3):
        assert runner.run("a", double, torch.ones(3))[0].tolist() == [2, 2, 2]
    assert record.count == 1 and len(runner) == 1
    runner.run("b", double, torch.ones(3))
    runner.run("a", double, torch.ones(4))  # the third shape: the first is forgotten
    assert len(runner) == 0
    runner.run("a", double, torch.ones(4))
    assert record.count == 2 and len(runner) == 1
    assert runner.run("a", double, torch.ones(0))[0].tolist() == [] and record.count == 2


def test_graphs_need_a_gpu() -> None:
    with pytest.raises(ConfigError, match="need a GPU: leave it out on a CPU"):
        put_into(Mode("graphs", graphs=True), build(FAMILIES["yolov5"]), torch.device("cpu"))
