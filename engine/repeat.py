"""Doing a training run once more, from its ``config.yaml`` or its last checkpoint: what must agree with it.

What a run leaves in its folder is written by engine/setup.py and engine/state.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from engine.setup import TrainingRun
from utils.config import DatasetConfig, HypConfig, ModelConfig, ModelOverrides, TrainConfig
from utils.logger import get_logger
from utils.typed_data import ConfigError, config_from_dict, config_to_dict, load_yaml

FREE_FLAGS = frozenset(
    {
        "config",
        "resume",
        "auto_resume",
        "device",
        "workers",
        "project",
        "name",
        "exist_ok",
        "debug",
        "local_rank",
    }
)
"""Options that may differ from those of the run that is repeated or resumed: they do not change what is computed,
or, as the device, only its rounding."""
HYP_FLAGS = ("label_smoothing", "train_patches")
"""Flags of train.py that replace a value of the hyp file."""
ENVIRONMENT_KEYS = ("torch", "torchvision", "numpy", "opencv", "cpu", "threads", "gpu", "git_commit")
"""Entries of the environment on which the last bits of a run may depend."""

OLD_HYP = {"heatmap_stem": 1.0}
"""What runs did whose hyper-parameters do not say it yet."""


@dataclass(frozen=True)
class RecordedRun:
    """What the ``config.yaml`` of a run folder says.

    Attributes:
        path: of the file.
        config: the options of the run.
        hyp: its hyper-parameters, as they were then.
        model: the network, with everything that was found out about it (anchors).
        dataset: what the dataset's YAML said.
        provenance: environment, fingerprint of the data, initial weights.
    """

    path: Path
    config: TrainConfig
    hyp: HypConfig
    model: ModelConfig
    dataset: DatasetConfig
    provenance: Mapping[str, Any]


def read_recorded(path: Path) -> RecordedRun:
    """Read a run's ``config.yaml``.

    Raises:
        ConfigError: no such file, or it is not one of a run.
    """
    data = load_yaml(path)
    missing = [key for key in ("train", "hyp", "model", "dataset", "provenance") if key not in data]
    if missing:
        raise ConfigError(
            f"--config {path}: no {', '.join(missing)} in it; expected the config.yaml of a run folder "
            "(runs/train/exp/config.yaml). A model is given as --cfg, hyper-parameters as --hyp"
        )
    return RecordedRun(
        path,
        config_from_dict(TrainConfig, data["train"], f"{path}: train"),
        recorded_hyp(data["hyp"], f"{path}: hyp"),
        config_from_dict(ModelConfig, data["model"], f"{path}: model"),
        config_from_dict(DatasetConfig, data["dataset"], f"{path}: dataset"),
        data["provenance"],
    )


def recorded_hyp(data: Mapping[str, Any], where: str = "hyp") -> HypConfig:
    """The hyper-parameters of a run as they were, from what it recorded; ``where`` names that in messages.

    Raises:
        ConfigError: they are none.
    """
    return config_from_dict(HypConfig, OLD_HYP | dict(data), where)


def refuse_contradictions(
    given: Mapping[str, Any], config: TrainConfig, hyp: HypConfig, model: ModelConfig, source: str
) -> None:
    """Refuse options on the command line that a run to be repeated or resumed did not have.

    Args:
        given: the options that were given, by name.
        config, hyp, model: of the run.
        source: the option and the file that the run is read from.

    Raises:
        ConfigError: names the options, and what the run had.
    """
    wrong = [
        f"{_flag(name)} {_text(value)} (it had {_text(had)})"
        for name, value, had in _pairs(given, config, hyp)
        if had != value
    ]
    changes = {f.name: given[f.name] for f in fields(ModelOverrides) if f.name in given}
    if changes and ModelOverrides(**changes).apply(model) != model:
        wrong += [f"{_flag(name)} {value} (its model is another one)" for name, value in changes.items()]
    if wrong:
        raise ConfigError(
            f"{source} goes by the options of that run, which contradict {'; '.join(wrong)}: leave them out, or start a new run"
        )


def _pairs(given: Mapping[str, Any], config: TrainConfig, hyp: HypConfig) -> list[tuple[str, Any, Any]]:
    """Name, given value and the run's value of each option that both know."""
    known = {f.name for f in fields(TrainConfig)} - FREE_FLAGS
    pairs = []
    for name, value in given.items():
        plain = list(value) if isinstance(value, tuple) else value
        if name in HYP_FLAGS:
            pairs.append((name, plain, getattr(hyp, name)))
        elif name in known and (name, value) != ("batch_size", -1):  # what fitted then is what is meant
            pairs.append((name, "" if plain is None else plain, getattr(config, name)))
    return pairs


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return str(value) if value not in ("", None) else "none"


def check_same_data(recorded: RecordedRun, run: TrainingRun) -> None:
    """Refuse to repeat a run on other data or from other initial weights; say where else its result may differ.

    Raises:
        ConfigError: the dataset's YAML, its images or labels, or the initial weights have changed.
    """
    if config_to_dict(run.dataset) != config_to_dict(recorded.dataset):
        raise ConfigError(f"{recorded.path}: {run.config.data} says something else now than in that run")
    for key, what in (("data", "the training images or labels"), ("initial_weights", "the initial weights")):
        then, now = (_identity(p.get(key)) for p in (recorded.provenance, run.provenance))
        if then != now:
            raise ConfigError(f"{recorded.path}: {what} are not those of that run (was {then}, is {now})")
    then, now = (p.get("processes", 1) for p in (recorded.provenance, run.provenance))
    log = get_logger()
    if then != now:
        log.warning(
            f"{recorded.path}: that run had {then} processes, this one has {now}: results will differ"
        )
    before, here = recorded.provenance.get("environment", {}), run.provenance["environment"]
    other = [key for key in ENVIRONMENT_KEYS if before.get(key) != here.get(key)]
    if other:
        listed = ", ".join(f"{key} {before.get(key)} → {here.get(key)}" for key in other)
        log.warning(f"{recorded.path}: made elsewhere; results may differ in the last bits or more: {listed}")


def _identity(entry: Any) -> Any:
    """What an entry of the provenance is known by: a fingerprint, or the SHA-256 of a file."""
    return entry.get("file_sha256") if isinstance(entry, Mapping) else entry
