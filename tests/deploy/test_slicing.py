"""The slicer in NumPy is the one on tensors, to the last cell."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.slicing import SliceRule, choose_patches, cut_patches, local_maxima, patch_size
from models import slicer
from models.esod import find_candidates
from utils.config import SlicerConfig
from utils.typed_data import config_to_dict


def both(prob: torch.Tensor, config: SlicerConfig) -> tuple[list[list[int]], list[list[int]]]:
    """(image, x1, y1, x2, y2) of every patch by tensors and by NumPy."""
    candidates = find_candidates(prob, config)
    expected = candidates.take(int(candidates.keep.sum()))
    rule = SliceRule.of(config_to_dict(config))
    found = choose_patches(prob.numpy(), len(prob), (prob.shape[2], prob.shape[3]), rule)
    assert found.size_cell == expected.size_cell
    assert found.image_index.dtype == found.xyxy_cell.dtype == np.int64
    rows = torch.cat((expected.image_index[:, None], expected.xyxy_cell), dim=1).tolist()
    return rows, np.concatenate((found.image_index[:, None], found.xyxy_cell), axis=1).tolist()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    batch=st.integers(1, 3),
    height=st.integers(1, 14).map(lambda n: 4 * n),
    width=st.integers(1, 18).map(lambda n: 4 * n),
    algorithm=st.sampled_from(["grid", "greedy", "none"]),
    shift=st.sampled_from(["center", "edge", "none"]),
    side=st.sampled_from([1, 3, 8]),
    density=st.sampled_from([0.0, 0.003, 0.05, 0.6]),
    budget=st.sampled_from([None, 1, 3, 200]),
)
def test_random_maps(
    seed: int, batch: int, height: int, width: int, algorithm: str, shift: str, side: int, density: float,
    budget: int | None,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    active = torch.rand(batch, 1, height, width) < density
    prob = torch.where(active, 0.5 + torch.rand(active.shape) / 2, torch.rand(active.shape) / 2.1)
    config = SlicerConfig(algorithm, side, 0.5, shift, budget)  # type: ignore[arg-type]
    expected, found = both(prob, config)
    assert found == expected


@pytest.mark.parametrize("algorithm", ["grid", "greedy"])
@pytest.mark.parametrize("shift", ["center", "edge"])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_plateaus(algorithm: str, shift: str, value: float) -> None:
    """Every cell a peak, or none; then a plateau on one image only."""
    prob = torch.full((2, 1, 20, 36), value)
    config = SlicerConfig(algorithm=algorithm, shift=shift)  # type: ignore[arg-type]
    expected, found = both(prob, config)
    assert found == expected and bool(found) == (value >= 0.5)
    prob[0] = 0
    expected, found = both(prob, config)
    assert found == expected and all(row[0] == 1 for row in found)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
def test_thresholds(threshold: float) -> None:
    prob = torch.rand(2, 1, 12, 24)
    prob[0, 0, 3, 5] = 1.0
    expected, found = both(prob, SlicerConfig(threshold=threshold))
    assert found == expected and found
    assert np.array_equal(local_maxima(prob.numpy(), threshold), slicer.local_maxima(prob, threshold).numpy())


@pytest.mark.parametrize("map_hw", [(4, 4), (108, 192), (20, 36), (56, 96)])
def test_sizes(map_hw: tuple[int, int]) -> None:
    for side in (1, 3, 8):
        assert patch_size(map_hw, side) == slicer.patch_size(map_hw, side)


def test_cutting() -> None:
    features = torch.rand(2, 5, 12, 24)
    for prob in (torch.rand(2, 1, 12, 24), torch.zeros(2, 1, 12, 24)):
        for algorithm in ("grid", "none"):
            config = SlicerConfig(algorithm=algorithm)  # type: ignore[arg-type]
            candidates = find_candidates(prob, config)
            patches = candidates.take(int(candidates.keep.sum()))
            table = choose_patches(prob.numpy(), 2, (12, 24), SliceRule.of(config_to_dict(config)))
            expected = slicer.cut_patches(features, patches).contiguous().numpy()
            assert np.array_equal(cut_patches(features.numpy(), table), expected)


def test_a_model_without_heatmap_has_one_patch_per_image() -> None:
    table = choose_patches(None, 3, (12, 24), SliceRule())
    assert table.xyxy_cell.tolist() == [[0, 0, 24, 12]] * 3 and table.image_index.tolist() == [0, 1, 2]
