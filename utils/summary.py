"""Many numbers in a few: mean, median and extremes over images, the straight line through points, throughput."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """A number over images: mean, median, 95th percentile, smallest and largest."""

    mean: float
    median: float
    p95: float
    least: float
    most: float

    def line(self, decimals: int = 2) -> str:
        """The numbers in words."""
        parts = ("mean", "median", "p95", "least", "most")
        return ", ".join(f"{part} {getattr(self, part):.{decimals}f}" for part in parts)


def spread(values: Sequence[float]) -> Spread:
    """`Spread` of at least one number; raises ValueError of none."""
    if not values:
        raise ValueError("no numbers to summarise")
    mean = math.fsum(values) / len(values)
    return Spread(mean, statistics.median(values), quantile(values, 0.95), min(values), max(values))


def spread_indices(count: int, limit: int) -> list[int]:
    """At most limit (0: all) of count indices, evenly spread."""
    if not limit or limit >= count:
        return list(range(count))
    return [index * count // limit for index in range(limit)]


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which a share (0-1) of at least one number lies, interpolated linearly between ranks."""
    ordered = sorted(values)
    rank = share * (len(ordered) - 1)
    low = int(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


@dataclass(frozen=True)
class LinearFit:
    """The line y = intercept + slope · x of least squares.

    Attributes:
        slope, intercept: of the line.
        r_squared: share of y's variance that the line explains, 0-1; None when y does not vary.
    """

    slope: float
    intercept: float
    r_squared: float | None

    def formula(self, x: str) -> str:
        """The line with x by name: "2.17 + 7.3 · occupancy (R² 1.000)"."""
        quality = "" if self.r_squared is None else f" (R² {self.r_squared:.3f})"
        sign = "+" if self.slope >= 0 else "−"
        return f"{_three_digits(self.intercept)} {sign} {_three_digits(abs(self.slope))} · {x}{quality}"


def linear_fit(x: Sequence[float], y: Sequence[float]) -> LinearFit | None:
    """The line of least squares through points; None where x does not vary and no line is defined."""
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(xs) < 2 or np.ptp(xs) <= 1e-9 * np.abs(xs).max():
        return None
    dx, dy = xs - xs.mean(), ys - ys.mean()
    slope = float(dx @ dy / (dx @ dx))
    variance = float(dy @ dy)
    # The squared correlation; clipped, because rounding may pass 1 by a bit.
    r_squared = min(float((dx @ dy) ** 2 / ((dx @ dx) * variance)), 1.0) if variance > 0 else None
    return LinearFit(slope, float(ys.mean() - slope * xs.mean()), r_squared)


def _three_digits(value: float) -> str:
    """Three significant digits, all those before the point, and no exponent for large numbers."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


@dataclass(frozen=True)
class Throughput:
    """How many images a second a command gets through, and how many its model alone would.

    Attributes:
        images: number of them.
        elapsed_s: the whole work on them, from opening the first file to the end of the last, without loading the
            model.
        model_s: of that, the time in which the model was at work: from the image in the size of the network input to
            its detections.
    """

    images: int
    elapsed_s: float
    model_s: float

    @property
    def ratio(self) -> float | None:
        """Whole command over model alone, at most 1: what reading, writing and scoring leave of the model's speed."""
        return self.model_s / self.elapsed_s if self.elapsed_s > 0 else None

    def to_dict(self) -> dict[str, float | None]:
        """For JSON; None where nothing was measured."""
        return {
            "images_per_second": self.images / self.elapsed_s if self.elapsed_s > 0 else None,
            "images_per_second_model": self.images / self.model_s if self.model_s > 0 else None,
            "ratio": self.ratio,
        }

    def line(self) -> str:
        """The numbers in words."""
        values = {key: "n/a" if value is None else f"{value:.2f}" for key, value in self.to_dict().items()}
        return (
            f"images per second: {values['images_per_second']} in all, "
            f"{values['images_per_second_model']} the model alone, ratio {values['ratio']}"
        )
