"""An exported pair in 8 bits: convolutions multiply int8 weights with uint8 activations (ONNX Runtime, OpenVINO).

Weights have a scale per channel. The ranges of the activations are the extremes on calibration pictures, which go the
way of every picture: the patches' graph sees what the slicer cuts out. What the last convolutions give, heatmap logits
and raw predictions, stays in 32 bits, and so do these convolutions: there a step of 1/255 of the range would be seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tqdm import tqdm

from deploy.network import PATCHES, STEM, TwoGraphs, open_network
from deploy.slicing import FloatArray
from engine.export.write import finish_onnx
from engine.inference import Detector
from utils.config import DatasetConfig
from utils.images import list_images, read_image
from utils.splits import resolve_split
from utils.summary import spread_indices
from utils.typed_data import ConfigError, load_config

PICTURES = 64
"""Of calibration, evenly spread over all that there are."""
INT8 = "_int8"
"""What the name of a pair in 8 bits ends with, before the ending of the part."""

Feed = dict[str, FloatArray]


def calibration_pictures(source: Path, limit: int = PICTURES) -> list[Path]:
    """At most ``limit`` pictures of a folder, or of the training images of a dataset's YAML, evenly spread.

    Raises:
        ConfigError: neither, or without pictures.
    """
    if source.suffix in (".yaml", ".yml"):
        found = resolve_split(load_config(DatasetConfig, source), source, "train")
    elif source.is_dir():
        found = list_images(source)
    else:
        raise ConfigError(f"--int8 {source}: expected a folder of pictures or a dataset's YAML")
    if not found:
        raise ConfigError(f"--int8 {source}: no pictures in it")
    return [found[index] for index in spread_indices(len(found), limit)]


def quantise_pair(
    stem: Path, reference: Detector, pictures: Sequence[Path], img_size: int | tuple[int, int]
) -> tuple[Path, Path]:
    """Write NAME_int8_stem.onnx and NAME_int8_patches.onnx beside an exported NAME_stem.onnx; returns both paths.

    Args:
        stem: that file; the other one lies beside it.
        reference: the detector that was exported; makes network inputs of pictures.
        pictures: to calibrate on, like those that the detector is for.
        img_size: their size in the network, as `Detector.predict` has it.

    Raises:
        ConfigError: the slicer keeps no patch of any of them.
    """
    graphs = open_network(stem)
    assert isinstance(graphs, TwoGraphs)

    def images(part: str) -> Iterator[FloatArray]:
        """Network inputs [1, 3, H, W], picture by picture."""
        for path in tqdm(pictures, desc=f"calibrating {part}", unit="picture", leave=False, disable=None):
            pixels = reference.prepare(read_image(path), img_size)
            yield np.ascontiguousarray(reference.batch_of([pixels]).numpy())

    inputs: Iterator[Feed] = ({"images": one} for one in images("stem"))
    first = _write(stem, graphs, "stem", STEM, inputs)
    return first, _write(stem, graphs, "patches", PATCHES, _cut_out(graphs, images("patches")))


def _cut_out(graphs: TwoGraphs, images: Iterable[FloatArray]) -> Iterator[Feed]:
    """Features of the patches of every image that has some, as the patches' graph takes them.

    Raises:
        ConfigError: none has.
    """
    some = False
    for one in images:
        features, logits = graphs.look(one)
        patches = graphs.choose(logits, features)
        if len(patches):
            some = True
            yield graphs.patch_inputs(features, patches)
    if not some:
        raise ConfigError(
            "--int8: the heatmap is empty on all calibration pictures, so nothing is known of the patches; give pictures "
            "with objects, or a lower --heatmap-thres"
        )


def _write(stem: Path, graphs: TwoGraphs, part: str, ending: str, feeds: Iterator[Feed]) -> Path:
    """Write one of the two graphs in 8 bits; returns its path."""
    name = stem.stem.removesuffix(STEM)
    model = quantised(stem.with_name(f"{name}{ending}.onnx"), feeds)
    path = stem.with_name(f"{name}{INT8}{ending}.onnx")
    info = replace(graphs.info, part=part, fingerprint=f"{graphs.info.fingerprint}{INT8}")
    finish_onnx(model, info, path)
    return path


def quantised(path: Path, feeds: Iterator[Feed]) -> Any:
    """An ONNX file as a model (``onnx.ModelProto``) with QuantizeLinear and DequantizeLinear around its convolutions.

    Weights are of 7 bits: two products of 8 bits can be more than processors without VNNI add up in 16 bits.

    Args:
        path: of the file, in 32 bits.
        feeds: inputs by name, from which the ranges of the activations are taken.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Feed | None:
            return next(feeds, None)

    with TemporaryDirectory() as folder:
        ready, result = Path(folder) / "ready.onnx", Path(folder) / "int8.onnx"
        quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready), str(result), Reader(), per_channel=True, reduce_range=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, op_types_to_quantize=["Conv"],
            nodes_to_exclude=last_convolutions(onnx.load(str(ready))),
        )  # fmt: skip
        return onnx.load(str(result))


def last_convolutions(model: Any) -> list[str]:
    """Names of the convolutions of an ``onnx.ModelProto`` behind which nothing but rearranging leads to an output."""
    makers = {output: node for node in model.graph.node for output in node.output}
    rearranging = {
        "Concat",
        "Flatten",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
    found = set()
    ahead = [output.name for output in model.graph.output]
    while ahead:
        node = makers.get(ahead.pop())
        if node is None:
            continue
        if node.op_type == "Conv":
            found.add(node.name)
        elif node.op_type in rearranging:
            ahead += node.input
    return sorted(found)
