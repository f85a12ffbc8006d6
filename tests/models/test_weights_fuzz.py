"""Damaged weights files of every family, through everything that reads one: an error that names the file, or a network.

The reader itself has such a test of its own (tests/utils/test_pickle_reader.py); this one goes on to the architecture in
the file, whose numbers may be anything: a depth of 99 must not build a network that fills the memory.
"""

from __future__ import annotations

import os
import random
import resource
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models import resnet50

from models.convert.checkpoint import convert_network, convert_state_dict
from models.weights import expected_tensors, model_from_weights, read_weights
from tests.conftest import ROOT
from tests.models.gpvit_reference import published_state
from tests.models.openmmlab_reference import official_state
from utils.checkpoint import CheckpointError, match_state_dict
from utils.pickle_reader import read_pickled_network
from utils.typed_data import ConfigError

GOLDEN = ROOT / "tests" / "golden"
FULL_FUZZ = bool(os.environ.get("ESOD_FULL_FUZZ"))
ROUNDS = 500 if FULL_FUZZ else 25
MEMORY_LIMIT = 600 * 2**20
"""Bytes that reading damaged files of 2 MB may add to the process at most."""
FAMILIES = ("yolov5", "retinanet", "rtmdet")


def damaged(data: bytes, generator: random.Random) -> bytes:
    """Some bytes changed, a piece cut out or doubled, a number in the text changed, or the end cut off."""
    result = bytearray(data)
    kind = generator.randrange(7)
    start, length = generator.randrange(len(result)), generator.randrange(1, 60)
    if kind == 0:
        return bytes(result[:start])
    if kind == 1:
        del result[start : start + length]
    elif kind == 2:
        result[start:start] = result[start : start + length]
    elif kind == 3:
        # Small integers of the pickle (BININT1): sizes, strides, arguments of layers.
        places = [i for i in range(len(result) - 1) if result[i : i + 1] == b"K"]
        for place in generator.sample(places, min(3, len(places))):
            result[place + 1] = generator.randrange(256)
    elif kind == 4:
        # Floats (BINFLOAT): multiples of depth and width.
        places = [i for i in range(len(result) - 9) if result[i : i + 1] == b"G"]
        for place in generator.sample(places, min(3, len(places))):
            result[place + 1 : place + 9] = generator.randbytes(8)
    else:
        for _ in range(generator.randrange(1, 9)):
            result[generator.randrange(len(result))] = generator.randrange(256)
    return bytes(result)


@pytest.mark.parametrize("family", FAMILIES)
def test_damaged_files_give_an_error_or_a_network(family: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(GOLDEN / f"{family}_visdrone" / "checkpoint.pt") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in entries if name.endswith("/data.pkl"))
    read_weights(GOLDEN / f"{family}_visdrone" / "checkpoint.pt")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    generator = random.Random(f"{family}")
    path = tmp_path / "damaged.pt"
    refused = 0
    for _ in range(ROUNDS):
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in entries.items():
                archive.writestr(name, damaged(data, generator) if name == pickled else data)
        try:
            weights = read_weights(path)
            match_state_dict(weights.state_dict, expected_tensors(weights.config))
            model_from_weights(weights, str(path))
        except (CheckpointError, ConfigError):
            refused += 1
    assert refused > ROUNDS // 4, "the damage does reach the reader"
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < MEMORY_LIMIT


def test_an_absurd_architecture_builds_nothing(tmp_path: Path) -> None:
    """The file is small, the network that it describes is not."""
    weights = read_weights(GOLDEN / "yolov5_visdrone" / "checkpoint.pt")
    huge = replace(weights, config=replace(weights.config, width=90.0, depth=20.0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="does not hold a complete detector"):
        model_from_weights(huge, "huge.pt")
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < MEMORY_LIMIT


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_numbers_in_a_state_dict_are_refused(tmp_path: Path, value: float) -> None:
    state = resnet50(weights=None).state_dict()
    state["layer1.0.conv1.weight"][0, 0] = value
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        read_weights(tmp_path / "broken.pth")


RTMDET_SIZES = [
    f"backbone.{name}" for name in ("stem.0.bn.running_mean", "stem.0.conv.weight", "stage3.0.conv.weight")
]
RESNET_SIZES = ["conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight"]
GPVIT_SIZES = [
    "pos_embed",
    "patch_embed.stem.0.weight",
    "patch_embed.stem.1.running_mean",
    "patch_embed.projection.weight",
    "layers.1.group_token",
    "layers.0.ffn.layers.0.0.weight",
    "ln1.weight",
]
WRONG_SHAPES = ((), (0,), (3,), (1, 2), (0, 3, 7, 7), (2, 0, 3, 3), (2, 2, 2, 2, 2))


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: official_state(0.125, 0.33), RTMDET_SIZES),
        (lambda: published_state(24, [4, 4], 1, 4), GPVIT_SIZES),
        (lambda: resnet50(weights=None).state_dict(), RESNET_SIZES),
    ],
    ids=["rtmdet", "gpvit", "retinanet"],
)
def test_wrong_shapes_in_a_state_dict_are_refused_or_do_not_match(
    make: Callable[[], dict[str, Tensor]], names: list[str]
) -> None:
    state = make()
    whole = expected_tensors(convert_state_dict(state).config)
    for name in names:
        for shape in WRONG_SHAPES:
            try:
                converted = convert_state_dict({**state, name: torch.zeros(shape)})
            except CheckpointError:
                continue
            report = match_state_dict(converted.state_dict, whole)
            assert report.shape_mismatch, f"{name} of shape {shape} was taken"


@pytest.mark.parametrize("value", [None, -1, float("nan"), float("inf"), "x", [], [[]], {}])
def test_nonsense_in_the_architecture_is_an_error_or_a_configuration(value: object) -> None:
    network = read_pickled_network(GOLDEN / "yolov5_visdrone" / "checkpoint.pt")
    refused = 0
    for part, layers in network.yaml.items():
        plans = [value]
        for number, layer in enumerate(layers if isinstance(layers, list) else []):
            for place in range(len(layer)):
                changed = [*layer[:place], value, *layer[place + 1 :]]
                plans.append([*layers[:number], changed, *layers[number + 1 :]])
            plans.append([*layers[:number], value, *layers[number + 1 :]])
        for plan in plans:
            try:
                convert_network(replace(network, yaml={**network.yaml, part: plan}))
            except CheckpointError:
                refused += 1
    assert refused
