"""Training runs on a small drawn dataset: files, resuming after a kill, several processes, failures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import ROOT, RunCommand
from utils.checkpoint import load_checkpoint


def options(dataset: Path, project: Path, **changes: Any) -> list[str]:
    """A short training on the CPU in one thread's worth of work."""
    values = {
        "data": dataset,
        "cfg": dataset.parent / "model.yaml",
        "weights": "none",
        "epochs": 2,
        "batch_size": 4,
        "img_size": "96x160",
        "workers": 0,
        "device": "cpu",
        "amp": "off",
        "project": project,
    } | changes
    line = []
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        line += [flag] if value is True else [flag, str(value)]
    return line


def tensors(path: Path, key: str) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in load_checkpoint(path)[key].items()}


def test_a_run_leaves_everything(tiny_dataset: Path, tmp_path: Path, run_command: RunCommand) -> None:
    result = run_command("train.py", *options(tiny_dataset, tmp_path))
    assert result.status == 0, result.err
    run = tmp_path / "exp"
    for name in (
        "results.csv",
        "results.png",
        "config.yaml",
        "train_batch0.jpg",
        "weights/last.pt",
        "weights/best.pt",
    ):
        assert (run / name).is_file(), name
    assert len((run / "results.csv").read_text().splitlines()) == 3
    assert any(run.glob("events.out.tfevents*")), "TensorBoard"
    assert result.out.count("epoch ") == 2, "one line per epoch"
    assert (run / "weights/best.pt").stat().st_size < 0.3 * (run / "weights/last.pt").stat().st_size
    best = load_checkpoint(run / "weights/best.pt")
    assert {t.dtype for t in best["model"].values()} <= {torch.float16, torch.int64}
    assert set(best) == {"model", "config", "names", "provenance"}
    again = run_command("train.py", *options(tiny_dataset, tmp_path, epochs=1, nosave=True))
    assert again.status == 0 and (tmp_path / "exp2").is_dir(), (
        "a second run on the same data, in a folder of its own"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"rect": True, "img_size": 160, "repeat_factor": 0.5},
        {"slicer": "none"},
        {"multi_scale": True, "optimizer": "adamw", "image_weights": True},
        {"single_cls": True, "cache": "ram", "train_patches": "uniform"},
        {"slicer": "greedy", "head": "sparse", "label_smoothing": 0.1, "save_period": 1, "freeze": "stem"},
        {"amp": "bf16", "workers": 1},
        {"borders": "neighbours", "checkpoint_activations": "all"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_flags_train(
    tiny_dataset: Path, tmp_path: Path, run_command: RunCommand, changes: dict[str, Any]
) -> None:
    result = run_command("train.py", *options(tiny_dataset, tmp_path, epochs=1, **changes))
    assert result.status == 0, result.err
    data = load_checkpoint(tmp_path / "exp" / "weights" / "last.pt")
    assert all(torch.isfinite(t).all() for t in data["model"].values() if t.is_floating_point())
    if "save_period" in changes:
        assert (tmp_path / "exp" / "weights" / "epoch1.pt").is_file()
    if changes.get("slicer") == "none":
        assert not any(name.startswith("seeker") for name in data["model"])


def start(line: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "train.py", *line], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )  # fmt: skip


