"""TensorBoard, MLflow's local file store and W&B: what they record, resuming, and that they never stop a training."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from utils import trackers
from utils.logger import LogError
from utils.trackers import (
    GuardedLogger,
    MlflowLogger,
    TensorBoardLogger,
    WandbLogger,
    build_run_logger,
    check_trackers,
    flatten,
)
from utils.typed_data import ConfigError

CONFIG = {"train": {"epochs": 2, "img_size": [544, 960]}, "hyp": {"lr0": 0.01}, "note": "x" * 9000}


def missing(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As if these packages were not installed."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n in names else real(n, *a))
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "mosaic.png"
    cv2.imwrite(str(path), np.full((4, 6, 3), (255, 0, 0), np.uint8))
    return path


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "exp"
    (folder / "weights").mkdir(parents=True)
    (folder / "weights" / "best.pt").write_bytes(b"weights")
    return folder


# --- all together ----------------------------------------------------------------------------------------------


def test_without_tensorboard_there_is_a_notice(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing(monkeypatch, "tensorboard")
    logger = build_run_logger(run_folder)
    assert "TensorBoard is not installed" in capsys.readouterr().out
    logger.log_metrics(0, {"loss": 1.0})
    logger.finish(True)
    assert (run_folder / "results.csv").read_text() == "epoch,loss\n0,1\n"
    assert (run_folder / "results.png").is_file()


def test_no_tracker_at_all(run_folder: Path) -> None:
    logger = build_run_logger(run_folder, ["none"])
    logger.log_config(CONFIG)
    logger.log_metrics(0, {"loss": 1.0})
    logger.finish(True)
    assert sorted(path.name for path in run_folder.iterdir()) == ["results.csv", "results.png", "weights"]


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("mlflow", "mlflow-skinny")])
def test_a_missing_package_is_named_at_once(
    name: str, package: str, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing(monkeypatch, name)
    with pytest.raises(ConfigError, match=f"--logger {name} needs .*: pip install {package}$"):
        check_trackers(["tensorboard", name])
    with pytest.raises(ConfigError, match="pip install"):
        build_run_logger(run_folder, [name])


class Broken:
    """A tracker that fails at the named call."""

    def __init__(self, at: str) -> None:
        self.at, self.calls = at, []  # type: ignore[var-annotated]

    def __getattr__(self, name: str) -> Any:
        def call(*_: Any) -> None:
            self.calls.append(name)
            if name == self.at:
                raise ConnectionError("server gone\nlong story")

        return call


@pytest.mark.parametrize("at", ["open", "log_config", "log_metrics", "log_image", "log_file", "finish"])
def test_a_failing_tracker_is_named_once_and_stops_nothing(
    at: str, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Broken(at)

    def opened() -> Any:
        if at == "open":
            raise OSError("no network")
        return broken

    logger = GuardedLogger("wandb", opened, run_folder)
    logger.log_config(CONFIG)
    logger.log_metrics(0, {"loss": 1.0})
    logger.log_image("mosaic", run_folder / "mosaic.jpg")
    logger.log_metrics(1, {"loss": 1.0})
    logger.finish(True)
    reason = "no network" if at == "open" else "server gone"
    told = f"warning: wandb failed, and records no more of this run: {reason}\n"
    assert capsys.readouterr().out == told
    order = ["log_config", "log_metrics", "log_image", "log_metrics", "log_file", "finish"]
    assert broken.calls == ([] if at == "open" else order[: order.index(at) + 1])


def test_an_interruption_is_no_failure_of_the_tracker(run_folder: Path) -> None:
    def interrupted() -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        GuardedLogger("wandb", interrupted, run_folder)


def test_flatten() -> None:
    assert list(flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": "f"})) == [
        ("a.b", 1),
        ("a.c.d", [2]),
        ("e", "f"),
    ]


# --- TensorBoard -----------------------------------------------------------------------------------------------


def test_tensorboard_has_the_numbers_the_picture_and_the_options(run_folder: Path, picture: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resume_epoch in (None, 1):  # epoch 1 is done again after resuming
        logger = build_run_logger(run_folder, resume_epoch=resume_epoch)
        if resume_epoch is None:
            logger.log_config(CONFIG)
        for epoch in range(resume_epoch or 0, 2):
            logger.log_metrics(epoch, {"train/loss": epoch + 0.5 * (resume_epoch or 0)})
        logger.log_image("mosaic", picture)
        logger.finish(True)
    events = EventAccumulator(str(run_folder)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(0, 0.0), (1, 1.5)]
    assert "img_size" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    image = events.Images("mosaic")[-1]
    pixels = cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    assert (pixels.shape, pixels[0, 0].tolist()) == ((4, 6, 3), [255, 0, 0])
    assert (run_folder / "results.csv").read_text() == "epoch,train/loss\n0,0\n1,1.5\n"
    board = TensorBoardLogger(run_folder)
    with pytest.raises(LogError, match="not readable as a picture"):
        board.log_image("mosaic", run_folder / "missing.png")
    board.finish(True)


# --- MLflow ----------------------------------------------------------------------------------------------------


@pytest.fixture
def _own_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings from outside, none left behind."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.setenv(name, "")  # so that what the test sets is undone
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("_own_mlflow")
def test_mlflow_in_its_local_file_store_and_resumed(
    run_folder: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    logger = build_run_logger(run_folder, ["mlflow"])
    logger.log_config(CONFIG)
    logger.log_image("mosaic", picture)
    logger.log_metrics(0, {"train/box_loss": 0.5, "val/AP@0.5": 0.25})
    logger.finish(False)
    store = str(run_folder.parent / "mlruns")
    client = MlflowClient(store)
    run_id = json.loads((run_folder / "trackers.json").read_text())["mlflow"]
    assert client.get_run(run_id).info.status == "KILLED"

    logger = build_run_logger(run_folder, ["mlflow"], resume_epoch=1)
    assert client.get_run(run_id).info.status == "RUNNING"
    logger.log_metrics(1, {"train/box_loss": 0.25, "val/AP@0.5": float("nan")})
    logger.finish(True)
    assert "failed" not in capsys.readouterr().out
    (experiment,) = [e for e in client.search_experiments() if e.name == "esod"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.run_name, run.info.status) == (run_id, "exp", "FINISHED")
    history = client.get_metric_history(run_id, "train/box_loss")
    assert [(m.step, m.value) for m in history] == [(0, 0.5), (1, 0.25)]
    assert client.get_metric_history(run_id, "val/AP_0.5")[0].value == 0.25
    assert run.data.params["hyp.lr0"] == "0.01"
    assert run.data.params["train.img_size"] == "[544, 960]"
    assert set(run.data.params["note"]) == {"x"}
    names = {file.path for file in client.list_artifacts(run_id)}
    assert names == {"pictures", "results.csv", "results.png", "best.pt"}
    assert [file.path for file in client.list_artifacts(run_id, "pictures")] == ["pictures/mosaic.png"]


@pytest.mark.usefixtures("_own_mlflow")
def test_mlflow_takes_its_own_variables(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "elsewhere").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "boats")
    logger = MlflowLogger(run_folder, resumed=False)
    logger.finish(True)
    client = MlflowClient((tmp_path / "elsewhere").as_uri())
    assert client.get_experiment_by_name("boats") is not None
    assert not (run_folder.parent / "mlruns").exists()


@pytest.mark.usefixtures("_own_mlflow")
def test_an_mlflow_server_that_is_not_there_is_a_warning(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    logger = build_run_logger(run_folder, ["mlflow"])
    logger.log_metrics(0, {"loss": 1.0})
    logger.finish(True)
    assert capsys.readouterr().out.count("warning: mlflow failed, and records no more of this run") == 1
    assert (run_folder / "results.csv").read_text() == "epoch,loss\n0,1\n"


# --- Weights & Biases ------------------------------------------------------------------------------------------


class FakeRun:
    """What `WandbLogger` uses of a W&B run."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.id = options["id"] or "a1b2"
        self.config: dict[str, Any] = {}
        self.calls: list[tuple[Any, ...]] = []

    def define_metric(self, name: str, step_metric: str) -> None:
        self.calls.append(("define", name, step_metric))

    def log(self, values: dict[str, Any]) -> None:
        self.calls.append(("log", values))

    def log_artifact(self, artifact: Any) -> None:
        self.calls.append(("artifact", artifact.name, artifact.type, artifact.files))

    def finish(self, exit_code: int) -> None:
        self.calls.append(("finish", exit_code))


