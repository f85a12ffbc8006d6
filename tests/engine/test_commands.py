"""test.py, detect.py, the converters: the command lines on a small drawn dataset with an untrained model."""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from engine.inference import load_model
from engine.modes import compile_parts
from tests.conftest import RunCommand
from utils.cli import add_model_arguments, model_overrides


@pytest.fixture
def common(tiny_dataset: Path, weights: Path, tmp_path: Path) -> list[object]:
    return ["--weights", weights, "--img-size", "160", "--device", "cpu", "--project", tmp_path]


def test_accuracy(
    tiny_dataset: Path, weights: Path, tmp_path: Path, common: list[object], run_command: RunCommand
) -> None:
    result = run_command(
        "test.py", "--data", tiny_dataset, *common, "--save-txt", "--save-conf", "--save-json", "--workers", 0
    )
    assert result.status == 0, result.err
    metrics = json.loads((tmp_path / "exp" / "metrics.json").read_text())
    assert metrics["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert 0 <= metrics["detection"]["ap"] <= 1 and metrics["selector"]["occupancy"] > 0
    assert metrics["detection"]["images"] == 4
    speed = metrics["throughput"]
    assert 0 < speed["images_per_second"] < speed["images_per_second_model"] and 0 < speed["ratio"] < 1
    assert "images per second" in result.out
    names = [p.name for p in (tmp_path / "exp").iterdir()]
    assert {"predictions.json", "confusion_matrix.png", "batch0_labels.jpg", "batch0_predictions.jpg"} <= set(
        names
    )
    assert len(list((tmp_path / "exp" / "labels").iterdir())) == 4, (
        "a file per image, also without detections"
    )
    assert "not comparable" in result.out, "the note of the dataset stands beside its scores"


def test_accuracy_does_not_depend_on_the_workers(
    tiny_dataset: Path, tmp_path: Path, common: list[object], run_command: RunCommand
) -> None:
    found = {}
    for workers in (0, 2):
        extra = ["--save-json", "--analyse", "--batch-size", 1, "--name", f"w{workers}", "--workers", workers]
        result = run_command("test.py", "--data", tiny_dataset, *common, *extra)
        assert result.status == 0, result.err
        folder = tmp_path / f"w{workers}"
        metrics = json.loads((folder / "metrics.json").read_text())
        found[workers] = [
            metrics["detection"],
            metrics["selector"],
            (folder / "predictions.json").read_text(),
        ]
        found[workers] += [(folder / f"batch{number}_predictions.jpg").read_bytes() for number in range(3)]
    assert found[0] == found[2], "to the last bit"


@pytest.mark.parametrize("extra", [["--slicer", "none"], ["--slicer", "greedy", "--head", "sparse"], ["--max-patches", 3],
                                   ["--augment"], ["--nms", "soft"], ["--half"], ["--single-cls"], ["--task", "train"], ["--batch-size", 1]])  # fmt: skip
def test_modes(
    tiny_dataset: Path, tmp_path: Path, common: list[object], run_command: RunCommand, extra: list[object]
) -> None:
    result = run_command("test.py", "--data", tiny_dataset, *common, "--workers", 0, *extra)
    assert result.status == 0, result.err
    selector = json.loads((tmp_path / "exp" / "metrics.json").read_text())["selector"]
    if extra[0] == "--slicer" and extra[1] == "none":
        assert selector["occupancy"] == 1 and selector["missing_rate"] == 0
    if extra[0] == "--max-patches":
        assert selector["patches_per_image"] <= 3


def test_measure_varies_with_the_patches(
    tiny_dataset: Path, tmp_path: Path, common: list[object], run_command: RunCommand
) -> None:
    cost = {}
    for name, extra in (("esod", []), ("dense", ["--slicer", "none"]), ("few", ["--max-patches", 2])):
        arguments = ["--task", "measure", "--batch-size", 1, "--name", name, *extra]
        result = run_command("test.py", "--data", tiny_dataset, *common, *arguments)
        assert result.status == 0, result.err
        cost[name] = json.loads((tmp_path / name / "measure.json").read_text())
    assert (
        cost["few"]["gflops_2mac"]["mean"]
        < cost["esod"]["gflops_2mac"]["mean"]
        < cost["dense"]["gflops_2mac"]["mean"] * 1.3
    )
    assert cost["esod"]["gflops_2mac"]["least"] < cost["esod"]["gflops_2mac"]["most"], (
        "cost differs between images"
    )
    assert cost["esod"]["gmacs"]["mean"] == pytest.approx(cost["esod"]["gflops_2mac"]["mean"] / 2, rel=1e-6)
    assert cost["esod"]["fps"] > 0 and set(cost["esod"]["stages_ms"]) >= {
        "stem",
        "seeker",
        "slicer",
        "deep",
        "head",
        "nms",
    }


def test_speed_task_measures_time(
    tiny_dataset: Path, tmp_path: Path, common: list[object], run_command: RunCommand
) -> None:
    result = run_command("test.py", "--data", tiny_dataset, *common, "--task", "speed", "--batch-size", 2)
    assert result.status == 0 and "FPS" in result.out
    assert json.loads((tmp_path / "exp" / "speed.json").read_text())["fps"] > 0


@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["--slicer", "none"],
        ["--head", "sparse", "--augment", "--nms", "fusion"],
        ["--heatmap-thres", "1.0"],
    ],
)
def test_detect(
    tiny_dataset: Path, tmp_path: Path, common: list[object], run_command: RunCommand, extra: list[object]
) -> None:
    source = tiny_dataset.parent / "VisDrone2019-DET-val" / "images"
    result = run_command(
        "detect.py", *common, "--source", source, "--view-cluster", "--save-txt", "--conf-thres", 0.0, *extra
    )
    assert result.status == 0, result.err
    pictures = list((tmp_path / "exp").rglob("*_cluster.jpg"))
    assert len(pictures) == 4
    assert cv2.imread(str(pictures[0])) is not None


