"""Weights files as models: the project's own format and, converted in memory, those of other software."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.build import build_model
from models.convert.checkpoint import convert_checkpoint
from models.esod import ESOD
from utils.checkpoint import (
    CheckpointError,
    MatchReport,
    is_own_format,
    load_checkpoint,
    match_state_dict,
    sha256_of,
)
from utils.config import ModelConfig
from utils.legacy_file import is_legacy
from utils.pickle_reader import read_pickled_checkpoint
from utils.typed_data import config_from_dict


@dataclass
class Weights:
    """What a weights file holds.

    Attributes:
        config: of the network the tensors belong to.
        state_dict: this project's keys; complete unless the file is an initialisation.
        left_over: keys of the source that have no place here.
        left_over_values: how many numbers they hold.
        provenance: where the tensors come from, as plain data.
    """

    config: ModelConfig
    state_dict: dict[str, Tensor]
    left_over: list[str] = field(default_factory=list)
    left_over_values: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)


def read_weights(path: str | Path) -> Weights:
    """Read a weights file without executing anything in it.

    Raises:
        CheckpointError: missing, damaged, of an unknown kind, or refused as unsafe.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path}: a folder, not a weights file")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file; released ones are listed in weights/README.md")
    if not is_legacy(path) and is_own_format(path):
        return own_weights(load_checkpoint(path), str(path))
    checkpoint = read_pickled_checkpoint(path)
    try:
        converted = convert_checkpoint(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    provenance = {"source": path.name, "sha256": sha256_of(path), "license": converted.licence}
    return Weights(
        converted.config, converted.state_dict, converted.left_over, converted.left_over_values, provenance
    )


def own_weights(data: dict[str, Any], where: str) -> Weights:
    """Weights of a checkpoint in the project's own format; of its EMA when it has one."""
    missing = [key for key in ("config", "model") if key not in data]
    if missing:
        raise CheckpointError(f"{where}: no {' and no '.join(missing)} in this checkpoint: it is incomplete")
    state = data.get("ema") or data["model"]
    state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    provenance = dict(data.get("provenance") or {})
    return Weights(config_from_dict(ModelConfig, data["config"]), state, provenance=provenance)


def model_from_weights(weights: Weights, where: str) -> ESOD:
    """The network of a weights file, in evaluation mode; ``where`` names the file in messages.

    Raises:
        CheckpointError: a tensor is missing, superfluous or of another shape, with its name.
    """
    report = match_state_dict(weights.state_dict, expected_tensors(weights.config))
    missing = [key for key in report.missing if not key.endswith("num_batches_tracked")]
    if missing or report.unexpected or report.shape_mismatch:
        raise CheckpointError(
            f"{where} does not hold a complete detector: {report.summary()}\n"
            "An initialisation must be trained first (train.py --weights), or converted with --keep-head."
        )
    model = build_model(weights.config)
    model.load_state_dict(weights.state_dict, strict=False)
    return model.eval()


def expected_tensors(config: ModelConfig) -> dict[str, Tensor]:
    """Names and shapes of a network's state dict, without memory for values: a file may describe any size."""
    with torch.device("meta"):
        return build_model(config).state_dict()


def initialise(model: ESOD, weights: Weights) -> MatchReport:
    """Copy every tensor that fits (by name and shape) into a model to be trained; tells which did not."""
    report = match_state_dict(weights.state_dict, model.state_dict())
    model.load_state_dict({key: weights.state_dict[key] for key in report.matched}, strict=False)
    return report