def test_resume_after_kill_is_bit_identical(
    tiny_dataset: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    """kill -9 in the middle, then --resume: the weights of a run that never stopped."""
    torch.set_num_threads(1)
    whole = run_command("train.py", *options(tiny_dataset, tmp_path, epochs=4, name="whole"))
    assert whole.status == 0, whole.err
    process = start(options(tiny_dataset, tmp_path, epochs=4, name="killed"))
    last = tmp_path / "killed" / "weights" / "last.pt"
    try:
        deadline = time.monotonic() + 200
        while not last.is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert last.is_file(), "no checkpoint after the first epoch"
    if load_checkpoint(last)["epoch"] == 3:
        pytest.skip("the run was over before it could be killed")
    resumed = run_command("train.py", "--resume", last, "--device", "cpu", "--workers", "0")
    assert resumed.status == 0, resumed.err
    for key in ("model", "ema"):
        expected, found = (tensors(tmp_path / n / "weights" / "last.pt", key) for n in ("whole", "killed"))
        for name, value in expected.items():
            assert torch.equal(value, found[name]), name
    rows = [(tmp_path / n / "results.csv").read_text().splitlines() for n in ("whole", "killed")]
    assert len(rows[0]) == len(rows[1]) == 5
    finished = run_command("train.py", "--resume", last, "--device", "cpu")
    assert finished.status == 1 and "finished its 4 epochs" in finished.err


def test_non_finite_loss_names_the_files(
    tiny_dataset: Path, tmp_path: Path, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    import models.loss

    real = models.loss.weighted_bce_loss
    calls = []

    def broken(*args: Any) -> models.loss.Mean:
        calls.append(0)
        mean = real(*args)
        return mean if len(calls) < 4 else models.loss.Mean(mean.total * float("nan"), mean.count)

    monkeypatch.setattr(models.loss, "weighted_bce_loss", broken)
    result = run_command("train.py", *options(tiny_dataset, tmp_path))
    assert result.status == 1
    assert "not finite" in result.err and ".jpg" in result.err
    last = load_checkpoint(tmp_path / "exp" / "weights" / "last.pt")
    assert last["epoch"] == 0 and all(
        torch.isfinite(t).all() for t in last["model"].values() if t.is_floating_point()
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "nowhere.pt"}, "no such file"),
        ({"data": "nowhere.yaml"}, "no such file"),
        ({"hyp": "nowhere.yaml"}, "no such file"),
        ({"resume": "nowhere.pt"}, "nowhere.pt"),
        ({"device": "0"}, "--device cpu"),
        ({"freeze": "stam"}, "stem"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else next(iter(value)),
)
def test_mistakes_are_told_in_one_line(
    tiny_dataset: Path, tmp_path: Path, run_command: RunCommand, changes: dict[str, Any], message: str
) -> None:
    if changes.get("device") == "0" and torch.cuda.is_available():
        pytest.skip("there is a GPU 0 here")
    result = run_command("train.py", *options(tiny_dataset, tmp_path, **changes))
    assert result.status == 1 and message in result.err and "Traceback" not in result.err


def test_two_processes_train_as_one(tiny_dataset: Path, tmp_path: Path) -> None:
    """torchrun with two CPU processes: one set of files, evaluated once, finite weights."""
    line = options(tiny_dataset, tmp_path, epochs=1)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "train.py",
        *line,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [p.name for p in tmp_path.iterdir()] == ["exp"]
    assert len((tmp_path / "exp" / "results.csv").read_text().splitlines()) == 2
    state = tensors(tmp_path / "exp" / "weights" / "last.pt", "model")
    assert all(torch.isfinite(t).all() for t in state.values() if t.is_floating_point())


def test_initial_weights_from_a_trained_model(
    tiny_dataset: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    """Fine-tuning from a checkpoint that has the heatmap layers loads all of it."""
    first = run_command("train.py", *options(tiny_dataset, tmp_path, epochs=1, name="first"))
    assert first.status == 0, first.err
    best = tmp_path / "first" / "weights" / "best.pt"
    second = run_command("train.py", *options(tiny_dataset, tmp_path, epochs=1, name="second", weights=best))
    total = len(load_checkpoint(best)["model"])
    assert f"{total} of {total} tensors matched" in second.out
    other = options(
        tiny_dataset, tmp_path, epochs=1, name="third", weights=best, cfg="models/cfg/yolov5n_v6.yaml"
    )
    third = run_command("train.py", *other)
    assert third.status == 1
    assert "has the body of YOLOv5 v6, the initial weights that of v5.0" in third.err
    larger = options(
        tiny_dataset, tmp_path, epochs=1, name="fourth", weights=best, cfg="models/cfg/yolov5s.yaml"
    )
    fourth = run_command("train.py", *larger)
    assert fourth.status == 1
    assert "of the initial weights' numbers fit, they are of a model of another size" in fourth.err


def test_rect_training_of_portrait_images(tmp_path: Path, run_command: RunCommand) -> None:
    import cv2
    import yaml

    rng = np.random.default_rng(0)
    for index in range(4):
        hw = (200, 120) if index % 2 else (120, 200)
        for folder in ("images", "labels"):
            (tmp_path / "set" / folder).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(
            str(tmp_path / "set" / "images" / f"{index}.png"), rng.integers(0, 255, (*hw, 3), dtype=np.uint8)
        )
        (tmp_path / "set" / "labels" / f"{index}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    data = {"path": str(tmp_path / "set"), "train": "images", "val": "images", "nc": 1, "names": ["thing"]}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(data))
    cfg = {"family": "yolov5", "depth": 0.33, "width": 0.125}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(cfg))
    result = run_command(
        "train.py",
        *options(tmp_path / "data.yaml", tmp_path / "runs", rect=True, img_size=128, batch_size=2, epochs=1),
    )
    assert result.status == 0, result.err