def test_detect_list_video_and_no_patch(
    tiny_dataset: Path, tmp_path: Path, common: list[object], run_command: RunCommand
) -> None:
    result = run_command("detect.py", *common, "--source", tiny_dataset.parent / "list.txt")
    assert result.status == 0, result.err
    video = tmp_path / "video.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 10, (160, 96))
    for value in (0, 80, 160):
        writer.write(np.full((96, 160, 3), value, np.uint8))
    writer.release()
    result = run_command("detect.py", *common, "--source", video, "--view-cluster", "--heatmap-thres", "1.0")
    assert result.status == 0, result.err


def test_a_malicious_file_is_refused_everywhere(
    tiny_dataset: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    marker = tmp_path / "executed"

    class Malice:
        def __reduce__(self) -> tuple[object, ...]:
            return (open, (str(marker), "w"))

    bad = tmp_path / "bad.pt"
    torch.save({"model": Malice()}, bad)
    bare = tmp_path / "bare.pt"
    bare.write_bytes(pickle.dumps(Malice()))
    text = tmp_path / "text.pt"
    text.write_text("not a checkpoint")
    for path in (bad, bare, text):
        for line in (
            ["test.py", "--data", tiny_dataset, "--weights", path, "--project", tmp_path],
            ["detect.py", "--source", tiny_dataset.parent, "--weights", path, "--project", tmp_path],
            ["train.py", "--data", tiny_dataset, "--cfg", tiny_dataset.parent / "model.yaml", "--weights", path, "--project", tmp_path, "--device", "cpu"],
            ["scripts/model_convert.py", "--weights", path, "--output", tmp_path / "out.pt"],
        ):  # fmt: skip
            result = run_command(*line)
            assert result.status == 1 and str(path) in result.err, line[0]
            assert not marker.exists()


@pytest.mark.parametrize("task", ["val", "measure"])
def test_a_missing_dataset_leaves_no_folder_behind(
    task: str, tiny_dataset: Path, tmp_path: Path, weights: Path, run_command: RunCommand
) -> None:
    content = yaml.safe_load(tiny_dataset.read_text())
    absent = tmp_path / "absent.yaml"
    absent.write_text(yaml.safe_dump({**content, "path": "nowhere/VisDrone"}))
    project = tmp_path / "runs"
    result = run_command(
        "test.py",
        "--data",
        absent,
        "--weights",
        weights,
        "--project",
        project,
        "--task",
        task,
        "--device",
        "cpu",
    )
    assert result.status == 1
    assert "Download it" in result.err and "data_prepare.py --dataset VisDrone" in result.err
    assert not project.exists()


def test_wrong_number_of_classes_is_told(
    tiny_dataset: Path, weights: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    data = yaml.safe_load(tiny_dataset.read_text()) | {"nc": 1, "names": ["car"]}
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(data))
    result = run_command(
        "test.py",
        "--data",
        tmp_path / "one.yaml",
        "--weights",
        weights,
        "--device",
        "cpu",
        "--project",
        tmp_path,
    )
    assert result.status == 1 and "10 classes" in result.err


def test_official_protocol(
    tiny_dataset: Path, tmp_path: Path, common: list[object], run_command: RunCommand
) -> None:
    """The drawn dataset has VisDrone's layout, and so its protocol."""
    result = run_command("test.py", "--data", tiny_dataset, *common, "--workers", 0, "--official")
    assert result.status == 0, result.err
    assert "VisDrone-DET, official protocol: 4 images" in result.out
    assert 0 <= json.loads((tmp_path / "exp" / "official.json").read_text())["metrics"]["AP"] <= 100
    (converted,) = (tmp_path / "exp" / "official").iterdir()
    assert len(list(converted.iterdir())) == 4


def test_scores_are_kept_when_the_official_protocol_cannot_be_run(
    tiny_dataset: Path, tmp_path: Path, common: list[object], run_command: RunCommand
) -> None:
    """An image that cannot be read has no results, which that protocol demands of every image."""
    root = shutil.copytree(tiny_dataset.parent, tmp_path / "copy")
    data = root / "data.yaml"
    data.write_text(yaml.safe_dump(yaml.safe_load(data.read_text()) | {"path": str(root)}))
    min((root / "VisDrone2019-DET-val" / "images").glob("*.jpg")).write_bytes(b"no picture")
    result = run_command("test.py", "--data", data, *common, "--workers", 0, "--official")
    assert result.status == 1 and "no results for 1 of 4 images" in result.err, result.err
    assert json.loads((tmp_path / "exp" / "metrics.json").read_text())["detection"]["images"] == 3
    result = run_command("test.py", "--data", data, *common, "--workers", 0, "--official", "--single-cls")
    assert result.status == 1 and "leave out --official, or --single-cls" in result.err, result.err
    assert not (tmp_path / "exp2").exists()


@pytest.mark.parametrize("extra", [[], ["--head", "sparse", "--slicer", "greedy"], ["--slicer", "none"]])
@torch.no_grad()
def test_compiled_parts_compute_the_same(weights: Path, extra: list[str]) -> None:
    """The graphs are caught whole for any number of patches, none included; code is not generated here (see --compile)."""
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    overrides = model_overrides(parser.parse_args(extra))
    plain = load_model(weights, "cpu", overrides).model
    compiled = load_model(weights, "cpu", overrides).model
    compile_parts(compiled, backend="eager")
    for image in (torch.rand(1, 3, 96, 160), torch.rand(2, 3, 96, 160), torch.zeros(1, 3, 96, 160)):
        expected, found = plain(image), compiled(image)
        assert torch.equal(expected.patches.xyxy_cell, found.patches.xyxy_cell)
        for a, b in zip(expected.levels, found.levels, strict=True):
            torch.testing.assert_close(a.raw, b.raw)
            assert torch.equal(a.position, b.position)


@pytest.mark.slow
def test_compile_flag(
    tiny_dataset: Path, tmp_path: Path, common: list[object], run_command: RunCommand
) -> None:
    """Generates code, which takes a minute: the same boxes as without, and the same operations counted."""
    for name, extra in (("plain", []), ("compiled", ["--compile"])):
        source = tiny_dataset.parent / "list.txt"
        detected = run_command("detect.py", *common, "--source", source, "--save-txt", "--name", name, *extra)
        assert detected.status == 0, detected.err
        line = ["--task", "measure", "--batch-size", 1, "--name", f"{name}-cost", *extra]
        assert run_command("test.py", "--data", tiny_dataset, *common, *line).status == 0
    texts = [
        [file.read_text() for file in sorted((tmp_path / name).rglob("*.txt"))]
        for name in ("plain", "compiled")
    ]
    assert [len(text.splitlines()) for text in texts[0]] == [len(text.splitlines()) for text in texts[1]]
    costs = [
        json.loads((tmp_path / f"{name}-cost" / "measure.json").read_text()) for name in ("plain", "compiled")
    ]
    assert costs[0]["gflops_2mac"] == costs[1]["gflops_2mac"]
