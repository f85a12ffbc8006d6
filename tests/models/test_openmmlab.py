"""OpenMMLab's RTMDet and CSPNeXt files: what they compute arrives here, and files in their layout can be read."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.build import build_model
from models.convert.checkpoint import convert_state_dict
from models.convert.rtmdet import is_openmmlab_rtmdet, openmmlab_rtmdet_config, rename_openmmlab_rtmdet
from models.esod import ESOD
from models.slicer import whole_map
from models.weights import initialise, read_weights
from tests.conftest import ROOT, RunCommand
from tests.models.openmmlab_reference import MEAN, official_shapes, official_state, pyramid
from utils.checkpoint import CheckpointError
from utils.config import ModelConfig
from utils.typed_data import load_config

SIZES = {"tiny": (0.375, 0.167), "s": (0.5, 0.33), "m": (0.75, 0.67), "l": (1.0, 1.0), "x": (1.25, 1.33)}


def filled(state: dict[str, Tensor]) -> tuple[ESOD, list[str]]:
    converted = convert_state_dict(state)
    model = build_model(converted.config)
    missing, unexpected = model.load_state_dict(converted.state_dict, strict=False)
    assert unexpected == []
    return model.eval(), missing


def our_pyramid(model: ESOD, pixels: Tensor) -> list[Tensor]:
    features = model.stem(pixels / 255)
    patches = whole_map(len(features), (features.shape[2], features.shape[3]), features.device)
    return model.neck(*model.deep(features, patches))  # type: ignore[no-any-return]


# --- what they compute ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("width,depth,multiple", [(0.125, 0.167, 4), (0.25, 0.67, 8)])
@torch.no_grad()
def test_a_detector_computes_the_same_on_rgb_in_0_to_1(width: float, depth: float, multiple: int) -> None:
    state = official_state(width, depth)
    converted = convert_state_dict(state)
    config = converted.config
    assert (config.family, config.width, config.depth) == ("rtmdet", width, depth)
    assert (config.channel_multiple, config.bn_eps) == (multiple, 1e-5)
    assert converted.left_over == [k for k in state if k.startswith(("neck.out_convs.", "bbox_head."))]
    model, missing = filled(state)
    assert missing and all(name.startswith(("seeker.", "head.")) for name in missing)
    pixels = torch.randint(0, 256, (2, 3, 96, 128)).float()
    for ours, theirs in zip(our_pyramid(model, pixels), pyramid(state, pixels), strict=True):
        assert theirs.std() > 0.05
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=5e-4)


@torch.no_grad()
def test_the_order_of_the_channels_matters() -> None:
    """A picture of pure blue and one of pure red, so that a forgotten swap cannot pass."""
    state = official_state(0.125, 0.167)
    model, _ = filled(state)
    pixels = torch.zeros(2, 3, 64, 64)
    pixels[0, 2], pixels[1, 0] = 255, 255
    right = pyramid(state, pixels)[0]
    torch.testing.assert_close(our_pyramid(model, pixels)[0], right, rtol=1e-3, atol=5e-4)
    assert not torch.allclose(our_pyramid(model, pixels.flip(1))[0], right, rtol=0.1, atol=0.1)


@torch.no_grad()
def test_a_picture_of_the_mean_colour_is_nothing_to_the_first_convolution() -> None:
    state = official_state(0.125, 0.167)
    model, _ = filled(state)
    first = model.stem[0]  # type: ignore[index]
    colour = torch.tensor(MEAN[::-1]).view(1, 3, 1, 1).expand(1, 3, 16, 16) / 255
    inside = (first.conv(colour) - first.bn.running_mean.view(-1, 1, 1))[..., 1:, 1:]
    expected = -state["backbone.stem.0.bn.running_mean"].view(1, -1, 1, 1).expand_as(inside)
    torch.testing.assert_close(inside, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_classifier_takes_rgb_and_fills_the_body() -> None:
    state = official_state(0.125, 0.33, detector=False)
    converted = convert_state_dict(state)
    assert converted.left_over == ["head.fc.weight", "head.fc.bias"] and converted.config.depth == 0.33
    model, missing = filled(state)
    assert all(name.startswith(("neck.", "seeker.", "head.")) for name in missing)
    pixels = torch.randint(0, 256, (1, 3, 64, 96)).float()
    features = model.stem(pixels / 255)
    found = model.deep(features, whole_map(1, (8, 12), features.device))
    for ours, theirs in zip(found, pyramid(state, pixels, bgr=False), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=5e-4)


# --- sizes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("detector", [True, False])
@pytest.mark.parametrize("size", list(SIZES))
def test_every_published_size_is_recognised(size: str, detector: bool) -> None:
    """Names and shapes of the real sizes; the configuration is that of models/cfg."""
    width, depth = SIZES[size]
    shapes = official_shapes(width, depth, detector=detector)
    state = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    assert is_openmmlab_rtmdet(state)
    config = openmmlab_rtmdet_config(state)
    if size != "x":
        assert config == load_config(ModelConfig, ROOT / "models" / "cfg" / f"rtmdet_{size}.yaml")
    with torch.device("meta"):
        model = build_model(config)
    parts = ("stem.", "deep.", "neck.") if detector else ("stem.", "deep.")
    target = {k: v.shape for k, v in model.state_dict().items() if k.startswith(parts)}
    assert {k: v.shape for k, v in rename_openmmlab_rtmdet(state)[0].items()} == target


def test_other_networks_are_refused() -> None:
    state = official_state(0.125, 0.167)
    with pytest.raises(CheckpointError, match=r"fifth stage \(P6\)"):
        openmmlab_rtmdet_config(state | {"backbone.stage5.0.conv.weight": torch.zeros(1)})
    other = state | {"backbone.stage2.0.conv.weight": torch.zeros(40, 16, 3, 3)}
    with pytest.raises(CheckpointError, match=r"convolutions of \(4, 8, 16, 40, 64, 128\) channels"):
        openmmlab_rtmdet_config(other)
    longer = state | {"backbone.stage2.1.blocks.1.conv1.conv.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="stages of 1-2-1-1-1 blocks"):
        openmmlab_rtmdet_config(longer)
    for key in ("backbone.stem.2.conv.weight", "backbone.stage4.0.conv.weight"):
        with pytest.raises(CheckpointError, match=key.replace(".", r"\.")):
            openmmlab_rtmdet_config({k: v for k, v in state.items() if k != key})
    with pytest.raises(CheckpointError, match="BatchNorm behind it"):
        rename_openmmlab_rtmdet({k: v for k, v in state.items() if k != "backbone.stem.0.bn.running_mean"})
    with pytest.raises(CheckpointError, match=r"2 tensors \(encoder\.weight, .*OpenMMLab's CSPNeXt"):
        convert_state_dict({"encoder.weight": torch.zeros(1), "encoder.bias": torch.zeros(1)})


# --- files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def history_buffer(monkeypatch: pytest.MonkeyPatch) -> type:
    """A class of the name under which OpenMMLab's training checkpoints hold logs; gone when they are read."""
    name = "mmengine.logging.history_buffer"
    module = types.ModuleType(name)
    buffer: Any = type("HistoryBuffer", (), {"__module__": name, "mean": lambda self: 0})
    module.HistoryBuffer = buffer  # type: ignore[attr-defined]
    buffer.mean.__qualname__, buffer.mean.__module__ = "HistoryBuffer.mean", name
    for parent in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, name, module)
    return buffer  # type: ignore[no-any-return]


