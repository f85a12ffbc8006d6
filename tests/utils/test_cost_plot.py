"""The chart of cost over occupancy is there, with and without a line."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from utils.cost_plot import CostSeries, plot_cost
from utils.summary import linear_fit


@pytest.mark.parametrize("occupancy", [[0.1, 0.4, 1.2], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
def test_chart(tmp_path: Path, occupancy: list[float]) -> None:
    values = [1.0, 2.0, 4.0]
    series = [CostSeries(name, values, linear_fit(occupancy, values)) for name in ("GFLOPs", "ms")]
    one = cv2.imread(str(plot_cost(occupancy, series[:1], "three images", tmp_path / "one.png")))
    two = cv2.imread(str(plot_cost(occupancy, series, "three images", tmp_path / "two.png")))
    assert one is not None and two is not None
    assert two.shape[0] == one.shape[0] and two.shape[1] == pytest.approx(2 * one.shape[1], abs=2)
    assert (two < 200).any(axis=2).mean() > 0.002, "something is drawn"
