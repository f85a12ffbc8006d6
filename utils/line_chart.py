"""Line charts as SVG inside a page: sharp at every size, in the colours of the page's light or dark style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from utils.page import Html, element

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 8, 24
"""Margins around the plotted area, same units."""
COLOURS = 6
MARKED_POINTS = 12
"""Up to so many points are drawn as dots, too."""


@dataclass(frozen=True)
class Line:
    """A named line through (x, y); points whose y is not a finite number are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float]

    def points(self) -> list[tuple[float, float]]:
        """What can be drawn."""
        return [(x, y) for x, y in zip(self.x, self.y, strict=True) if math.isfinite(x) and math.isfinite(y)]


def line_chart(
    title: str, lines: Sequence[Line], x_name: str = "epoch", marked_x: float | None = None
) -> Html:
    """A card with a title, the lines, and a legend that ends with each line's last value.

    Args:
        title: above the chart.
        lines: at most `COLOURS`; nothing is drawn when none has a point.
        x_name: below the chart.
        marked_x: where a dashed vertical line stands.
    """
    drawn = [(line, line.points()) for line in lines[:COLOURS]]
    drawn = [(line, points) for line, points in drawn if points]
    if not drawn:
        return Html("")
    everything = [point for _, points in drawn for point in points]
    first, last = min(x for x, _ in everything), max(x for x, _ in everything)
    ticks = nice_ticks(min(y for _, y in everything), max(y for _, y in everything))
    frame = _Frame(_widened(first, last), (ticks[0], ticks[-1]))
    parts = [*_grid(frame, ticks), *_x_axis(frame, x_name, first, last)]
    if marked_x is not None:
        at = f"{frame.x(marked_x):.1f}"
        parts.append(element("line", x1=at, x2=at, y1=TOP, y2=HEIGHT - BOTTOM, class_="best"))
    for number, (_, points) in enumerate(drawn):
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
        parts.append(element("polyline", points=path, class_=f"s{number}"))
        if len(points) <= MARKED_POINTS:
            parts += [
                element("circle", element("title", f"{x:g}: {y:.4g}"), cx=f"{frame.x(x):.1f}",
                        cy=f"{frame.y(y):.1f}", r=3, class_=f"s{number}")
                for x, y in points
            ]  # fmt: skip
    keys = [
        element("span", f"{line.name} {points[-1][1]:.4g}", class_=f"key s{number}")
        for number, (line, points) in enumerate(drawn)
    ]
    chart = element("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title)
    return element("div", element("h3", title), chart, element("p", *keys, class_="keys"), class_="card")


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About so many round numbers (1, 2, 2.5 or 5 times a power of ten apart), the first ≤ low, the last ≥ high."""
    low, high = _widened(low, high)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


@dataclass(frozen=True)
class _Frame:
    """From numbers to places in the chart."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _widened(low: float, high: float) -> tuple[float, float]:
    """The range, or one around it when it is a single number."""
    if high > low:
        return low, high
    margin = abs(low) * 0.1 or 0.5
    return low - margin, high + margin


def _grid(frame: _Frame, ticks: Sequence[float]) -> list[Html]:
    parts = []
    for tick in ticks:
        at = f"{frame.y(tick):.1f}"
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="axis"))
        label = f"{tick:.4g}" if abs(tick) > 1e-12 else "0"
        parts.append(element("text", label, x=LEFT - 6, y=f"{frame.y(tick) + 4:.1f}", text_anchor="end"))
    return parts


def _x_axis(frame: _Frame, name: str, first: float, last: float) -> list[Html]:
    """The first and the last value at the ends, and the name between them."""
    ends = [(first, "start"), (last, "end")] if last > first else [(first, "middle")]
    parts = [
        element("text", f"{value:g}", x=f"{frame.x(value):.1f}", y=HEIGHT - 8, text_anchor=anchor)
        for value, anchor in ends
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2 if last > first else WIDTH - RIGHT - 24
    return [*parts, element("text", name, x=f"{middle:.0f}", y=HEIGHT - 8, text_anchor="middle")]
