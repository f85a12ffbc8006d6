"""Runs that are repeated: the same numbers to the last bit on a CPU, and what is refused."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from engine.repeat import read_recorded, recorded_hyp
from tests.conftest import RunCommand
from tests.engine.test_training import options, tensors
from utils.config import HypConfig

TIMES = {"train/seconds"}
"""Columns of results.csv that no two runs share."""


def rows(run: Path) -> list[dict[str, str]]:
    """results.csv without what is a time."""
    with (run / "results.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def recorded(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run of two epochs, made in this process."""
    import train
    from utils.cli import run_main

    torch.set_num_threads(1)
    project = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        line = options(tiny_dataset, project, name="first", seed=3, heatmap_thres=0.4, label_smoothing=0.05)
        patch.setattr("sys.argv", ["train.py", *line])
        assert run_main(train.main) == 0
    return project / "first"


def test_options_that_a_run_does_not_know_yet_are_what_it_did(recorded: Path, tmp_path: Path) -> None:
    """Not the default of today: the heatmap's gradient went into the stem whole."""
    content = yaml.safe_load((recorded / "config.yaml").read_text())
    assert content["hyp"].pop("heatmap_stem") == HypConfig().heatmap_stem != 1
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    assert read_recorded(path).hyp.heatmap_stem == 1
    assert recorded_hyp({"heatmap_stem": 0.5}).heatmap_stem == 0.5


def test_a_run_records_what_it_is_made_of(recorded: Path) -> None:
    content = yaml.safe_load((recorded / "config.yaml").read_text())
    assert set(content) == {"train", "hyp", "model", "dataset", "provenance"}
    assert content["train"]["seed"] == 3 and content["hyp"]["label_smoothing"] == 0.05
    assert content["model"]["slicer"]["threshold"] == 0.4 and len(content["model"]["anchors"]) == 3
    provenance = content["provenance"]
    assert len(provenance["data"]) == 64 and provenance["processes"] == 1
    assert provenance["environment"]["torch"] == torch.__version__
    assert "git_commit" in provenance["environment"]


def test_config_repeats_the_run(recorded: Path, tmp_path: Path, run_command: RunCommand) -> None:
    """The same losses, scores and weights to the last bit, though the files are read by another process."""
    result = run_command(
        "train.py", "--config", recorded / "config.yaml", "--project", tmp_path, "--workers", 1
    )
    assert result.status == 0, result.err
    again = tmp_path / "exp"
    assert rows(again) == rows(recorded) and len(rows(again)) == 2
    for key in ("model", "ema"):
        expected, found = (tensors(run / "weights" / "last.pt", key) for run in (recorded, again))
        assert all(torch.equal(value, found[name]) for name, value in expected.items())
    first, second = (yaml.safe_load((run / "config.yaml").read_text()) for run in (recorded, again))
    for part in ("hyp", "model", "dataset"):
        assert first[part] == second[part]


def test_another_seed_is_another_run(
    recorded: Path, tiny_dataset: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    line = options(tiny_dataset, tmp_path, epochs=1, seed=4, heatmap_thres=0.4, label_smoothing=0.05)
    assert run_command("train.py", *line).status == 0
    assert rows(tmp_path / "exp")[0]["train/box_loss"] != rows(recorded)[0]["train/box_loss"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "3"], "--epochs 3 (it had 2)"),
        (["--label-smoothing", "0.2"], "--label-smoothing 0.2 (it had 0.05)"),
        (["--max-patches", "7"], "--max-patches 7"),
        (["--resume"], "--resume and --config contradict each other"),
        (["--rect", "--seed", "9"], "--seed 9 (it had 3)"),
    ],
)
def test_contradictions_are_refused(
    recorded: Path, tmp_path: Path, run_command: RunCommand, flags: list[str], message: str
) -> None:
    result = run_command("train.py", "--config", recorded / "config.yaml", "--project", tmp_path, *flags)
    assert result.status == 1 and message in result.err and "Traceback" not in result.err
    assert not list(tmp_path.iterdir()), "nothing was begun"


def test_changed_data_are_refused(recorded: Path, tmp_path: Path, run_command: RunCommand) -> None:
    """Other labels, another dataset YAML, or a file that is no config.yaml of a run."""
    content: dict[str, Any] = yaml.safe_load((recorded / "config.yaml").read_text())
    source = Path(content["train"]["data"])
    copy = tmp_path / "set"
    shutil.copytree(source.parent, copy)
    (copy / "data.yaml").write_text(source.read_text().replace(str(source.parent), str(copy)))
    labels = next(p for p in sorted(copy.glob("*train/labels/*.txt")) if p.read_text())
    labels.write_text(labels.read_text().splitlines()[0] + "\n")
    content["train"]["data"] = str(copy / "data.yaml")
    changed = tmp_path / "config.yaml"
    changed.write_text(yaml.safe_dump(content))
    other_yaml = run_command("train.py", "--config", changed, "--project", tmp_path / "a")
    assert other_yaml.status == 1 and "says something else now" in other_yaml.err
    content["dataset"]["path"] = str(copy)
    changed.write_text(yaml.safe_dump(content))
    other_labels = run_command("train.py", "--config", changed, "--project", tmp_path / "b")
    assert other_labels.status == 1 and "the training images or labels are not those" in other_labels.err
    wrong = run_command("train.py", "--config", "data/hyps/default.yaml")
    assert wrong.status == 1 and "expected the config.yaml of a run folder" in wrong.err


def test_auto_resume_starts_and_goes_on(tiny_dataset: Path, tmp_path: Path, run_command: RunCommand) -> None:
    """One command: begins the run, goes on with it in the same folder, and says when nothing is left to do."""
    import engine.training as training

    line = [*options(tiny_dataset, tmp_path, epochs=3), "--auto-resume"]
    real = training._finish_epoch
    with pytest.MonkeyPatch.context() as patch:

        def broken(run: Any, logger: Any, epoch: int, result: Any) -> bool:
            if epoch == 1:
                raise OSError("the machine goes down")
            return real(run, logger, epoch, result)

        patch.setattr(training, "_finish_epoch", broken)
        assert run_command("train.py", *line).status == 1
    assert len(rows(tmp_path / "exp")) == 1
    result = run_command("train.py", *line)
    assert result.status == 0, result.err
    assert "at epoch 2 of 3" in result.out
    assert len(rows(tmp_path / "exp")) == 3 and [p.name for p in tmp_path.iterdir()] == ["exp"]
    finished = run_command("train.py", *line)
    assert finished.status == 0 and "finished" in finished.out
