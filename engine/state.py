"""The state of a training run on disk: ``last.pt`` to resume from, ``best.pt`` to use.

Checkpoints are written at the end of an epoch, when no gradient is pending: with the random choices of
training derived from (seed, epoch, step), a resumed run is bit-identical to one that never stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.evaluation import Evaluation
from engine.setup import TrainingRun
from utils.checkpoint import (
    CheckpointError,
    load_checkpoint,
    pack_rng_state,
    restore_rng_state,
    save_checkpoint,
    strip_checkpoint,
)
from utils.logger import get_logger
from utils.optim import EarlyStopping, load_optimizer_state
from utils.typed_data import config_to_dict

RESUME_KEYS = (
    "epoch", "config", "train", "hyp", "overrides", "model", "ema", "ema_updates", "optimizer", "scaler", "stopping",
    "class_ap", "rng",
)  # fmt: skip


def save_state(run: TrainingRun, epoch: int) -> None:
    """Write ``weights/last.pt`` (and every save_period epochs ``weights/epoch<N>.pt``)."""
    data = _training_state(run, epoch)
    folder = run.folder / "weights"
    save_checkpoint(folder / "last.pt", data)
    if run.config.save_period > 0 and (epoch + 1) % run.config.save_period == 0:
        save_checkpoint(folder / f"epoch{epoch + 1}.pt", data)


def write_best(run: TrainingRun, epoch: int, evaluation: Evaluation | None) -> None:
    """Write ``weights/best.pt``: fp16 weights of the moving average, configuration, names; no training state."""
    data = _training_state(run, epoch)
    data["provenance"] = {
        **run.provenance,
        "epoch": epoch,
        "scores": {} if evaluation is None else {k: float(v) for k, v in evaluation.scalars().items()},
        "dataset": run.config.data,
        "dataset_note": run.dataset.note,
    }
    save_checkpoint(run.folder / "weights" / "best.pt", strip_checkpoint(data))


def read_resumable(path: Path) -> dict[str, Any]:
    """A checkpoint with everything needed to go on.

    Raises:
        CheckpointError: it is one for inference only, or its run is finished.
    """
    data = load_checkpoint(path)
    missing = [key for key in RESUME_KEYS if key not in data]
    if missing:
        raise CheckpointError(
            f"{path} holds no training state (no {', '.join(missing)}): resume from a run's weights/last.pt, "
            "or start a new run from it with --weights"
        )
    if data["epoch"] + 1 >= data["train"]["epochs"]:
        raise CheckpointError(
            f"{path}: this run has finished its {data['train']['epochs']} epochs; there is nothing to resume. "
            f"To train on, start a new run: --weights {path}"
        )
    return data


def is_finished(path: Path) -> bool:
    """Whether a ``last.pt`` was written after the last epoch of its run.

    An early stop counts: nothing has improved for as long as the run was to wait.
    """
    data = load_checkpoint(path)
    if any(key not in data for key in RESUME_KEYS):
        return False
    stopping = EarlyStopping(int(data["train"]["patience"]))
    stopping.load_state_dict(data["stopping"])
    epoch = int(data["epoch"])
    return epoch + 1 >= int(data["train"]["epochs"]) or stopping.should_stop(epoch)


def load_state(run: TrainingRun) -> int:
    """Put the run into the state of its resumed checkpoint; returns the epoch to go on with."""
    data = run.resume
    assert data is not None
    run.model.load_state_dict(data["model"])
    run.ema.load_state_dict({"model": data["ema"], "updates": data["ema_updates"]})
    load_optimizer_state(run.optimizer, data["optimizer"])
    run.scaler.load_state_dict(data["scaler"])
    run.stopping.load_state_dict(data["stopping"])
    run.set_class_ap(data["class_ap"])
    restore_rng_state(data["rng"])
    epoch = int(data["epoch"]) + 1
    get_logger().info(f"resuming {run.folder} at epoch {epoch + 1} of {run.config.epochs}")
    return epoch


def _training_state(run: TrainingRun, epoch: int) -> dict[str, Any]:
    ema: Mapping[str, Any] = run.ema.state_dict()
    return {
        "epoch": epoch,
        "config": config_to_dict(run.model.config),
        "names": run.names,
        "train": config_to_dict(run.config),
        "hyp": config_to_dict(run.hyp),
        "overrides": config_to_dict(run.overrides),
        "model": run.model.state_dict(),
        "ema": ema["model"],
        "ema_updates": ema["updates"],
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "stopping": run.stopping.state_dict(),
        "rng": pack_rng_state(),
        "class_ap": run.class_ap,
        "provenance": run.provenance,
    }
