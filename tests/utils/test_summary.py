"""Spreads and straight lines by hand."""

from __future__ import annotations

import pytest

from utils.summary import LinearFit, Spread, linear_fit, quantile, spread


def test_spread_by_hand() -> None:
    # 95th percentile of 10, 20, 60: rank 0.95 · 2 = 1.9 → 20 + 0.9 · 40
    assert spread([60.0, 10.0, 20.0]) == Spread(30.0, 20.0, pytest.approx(56.0), 10.0, 60.0)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0, 7.0, 7.0)
    assert spread([1.0, 2.0]).line(1) == "mean 1.5, median 1.5, p95 1.9, least 1.0, most 2.0"
    assert quantile([3.0, 1.0], 0.0) == 1.0 and quantile([3.0, 1.0], 1.0) == 3.0
    with pytest.raises(ValueError, match="no numbers"):
        spread([])


def test_lines_by_hand() -> None:
    exact = linear_fit([0.0, 0.5, 1.0], [2.0, 3.0, 4.0])
    assert exact == LinearFit(pytest.approx(2.0), pytest.approx(2.0), pytest.approx(1.0))
    # slope Σ dx·dy / Σ dx² = 1 / 2; R² = (Σ dx·dy)² / (Σ dx² · Σ dy²) = 1 / (2 · 2/3)
    loose = linear_fit([0.0, 1.0, 2.0], [0.0, 1.0, 1.0])
    assert loose == LinearFit(pytest.approx(0.5), pytest.approx(1 / 6), pytest.approx(0.75))
    level = linear_fit([0.0, 1.0], [5.0, 5.0])
    assert level == LinearFit(0.0, 5.0, None)
    assert loose is not None and loose.formula("x") == "0.167 + 0.5 · x (R² 0.750)"
    assert LinearFit(-2.5, 12345.6, None).formula("x") == "12346 − 2.5 · x"


@pytest.mark.parametrize("x", [[], [1.0], [1.0, 1.0, 1.0], [0.0, 0.0], [0.3, 0.3 + 1e-12]])
def test_no_line_where_x_does_not_vary(x: list[float]) -> None:
    assert linear_fit(x, [float(i) for i in range(len(x))]) is None