class FakeArtifact:
    def __init__(self, name: str, type: str) -> None:  # noqa: A002 - its name at W&B
        self.name, self.type, self.files = name, type, []  # type: ignore[var-annotated]

    def add_file(self, path: str) -> None:
        self.files.append(Path(path).name)


@pytest.fixture
def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """The runs that a stand-in for the package starts."""
    runs: list[FakeRun] = []
    module: Any = types.ModuleType("wandb")
    module.__spec__ = importlib.util.spec_from_loader("wandb", None)

    def init(**options: Any) -> FakeRun:
        runs.append(FakeRun(options))
        return runs[-1]

    module.init, module.Image, module.Artifact = init, lambda path: ("image", Path(path).name), FakeArtifact
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return runs


def test_wandb_is_told_everything_and_goes_on_in_the_same_run(
    run_folder: Path, picture: Path, fake_wandb: list[FakeRun]
) -> None:
    logger = build_run_logger(run_folder, ["wandb"])
    logger.log_config(CONFIG)
    logger.log_image("mosaic", picture)
    logger.log_metrics(0, {"loss": 0.5})
    logger.finish(False)
    logger = build_run_logger(run_folder, ["wandb"], resume_epoch=1)
    logger.log_metrics(1, {"loss": 0.25})
    logger.finish(True)
    first, second = fake_wandb
    assert (first.options["project"], first.options["name"], first.options["id"]) == ("esod", "exp", None)
    assert first.options["dir"] == str(run_folder)
    assert first.config == CONFIG
    assert first.calls[:3] == [
        ("define", "*", "epoch"), ("log", {"mosaic": ("image", "mosaic.png")}), ("log", {"epoch": 0, "loss": 0.5}),
    ]  # fmt: skip
    assert ("artifact", "a1b2-best-pt", "model", ["best.pt"]) in first.calls
    assert first.calls[-1] == ("finish", 1)
    assert (second.options["id"], second.options["resume"]) == ("a1b2", "allow")
    assert ("log", {"epoch": 1, "loss": 0.25}) in second.calls
    assert second.calls[-1] == ("finish", 0)


def test_the_real_wandb_offline(
    run_folder: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb", reason="W&B is optional (requirements-optional.txt)")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for resume_epoch in (None, 1):
        logger = build_run_logger(run_folder, ["wandb"], resume_epoch)
        if resume_epoch is None:
            logger.log_config(CONFIG)
            logger.log_image("mosaic", picture)
        logger.log_metrics(resume_epoch or 0, {"loss": 0.5})
        logger.finish(True)
    assert "failed" not in capsys.readouterr().out
    run_id = json.loads((run_folder / trackers.STATE_FILE).read_text())["wandb"]
    files = [path.name for path in (run_folder / "wandb").rglob("*.wandb")]
    assert files and set(files) == {f"run-{run_id}.wandb"}


def test_wandb_names_its_project_by_its_own_variable(
    run_folder: Path, fake_wandb: list[FakeRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "boats")
    WandbLogger(run_folder, resumed=False)
    assert fake_wandb[0].options["project"] == "boats"
