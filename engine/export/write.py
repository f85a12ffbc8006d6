"""From a network to files: tracing to ONNX, metadata, conversion to OpenVINO."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from deploy.metadata import ExportedFileError, ExportInfo
from utils.files import write_atomic
from utils.typed_data import ConfigError

OPSET = 17
"""Of ONNX: the oldest that has all that is used here, so that older TensorRT and OpenVINO read it too."""


@dataclass(frozen=True)
class Axes:
    """Names of the inputs and outputs of a graph, and of the sides of the inputs that may change: {axis: name}."""

    inputs: Sequence[str]
    outputs: Sequence[str]
    dynamic: dict[str, dict[int, str]]


def require_packages(formats: Sequence[str]) -> None:
    """Check, before any work, that what writes these formats is installed.

    Raises:
        ConfigError: with the command that installs it.
    """
    import importlib.util

    needed = ["onnx", "onnxruntime", *(["openvino"] if "openvino" in formats else [])]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"export needs packages that are not installed: pip install {' '.join(missing)}")


def trace(module: nn.Module, example: Tensor | tuple[Tensor, ...], axes: Axes) -> Any:
    """An ONNX model (``onnx.ModelProto``) of a module.

    By torch's older exporter, which follows one forward pass: docs/notes/export.md says why.

    Args:
        module: in evaluation mode.
        example: its input or inputs; sides that are not dynamic stay as in them.
        axes: names.
    """
    import onnx

    with TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter(
            "ignore"
        )  # that it is the older one, and that sizes of the example become constants
        file = Path(folder) / "traced.onnx"
        torch.onnx.export(
            module.eval(),
            example if isinstance(example, tuple) else (example,),
            str(file),
            input_names=list(axes.inputs),
            output_names=list(axes.outputs),
            dynamic_axes=axes.dynamic,
            opset_version=OPSET,
            dynamo=False,
        )
        return onnx.load(str(file))


def fold_constants(model: Any) -> Any:
    """The same graph (``onnx.ModelProto``) with everything computed in advance that depends on no input.

    By ONNX Runtime's basic optimisations, which keep to ONNX's own operators. In a graph with inputs of fixed sizes all
    other sizes become known, too, and half of the nodes go.
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        folded = onnx.load(options.optimized_model_filepath)
    own = [entry for entry in folded.opset_import if entry.domain in ("", "ai.onnx")]
    # The runtime names every set of operators that it knows, whether the graph has any of it or not.
    del folded.opset_import[:]
    folded.opset_import.extend(own)
    del folded.graph.value_info[:]
    return folded


def finish_onnx(model: Any, info: ExportInfo, path: Path) -> None:
    """Put the metadata in, check the graph strictly, and write it, whole or not at all.

    Raises:
        ExportedFileError: ONNX's own checker does not accept it.
    """
    import onnx

    del model.metadata_props[:]
    onnx.helper.set_model_props(model, info.to_properties())
    model.producer_name = "esod export.py"
    try:
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportedFileError(f"{path}: not a valid ONNX graph: {error}") from error
    data = model.SerializeToString()
    write_atomic(path, lambda file: file.write(data))


def write_openvino(source: Path) -> Path:
    """An ONNX file as OpenVINO's intermediate representation beside it (.xml and .bin), in 32 bits."""
    import onnx
    import openvino

    model = openvino.convert_model(str(source))
    for entry in onnx.load(str(source)).metadata_props:
        model.set_rt_info(entry.value, entry.key)
    path = source.with_suffix(".xml")
    openvino.save_model(model, str(path), compress_to_fp16=False)
    return path


def as_formats(files: Sequence[Path], formats: Sequence[str]) -> list[list[Path]]:
    """ONNX files in every format asked for, one list per format; without "onnx" the ONNX files are removed."""
    written = []
    if "openvino" in formats:
        written.append([write_openvino(file) for file in files])
    if "onnx" in formats:
        written.insert(0, list(files))
    else:
        for file in files:
            file.unlink()
    return written
