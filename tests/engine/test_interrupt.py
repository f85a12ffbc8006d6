"""Ctrl-C: real processes get SIGINT, as a terminal sends it to the whole group; what was finished is intact."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest

from tests.conftest import ROOT
from utils.checkpoint import load_checkpoint

WAIT_S = 240


def interrupt_when(line: list[object], ready: Callable[[], bool], **variables: str) -> tuple[int, str]:
    """Start a command, send SIGINT to its processes once ready; exit status and everything it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **variables}
    process = subprocess.Popen(
        [sys.executable, *map(str, line)], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + WAIT_S
        while not ready() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None, process.communicate()[0]
        assert ready(), "nothing happened in time"
        os.killpg(process.pid, signal.SIGINT)
        printed, _ = process.communicate(timeout=WAIT_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return process.returncode, printed


def rows_of(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.timeout(600)
def test_training(tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Table, curves and checkpoints are whole, the trackers know, and the run can be resumed in the same MLflow run."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # to look into it from here
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    line: list[object] = [
        "train.py", "--data", tiny_dataset, "--cfg", tiny_dataset.parent / "model.yaml", "--weights", "none",
        "--img-size", 96, "--epochs", 500, "--batch-size", 4, "--workers", 1, "--device", "cpu", "--amp", "off",
        "--notest", "--logger", "mlflow", "tensorboard", "--project", tmp_path,
    ]  # fmt: skip
    run = tmp_path / "exp"
    last = run / "weights" / "last.pt"
    status, printed = interrupt_when(line, lambda: last.is_file() and len(rows_of(run / "results.csv")) >= 2)
    assert status == 130, printed
    assert printed.count("interrupted") == 1 and "Traceback" not in printed, printed
    rows = rows_of(run / "results.csv")
    assert [int(row["epoch"]) for row in rows] == list(range(len(rows))) and len(rows) < 500
    assert load_checkpoint(last)["epoch"] in (len(rows) - 1, len(rows) - 2)
    assert cv2.imread(str(run / "results.png")) is not None
    assert not list(run.rglob("*.tmp"))

    client = mlflow.MlflowClient(str(tmp_path / "mlruns"))
    run_id = json.loads((run / "trackers.json").read_text())["mlflow"]
    assert client.get_run(run_id).info.status == "KILLED"
    logged = {m.step for m in client.get_metric_history(run_id, "train/box_loss")}
    # The table is written first: the signal may have come before the trackers heard of its last row.
    assert set(range(len(rows) - 1)) <= logged <= set(range(len(rows)))

    before = len(rows)
    status, printed = interrupt_when(
        ["train.py", "--resume", last, "--device", "cpu", "--workers", 0],
        lambda: (
            len(rows_of(run / "results.csv")) > before + 1
        ),  # the trackers hear of a row after it is written
    )
    assert status == 130, printed
    assert f"resuming {run}" in printed
    assert len(client.search_runs([client.get_run(run_id).info.experiment_id])) == 1
    assert before in {m.step for m in client.get_metric_history(run_id, "train/box_loss")}


@pytest.mark.timeout(600)
def test_detection(tiny_dataset: Path, weights: Path, tmp_path: Path) -> None:
    """Every picture and label file that is there is a whole one."""
    images = sorted(tiny_dataset.parent.rglob("VisDrone2019-DET-train/images/*.jpg"))
    (tmp_path / "many.txt").write_text("\n".join(map(str, images * 200)) + "\n")
    line: list[object] = [
        "detect.py", "--weights", weights, "--source", tmp_path / "many.txt", "--img-size", 96, "--device", "cpu",
        "--save-txt", "--workers", 2, "--project", tmp_path,
    ]  # fmt: skip
    folder = tmp_path / "exp"
    status, printed = interrupt_when(line, lambda: len(list(folder.glob("*.jpg"))) >= 5)
    assert status == 130, printed[-2000:]
    assert "stopped by Ctrl-C" in printed and "Traceback" not in printed, printed[-2000:]
    pictures = list(folder.glob("*.jpg"))
    assert 5 <= len(pictures) < len(images) * 200
    assert all(cv2.imread(str(path)) is not None for path in pictures)
    for path in (folder / "labels").glob("*.txt"):
        assert all(len(row.split()) == 5 for row in path.read_text().splitlines()), path
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.timeout(600)
def test_testing(tiny_dataset: Path, weights: Path, tmp_path: Path) -> None:
    """Label files written so far are whole; there are no scores of a part of the images."""
    images = sorted(tiny_dataset.parent.rglob("VisDrone2019-DET-train/images/*.jpg"))
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(400):
        (folder / f"{number}.jpg").symlink_to(images[number % len(images)])
    names = json.dumps([f"c{number}" for number in range(10)])
    count = len(load_checkpoint(weights)["names"])
    data = tmp_path / "many.yaml"
    data.write_text(
        f"path: {tmp_path}\nval: images\nnc: {count}\nnames: {json.dumps(json.loads(names)[:count])}\n"
    )
    line: list[object] = [
        "test.py", "--data", data, "--weights", weights, "--img-size", 96, "--device", "cpu", "--batch-size", 1,
        "--workers", 1, "--save-txt", "--project", tmp_path / "runs",
    ]  # fmt: skip
    labels = tmp_path / "runs" / "exp" / "labels"
    status, printed = interrupt_when(line, lambda: labels.is_dir() and len(list(labels.glob("*.txt"))) >= 3)
    assert status == 130, printed[-2000:]
    assert printed.count("interrupted") == 1 and "Traceback" not in printed, printed[-2000:]
    written = list(labels.glob("*.txt"))
    assert 3 <= len(written) < 400
    for path in written:
        assert all(len(row.split()) == 5 for row in path.read_text().splitlines()), path
    assert not (tmp_path / "runs" / "exp" / "metrics.json").exists()
