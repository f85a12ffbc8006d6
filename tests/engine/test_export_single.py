"""The single exported file: selection, gathering, decoding and suppression in one graph, as torch with that budget."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.detector import ExportedDetector
from deploy.metadata import ExportedFileError, SingleSettings
from engine.export.pair import prepare
from engine.export.selection import GridSelection, gather_patches
from engine.export.single import export_single
from engine.export.verify import detection_difference
from engine.exported import check_postprocessing
from engine.inference import load_model
from models.build import build_model
from models.decode import PostprocessConfig
from models.slicer import Patches, cut_patches, slice_grid
from tests.conftest import ROOT, RunCommand
from utils.config import ModelConfig, ModelOverrides, SlicerConfig
from utils.results import Detections
from utils.sources import read_picture
from utils.typed_data import ConfigError, config_from_dict

SETTINGS = SingleSettings(2, 96, 160, 5, 0.01, 0.6, 3500, True, 3840)
TENSORRT_OPERATORS = {
    "Abs", "Add", "And", "ArgMax", "Cast", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv", "DepthToSpace", "Div", "Equal",
    "Exp", "Expand", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Greater", "GreaterOrEqual", "HardSigmoid", "Identity",
    "Less", "LessOrEqual", "MatMul", "Max", "MaxPool", "Min", "Mod", "Mul", "Neg", "NonMaxSuppression", "Not", "Or", "Pad", "Pow",
    "Range", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Resize", "ScatterND", "Shape", "Sigmoid",
    "Sign", "Slice", "Softmax", "SpaceToDepth", "Split", "Squeeze", "Sub", "Tile", "TopK", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
"""Of what TensorRT 8.5 supports (docs/operators.md of github.com/onnx/onnx-tensorrt), those that may be used."""
FLOAT_ONLY = {
    "ArgMax",
    "Exp",
    "Floor",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceSum",
    "Sigmoid",
    "Softmax",
    "TopK",
}
"""Of these, what takes no whole numbers there."""


def single(weights: Path, folder: Path, overrides: ModelOverrides | None = None, **changes: object) -> Path:
    """A single file of a model."""
    detector = load_model(weights, "cpu", overrides)
    fixed = SingleSettings(**{**vars(SETTINGS), **changes})
    return export_single(prepare(detector.model, detector.names), fixed, folder, "tiny")  # type: ignore[arg-type]


def unknown_sizes(values: Iterable[Any]) -> list[str]:
    """Names of the tensors of a graph that have a side of unknown length."""
    return sorted(
        value.name
        for value in values
        if any(not side.HasField("dim_value") for side in value.type.tensor_type.shape.dim)
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    height=st.integers(1, 14).map(lambda n: 4 * n),
    width=st.integers(1, 18).map(lambda n: 4 * n),
    shift=st.sampled_from(["center", "edge", "none"]),
    density=st.sampled_from([0.0, 0.003, 0.05, 0.6]),
    budget=st.sampled_from([1, 3, 24]),
    threshold=st.sampled_from([0.0, 0.5]),
)
def test_selection_is_the_slicers(
    seed: int, height: int, width: int, shift: str, density: float, budget: int, threshold: float
) -> None:
    torch.manual_seed(seed)
    active = torch.rand(2, 1, height, width) < density
    prob = torch.where(active, 0.5 + torch.rand(active.shape) / 2, torch.rand(active.shape) / 2.1)
    config = SlicerConfig(threshold=threshold, shift=shift, max_patches=budget)  # type: ignore[arg-type]
    candidates = slice_grid(prob, config)
    expected = candidates.take(int(candidates.keep.sum()))
    select = GridSelection(config, (height, width), budget)
    corners, used = select(prob)
    assert select.size == expected.size_cell
    image, slot = (used > 0.5).nonzero().unbind(dim=1)
    rows = torch.cat((image[:, None], corners[image, slot].long()), dim=1).tolist()
    wanted = torch.cat((expected.image_index[:, None], expected.xyxy_cell[:, :2]), dim=1).tolist()
    assert sorted(rows) == sorted(wanted)


def test_gathering_is_the_slicers() -> None:
    features = torch.rand(2, 3, 12, 24)
    corners = torch.tensor([[[0.0, 0.0], [16.0, 8.0]], [[3.0, 1.0], [7.0, 5.0]]])
    xyxy = torch.cat((corners, corners + torch.tensor([8.0, 4.0])), dim=2).long().view(-1, 4)
    patches = Patches(torch.tensor([0, 0, 1, 1]), xyxy, (4, 8))
    assert torch.equal(gather_patches(features, corners, (4, 8)), cut_patches(features, patches))


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize("multi_label", [False, True])
def test_detections_are_torchs(
    lively: Path, tiny_dataset: Path, tmp_path: Path, suffix: str, multi_label: bool
) -> None:
    """Three pictures through a file for two at a time."""
    from engine.export.write import as_formats

    path = single(lively, tmp_path, multi_label=multi_label)
    (files,) = as_formats([path], ["openvino" if suffix == ".xml" else "onnx"])
    paths = sorted(tiny_dataset.parent.glob("*/images/*.jpg"))[:3]
    pictures = [read_picture(path) for path in paths]
    budget = ModelOverrides(max_patches=5)
    post = PostprocessConfig(0.01, 0.6, 3500, multi_label=multi_label)
    results = []
    for detector in (load_model(lively, "cpu", budget), load_model(files[0], "cpu")):
        inputs = [detector.prepare(picture, (96, 160)) for picture in pictures]
        results.append(detector.detect(inputs, post))
    for expected, found in zip(*results, strict=True):
        box_px, score = detection_difference(expected.detections, found.detections, 0.012)
        assert box_px < 0.01 and score < 1e-4
        assert sorted(found.patches_orig.tolist()) == sorted(expected.patches_orig.tolist())
        assert found.heatmap is not None
        np.testing.assert_allclose(found.heatmap, expected.heatmap, atol=1e-4)
    assert all(50 < len(one.detections) < 3500 for one in results[0]), "many, and none cut off"
    assert 0 < len(results[1][0].patches_orig) <= 5


def test_a_higher_threshold_filters_and_everything_else_is_refused(lively: Path, tmp_path: Path) -> None:
    path = single(lively, tmp_path, multi_label=False, max_det=40)
    network = load_model(path, "cpu").model
    check_postprocessing(network, PostprocessConfig(0.3, 0.6, 10))
    for config, word in (
        (PostprocessConfig(0.001, 0.6, 40), "--conf-thres"),
        (PostprocessConfig(0.3, 0.5, 40), "--iou-thres"),
        (PostprocessConfig(0.3, 0.6, 41), "--max-det"),
        (PostprocessConfig(0.3, 0.6, 40, multi_label=True), "with --multi-label"),
        (PostprocessConfig(0.3, 0.6, 40, agnostic=True), "across classes"),
        (PostprocessConfig(0.3, 0.6, 40, nms="soft"), "--nms has to be hard"),
    ):
        with pytest.raises(ExportedFileError, match=word):
            check_postprocessing(network, config)
    with pytest.raises(ConfigError, match="fixed in a single file"):
        load_model(path, "cpu", ModelOverrides(max_patches=3))
    with pytest.raises(ExportedFileError, match="takes 96×160 only"):
        network(torch.rand(1, 3, 96, 192))
    picture = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    detector = load_model(path, "cpu")
    expected = detector.predict([picture], 960, 0.05, 0.6, 40)[0].detections
    found = ExportedDetector(path).detect(picture, conf_thres=0.05, iou_thres=0.6)
    box_px, score = detection_difference(expected, Detections(*map(torch.from_numpy, found)), 0.05)
    assert len(expected) > 0 and box_px < 0.01 and score < 1e-5


@pytest.mark.parametrize(
    "name", ["yolov5n", "yolov5n-p2", "yolov8n", "yolov5m-center", "yolov8n with neighbours"]
)
@pytest.mark.parametrize("dense", [False, True])
def test_the_graph_keeps_to_what_tensorrt_supports(name: str, dense: bool, tmp_path: Path) -> None:
    name, _, neighbours = name.partition(" with ")
    config = yaml.safe_load((ROOT / "models" / "cfg" / f"{name}.yaml").read_text(encoding="utf-8"))
    config |= {"width": 0.125, "depth": 0.33}
    if neighbours:
        config |= {"borders": neighbours, "slicer": {"shift": "none"}}
    if dense:
        config |= {"seeker": {"kind": "none"}, "slicer": {"algorithm": "none"}}
    model = build_model(config_from_dict(ModelConfig, config)).eval()
    fixed = SingleSettings(1, 96, 160, 1 if dense else 6, 0.25, 0.45, 100, True, 3840)
    path = export_single(prepare(model, []), fixed, tmp_path, name)
    graph = onnx.shape_inference.infer_shapes(onnx.load(str(path)), strict_mode=True, data_prop=True).graph
    used = {node.op_type for node in graph.node}
    assert used <= TENSORRT_OPERATORS and "NonMaxSuppression" in used
    assert not any(node.domain for node in graph.node)
    assert unknown_sizes([*graph.input, *graph.output]) == []
    assert unknown_sizes(graph.value_info) == ["nms_found", "nms_found_scores", "nms_place"], (
        "how many are kept"
    )
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    for node in graph.node:
        if node.op_type in FLOAT_ONLY:
            assert types[node.input[0]] == onnx.TensorProto.FLOAT, node.op_type
        if node.op_type in ("TopK", "Unsqueeze"):
            assert node.input[1] in constants, node.op_type
        if node.op_type == "Slice":
            assert len(node.input) < 4 or node.input[3] in constants
        if node.op_type == "Resize":
            how = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
            assert (how["mode"], how["coordinate_transformation_mode"], how["nearest_mode"]) == (
                b"nearest",
                b"asymmetric",
                b"floor",
            )
        if node.op_type == "NonMaxSuppression":
            assert set(node.input[2:]) <= constants
    topk = [node.input[1] for node in graph.node if node.op_type == "TopK"]
    sizes = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    assert all(int(sizes[name].max()) <= 3840 for name in topk if name in sizes)


def test_commands(tiny_dataset: Path, weights: Path, tmp_path: Path, run_command: RunCommand) -> None:
    line = [
        "export.py",
        "--weights",
        weights,
        "--output",
        tmp_path,
        "--max-patches",
        5,
        "--img-size",
        "96x160",
    ]
    exported = run_command(*line, "--conf-thres", 0.001, "--iou-thres", 0.6, "--multi-label")
    assert exported.status == 0, exported.err
    common = ["--data", tiny_dataset, "--device", "cpu", "--project", tmp_path, "--workers", 0]
    tested = run_command("test.py", "--weights", tmp_path / "weights_k5.onnx", *common, "--task", "val")
    assert tested.status == 0, tested.err
    assert (
        run_command(
            "test.py", "--weights", weights, "--max-patches", 5, "--img-size", "96x160", *common
        ).status
        == 0
    )
    detected = run_command("detect.py", "--weights", tmp_path / "weights_k5.onnx", "--source", tiny_dataset.parent / "list.txt",
                           "--project", tmp_path)  # fmt: skip
    assert detected.status == 1 and "without --multi-label" in detected.err
    for options, word in (
        (["--max-patches", 0], "at least 1"),
        (["--conf-thres", 0.5], "--max-patches K asks for"),
        (["--max-patches", 3, "--slicer", "greedy"], "no fixed graph"),
    ):
        refused = run_command("export.py", "--weights", weights, *options)
        assert refused.status == 2 and word in refused.err


def test_no_patch_is_no_detection(lively: Path, tmp_path: Path) -> None:
    network = load_model(single(lively, tmp_path, ModelOverrides(heatmap_thres=1.0)), "cpu").model
    output = network(torch.rand(3, 3, 96, 160))
    assert len(output.patches) == 0 and len(output.levels[0].raw) == 0
