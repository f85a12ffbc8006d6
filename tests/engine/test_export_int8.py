"""export.py --int8: a pair in 8 bits that finds what the one in 32 bits finds."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from engine.export.quantise import calibration_pictures, last_convolutions
from engine.inference import load_model
from tests.conftest import ROOT, RunCommand
from utils.typed_data import ConfigError

PICTURE = ROOT / "data" / "images" / "sample_1.jpg"
SIZE = 640


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("int8")


@pytest.fixture(scope="module")
def stem(folder: Path) -> Path:
    """The shipped weights, exported by the command: the stem's file in 8 bits."""
    import export

    export.export(
        export.parse_export_options(
            ["--int8", str(ROOT / "data" / "images"), "--img-size", str(SIZE), "--output", str(folder)]
        )
    )
    return folder / "sample_yolov5n_int8_stem.onnx"


def test_it_finds_what_32_bits_find(stem: Path) -> None:
    found, expected = (
        load_model(path, "cpu").predict([_picture()], SIZE)[0].detections
        for path in (stem, ROOT / "weights" / "sample_yolov5n.pt")
    )
    assert len(expected) > 20 and abs(len(found) - len(expected)) <= 0.1 * len(expected)
    near = torch.cdist(found.xyxy, expected.xyxy, p=float("inf")).amin(dim=0) < 2
    assert near.float().mean() > 0.85, "boxes lie where they lie in 32 bits"


def test_convolutions_are_quantised_but_the_last(stem: Path) -> None:
    for path, outputs in ((stem, 1), (stem.with_name("sample_yolov5n_int8_patches.onnx"), 9)):
        model = onnx.load(str(path))
        makers = {output: node for node in model.graph.node for output in node.output}
        convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
        plain = [node for node in convolutions if makers[node.input[0]].op_type != "DequantizeLinear"]
        last = last_convolutions(model)
        assert len(convolutions) > 10 and len(last) == outputs
        assert {node.name for node in plain} == set(last)
        plain_size = stem.with_name(path.name.replace("_int8", "")).stat().st_size
        assert path.stat().st_size < 0.5 * plain_size


def test_the_pairs_are_not_mixed_up(stem: Path, folder: Path, tmp_path: Path) -> None:
    for source, name in ((stem, "a_stem.onnx"), (folder / "sample_yolov5n_patches.onnx", "a_patches.onnx")):
        (tmp_path / name).write_bytes(source.read_bytes())
    with pytest.raises(ValueError, match="not of one export"):
        load_model(tmp_path / "a_stem.onnx", "cpu")


def test_pictures_are_spread_evenly(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"{number}.jpg").write_bytes(b"")
    assert [path.stem for path in calibration_pictures(tmp_path, 4)] == ["0", "2", "5", "7"]
    assert len(calibration_pictures(tmp_path)) == 10


def test_what_is_no_source_of_pictures(tmp_path: Path, run_command: RunCommand) -> None:
    with pytest.raises(ConfigError, match="no pictures"):
        calibration_pictures(tmp_path)
    result = run_command("export.py", "--int8", tmp_path / "nothing", "--output", tmp_path)
    assert result.status == 1 and "expected a folder of pictures or a dataset's YAML" in result.err
    assert not list(tmp_path.iterdir()), "nothing is written before that is known"
    result = run_command("export.py", "--img-size", 640, "--output", tmp_path)
    assert result.status == 2 and "a pair takes any size" in result.err


def test_a_heatmap_without_patches_is_told(tmp_path: Path, run_command: RunCommand) -> None:
    line = [
        "--int8",
        ROOT / "data" / "images",
        "--img-size",
        160,
        "--output",
        tmp_path,
        "--heatmap-thres",
        "1.0",
    ]
    result = run_command("export.py", *line)
    assert result.status == 1 and "heatmap is empty on all calibration pictures" in result.err


def _picture() -> object:
    from utils.images import read_image

    return read_image(PICTURE)
