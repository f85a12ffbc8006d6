"""The chart of a benchmark: time over the share of the map that is kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engine.benchmark.derived import Figures, Setting, forward_ms
from engine.benchmark.results import BenchmarkResult
from utils.plots import INK, LINE_COLOURS, new_figure, plain_axes, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = {"dense": "-", "sparse": "--"}
MARKS = {"dense": "o", "sparse": "s"}


def plot_benchmark(result: BenchmarkResult, path: Path) -> Path:
    """Draw a panel per input size and batch: each variant, its dense twin, and what its operations allow.

    Args:
        result: of `scripts/benchmark.py`.
        path: PNG file.
    """
    figures = Figures(result)
    settings = figures.settings
    columns = min(len(settings), 2)
    rows = -(-len(settings) // columns)
    figure = new_figure(6.4 * columns + 2.4, 4.8 * rows)
    figure.suptitle(
        f"{Path(result.model).stem}, {result.settings['device_name']}: time of the network over the share of the map kept",
        x=0.01, ha="left", color=INK, fontsize=10,
    )  # fmt: skip
    axes = None
    for number, setting in enumerate(settings):
        axes = figure.add_subplot(rows, columns, number + 1)
        _draw(axes, figures, setting)
    if axes is not None:
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8, labelcolor=INK)
    return save_figure(figure, path)


def _draw(axes: Axes, figures: Figures, setting: Setting) -> None:
    plain_axes(axes)
    (height, width), batch = setting
    for number, variant in enumerate(figures.variants):
        colour = LINE_COLOURS[number % len(LINE_COLOURS)]
        for head in STYLES:
            cases = sorted(
                (case for case in figures.cases(setting, variant, "esod") if case.head == head),
                key=lambda c: c.kept,
            )
            if cases:
                axes.plot(
                    [case.kept for case in cases], [forward_ms(case) for case in cases], STYLES[head],
                    color=colour, marker=MARKS[head], markersize=4, linewidth=1.5, label=f"{variant}, {head} head",
                )  # fmt: skip
        dense = figures.dense(setting, variant)
        if dense is not None:
            axes.axhline(
                forward_ms(dense),
                color=colour,
                linewidth=1.2,
                linestyle=(0, (1, 1.5)),
                label=f"{variant}, dense twin",
            )
        limit = figures.flop_limit(setting, variant)
        if limit is not None:
            paid, whole = limit
            axes.plot(
                [0, 1], [paid, paid + whole], color=colour, linewidth=5, alpha=0.18, solid_capstyle="butt",
                label=f"{variant}, proportional to operations",
            )  # fmt: skip
    axes.set_xlim(-0.02, 1.06)
    axes.set_ylim(bottom=0)
    axes.set_title(f"{height}×{width}, batch {batch}", loc="left", color=INK, fontsize=10)
    axes.set_xlabel("share of the map that is kept", color=INK)
    axes.set_ylabel("milliseconds per batch, without suppression", color=INK)
