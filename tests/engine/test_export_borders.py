"""Exported detectors whose patches see each other: the same as torch, in a pair of files and in a single one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.metadata import SingleSettings
from deploy.network import TwoGraphs
from deploy.slicing import PatchTable
from engine.benchmark.variants import lively_model
from engine.export.borders import block_owners
from engine.export.pair import export_pair, prepare
from engine.export.single import CandidateGraph, export_single
from engine.export.write import as_formats
from engine.exported import ExportedNetwork, load_exported
from models.borders import places_around
from models.esod import ESOD
from models.slicer import Patches, cut_patches, fixed_grid
from utils.config import ConfigError, HeadConfig, ModelConfig, ModelOverrides, SlicerConfig

NAMES = ["a", "b", "c"]
MODELS = {"yolov5": "decoupled", "yolov8": "dfl"}


def network(family: str, **options: object) -> ESOD:
    head = HeadConfig(kind=MODELS[family])  # type: ignore[arg-type]
    config = ModelConfig(family=family, depth=0.33, width=0.125, num_classes=3, names=NAMES, head=head)  # type: ignore[arg-type]
    config = replace(config, slicer=SlicerConfig(shift="none"), borders="neighbours", **options)  # type: ignore[arg-type]
    return lively_model(config, seed=1).eval()


@pytest.fixture(scope="module", params=MODELS)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ESOD, list[Path]]:
    """A model, and the stem's file of its pair in each format."""
    model = network(request.param)
    pair = export_pair(prepare(model, NAMES), tmp_path_factory.mktemp("pair"), "tiny")
    return model, [files[0] for files in as_formats(pair, ["onnx", "openvino"])]


