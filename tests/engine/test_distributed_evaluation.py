"""test.py in several processes gives what one process gives, and ends when one of them fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import pytest
import yaml

from tests.conftest import ROOT, RunCommand

CROPS = ((160, 256), (160, 128), (96, 256), (160, 256), (160, 128), (96, 256), (160, 256))
"""Height and width of the images: an odd number, three shapes."""


@pytest.fixture(scope="module")
def mixed_dataset(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven pictures of three shapes with objects; two of them share a name in different folders."""
    folder = tmp_path_factory.mktemp("mixed")
    sources = sorted((tiny_dataset.parent / "VisDrone2019-DET-train" / "images").iterdir())
    for index, (height, width) in enumerate(CROPS):
        place = f"set{index % 2}/{index // 2:03}"
        image = cv2.imread(str(sources[index]))
        assert image is not None
        for kind in ("images", "labels"):
            (folder / kind / place).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / "images" / f"{place}.png"), image[:height, :width])
        objects = [f"{index % 3} 0.{3 + index % 4} 0.5 0.1 0.1", f"{index % 5} 0.6 0.3 0.05 0.1"]
        (folder / "labels" / f"{place}.txt").write_text("".join(f"{line}\n" for line in objects))
    listed = sorted(path.relative_to(folder).as_posix() for path in (folder / "images").rglob("*.png"))
    (folder / "val.txt").write_text("\n".join(listed) + "\n")
    content = yaml.safe_load(tiny_dataset.read_text())
    content |= {"path": str(folder), "train": "val.txt", "val": "val.txt"}
    content.pop("test", None)
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    return folder / "data.yaml"


def run_test(processes: int, script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """test.py (or a worker that calls it) as one process, or as several through torchrun."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    line = [*start, script, *map(str, arguments), "--device", "cpu", "--img-size", 160, "--workers", 0]
    return subprocess.run(
        list(map(str, line)), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250
    )


def outcome(folder: Path) -> tuple[dict[str, Any], Any, dict[str, str]]:
    """Numbers, predictions.json, and the text of every label file by its name."""
    metrics = json.loads((folder / "metrics.json").read_text())
    labels = folder / "labels"
    texts = {path.relative_to(labels).as_posix(): path.read_text() for path in labels.rglob("*.txt")}
    numbers = {key: metrics[key] for key in ("detection", "selector")}
    analysis = json.loads((folder / "analysis.json").read_text())
    numbers["missed"] = {key: analysis[key] for key in ("protocol", "total", "by_size", "by_class")}
    return numbers, json.loads((folder / "predictions.json").read_text()), texts


@pytest.mark.parametrize("batch_size", [2, 8], ids=["batches of three sizes", "one process without images"])
def test_two_processes_find_what_one_finds(
    mixed_dataset: Path, weights: Path, tmp_path: Path, batch_size: int
) -> None:
    arguments = ["--data", mixed_dataset, "--weights", weights, "--project", tmp_path]
    arguments += ["--batch-size", batch_size, "--save-txt", "--save-conf", "--save-json", "--analyse"]
    found = {}
    for processes in (1, 2):
        done = run_test(processes, "test.py", *arguments, "--name", f"by{processes}")
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("results in") == 1, "only the main process speaks"
        found[processes] = outcome(tmp_path / f"by{processes}")
    numbers, predictions, labels = found[1]
    assert numbers["detection"]["images"] == 7 and numbers["detection"]["labels"] == 14
    assert numbers["detection"]["detections"] > 100 and numbers["selector"]["images"] == 7
    assert len(labels) == 7 and any(labels.values())
    assert len(predictions) == numbers["detection"]["detections"]
    assert found[2] == found[1], "to the last bit"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["by1", "by2"]


def test_a_failure_in_one_process_ends_the_run(mixed_dataset: Path, weights: Path, tmp_path: Path) -> None:
    worker = ROOT / "tests" / "engine" / "failing_worker.py"
    arguments = ["--data", mixed_dataset, "--weights", weights, "--project", tmp_path, "--batch-size", 2]
    done = run_test(2, str(worker), *arguments)
    assert done.returncode != 0 and "the second process fails" in done.stderr
    assert not (tmp_path / "exp" / "metrics.json").exists()


def test_cost_is_not_measured_in_several_processes(
    mixed_dataset: Path, weights: Path, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = run_command("test.py", "--data", mixed_dataset, "--weights", weights, "--task", "measure")
    assert result.status == 1 and "without torchrun" in result.err
