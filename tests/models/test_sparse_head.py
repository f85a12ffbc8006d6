"""Sparse heads that choose for themselves between gathering and computing everything: same rows either way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models import head as head_module
from models.build import build_head
from models.head import DENSE_ABOVE, DENSE_ABOVE_TWO, DetectionHead
from models.layers import Conv
from models.levels import STRIDES, HeadPositions, LevelOutput
from models.sparse import gather_neighbourhoods, gather_rows, grow
from tests.models.conftest import BuildTiny
from utils.config import HeadConfig, ModelConfig

KINDS = ["decoupled", "center", "dfl"]
CHANNELS = (16, 24, 32)
PATCH = (16, 24)
"""Rows and columns of a patch at stride 8."""


def make_head(kind: str) -> DetectionHead:
    torch.manual_seed(3)
    config = ModelConfig(num_classes=3, head=HeadConfig(kind=kind, bins=4))  # type: ignore[arg-type]
    head = build_head(CHANNELS, config).eval()
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return head


def make_pyramid(patches: int) -> list[Tensor]:
    return [torch.randn(patches, c, PATCH[0] >> i, PATCH[1] >> i) for i, c in enumerate(CHANNELS)]


def positions_of(masks: list[Tensor]) -> list[HeadPositions]:
    return [HeadPositions(mask.nonzero(), grow(mask).nonzero()) for mask in masks]


def random_masks(patches: int, share: float) -> list[Tensor]:
    return [torch.rand(patches, PATCH[0] >> i, PATCH[1] >> i) < share for i in range(len(STRIDES))]


def gathers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects how many rows each gathering of neighbourhoods had."""
    rows: list[int] = []
    original = gather_neighbourhoods

    def counted(features: Tensor, position: Tensor) -> Tensor:
        rows.append(len(position))
        return original(features, position)

    monkeypatch.setattr(head_module, "gather_neighbourhoods", counted)
    return rows


def rows_of(level: LevelOutput, position: Tensor) -> Tensor:
    """A dense head's predictions at these positions."""
    flat = (position[:, 0] * level.grid_hw[0] + position[:, 1]) * level.grid_hw[1] + position[:, 2]
    return level.raw[flat]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("patches", [1, 5])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.95, 1.0])
@pytest.mark.parametrize("fused", [False, True])
@torch.no_grad()
def test_same_rows_in_the_same_order_for_any_share(
    kind: str, patches: int, share: float, fused: bool
) -> None:
    head, pyramid = make_head(kind), make_pyramid(patches)
    if fused:
        for module in head.modules():
            if isinstance(module, Conv):
                module.fuse()
    positions = positions_of(random_masks(patches, share))
    dense = head(pyramid, [None] * 3)
    for a, b, where in zip(dense, head(pyramid, positions), positions, strict=True):
        assert torch.equal(b.position, where.wanted) and a.grid_hw == b.grid_hw
        torch.testing.assert_close(b.raw, rows_of(a, where.wanted), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_it_gathers_when_little_is_selected_and_not_when_nearly_everything_is(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, pyramid, rows = make_head(kind), make_pyramid(4), gathers(monkeypatch)
    little = positions_of(random_masks(4, 0.02))
    head(pyramid, little)
    expected = [len(p.around if head.needs_around else p.wanted) for p in little]  # type: ignore[arg-type]
    assert set(expected) <= set(rows), "the first convolution of every level gathers"
    rows.clear()
    head(pyramid, positions_of(random_masks(4, 0.99)))
    assert rows == []


@pytest.mark.parametrize("level", range(3))
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_switch_is_at_the_documented_share(
    kind: str, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One position more than the constant's share, and nothing is gathered; at it or below, it is."""
    head, x, rows = make_head(kind), make_pyramid(5)[level], gathers(monkeypatch)
    everything = torch.ones(5, *x.shape[2:], dtype=torch.bool).nonzero()
    share = DENSE_ABOVE_TWO if kind == "dfl" else DENSE_ABOVE[STRIDES[level]]
    limit = int(share * len(everything) + 1e-9)
    for count, is_sparse in ((limit, True), (limit + 1, False)):
        rows.clear()
        head.levels[level](x, HeadPositions(everything[:count], everything[:count]))
        assert bool(rows) == is_sparse, f"{count} of {len(everything)}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("patches", [0, 1, 3])
@torch.no_grad()
def test_nothing_selected_and_no_patches(kind: str, patches: int) -> None:
    head, pyramid = make_head(kind), make_pyramid(patches)
    values = head(make_pyramid(1), [None] * 3)[0].raw.shape[1:]
    for level in head(pyramid, positions_of(random_masks(patches, 0.0))):
        assert level.raw.shape == (0, *values) and level.position.shape == (0, 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.2, 0.95])
@torch.no_grad()
def test_bfloat16_both_ways(kind: str, share: float) -> None:
    """Rounding of 8 bits in each of few layers; the same type out."""
    head, pyramid = make_head(kind), make_pyramid(3)
    positions = positions_of(random_masks(3, share))
    exact = head(pyramid, positions)
    rounded = head.to(torch.bfloat16)([x.to(torch.bfloat16) for x in pyramid], positions)
    for a, b in zip(exact, rounded, strict=True):
        assert b.raw.dtype == torch.bfloat16
        assert (a.raw - b.raw.float()).abs().mean() < 0.02 * a.raw.abs().mean()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_whole_model_does_not_depend_on_the_choice(
    tiny: BuildTiny, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two images, grid patches, positions from the heatmap."""
    model = tiny(kind=kind, threshold=0.4).fuse()
    model.config = replace(model.config, head=replace(model.config.head, sparse=True))
    images = torch.rand(2, 3, 128, 160)
    outputs = []
    for limit in (-1.0, 2.0):
        monkeypatch.setattr(head_module, "DENSE_ABOVE", dict.fromkeys(STRIDES, limit))
        monkeypatch.setattr(head_module, "DENSE_ABOVE_TWO", limit)
        outputs.append(model(images).levels)
    for a, b in zip(*outputs, strict=True):
        assert len(a.position) and torch.equal(a.position, b.position)
        torch.testing.assert_close(a.raw, b.raw, atol=1e-5, rtol=1e-5)


def test_neighbourhood_weights_are_views() -> None:
    """In the memory order of gathered neighbourhoods: flattening a weight copies nothing, also after loading."""
    head = make_head("decoupled")
    head.load_state_dict({k: v.clone().contiguous() for k, v in head.state_dict().items()})
    for conv in (m for m in head.modules() if isinstance(m, Conv) and m.conv.kernel_size == (3, 3)):
        flat = conv.conv.weight.permute(0, 2, 3, 1).flatten(1)
        assert flat.data_ptr() == conv.conv.weight.data_ptr()


def test_gather_rows_by_hand() -> None:
    maps = torch.arange(24.0).view(2, 2, 2, 3)
    assert gather_rows(maps, torch.tensor([[1, 1, 2], [0, 0, 1]])).tolist() == [[17, 23], [1, 7]]
