"""RTMDet with ESOD: sizes, passes, and the released checkpoints. OpenMMLab's files: test_openmmlab.py."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from models.build import build_model
from models.convert.networks import RTMDET, config_of_released, layout_of, rename_released
from models.esod import ESOD
from models.weights import read_weights
from tests.conftest import ROOT, RunCommand
from tests.models.conftest import BuildTiny
from tests.models.test_parity import check_case
from utils.checkpoint import CheckpointError
from utils.config import HeadConfig, ModelConfig, SeekerConfig, SlicerConfig
from utils.pickle_reader import PickledNetwork
from utils.typed_data import ConfigError, load_config

GOLDEN = ROOT / "tests" / "golden"

# Millions of parameters with 80 classes, as mmdetection's model zoo lists them, and to how many digits.
PUBLISHED = {"tiny": (4.8, 0.1), "s": (8.89, 0.01), "m": (24.71, 0.01), "l": (52.3, 0.1)}
WITH_ESOD = {"tiny": 7_684_564, "s": 13_833_624, "m": 35_815_696, "l": 72_039_720}


def numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def on_meta(config: ModelConfig) -> ESOD:
    with torch.device("meta"):
        return build_model(config)


def config_of_size(size: str, num_classes: int = 10) -> ModelConfig:
    config = load_config(ModelConfig, ROOT / "models" / "cfg" / f"rtmdet{size and '_'}{size}.yaml")
    return dataclasses.replace(config, num_classes=num_classes)


# --- sizes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", list(PUBLISHED))
def test_body_and_neck_have_the_published_size(size: str) -> None:
    """With the head that RTMDet itself has, written down here, the number of parameters is the published one."""
    model = on_meta(config_of_size(size))
    c3, c4, c5 = (model.head.levels[i].stem.conv.in_channels for i in range(3))  # type: ignore[union-attr]
    last_of_neck = sum(9 * c * c3 + 2 * c3 for c in (c3, c4, c5))
    # Two branches of two convolutions, shared by the levels but for their BatchNorm; 80 classes, four distances.
    head = 2 * (2 * 9 * c3 * c3 + 3 * 2 * 2 * c3) + 3 * (80 + 4) * (c3 + 1)
    body = numbers(model.stem) + numbers(model.deep) + numbers(model.neck)
    published, digit = PUBLISHED[size]
    assert (body + last_of_neck + head) / 1e6 == pytest.approx(published, abs=digit)


@pytest.mark.parametrize("size", list(WITH_ESOD))
def test_parameters_with_esod(size: str) -> None:
    assert numbers(on_meta(config_of_size(size))) == WITH_ESOD[size]


def test_the_released_size_is_m() -> None:
    assert config_of_size("") == config_of_size("m")


def test_channel_multiple_is_checked() -> None:
    with pytest.raises(ConfigError, match="channel_multiple is 4; 8 is expected"):
        ModelConfig(family="yolov5", channel_multiple=4)
    with pytest.raises(ConfigError, match="channel_multiple is 0"):
        ModelConfig(family="rtmdet", channel_multiple=0)


# --- passes --------------------------------------------------------------------------------------------------


def test_forward_and_backward(tiny: BuildTiny) -> None:
    model = tiny("none", family="rtmdet").train()
    output = model(torch.rand(2, 3, 64, 96))
    assert [tuple(level.raw.shape) for level in output.levels] == [
        (2 * 8 * 12 // 4**i, 3, 8) for i in range(3)
    ]
    assert output.heatmap_logits is not None and output.heatmap_logits.shape == (2, 1, 8, 12)
    (
        sum(level.raw.square().mean() for level in output.levels) + output.heatmap_logits.square().mean()
    ).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("slicer", ["none", "grid", "greedy"])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_batch_is_its_images_one_by_one(tiny: BuildTiny, slicer: str, sparse: bool) -> None:
    model = tiny(slicer, sparse, family="rtmdet")
    images = torch.rand(2, 3, 128, 160)
    with torch.inference_mode():
        both = model(images)
        alone = [model(image[None]) for image in images]
    torch.testing.assert_close(both.heatmap_logits, torch.cat([one.heatmap_logits for one in alone]))
    assert len(both.patches) == sum(len(one.patches) for one in alone) > 0
    for level, *parts in zip(both.levels, *(one.levels for one in alone), strict=True):
        torch.testing.assert_close(level.raw, torch.cat([part.raw for part in parts]), rtol=1e-4, atol=1e-5)


def test_sparse_head_gives_what_the_dense_one_gives_there(tiny: BuildTiny) -> None:
    dense = tiny("grid", family="rtmdet")
    images = torch.rand(1, 3, 128, 160)
    with torch.inference_mode():
        everywhere = dense(images).levels
        dense.config = dataclasses.replace(dense.config, head=HeadConfig(sparse=True, threshold=0.8))
        somewhere = dense(images).levels
    assert 0 < len(somewhere[0].raw) < len(everywhere[0].raw)
    for all_of, some in zip(everywhere, somewhere, strict=True):
        rows = {tuple(p): raw for p, raw in zip(all_of.position.tolist(), all_of.raw, strict=True)}
        expected = torch.stack([rows[tuple(p)] for p in some.position.tolist()])
        torch.testing.assert_close(some.raw, expected, rtol=1e-4, atol=1e-5)


def test_fuse_folds_every_normalisation_and_changes_nothing(tiny: BuildTiny) -> None:
    model = tiny("none", family="rtmdet")
    images = torch.rand(1, 3, 96, 64)
    with torch.inference_mode():
        before = model(images)
        after = model.fuse()(images)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    torch.testing.assert_close(after.heatmap_logits, before.heatmap_logits, rtol=1e-3, atol=1e-4)
    for a, b in zip(after.levels, before.levels, strict=True):
        torch.testing.assert_close(a.raw, b.raw, rtol=1e-3, atol=1e-4)


# --- released checkpoints ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["esod_visdrone_rtmdetm", "vanilla_visdrone_rtmdetm"])
def test_every_key_of_the_released_models_has_a_place(name: str) -> None:
    listed = json.loads((GOLDEN / "keys" / f"{name}.json").read_text())
    state = {key: torch.zeros(shape) for key, shape in listed["state_dict"].items()}
    renamed, left_over = rename_released(state, RTMDET)
    assert left_over == []
    config = config_of_size("m", listed["num_classes"])
    if "vanilla" in name:
        config = dataclasses.replace(
            config, seeker=SeekerConfig(kind="none"), slicer=SlicerConfig(algorithm="none")
        )
    model = on_meta(config)
    target = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in renamed.items()} == target
    assert numbers(model) == listed["parameters"]


@pytest.mark.parametrize("head", ["dense", "sparse"])
@pytest.mark.parametrize("convert", [True, False], ids=["converted", "raw"])
def test_released_esod(head: str, convert: bool, tmp_path: Path, run_command: RunCommand) -> None:
    folder = GOLDEN / "rtmdet_visdrone"
    weights = folder / "checkpoint.pt"
    if convert:
        result = run_command("scripts/model_convert.py", "--weights", weights, "--output", tmp_path / "x.pt")
        assert result.status == 0 and "100.0% of the source's numbers are used" in result.out
        weights = tmp_path / "x.pt"
    check_case(folder, weights, head, tmp_path / "out.npz", run_command)


def test_settings_of_a_released_model_are_taken_over() -> None:
    weights = read_weights(GOLDEN / "rtmdet_visdrone" / "checkpoint.pt")
    config = weights.config
    assert (config.family, config.width, config.depth, config.bn_eps) == ("rtmdet", 0.125, 0.33, 1e-5)
    assert config.slicer == SlicerConfig(algorithm="grid", patches_per_side=8, threshold=0.5, shift="edge")
    assert config.anchors[2][0] == [74, 38] and weights.left_over == []


def network_with(layers: list[object], seeker: bool) -> PickledNetwork:
    """A released network of tiny width without its weights but for those that say what it is."""
    head = 29 if seeker else 26
    state = {
        f"model.{head}.anchors": torch.ones(3, 3, 2),
        f"model.{head}.m.0.stem.conv.weight": torch.ones(1),
    }
    if seeker:
        state |= {
            "model.7.conv.weight": torch.ones(8, 1, 11, 11),
            "model.8.m.0.weight": torch.ones(1, 8, 1, 1),
        }
    return PickledNetwork(
        state_dict=state, yaml={"backbone": layers, "head": [], "depth_multiple": 0.33, "width_multiple": 0.5},
        names=["a"], bn_eps=1e-5, strides=[8.0, 16.0, 32.0], extra={}, activation="SiLU",
        activations={"SiLU": 1}, num_parameters=0,
    )  # fmt: skip


CSP = [-1, 3, "RTMDetCSPLayer", [128, True, True]]
STEM = [[-1, 1, "Conv", [32, 3, 1]]] * 6
SPP = [-1, 1, "SPP", [1024, [5, 9, 13]]]
SEEKER = [
    [-1, 1, "DWConv", [256, 11, 1]],
    [[-1], 1, "Segmenter", [1]],
    [[-3, -1], 1, "HeatMapParser", [256, 4, 0.3]],
]


def test_the_family_is_recognised_by_its_layers() -> None:
    assert layout_of(network_with([[-1, 1, "Conv", [32, 3, 2]], CSP], True)) is RTMDET
    assert layout_of(network_with([[-1, 3, "C3", [128]]], True)) is not RTMDET


def test_configuration_with_and_without_heatmap() -> None:
    esod = config_of_released(network_with([*STEM, CSP, *SEEKER, SPP], True))
    assert esod.seeker == SeekerConfig(kind="conv", kernel=11)
    assert (esod.slicer.patches_per_side, esod.slicer.threshold) == (4, 0.3)
    plain = config_of_released(network_with([*STEM, CSP, SPP], False))
    assert (plain.seeker.kind, plain.slicer.algorithm, plain.head.kind) == ("none", "none", "decoupled")
    assert plain.anchors[1][0] == [16, 16], "anchors in units of the stride become pixels"


def test_other_pools_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"pools \[3, 5, 7\]; RTMDet's pools \[5, 9, 13\]"):
        config_of_released(network_with([*STEM, CSP, [-1, 1, "SPP", [1024, [3, 5, 7]]]], False))
