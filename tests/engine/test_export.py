"""export.py, and what detect.py, test.py and the runtime without torch do with its files: the same as torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
import yaml

from deploy.detector import ExportedDetector
from deploy.metadata import ExportedFileError
from engine.export.pair import export_pair, prepare
from engine.export.verify import detection_difference
from engine.export.write import as_formats
from engine.exported import ExportedNetwork
from engine.inference import load_model
from models.build import build_model
from models.decode import PostprocessConfig
from tests.conftest import ROOT, RunCommand
from utils.config import ModelConfig, ModelOverrides
from utils.results import Detections
from utils.sources import read_picture
from utils.typed_data import ConfigError, config_from_dict

FORMATS = ["onnx", "openvino"]
TINY = {
    "yolov5n": {"width": 0.125},
    "yolov5n_v6": {"width": 0.125},
    "yolov5m-center": {"depth": 0.33, "width": 0.125},
    "yolov5n-p2": {"width": 0.125},
    "yolov8n": {"width": 0.125},
    "yolov8m-anchor": {"depth": 0.33, "width": 0.125},
    "retinanet": {"width": 0.125},
    "rtmdet_tiny": {"width": 0.125},
}
"""Name of the configuration → what makes it tiny."""


@pytest.fixture(scope="module")
def files(lively: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The untrained tiny model, exported: format → its stem's file."""
    folder = tmp_path_factory.mktemp("exported")
    detector = load_model(lively, "cpu")
    written = as_formats(export_pair(prepare(detector.model, detector.names), folder, "tiny"), FORMATS)  # type: ignore[arg-type]
    return dict(zip(FORMATS, (pair[0] for pair in written), strict=True))


