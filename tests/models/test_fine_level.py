"""The further level at stride 4: same weights elsewhere, same features, patches and positions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.build import build_model
from models.decode import decode
from models.fine_level import FineStem, unpack
from models.levels import LevelOutput
from models.loss import DetectionLoss
from models.slicer import fixed_grid, whole_map
from tests.models.conftest import BuildTiny
from tests.models.test_esod import rows_of
from utils.config import HypConfig, ModelConfig, ModelOverrides
from utils.typed_data import ConfigError

FAMILIES = [{"family": "yolov5"}, {"family": "yolov5", "body": "v6"}, {"family": "yolov8"}]


@torch.no_grad()
def test_stride_4_features_come_back_where_they_were() -> None:
    features = torch.rand(2, 6, 4, 8)
    stem = FineStem(torch.nn.Identity(), torch.nn.AvgPool2d(2), at_stride4=1)
    coarse, fine = unpack(stem(features), 6)
    torch.testing.assert_close(fine, features)
    torch.testing.assert_close(coarse, torch.nn.functional.avg_pool2d(features, 2))
    assert len(unpack(features, 6)) == 1


@pytest.mark.parametrize("kind", ["decoupled", "dfl", "single"])
@pytest.mark.parametrize("body", FAMILIES, ids=["v5.0", "v6", "yolov8"])
def test_weights_of_the_plain_model_fill_all_but_the_new_level(
    tiny: BuildTiny, body: dict[str, str], kind: str
) -> None:
    plain, fine = tiny(kind=kind, **body), tiny(kind=kind, fine_level=True, **body)
    new = set(fine.state_dict()) - set(plain.state_dict())
    assert set(plain.state_dict()) <= set(fine.state_dict())
    assert {name.split(".")[1] for name in new if name.startswith("neck.")} <= {
        "lateral3", "top_down2", "down2", "bottom_up3",
    }  # fmt: skip
    assert all(name.startswith(("neck.", "head.levels.3.")) for name in new)
    for name, tensor in plain.state_dict().items():
        assert tensor.shape == fine.state_dict()[name].shape


@pytest.mark.parametrize("kind", ["decoupled", "dfl"])
@torch.no_grad()
def test_levels_and_their_positions(tiny: BuildTiny, kind: str) -> None:
    model = tiny(kind=kind, fine_level=True)
    output = model(torch.rand(2, 3, 96, 160))
    height, width = output.patches.size_cell
    assert [level.stride for level in output.levels] == [8, 16, 32, 4]
    assert output.levels[3].grid_hw == (2 * height, 2 * width)
    assert len(output.levels[3].raw) == len(output.patches) * 4 * height * width > 0
    assert not torch.equal(output.heatmap_logits[0], output.heatmap_logits[1])  # type: ignore[index]


@torch.no_grad()
def test_boxes_lie_at_their_stride_4_positions(tiny: BuildTiny) -> None:
    """Of raw zeros the centre is the middle of the position: corner of the patch + (column + 0.5) · 4."""
    model = tiny(fine_level=True, threshold=0.0)
    output = model(torch.rand(1, 3, 96, 160))
    level = output.levels[3]
    patch, row, column = level.position.unbind(dim=1)
    corner = output.patches.xyxy_cell[patch, :2] * 8
    centre = decode(
        replace(output, levels=[*output.levels[:3], replace(level, raw=torch.zeros_like(level.raw))]),
        model.coder,
    ).cxcywh_px[-len(level.raw) * 3 :: 3, :2]
    torch.testing.assert_close(centre, corner + (torch.stack((column, row), dim=1) + 0.5) * 4)


@torch.no_grad()
def test_patches_see_the_stride_4_features_of_their_own_place(tiny: BuildTiny) -> None:
    """With 1×1 kernels behind the stem nothing leaks over borders: patches and the whole map agree."""
    model = tiny(fine_level=True)
    images = torch.rand(1, 3, 64, 96)
    features = model.stem(images)
    whole = unpack(features, model.seeker.channels)[1]  # type: ignore[union-attr, arg-type]
    from models.slicer import cut_patches

    grid = fixed_grid(1, (8, 12), 2, images.device)
    cut = unpack(cut_patches(features, grid), model.seeker.channels)[1]  # type: ignore[union-attr, arg-type]
    assert len(grid) > 1 and grid.size_cell != (8, 12)
    for one, (x1, y1, x2, y2) in zip(cut, (grid.xyxy_cell * 2).tolist(), strict=True):
        assert torch.equal(one, whole[0, :, y1:y2, x1:x2])


@pytest.mark.usefixtures("always_sparse")
@pytest.mark.parametrize("kind", ["decoupled", "dfl"])
@torch.no_grad()
def test_sparse_positions_are_a_subset_with_the_same_values(tiny: BuildTiny, kind: str) -> None:
    model = tiny(kind=kind, fine_level=True)
    images = torch.rand(2, 3, 128, 160)
    dense = model(images)
    model.config = ModelOverrides(head="sparse").apply(model.config)
    sparse = model(images)
    by_stride = {level.stride: level for level in sparse.levels}
    assert 0 < len(by_stride[4].raw) < len(dense.levels[3].raw)
    assert len(by_stride[4].raw) == 4 * len(by_stride[8].raw)
    for a, b in zip(dense.levels, sparse.levels, strict=True):
        torch.testing.assert_close(a.raw[rows_of(b.position, a.grid_hw)], b.raw, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["decoupled", "dfl"])
def test_a_tiny_object_teaches_the_stride_4_level(tiny: BuildTiny, kind: str) -> None:
    model = tiny(kind=kind, fine_level=True).train()
    images = torch.rand(2, 3, 64, 96)
    output = model(images, lambda logits: whole_map(len(logits), (8, 12), logits.device))
    targets = torch.tensor([[0, 1, 0.4, 0.4, 5 / 96, 5 / 64], [1, 0, 0.7, 0.2, 5 / 96, 6 / 64]])
    losses = DetectionLoss(model.config, HypConfig())(output, targets, torch.zeros(2, 1, 8, 12))
    losses["box"].backward()
    assert losses["box"] > 0 and all(torch.isfinite(value) for value in losses.values())
    gradients = [p.grad for p in model.head.levels[3].parameters() if p.grad is not None]
    assert sum(float(g.abs().sum()) for g in gradients) > 0


def test_recomputed_activations_give_the_same_gradients(tiny: BuildTiny) -> None:
    images = torch.rand(2, 3, 64, 96)
    results: list[Tensor] = []
    for recompute in ("none", "stem", "all"):
        torch.manual_seed(0)
        model = tiny(fine_level=True).train()
        model.recompute = recompute  # type: ignore[assignment]
        output = model(images, lambda logits: whole_map(len(logits), (8, 12), logits.device))
        torch.cat([level.raw.flatten() for level in output.levels]).square().mean().backward()
        results.append(model.stem[0].conv.conv.weight.grad)  # type: ignore[union-attr, arg-type]
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


def test_anchors_of_the_new_level_are_half_of_stride_8_unless_given() -> None:
    config = ModelConfig(fine_level=True)
    assert config.anchors[:3] == ModelConfig().anchors
    assert config.anchors[3] == [[5, 6.5], [8, 15], [16.5, 11.5]]
    given = [*ModelConfig().anchors, [[1.0, 2], [3, 4], [5, 6]]]
    assert ModelConfig(fine_level=True, anchors=given).anchors == given
    # What follows from a dataset's three levels when a model is resolved.
    assert len(replace(config, anchors=ModelConfig().anchors).anchors) == 4


@pytest.mark.parametrize("family", ["retinanet", "rtmdet", "gpvit"])
def test_families_without_it_refuse_it_by_name(family: str) -> None:
    with pytest.raises(ConfigError, match="fine_level"):
        ModelConfig(family=family, fine_level=True)  # type: ignore[arg-type]


def test_a_dense_twin_has_it_too() -> None:
    config = ModelOverrides(slicer="none").apply(ModelConfig(width=0.125, fine_level=True, num_classes=2))
    output = build_model(config).eval()(torch.rand(1, 3, 64, 64))
    level: LevelOutput = output.levels[3]
    assert level.grid_hw == (16, 16) and len(level.raw) == 256