def with_objects(model: ESOD, images: torch.Tensor) -> float:
    """Sets, and returns, a threshold at which about half of the patches hold an active cell."""
    assert model.seeker is not None
    prob = model.seeker(model.stem(images)).sigmoid()
    grid = fixed_grid(len(images), (prob.shape[2], prob.shape[3]), 8, prob.device)
    most = cut_patches(prob, grid).flatten(1).amax(dim=1).sort().values
    gap = (most[1:] - most[:-1])[len(most) // 3 : -len(most) // 3]
    place = len(most) // 3 + int(gap.argmax())  # far from any, so that rounding decides nothing
    threshold = float((most[place] + most[place + 1]) / 2)
    model.config = replace(model.config, slicer=replace(model.config.slicer, threshold=threshold))
    return threshold


@torch.inference_mode()
def test_a_pair_of_any_batch_and_size(exported: tuple[ESOD, list[Path]]) -> None:
    """Also where the last row of patches overlaps the one before; and where all or no patches are kept."""
    model, files = exported
    for shape in ((1, 3, 256, 320), (2, 3, 416, 512)):
        images = torch.rand(shape)
        for threshold in (with_objects(model, images), 0.0, 1.0):
            model.config = replace(model.config, slicer=replace(model.config.slicer, threshold=threshold))
            expected = model(images)
            for file in files:
                found = load_exported(file, overrides=ModelOverrides(heatmap_thres=threshold))(images)
                assert torch.equal(found.patches.xyxy_cell, expected.patches.xyxy_cell)
                for a, b in zip(found.levels, expected.levels, strict=True):
                    assert torch.equal(a.position, b.position)
                    torch.testing.assert_close(a.raw, b.raw, atol=1e-3, rtol=1e-3)


@torch.inference_mode()
def test_without_slicing(exported: tuple[ESOD, list[Path]]) -> None:
    model, files = exported
    images = torch.rand(2, 3, 160, 224)
    model.config = ModelOverrides(slicer="none").apply(model.config)
    expected = model(images)
    for file in files:
        found = load_exported(file, overrides=ModelOverrides(slicer="none"))(images)
        for a, b in zip(found.levels, expected.levels, strict=True):
            torch.testing.assert_close(a.raw, b.raw, atol=1e-3, rtol=1e-3)


def test_what_was_exported_stays_so(exported: tuple[ESOD, list[Path]]) -> None:
    _, files = exported
    with pytest.raises(ConfigError, match="exported with neighbours"):
        load_exported(files[0], overrides=ModelOverrides(borders="zeros"))
    with pytest.raises(ConfigError, match="side by side"):
        load_exported(files[0], overrides=ModelOverrides(slicer="greedy"))


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("batch", [1, 2])
@torch.inference_mode()
def test_a_single_graph_looks_as_torch_does(family: str, batch: int) -> None:
    """Before suppression; the map is 52 × 64 cells, the last row of patches overlaps the one before."""
    model = network(family)
    images = torch.rand(batch, 3, 416, 512)
    with_objects(model, images)
    settings = SingleSettings(batch, 416, 512, 56, 0.0, 0.6, 300, False, 2000)
    graph = CandidateGraph(prepare(model, NAMES).model, settings)
    captured: list[tuple[torch.Tensor, ...]] = []
    graph.rest.register_forward_hook(lambda _, __, raws: captured.append(raws))
    patches, counts = graph(images)[4:6]
    assert 0 < counts.sum() < 56 * batch
    # Torch has them in order of rows and columns, in which the last of overlapping ones counts; here the best is first.
    used = torch.arange(56).view(1, -1) < counts.view(-1, 1)
    index = used.nonzero()
    xyxy = patches[used].long()
    order = (index[:, 0] * 10**6 + xyxy[:, 1] * 10**3 + xyxy[:, 0]).argsort()
    table = Patches(index[order, 0], xyxy[order], (8, 8))
    expected = model(images, select=lambda _: table)
    for raw, level in zip(captured[0], expected.levels, strict=True):
        mine = raw.unflatten(0, (batch, 56))[used][order]
        torch.testing.assert_close(mine.flatten(0, 1), level.raw, atol=1e-3, rtol=1e-3)


@torch.inference_mode()
def test_a_single_file_finds_what_torch_finds(tmp_path: Path) -> None:
    model = network("yolov8")
    images = torch.rand(1, 3, 256, 320)
    with_objects(model, images)
    settings = SingleSettings(1, 256, 320, 64, 1e-4, 0.6, 300, False, 2000)
    graph = CandidateGraph(prepare(model, NAMES).model, settings)
    path = export_single(prepare(model, NAMES), settings, tmp_path, "tiny")
    found = load_exported(path)(images)
    boxes, scores = graph(images)[:2]
    best = found.levels[0].raw[:, 0, 4:].amax(dim=1)
    assert len(best) and best.max() == pytest.approx(float(scores.max()), abs=1e-3)
    first = found.levels[0].raw[best.argmax(), 0, :4]
    torch.testing.assert_close(first, boxes[0, scores[0].argmax()], atol=0.1, rtol=1e-3)


def test_owners() -> None:
    """By hand: two patches that overlap in the second row of blocks, and one in another image; the last owns."""
    corners = torch.tensor([[[0.0, 4], [0, 0]], [[8, 0], [0, 0]]])
    used = torch.tensor([[1.0, 1], [1, 0]])
    owners = block_owners(corners, used, (12, 16), (8, 8))
    assert owners.tolist() == [
        [[1, 1, -1, -1], [0, 0, -1, -1], [0, 0, -1, -1]],
        [[-1, -1, 2, 2], [-1, -1, 2, 2], [-1, -1, -1, -1]],
    ]
    table = PatchTable(np.array([0, 0, 1]), np.array([[0, 0, 8, 8], [0, 4, 8, 12], [8, 0, 16, 8]]), (8, 8))
    assert table.block_owners(2, (12, 16)).tolist() == [
        [[0, 0, -1, -1], [1, 1, -1, -1], [1, 1, -1, -1]],
        [[-1, -1, 2, 2], [-1, -1, 2, 2], [-1, -1, -1, -1]],
    ]
    assert table.corner_blocks().tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 2]]
    with pytest.raises(ValueError, match="shift 'none'"):
        PatchTable(np.array([0]), np.array([[3, 4, 11, 12]]), (8, 8)).corner_blocks()
    patches = Patches(torch.tensor([0, 0, 1]), torch.from_numpy(table.xyxy_cell), (8, 8))
    around = places_around(patches, 2, (12, 16), (2, 2), (1, 1))
    assert around[0, 3].tolist() == [-1, 6, 7, -1]  # the second one's last row, not its first


def test_a_pair_needs_to_know_where_its_patches_lie(exported: tuple[ESOD, list[Path]]) -> None:
    loaded = load_exported(exported[1][0])
    assert isinstance(loaded, ExportedNetwork) and isinstance(loaded.graphs, TwoGraphs)
    table = PatchTable(np.array([0]), np.array([[0, 0, 4, 4]]), (4, 4))
    features = np.zeros(
        (1, loaded.graphs.look(np.zeros((1, 3, 64, 64), np.float32))[0].shape[1], 8, 8), np.float32
    )
    assert set(loaded.graphs.patch_inputs(features, table)) == {"features", "corners", "owners"}
