"""scripts/report.py on finished runs, and the reports that train.py and test.py leave themselves."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import RunCommand

SCRIPT = "scripts/report.py"


def test_a_report_is_made_again(tmp_path: Path, run_command: RunCommand) -> None:
    (tmp_path / "results.csv").write_text("epoch,train/box_loss\n0,0.5\n1,0.4\n")
    result = run_command(SCRIPT, tmp_path)
    assert result.status == 0 and str(tmp_path / "report.html") in result.out
    assert "Losses" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_folder_without_a_run_is_an_error(tmp_path: Path, run_command: RunCommand) -> None:
    result = run_command(SCRIPT, tmp_path)
    assert result.status == 1 and "give the folder of a finished" in result.err
    assert run_command(SCRIPT).status == 2


def test_training_and_testing_leave_reports(
    tiny_dataset: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    common = [
        "--data",
        tiny_dataset,
        "--img-size",
        "160",
        "--device",
        "cpu",
        "--project",
        tmp_path,
        "--workers",
        0,
    ]
    model = ["--cfg", tiny_dataset.parent / "model.yaml", "--weights", "none"]
    trained = run_command("train.py", *common, *model, "--epochs", 1, "--batch-size", 4, "--name", "train")
    assert trained.status == 0, trained.err
    page = (tmp_path / "train" / "report.html").read_text(encoding="utf-8")
    assert "1 of 1" in page and "train_batch0" in page and "What it was made from" in page
    weights = ["--weights", tmp_path / "train" / "weights" / "best.pt"]
    tested = run_command("test.py", *common, *weights, "--name", "test")
    assert tested.status == 0, tested.err
    folder = tmp_path / "test"
    page = (folder / "report.html").read_text(encoding="utf-8")
    worst = json.loads((folder / "worst.json").read_text())["images"]
    assert worst and f"1. {worst[0]['missed']} of {worst[0]['labels']} objects missed" in page
    assert "not comparable" in page
    measured = run_command("test.py", *common, *weights, "--name", "test", "--exist-ok", "--task", "measure")
    assert measured.status == 0, measured.err
    both = (folder / "report.html").read_text(encoding="utf-8")
    assert "Test and Cost" in both and "Median milliseconds by stage" in both
    without = run_command("test.py", *common, *weights, "--name", "without", "--no-report")
    assert without.status == 0, without.err
    names = {path.name for path in (tmp_path / "without").iterdir()}
    assert "metrics.json" in names and not names & {"report.html", "worst.json", "worst"}
