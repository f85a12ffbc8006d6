"""What several tests of the engine start from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from models.build import build_model
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.config import DatasetConfig, ModelConfig
from utils.typed_data import config_from_dict, config_to_dict, load_config


@pytest.fixture(scope="session")
def weights(tiny_dataset: Path) -> Path:
    """An untrained ESOD whose heatmap lights up on some cells."""
    dataset = load_config(DatasetConfig, tiny_dataset)
    plain = yaml.safe_load((tiny_dataset.parent / "model.yaml").read_text())
    config = config_from_dict(
        ModelConfig,
        plain | {"num_classes": dataset.nc, "names": dataset.names, "anchors": dataset.anchors_for(256)},
    )
    torch.manual_seed(1)
    model = build_model(config)
    assert model.seeker is not None
    torch.nn.init.normal_(model.seeker.predict.weight, std=40.0)
    torch.nn.init.zeros_(model.seeker.predict.bias)
    path = tiny_dataset.parent / "weights.pt"
    save_checkpoint(
        path, {"config": config_to_dict(config), "model": model.state_dict(), "names": config.names}
    )
    return path


@pytest.fixture(scope="session")
def lively(weights: Path) -> Path:
    """The same model with biases that let it find much."""
    content = load_checkpoint(weights)
    for name, tensor in content["model"].items():
        if name.endswith(("obj_pred.bias", "cls_pred.bias")):
            tensor.copy_(torch.linspace(-1.0, 1.0, len(tensor)))
    path = weights.with_name("lively.pt")
    save_checkpoint(path, content)
    return path
