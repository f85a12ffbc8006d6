"""The summary: parameters and operations against numbers counted otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from models.build import build_model
from models.slicer import Patches, fixed_grid
from models.summary import build_for_counting, cost_at, dense_twin, layers_of, main
from utils.config import HeadConfig, ModelConfig, SlicerConfig
from utils.profile import count_flops, count_parameters

CONFIG = ModelConfig(depth=0.33, width=0.125, num_classes=3)
SIZE = (256, 320)


@pytest.mark.parametrize(
    "changes",
    [{"family": "yolov5"}, {"family": "yolov8"}, {"family": "retinanet"}, {"fine_level": True}, {"transformer": True}],
    ids=["yolov5", "yolov8", "retinanet", "stride 4", "attention"],
)  # fmt: skip
def test_dense_operations_are_those_of_a_real_pass(changes: dict[str, Any]) -> None:
    config = replace(CONFIG, **changes)
    real = build_model(dense_twin(config)).eval()
    with torch.no_grad():
        ran = count_flops(lambda: real(torch.rand(1, 3, *SIZE)))
    cost = cost_at(build_for_counting(dense_twin(config)), SIZE, None)
    assert cost.total == pytest.approx(ran.gflops) and cost.kept == 1.0
    assert set(cost.gflops) == {"stem", "deep", "neck", "head"} and min(cost.gflops.values()) > 0


def test_the_cost_of_kept_patches_is_that_of_a_real_pass() -> None:
    config = replace(CONFIG, head=HeadConfig(kind="dfl"))
    cost = cost_at(build_for_counting(config), SIZE, 0.25)

    def some(logits: torch.Tensor) -> Patches:
        grid = fixed_grid(1, (32, 40), 8, logits.device)
        return Patches(grid.image_index[:16], grid.xyxy_cell[:16], grid.size_cell)

    # A map of 32×40 cells has patches of 4×8: ten of them are a quarter.
    assert cost.patches == 10 and cost.kept == 0.25
    real = build_model(config).eval()
    with torch.no_grad():
        sixteen = count_flops(lambda: real(torch.rand(1, 3, *SIZE), some)).gflops
    fixed = cost.gflops["stem"] + cost.gflops["seeker"]
    assert sixteen - fixed == pytest.approx((cost.total - fixed) * 1.6)


def test_neighbours_cost_no_operations() -> None:
    config = replace(CONFIG, slicer=SlicerConfig(shift="none"))
    seeing = build_for_counting(replace(config, borders="neighbours"))
    assert cost_at(seeing, SIZE, 0.25) == cost_at(build_for_counting(config), SIZE, 0.25)


def test_layers_add_up() -> None:
    model = build_for_counting(CONFIG)
    layers = layers_of(model, SIZE)
    assert sum(layer.parameters for layer in layers) == count_parameters(model)
    whole = cost_at(model, SIZE, None).total
    assert sum(layer.gflops for layer in layers) == pytest.approx(whole)
    by_name = {layer.name: layer for layer in layers}
    assert by_name["stem.4"].shape == "32×32×40" and by_name["neck.down3"].shape == "32×16×20"
    assert by_name["head.levels.0"].shape == "1280×3×8" and by_name["stem.0"].kind == "Focus"


def test_the_command_prints_the_table(root, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    main(
        ["--cfg", str(root / "models/cfg/yolov5s.yaml"), "--img-size", "256x320", "--kept", "0.5", "--layers"]
    )
    out = capsys.readouterr().out
    assert "13,652,424 parameters" in out and "input 256×320" in out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert float(lines["total"][3]) < float(lines["total"][2]), "half of the patches cost less than all"
    assert lines["stem"][2] == lines["stem"][3]
