"""The chart of what an image costs over how much of it is looked at closely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from utils.plots import INK, LINE_COLOURS, new_figure, plain_axes, save_figure
from utils.summary import LinearFit

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class CostSeries:
    """One kind of cost.

    Attributes:
        name: with its unit, for the axis: "GFLOPs per image".
        values: of each image.
        fit: the line through them over the occupancy; None where there is none.
    """

    name: str
    values: Sequence[float]
    fit: LinearFit | None


def plot_cost(occupancy: Sequence[float], series: Sequence[CostSeries], title: str, path: str | Path) -> Path:
    """Draw costs against occupancy, a point per image, with their linear fits.

    Args:
        occupancy: of each image, the sum of its patches' areas over the area of the map; may pass 1.
        series: one panel each, with as many values.
        title: what was measured, above the panels.
        path: PNG file.

    Returns:
        The path.
    """
    figure = new_figure(5.2 * len(series), 4.4)
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=10)
    for number, one in enumerate(series):
        axes = figure.add_subplot(1, len(series), number + 1)
        _draw_panel(axes, occupancy, one, LINE_COLOURS[1 if number % 2 == 0 else 5])
    return save_figure(figure, path)


def _draw_panel(axes: Axes, occupancy: Sequence[float], series: CostSeries, colour: str) -> None:
    plain_axes(axes)
    axes.scatter(occupancy, series.values, s=22, color=colour, alpha=0.6, linewidths=0, label="an image")
    end = max(1.0, *occupancy)
    if series.fit is not None:
        intercept, slope = series.fit.intercept, series.fit.slope
        axes.plot(
            [0, end],
            [intercept, intercept + slope * end],
            color=INK,
            linewidth=1.6,
            label=series.fit.formula("occupancy"),
        )
    axes.set_xlim(0, 1.02 * end)
    axes.set_ylim(bottom=0)
    axes.margins(y=0.15)
    axes.set_xlabel("occupancy (area of the patches / area of the map)", color=INK)
    axes.set_ylabel(series.name, color=INK)
    axes.legend(loc="best", frameon=False, fontsize=9, labelcolor=INK)