@pytest.fixture(scope="module")
def sample_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped weights, exported to ONNX: the folder."""
    folder = tmp_path_factory.mktemp("sample exported")
    detector = load_model(ROOT / "weights" / "sample_yolov5n.pt", "cpu")
    export_pair(prepare(detector.model, detector.names), folder, "sample")  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module")
def pictures(tiny_dataset: Path) -> list[np.ndarray]:
    """Ten drawn pictures of two sizes."""
    paths = sorted(tiny_dataset.parent.glob("*/images/*.jpg"))[:8]
    paths += [ROOT / "data" / "images" / f"sample_{n}.jpg" for n in (1, 2)]
    return [read_picture(path) for path in paths]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "overrides",
    [
        ModelOverrides(),
        ModelOverrides(slicer="greedy"),
        ModelOverrides(slicer="none"),
        ModelOverrides(max_patches=2),
        ModelOverrides(heatmap_thres=1.0),
    ],
    ids=["grid", "greedy", "none", "two patches", "no patch"],
)
def test_the_same_output_for_any_batch_size_and_slicer(
    files: dict[str, Path], lively: Path, kind: str, overrides: ModelOverrides
) -> None:
    torch.manual_seed(3)
    model, network = (load_model(path, "cpu", overrides).model for path in (lively, files[kind]))
    assert isinstance(network, ExportedNetwork)
    for shape in ((1, 3, 96, 160), (3, 3, 64, 224)):
        images = torch.rand(shape)
        with torch.inference_mode():
            expected, found = model(images), network(images)
        assert found.patches.size_cell == expected.patches.size_cell
        assert torch.equal(found.patches.image_index, expected.patches.image_index)
        assert torch.equal(found.patches.xyxy_cell, expected.patches.xyxy_cell)
        assert (len(expected.patches) > 0) == (overrides.heatmap_thres != 1.0)
        torch.testing.assert_close(found.heatmap_logits, expected.heatmap_logits, atol=1e-3, rtol=1e-4)
        for a, b in zip(found.levels, expected.levels, strict=True):
            assert torch.equal(a.position, b.position) and (a.stride, a.grid_hw) == (b.stride, b.grid_hw)
            torch.testing.assert_close(a.raw, b.raw, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", list(TINY))
def test_families(name: str, tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "models" / "cfg" / f"{name}.yaml").read_text(encoding="utf-8"))
    model = build_model(config_from_dict(ModelConfig, config | TINY[name])).eval()
    torch.nn.init.normal_(model.seeker.predict.weight, std=40.0)  # or the map is flat, its maxima rounding
    stem, _ = export_pair(prepare(model, [str(i) for i in range(80)]), tmp_path, name)
    network = load_model(stem, "cpu", ModelOverrides(heatmap_thres=0.0)).model
    model.config = network.config
    images = torch.rand(2, 3, 96, 160)
    with torch.inference_mode():
        expected, found = model(images), network(images)
    assert len(found.patches) == len(expected.patches) > 4
    for a, b in zip(found.levels, expected.levels, strict=True):
        torch.testing.assert_close(a.raw, b.raw, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("name", "kind"), [("yolov5n", "single"), ("yolov8n", "dfl")])
def test_dense_networks(name: str, kind: str, tmp_path: Path) -> None:
    """Plain YOLOv5 and YOLOv8, as their published files are: a pair whose one patch is the whole map."""
    config = yaml.safe_load((ROOT / "models" / "cfg" / f"{name}.yaml").read_text(encoding="utf-8"))
    config |= {"width": 0.125, "seeker": {"kind": "none"}, "slicer": {"algorithm": "none"}}
    model = build_model(config_from_dict(ModelConfig, config | {"head": {"kind": kind}})).eval()
    stem, _ = export_pair(prepare(model, [str(i) for i in range(80)]), tmp_path, name)
    network = load_model(tmp_path, "cpu").model
    assert [output.name for output in onnx.load(str(stem)).graph.output] == ["features"]
    images = torch.rand(2, 3, 96, 160)
    with torch.inference_mode():
        expected, found = model(images), network(images)
    assert found.heatmap_logits is None and found.patches.size_cell == (12, 20)
    for a, b in zip(found.levels, expected.levels, strict=True):
        assert torch.equal(a.position, b.position)
        torch.testing.assert_close(a.raw, b.raw, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["gpvit", "yolov5m-tr"])
def test_what_is_no_fixed_graph_is_refused_by_name(name: str) -> None:
    config = yaml.safe_load((ROOT / "models" / "cfg" / f"{name}.yaml").read_text(encoding="utf-8"))
    model = build_model(config_from_dict(ModelConfig, config | {"depth": 0.25, "width": 0.125}))
    with pytest.raises(ConfigError, match=r"cannot be exported.*which is no fixed graph"):
        prepare(model, [])


def test_boxes_on_ten_pictures(sample_files: Path, pictures: list[np.ndarray]) -> None:
    """Within half a pixel of torch, by the engine and by the runtime without torch."""
    detectors = [load_model(path, "cpu") for path in (ROOT / "weights" / "sample_yolov5n.pt", sample_files)]
    alone = ExportedDetector(sample_files)
    assert alone.names == detectors[0].names == detectors[1].names
    total = 0
    for picture in pictures:
        expected, found = (one.predict([picture], 512)[0].detections for one in detectors)
        result = alone.detect(picture, 512)
        bare = Detections(*(torch.from_numpy(array) for array in result))
        for other in (found, bare):
            box_px, score = detection_difference(expected, other, 0.26)
            assert box_px < 0.5 and score < 1e-3
        total += len(expected)
    assert total > 50, "there is something to compare"


def test_metadata(files: dict[str, Path], weights: Path) -> None:
    names = load_model(weights, "cpu").names
    for path in (files["onnx"], files["onnx"].with_name("tiny_patches.onnx")):
        model = onnx.load(str(path))
        properties = {entry.key: entry.value for entry in model.metadata_props}
        assert json.loads(properties["esod_names"]) == names
        assert json.loads(properties["esod_strides"]) == [8, 16, 32]
        assert json.loads(properties["esod_part"]) == path.stem.removeprefix("tiny_")
        assert json.loads(properties["esod_conf_thres"]) == 0.25
        assert json.loads(properties["esod_config"])["slicer"]["threshold"] == 0.5
        assert [entry.version for entry in model.opset_import if not entry.domain] == [17]
        assert not any(node.op_type == "BatchNormalization" for node in model.graph.node), "folded"


def test_commands(tiny_dataset: Path, lively: Path, tmp_path: Path, run_command: RunCommand) -> None:
    """Export, then test and detect with each file: the same scores and boxes as with the weights."""
    line = ["export.py", "--weights", lively, "--output", tmp_path, "--include", *FORMATS]
    exported = run_command(*line, "--img-size", 1536)
    assert exported.status == 0, exported.err
    assert exported.out.count("largest relative difference to torch") == 2
    common = ["--img-size", 160, "--device", "cpu", "--project", tmp_path, "--workers", 0]
    scores = {}
    for name, file in (("pt", lively), ("onnx", tmp_path / "lively_stem.onnx"), ("xml", tmp_path / "lively_patches.xml")):  # fmt: skip
        tested = run_command(
            "test.py", "--data", tiny_dataset, "--weights", file, "--name", name, *common, "--analyse"
        )
        assert tested.status == 0, tested.err
        metrics = json.loads((tmp_path / name / "metrics.json").read_text())
        scores[name] = [metrics["detection"]["ap"], metrics["selector"]["occupancy"]]
        source = tiny_dataset.parent / "list.txt"
        found = run_command("detect.py", "--weights", file, "--source", source, "--conf-thres", 0.01, "--save-txt",
                            "--view-cluster", "--name", f"{name}-found", *common)  # fmt: skip
        assert found.status == 0, found.err
    assert scores["onnx"] == pytest.approx(scores["pt"], abs=1e-3) == scores["xml"]
    lines = [
        len("".join(p.read_text() for p in (tmp_path / f"{n}-found").rglob("*.txt")).splitlines())
        for n in scores
    ]
    assert lines[0] > 0 and len(set(lines)) == 1


def test_speed_can_be_measured_and_operations_cannot(
    files: dict[str, Path], tiny_dataset: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    line = ["test.py", "--data", tiny_dataset, "--weights", files["onnx"].parent / "tiny_stem.onnx", "--img-size", 160,
            "--device", "cpu", "--project", tmp_path]  # fmt: skip
    result = run_command(*line, "--task", "measure")
    assert result.status == 1 and "--task speed" in result.err
    result = run_command(*line, "--task", "speed")
    assert result.status == 0, result.err
    speed = json.loads((tmp_path / "exp" / "speed.json").read_text())
    assert speed["fps"] > 0 and speed["parameters"] > 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--half"], "--half"),
        (["--compile"], "--compile"),
        (["--head", "sparse"], "whole patches"),
        (["--device", "0"], "onnxruntime-gpu"),
    ],
)
def test_what_exported_files_cannot_do(
    files: dict[str, Path],
    tiny_dataset: Path,
    tmp_path: Path,
    run_command: RunCommand,
    options: list[str],
    message: str,
) -> None:
    source = tiny_dataset.parent / "list.txt"
    line = ["detect.py", "--weights", files["onnx"], "--source", source, "--project", tmp_path]
    result = run_command(*line, *options)
    assert result.status == 1 and message in result.err


def test_files_that_do_not_belong_together(
    files: dict[str, Path], sample_files: Path, tmp_path: Path
) -> None:
    stem = files["onnx"]
    shutil.copy(stem, tmp_path / "a_stem.onnx")
    with pytest.raises(ExportedFileError, match="a_patches.onnx: no such file"):
        load_model(tmp_path / "a_stem.onnx")
    shutil.copy(sample_files / "sample_patches.onnx", tmp_path / "a_patches.onnx")
    with pytest.raises(ExportedFileError, match="not of one export"):
        load_model(tmp_path)
    shutil.copy(sample_files / "sample_stem.onnx", tmp_path / "b_stem.onnx")
    with pytest.raises(
        ExportedFileError, match="expected one exported detector, found a_stem.onnx, b_stem.onnx"
    ):
        load_model(tmp_path)
    (tmp_path / "damaged.onnx").write_bytes(b"nothing")
    with pytest.raises(ExportedFileError, match="cannot open it"):
        load_model(tmp_path / "damaged.onnx")
    bare = onnx.load(str(stem))
    del bare.metadata_props[:]
    onnx.save(bare, str(tmp_path / "bare.onnx"))
    with pytest.raises(ExportedFileError, match="no metadata of this project"):
        load_model(tmp_path / "bare.onnx")


def test_the_runtime_needs_no_torch(sample_files: Path, tmp_path: Path) -> None:
    """The folder deploy/ alone, in a process where neither torch nor anything else of the project can be imported."""
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy", ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'models', 'utils', 'engine'): sys.modules[name] = None\n"
        "from deploy.__main__ import main\n"
        "sys.exit(main())\n"
    )
    picture = ROOT / "data" / "images" / "sample_1.jpg"
    done = subprocess.run(
        [sys.executable, "-c", code, sample_files, picture, "--img-size", "960"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "car 0." in done.stdout and len(done.stdout.splitlines()) > 10
    assert cv2.imread(str(picture)) is not None


def test_a_wrong_export_is_noticed(files: dict[str, Path], lively: Path) -> None:
    """The comparison after writing fails when the files are of other weights."""
    from engine.export.verify import compare

    detector = load_model(lively, "cpu")
    picture = np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8)
    compare(detector, files["onnx"], picture, PostprocessConfig(0.01), 160)
    with torch.no_grad():
        detector.model.head.levels[1].obj_pred.bias.add_(0.1)
    with pytest.raises(ExportedFileError, match="differs from torch too much"):
        compare(detector, files["onnx"], picture, PostprocessConfig(0.01), 160)
