"""The quickstart: its closing table from files as test.py writes them, and (slow) the whole of it from a clone."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from utils.cli import run_main

METRICS: dict[str, Any] = {
    "detection": {"ap": 0.3714, "ap50": 0.65, "ap75": 0.4, "ap_small": 0.31},
    "selector": {"missing_rate": 0.0125, "empty_rate": 0.5, "occupancy": 0.5},
}
MEASURE: dict[str, Any] = {
    "gflops_2mac": {"mean": 5.678, "least": 3.0, "most": 9.0},
    "patches": {"mean": 20.5, "least": 0.0, "most": 64.0},
    "fps": 12.34,
    "parameters": 10,
}


@pytest.fixture(scope="module")
def summary(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "quickstart_summary", root / "scripts" / "quickstart_summary.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def write_run(folder: Path, metrics: Any = METRICS, measure: Any = MEASURE) -> Path:
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "measure.json").write_text(json.dumps(measure))
    return folder


def cells(text: str) -> dict[str, list[str]]:
    """Row title → its cells, from the printed table."""
    rows = [[cell.strip() for cell in line.split("   ") if cell.strip()] for line in text.splitlines()]
    return {row[0].split(" (")[0]: row[1:] for row in rows if len(row) > 1}


def test_table_has_both_columns(
    summary: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    esod = write_run(tmp_path / "esod")
    dense = write_run(tmp_path / "dense", measure=MEASURE | {"gflops_2mac": {"mean": 11.0}, "fps": 8.0})
    assert summary.main(["--esod", str(esod), "--dense", str(dense)]) == 0
    printed = capsys.readouterr()
    table = cells(printed.out)
    assert table["AP"] == ["0.371", "0.371"]
    assert table["AP50"] == ["0.650", "0.650"]
    assert table["missing rate"] == ["–", "1.2 %"]
    assert table["empty rate"] == ["–", "50.0 %"]
    assert table["GFLOPs per image"] == ["11.00", "5.68"]
    assert table["patches per image"] == ["–", "20.5"]
    assert table["images per second, end to end"] == ["8.0", "12.3"]
    assert printed.err == ""


def test_one_column_without_dense(
    summary: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert summary.main(["--esod", str(write_run(tmp_path / "esod"))]) == 0
    printed = capsys.readouterr().out
    assert "dense" not in printed
    assert cells(printed)["AP"] == ["0.371"]


def test_what_is_lacking_is_named_and_the_rest_printed(
    summary: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = {"detection": METRICS["detection"] | {"ap_small": None}, "selector": {"missing_rate": 0.0}}
    assert summary.main(["--esod", str(write_run(tmp_path / "esod", metrics=metrics))]) == 0
    printed = capsys.readouterr()
    assert cells(printed.out)["missing rate"] == ["0.0 %"]
    assert cells(printed.out)["AP small"] == ["–"]
    assert "metrics.json: detection.ap_small, metrics.json: selector.empty_rate" in printed.err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "measure.json").unlink(), "no such file; `python test.py --task measure"),
        (lambda run: (run / "metrics.json").write_text("{"), "not readable as JSON"),
        (lambda run: (run / "metrics.json").write_text("[1]"), "expected a mapping at the top, found list"),
        (lambda run: shutil.rmtree(run), "--task val"),
    ],
)
def test_unusable_files_are_clear_errors(
    summary: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Any, message: str
) -> None:
    run = write_run(tmp_path / "esod")
    damage(run)
    assert run_main(lambda: summary.main(["--esod", str(run)])) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err


def test_pictures_are_listed_and_counted(
    summary: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    esod = write_run(tmp_path / "esod")
    for name in ("b.jpg", "a.jpg", "c.PNG", "notes.txt"):
        (tmp_path / "pictures" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "pictures" / name).touch()
    options = [
        "--esod",
        str(esod),
        "--pictures",
        str(tmp_path / "pictures"),
        "--train",
        "runs/train",
        "--show",
        "2",
    ]
    assert summary.main(options) == 0
    printed = capsys.readouterr().out
    assert [Path(line.strip()).name for line in printed.splitlines() if line.endswith(".jpg")] == [
        "a.jpg",
        "b.jpg",
    ]
    assert "1 more" in printed
    assert "c.PNG" not in printed
    assert str(Path("runs/train/weights/best.pt")) in printed
    assert summary.main(["--esod", str(esod), "--pictures", str(tmp_path / "nowhere")]) == 0
    assert "none in" in capsys.readouterr().out


def test_quickstart_stops_at_the_step_that_fails(root: Path, tmp_path: Path) -> None:
    """With a Python that refuses the second step: what ran is shown, the rest is not started."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(root / "scripts" / "quickstart.sh", tmp_path / "scripts")
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        '#!/usr/bin/env bash\ncase "$1" in *data_prepare.py) echo "no disk" >&2; exit 3 ;; esac\n'
    )
    python.chmod(0o755)
    (tmp_path / "scripts" / "setup_env.sh").write_text(f"echo {python}\n")
    result = subprocess.run(
        ["bash", str(tmp_path / "scripts" / "quickstart.sh")],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 3
    assert "$ env/bin/python scripts/make_sample.py --output sample" in result.stdout
    assert "2/8" in result.stdout
    assert "3/8" not in result.stdout
    assert "no disk" in result.stderr
    assert "this step failed (exit 3)" in result.stderr


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_quickstart_from_a_clean_clone(root: Path, tmp_path: Path) -> None:
    """The first command a new user runs, on what is committed."""
    clone = tmp_path / "clone with a space"
    subprocess.run(["git", "clone", "--quiet", str(root), str(clone)], check=True)
    environment = os.environ | {"ESOD_VENV": "none", "ESOD_PYTHON": sys.executable}
    environment.pop("PYTHONPATH", None)
    started = time.monotonic()
    result = subprocess.run(
        ["bash", str(clone / "scripts" / "quickstart.sh")],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    table = cells(result.stdout[result.stdout.index("== Result") :])
    assert float(table["AP50"][1]) >= 0.58
    assert float(table["GFLOPs per image"][1]) < float(table["GFLOPs per image"][0])
    listed = [line.strip() for line in result.stdout[result.stdout.index("\nPictures") :].splitlines()[2:]]
    assert all((clone / name).is_file() for name in listed if name and not name.startswith("…"))
    assert any(listed)
    changed = subprocess.run(
        ["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True
    ).stdout
    assert changed == "", "the quickstart leaves the checkout clean"
    assert time.monotonic() - started <= 600 * 1.5, "10 minutes on two free cores"
