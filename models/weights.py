"""Weights files as models: the project's own format and, converted in memory, those of other software."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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

CLASS_LAYERS = {"cls_pred": 0, "predict": 5}
"""Layers of the head that predict classes, by name: how many other numbers they predict of each anchor, before them."""


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
    """Copy every tensor that fits (by name and shape) into a model to be trained; tells which did not.

    Of classes that both know, by name, the rows of the class layers go to their new places; see `carry_classes`.
    """
    target = model.state_dict()
    report = match_state_dict(weights.state_dict, target)
    state = {key: weights.state_dict[key] for key in report.matched}
    carried = carry_classes(weights, target, model.config)
    model.load_state_dict(state | carried, strict=False)
    if not carried:
        return report
    same = sorted(same_classes(weights.config.names, model.config.names))
    return replace(report, carried=list(carried), classes=[model.config.names[new] for new in same])


def carry_classes(weights: Weights, target: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The class layers of a model that know its classes as far as weights of other classes do.

    Args:
        weights: the source; without names of its classes nothing is carried.
        target: state dict of the model; the rows of classes that the source does not know stay as they are.
        config: of the model.

    Returns:
        New tensors by name; none where both have the same classes, or as many and no name in another place.
    """
    old_names, new_names = weights.config.names, config.names
    same = same_classes(old_names, new_names)
    in_place = all(new == old for new, old in same.items())
    if not same or (in_place and len(old_names) == len(new_names)):
        return {}
    carried = {}
    for key, new in target.items():
        layer, _, kind = key.rpartition(".")
        others = CLASS_LAYERS.get(layer.rpartition(".")[2]) if key.startswith("head.") else None
        old, weight = weights.state_dict.get(key), weights.state_dict.get(f"{layer}.weight")
        if others is None or old is None or weight is None or kind not in ("weight", "bias"):
            continue
        fits = weight.shape[1:] == target[f"{layer}.weight"].shape[1:]
        old_rows, new_rows = others + len(old_names), others + len(new_names)
        anchors = len(old) / old_rows
        if fits and anchors == len(new) / new_rows and anchors.is_integer():
            rows = old.unflatten(0, (-1, old_rows)), new.unflatten(0, (-1, new_rows))
            carried[key] = _class_rows(*rows, others, same).flatten(0, 1)
    return carried


def _class_rows(old: Tensor, new: Tensor, others: int, same: dict[int, int]) -> Tensor:
    """Rows [A, others + classes, …] with those of ``old`` for the other numbers and for the same classes."""
    rows = new.clone()
    rows[:, :others] = old[:, :others]
    for new_place, old_place in same.items():
        rows[:, others + new_place] = old[:, others + old_place]
    return rows


def same_classes(old: Sequence[str], new: Sequence[str]) -> dict[int, int]:
    """Places in ``old`` by places in ``new`` of classes of the same name; else by its letters and digits in any case.

    What only one class of ``old`` could mean, that is.
    """
    if list(old) == list(new):
        return {place: place for place in range(len(new))}
    exact = {name: place for place, name in enumerate(old)}
    plain = Counter(_plain_name(name) for name in old)
    loose = {_plain_name(name): place for name, place in exact.items() if plain[_plain_name(name)] == 1}
    found = {place: exact.get(name, loose.get(_plain_name(name))) for place, name in enumerate(new)}
    return {new_place: old_place for new_place, old_place in found.items() if old_place is not None}


def _plain_name(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum()) or name