def training_checkpoint(state: dict[str, Tensor], buffer: type) -> dict[str, Any]:
    """All that a checkpoint of a training run holds besides the weights."""
    log = buffer()
    log.__dict__.update(
        _log_history=np.arange(3.0), max_length=1000, _statistics_methods={"mean": buffer.mean}
    )  # type: ignore[attr-defined]
    return {
        "meta": {"epoch": 3, "cfg": "model = dict()", "dataset_meta": {"CLASSES": ("a", "b")}, "seed": np.int64(1)},
        "state_dict": state,
        "message_hub": {"log_scalars": {"train/loss": log}, "runtime_info": {"iter": 7}, "resumed_keys": {}},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.004, "params": [0]}]},
        "param_schedulers": [{"last_step": np.float64(3)}],
        "ema_state_dict": {"steps": torch.tensor(3)} | {f"module.{k}": v * 2 for k, v in state.items()},
    }  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("kind", ["published", "training", "bare", "parallel"])
def test_files_are_read_as_they_are_found(
    tmp_path: Path, history_buffer: type, monkeypatch: pytest.MonkeyPatch, kind: str, zipped: bool
) -> None:
    state = official_state(0.125, 0.167)
    content: dict[str, Any] = {
        "published": {"meta": {"mmdet_version": "3.0.0rc0", "CLASSES": ("person",)}, "state_dict": state},
        "training": training_checkpoint(state, history_buffer),
        "bare": state,
        "parallel": {"state_dict": {f"module.{key}": value for key, value in state.items()}},
    }[kind]
    path = tmp_path / "rtmdet.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    monkeypatch.delitem(sys.modules, "mmengine.logging.history_buffer")
    weights = read_weights(path)
    expected = convert_state_dict(state)
    assert weights.config == expected.config and weights.left_over == expected.left_over
    assert weights.state_dict.keys() == expected.state_dict.keys()
    for name, tensor in expected.state_dict.items():
        assert torch.equal(weights.state_dict[name], tensor), name
    assert weights.provenance["source"] == "rtmdet.pth" and len(weights.provenance["sha256"]) == 64


def test_a_file_becomes_an_initialisation(tmp_path: Path, run_command: RunCommand) -> None:
    state = official_state(0.125, 0.167)
    torch.save({"meta": {}, "state_dict": state}, tmp_path / "source.pth")
    result = run_command(
        "scripts/model_convert.py", "--weights", tmp_path / "source.pth", "--output", tmp_path / "init.pt"
    )
    assert result.status == 0 and "of the source's numbers are used" in result.out, result.err
    assert "neck.out_convs.0.conv.weight" in result.out, "what is not used is named"
    converted, direct = read_weights(tmp_path / "init.pt"), convert_state_dict(state)
    assert converted.config == direct.config
    model = build_model(converted.config)
    report = initialise(model, converted)
    assert set(report.matched) == set(direct.state_dict)
    torch.testing.assert_close(
        model.state_dict()["neck.down4.bn.weight"],
        state["neck.downsamples.1.bn.weight"],
        rtol=1e-3,
        atol=1e-4,
    )
    refused = run_command(
        "detect.py",
        "--weights",
        tmp_path / "init.pt",
        "--source",
        ROOT / "data" / "images",
        "--device",
        "cpu",
    )
    assert refused.status == 1 and "initialisation" in refused.err


def test_the_file_is_named_in_errors(tmp_path: Path) -> None:
    torch.save({"encoder.weight": torch.zeros(2)}, tmp_path / "foreign.pth")
    with pytest.raises(CheckpointError, match=r"foreign\.pth: a state dict of 1 tensors"):
        read_weights(tmp_path / "foreign.pth")
