"""Experiment trackers: TensorBoard (the default), Weights & Biases and MLflow behind `utils.logger.RunLogger`.

Their packages are imported when one is asked for. A tracker records; it never decides: when one fails, the training
goes on without it (`GuardedLogger`). Which run of a tracker belongs to a run folder is kept in the folder
(``trackers.json``), so that a resumed training goes on in it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from utils.logger import CombinedLogger, CsvLogger, LogError, PlotLogger, RunLogger, get_logger
from utils.typed_data import ConfigError

TRACKERS = ("tensorboard", "wandb", "mlflow")
NONE = "none"
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny"}
"""Tracker → what to give to pip; TensorBoard is in requirements.txt."""

STATE_FILE = "trackers.json"
PROJECT = "esod"
"""Name of the W&B project and the MLflow experiment unless their own variables say another."""

FINAL_FILES = ("results.csv", "results.png", "weights/best.pt")
_MLFLOW_VALUE_LENGTH = 500


def build_run_logger(
    folder: str | Path, trackers: Sequence[str] = ("tensorboard",), resume_epoch: int | None = None
) -> RunLogger:
    """Everything that records a run: ``results.csv`` and ``results.png`` in its folder, and the trackers.

    For the main process alone (`utils.dist.is_main`).

    Args:
        folder: the run folder, which exists.
        trackers: names out of `TRACKERS`, or "none".
        resume_epoch: the epoch a resumed run begins with; None for a new run.

    Raises:
        ConfigError: the package of W&B or MLflow is missing.
    """
    run = Path(folder)
    check_trackers(trackers)
    loggers: list[RunLogger] = [
        CsvLogger(run / "results.csv", resume_epoch),
        PlotLogger(run / "results.csv", run / "results.png"),
    ]
    for name in TRACKERS:
        if name not in trackers:
            continue
        if name == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
            get_logger().info("TensorBoard is not installed: numbers go to results.csv only")
        else:
            loggers.append(GuardedLogger(name, _opener(name, run, resume_epoch), run))
    return CombinedLogger(loggers)


def check_trackers(trackers: Sequence[str]) -> None:
    """Refuse trackers whose package is missing, before anything else takes time.

    Raises:
        ConfigError: names the pip command.
    """
    for name in trackers:
        if name in PACKAGES and importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"--logger {name} needs a package that is not installed: pip install {PACKAGES[name]}"
            )


def _opener(name: str, folder: Path, resume_epoch: int | None) -> Callable[[], RunLogger]:
    resumed = resume_epoch is not None
    openers: dict[str, Callable[[], RunLogger]] = {
        "tensorboard": lambda: TensorBoardLogger(folder, resume_epoch),
        "wandb": lambda: WandbLogger(folder, resumed),
        "mlflow": lambda: MlflowLogger(folder, resumed),
    }
    return openers[name]


class GuardedLogger:
    """A tracker whose failures end its recording, with one warning, and nothing else.

    Args:
        name: of the tracker, for the warning.
        open_logger: makes the tracker; called at once.
        folder: of the run; when it ends, its table, curves and best weights are given to the tracker.
    """

    def __init__(self, name: str, open_logger: Callable[[], RunLogger], folder: Path) -> None:
        self.name, self.folder = name, folder
        self._logger: RunLogger | None = None
        self._logger = self._guard(open_logger)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Record the configuration, when the tracker still works."""
        if (logger := self._logger) is not None:
            self._guard(lambda: logger.log_config(config))

    def log_metrics(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Record an epoch, when the tracker still works."""
        if (logger := self._logger) is not None:
            self._guard(lambda: logger.log_metrics(epoch, metrics))

    def log_image(self, name: str, path: Path) -> None:
        """Record a picture, when the tracker still works."""
        if (logger := self._logger) is not None:
            self._guard(lambda: logger.log_image(name, path))

    def log_file(self, path: Path) -> None:
        """Record a file, when the tracker still works."""
        if (logger := self._logger) is not None:
            self._guard(lambda: logger.log_file(path))

    def finish(self, completed: bool) -> None:
        """Record what the run has left, and end the recording."""
        for name in FINAL_FILES:
            if (self.folder / name).is_file():
                self.log_file(self.folder / name)
        if (logger := self._logger) is not None:
            self._guard(lambda: logger.finish(completed))

    def _guard(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # noqa: BLE001 - whatever a tracker's client raises: the training is worth more
            self._logger = None
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            get_logger().warning(f"{self.name} failed, and records no more of this run: {reason}")
            return None


class TensorBoardLogger:
    """Scalars and pictures for ``tensorboard --logdir runs``."""

    def __init__(self, folder: str | Path, resume_epoch: int | None = None) -> None:
        """Raises ImportError when the tensorboard package is missing; see `build_run_logger`."""
        from torch.utils.tensorboard import SummaryWriter

        # Events from the resumed epoch on belong to the part of the run that was lost.
        self._writer: Any = SummaryWriter(str(folder), purge_step=resume_epoch)
        self._epoch = resume_epoch or 0

    def log_config(self, config: Mapping[str, Any]) -> None:
        """As text, in YAML."""
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        self._writer.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()), 0)

    def log_metrics(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """One scalar per name; a "/" in it groups the charts."""
        self._epoch = epoch
        for name, value in metrics.items():
            self._writer.add_scalar(name, float(value), epoch)

    def log_image(self, name: str, path: Path) -> None:
        """Show a picture file (any format OpenCV reads) under a name."""
        import cv2

        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if picture is None:
            raise LogError(f"{path}: not readable as a picture")
        self._writer.add_image(name, cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), self._epoch, dataformats="HWC")

    def log_file(self, path: Path) -> None:
        """TensorBoard keeps no files; this one lies beside its events."""

    def finish(self, completed: bool) -> None:
        """Write what is still in memory."""
        self._writer.close()


class WandbLogger:
    """Weights & Biases. Its own variables say the rest: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline, …"""

    def __init__(self, folder: Path, resumed: bool) -> None:
        import wandb

        self._wandb: Any = wandb
        known = _read_state(folder).get("wandb") if resumed else None
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT, name=folder.name, dir=str(folder), id=known, resume="allow"
        )  # fmt: skip
        # Charts over epochs, not over calls: a resumed run repeats the epoch that it was killed in.
        self._run.define_metric("*", step_metric="epoch")
        _write_state(folder, "wandb", self._run.id)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """As the run's configuration."""
        self._run.config.update(dict(config))

    def log_metrics(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """One chart per name."""
        self._run.log({"epoch": epoch, **{name: float(value) for name, value in metrics.items()}})

    def log_image(self, name: str, path: Path) -> None:
        """Upload a picture file."""
        self._run.log({name: self._wandb.Image(str(path))})

    def log_file(self, path: Path) -> None:
        """As an artifact of the run, weights as type "model"."""
        kind = "model" if path.suffix == ".pt" else "result"
        artifact = self._wandb.Artifact(
            f"{self._run.id}-{path.stem}{path.suffix.replace('.', '-')}", type=kind
        )
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def finish(self, completed: bool) -> None:
        """Upload what is still waiting."""
        self._run.finish(exit_code=0 if completed else 1)


class MlflowLogger:
    """MLflow, at MLFLOW_TRACKING_URI or else in the folder ``mlruns`` beside the run folder (its local file store)."""

    def __init__(self, folder: Path, resumed: bool) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI") or str((folder.parent / "mlruns").resolve())
        if "://" not in uri or uri.startswith("file:"):
            # MLflow's newer versions want to be told that a plain folder is meant.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric, self._param = Metric, Param
        self._client: Any = MlflowClient(uri)
        known = _read_state(folder).get("mlflow") if resumed else None
        if known is None:
            run = self._client.create_run(self._experiment(), run_name=folder.name)
            known = run.info.run_id
            _write_state(folder, "mlflow", known)
        else:
            self._client.update_run(known, status="RUNNING")
        self._run_id = known

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        found = self._client.get_experiment_by_name(name)
        return str(self._client.create_experiment(name) if found is None else found.experiment_id)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """As parameters ``part.name``; long values are cut, as MLflow has a limit."""
        params = [self._param(name, str(value)[:_MLFLOW_VALUE_LENGTH]) for name, value in flatten(config)]
        for start in range(0, len(params), 100):  # a batch may hold 100
            self._client.log_batch(self._run_id, params=params[start : start + 100])

    def log_metrics(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """One chart per name; characters that MLflow does not admit become "_"."""
        now = int(time.time() * 1000)
        rows = [
            self._metric(re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII), float(value), now, epoch)
            for name, value in metrics.items()
        ]
        self._client.log_batch(self._run_id, metrics=rows)

    def log_image(self, name: str, path: Path) -> None:
        """As a file of the run."""
        self._client.log_artifact(self._run_id, str(path), "pictures")

    def log_file(self, path: Path) -> None:
        """As a file of the run."""
        self._client.log_artifact(self._run_id, str(path))

    def finish(self, completed: bool) -> None:
        """Set the run's status."""
        self._client.set_terminated(self._run_id, "FINISHED" if completed else "KILLED")


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """{"hyp": {"lr0": 0.01}} → ("hyp.lr0", 0.01): every value that is no mapping, with its path."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _read_state(folder: Path) -> dict[str, str]:
    path = folder / STATE_FILE
    state: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return state


def _write_state(folder: Path, tracker: str, run_id: str) -> None:
    state = {**_read_state(folder), tracker: run_id}
    (folder / STATE_FILE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
