"""Charts: precision, recall and F1 curves, confusion matrix, training progress.

Drawing only: every number comes in computed. matplotlib's objects are used without pyplot, so there is no
global state and no display is needed. What is drawn on images is in `utils.draw` and `utils.mosaic`,
and can be imported from here too.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from utils.draw import (
    GREEN,
    PALETTE,
    Colour,
    Image,
    PictureError,
    draw_boxes,
    draw_patches,
    overlay_heatmap,
    save_image,
    to_image,
)
from utils.files import write_atomic
from utils.mosaic import mosaic_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "GREEN",
    "PALETTE",
    "Colour",
    "Curves",
    "Image",
    "PictureError",
    "draw_boxes",
    "draw_patches",
    "mosaic_picture",
    "new_figure",
    "overlay_heatmap",
    "plain_axes",
    "plot_confusion_matrix",
    "plot_curves",
    "plot_results",
    "plot_stacked_bars",
    "save_figure",
    "save_image",
    "to_image",
]

MAX_LEGEND = 20
"""With more classes than this the curves of single classes are thin grey lines without a name."""
MAX_NUMBERS = 30
"""Up to so many classes the cells of the confusion matrix carry numbers."""
DPI = 130
INK, FAINT = "#1f2933", "#d9dee3"
LINE_COLOURS = (
    "#d62839", "#1d7fc4", "#e0a100", "#1fa774", "#a23ec4", "#f2711c", "#5560d8", "#7aa600", "#e0559a", "#12a5b8",
    "#8d6248", "#4b8f8c", "#7e57c2", "#546e7a", "#c77800", "#2255bb", "#558b2f", "#ad1457", "#607d8b", "#b59f3b",
)  # fmt: skip
"""By class index, repeated: the hues of `PALETTE`, darker, for white paper."""


class Curves(Protocol):
    """What `plot_curves` draws; `evaluate.detection.DetectionCurves` is one. NaN: not defined, not drawn."""

    @property
    def confidence(self) -> NDArray[Any]: ...
    @property
    def precision(self) -> NDArray[Any]: ...
    @property
    def recall(self) -> NDArray[Any]: ...
    @property
    def f1(self) -> NDArray[Any]: ...
    @property
    def mean_precision(self) -> NDArray[Any]: ...
    @property
    def mean_recall(self) -> NDArray[Any]: ...
    @property
    def mean_f1(self) -> NDArray[Any]: ...
    @property
    def recall_levels(self) -> NDArray[Any]: ...
    @property
    def precision_at_recall(self) -> NDArray[Any]: ...
    @property
    def mean_precision_at_recall(self) -> NDArray[Any]: ...


def plot_curves(curves: Curves, names: Sequence[str], folder: str | Path) -> list[Path]:
    """Draw `P_curve.png`, `R_curve.png`, `F1_curve.png` (over confidence) and `PR_curve.png`.

    Args:
        curves: of `DetectionEvaluator`; a class without labels has NaN only and is left out.
        names: class names.
        folder: made when missing.

    Returns:
        The four files.
    """
    folder = Path(folder)
    confidence = ("Confidence", curves.confidence)
    charts = [
        ("P_curve.png", "Precision", confidence, curves.precision, curves.mean_precision),
        ("R_curve.png", "Recall", confidence, curves.recall, curves.mean_recall),
        ("F1_curve.png", "F1", confidence, curves.f1, curves.mean_f1),
        (
            "PR_curve.png",
            "Precision",
            ("Recall", curves.recall_levels),
            curves.precision_at_recall,
            curves.mean_precision_at_recall,
        ),
    ]
    files = []
    for file, y_name, (x_name, x), rows, mean in charts:
        notes = _curve_notes(file, x, rows), _curve_notes(file, x, mean[None])[0]
        figure = _curve_figure(x, rows, mean, names, *notes)
        axes = figure.axes[0]
        axes.set_xlabel(x_name)
        axes.set_ylabel(y_name)
        axes.set_title(f"{y_name} over {x_name.lower()} at IoU 0.5", loc="left", color=INK, fontsize=12)
        files.append(save_figure(figure, folder / file))
    return files


def plot_confusion_matrix(
    matrix: NDArray[Any], names: Sequence[str], path: str | Path, note: str = "confidence 0.25, IoU 0.45"
) -> Path:
    """Draw a confusion matrix, each column divided by its sum: where the objects of a true class went.

    Args:
        matrix: [C + 1, C + 1] counts, rows predicted, columns true, background last.
        names: [C] class names.
        path: PNG file.
        note: how it was counted, for the title.
    """
    labels = [*names, "background"]
    if matrix.shape != (len(labels), len(labels)):
        raise PictureError(
            f"matrix has shape {matrix.shape}; expected {(len(labels),) * 2} for {len(names)} names"
        )
    total = matrix.sum(axis=0, keepdims=True)
    share = np.divide(matrix, total, out=np.zeros(matrix.shape), where=total > 0)
    side = min(max(5.5, 0.62 * len(labels) + 2.5), 20)
    figure = new_figure(side + 1, side)
    axes = figure.add_subplot()
    drawn = axes.imshow(np.ma.masked_equal(share, 0), cmap="Blues", vmin=0, vmax=1)
    bar = figure.colorbar(drawn, ax=axes, fraction=0.045, pad=0.02)
    bar.outline.set_visible(False)
    bar.set_label("share of the true class", color=INK)
    every = max(1, len(labels) // 40)
    ticks = list(range(0, len(labels), every))
    axes.set_xticks(ticks, [labels[i] for i in ticks], rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, [labels[i] for i in ticks])
    axes.set_xlabel("true")
    axes.set_ylabel("predicted")
    axes.set_title(f"Confusion matrix ({note})", loc="left", color=INK, fontsize=12)
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_color(FAINT)
    axes.set_xticks(np.arange(len(labels) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(labels) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color=FAINT, linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    if len(labels) <= MAX_NUMBERS:
        for row, column in np.argwhere(matrix > 0).tolist():
            value = share[row, column]
            colour = "white" if value > 0.55 else INK
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
    return save_figure(figure, path)


def plot_results(csv_path: str | Path, png_path: str | Path) -> Path:
    """Draw the columns of a training's `results.csv`, one small chart each.

    Args:
        csv_path: comma-separated, a line of names first; the first column is the epoch, the others are
            any numbers. Spaces, empty cells and a last line that a crash cut short are accepted.
        png_path: the picture.

    Raises:
        PictureError: no such file, or no column of numbers in it.
    """
    from matplotlib.ticker import MaxNLocator

    names, values = _read_columns(Path(csv_path))
    columns = min(5, max(2, math.ceil(math.sqrt(len(names) - 1))))
    rows = math.ceil((len(names) - 1) / columns)
    figure = new_figure(3.1 * columns, 2.5 * rows)
    for number, name in enumerate(names[1:]):
        axes = figure.add_subplot(rows, columns, number + 1)
        plain_axes(axes)
        known = np.isfinite(values[:, number + 1])
        epoch, value = values[known, 0], values[known, number + 1]
        colour = LINE_COLOURS[1]
        if len(value) > 10:
            axes.plot(epoch, value, color=colour, linewidth=1, alpha=0.35)
            axes.plot(epoch, _smoothed(value), color=colour, linewidth=2)
        else:
            axes.plot(epoch, value, color=colour, linewidth=2, marker="o", markersize=3.5)
        axes.set_title(name, loc="left", color=INK, fontsize=10)
        if len(value):
            axes.annotate(
                f"{value[-1]:.4g}", (1, 1.02), xycoords="axes fraction", ha="right", color=INK, fontsize=9
            )
        axes.margins(x=0.03, y=0.1)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        if number // columns == rows - 1 or number + columns >= len(names) - 1:
            axes.set_xlabel(names[0], fontsize=9)
    return save_figure(figure, png_path)


def plot_stacked_bars(
    groups: Sequence[str],
    totals: Sequence[int],
    parts: Mapping[str, Sequence[int]],
    path: str | Path,
    *,
    title: str,
    x_name: str,
    y_name: str,
) -> Path:
    """Draw a bar per group, made of parts that are shares of the group's total.

    Args:
        groups: names below the bars.
        totals: what each group's parts are divided by; a group of 0 has no bar.
        parts: name → a count per group; drawn from the bottom up, in this order and in these colours.
        path: PNG file.
        title, x_name, y_name: what the chart and its axes say.
    """
    figure = new_figure(1.1 * len(groups) + 4.5, 5.6)
    axes = figure.add_subplot()
    plain_axes(axes)
    axes.grid(visible=False, axis="x")
    whole = np.asarray(totals, dtype=np.float64)
    foot = np.zeros(len(groups))
    for number, (name, counts) in enumerate(parts.items()):
        share = np.divide(
            np.asarray(counts, dtype=np.float64), whole, out=np.zeros(len(groups)), where=whole > 0
        )
        colour = LINE_COLOURS[number % len(LINE_COLOURS)]
        label = f"{name}  {counts[0]}"
        axes.bar(
            np.arange(len(groups)),
            share,
            0.62,
            foot,
            color=colour,
            label=label,
            edgecolor="white",
            linewidth=0.6,
        )
        foot += share
    for place, (top, total) in enumerate(zip(foot.tolist(), totals, strict=True)):
        note = f"{top:.0%}\nof {total}" if total else "none"
        axes.annotate(
            note, (place, top), (0, 4), textcoords="offset points", ha="center", color=INK, fontsize=9
        )
    axes.set_xticks(np.arange(len(groups)), list(groups))
    axes.set_ylim(0, max(1.18 * float(foot.max(initial=0)), 0.05))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel(x_name, fontsize=9, color=INK)
    axes.set_ylabel(y_name, color=INK)
    axes.set_title(title, loc="left", color=INK, fontsize=12)
    # As the bars are stacked: what is drawn last is on top.
    axes.legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9, labelcolor=INK, reverse=True,
        title=f"in {groups[0]}, from the top",
    )  # fmt: skip
    return save_figure(figure, path)


# ------------------------------------------------------------------------------------------- helpers


def _curve_figure(
    x: NDArray[Any],
    rows: NDArray[Any],
    mean: NDArray[Any],
    names: Sequence[str],
    notes: Sequence[str],
    mean_note: str,
) -> Figure:
    """One chart in 0–1: a line per class with labels, and the mean over them."""
    figure = new_figure(9, 5.6)
    axes = figure.add_subplot()
    plain_axes(axes)
    named = len(names) <= MAX_LEGEND
    for index, (name, row) in enumerate(zip(names, rows, strict=True)):
        if np.isnan(row).all():
            continue
        colour = LINE_COLOURS[index % len(LINE_COLOURS)] if named else "#aab4be"
        axes.plot(
            x,
            row,
            color=colour,
            linewidth=1.3 if named else 0.8,
            label=f"{name}  {notes[index]}" if named else None,
        )
    if not np.isnan(mean).all():
        axes.plot(x, mean, color=INK, linewidth=3, label=f"all classes  {mean_note}")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9, labelcolor=INK)
    else:
        axes.text(0.5, 0.5, "no labelled objects", ha="center", va="center", color=INK)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.01)
    return figure


def _curve_notes(file: str, x: NDArray[Any], rows: NDArray[Any]) -> list[str]:
    """What the legend says of each curve: AP50, the best F1 and where, or the largest value."""
    notes = []
    for row in rows:
        if np.isnan(row).all():
            notes.append("n/a")
        elif file.startswith("PR"):
            notes.append(f"AP50 {row.mean():.3f}")
        elif file.startswith("F1"):
            best = int(np.nanargmax(row))
            notes.append(f"{row[best]:.2f} at {x[best]:.3f}")
        else:
            notes.append(f"max {np.nanmax(row):.2f}")
    return notes


def _read_columns(path: Path) -> tuple[list[str], NDArray[np.float64]]:
    """Names, and values [rows, names] with NaN for what is not a number; columns without any are left out."""
    if not path.is_file():
        raise PictureError(f"{path} does not exist; expected the results.csv of a training run")
    with path.open(newline="", encoding="utf-8") as file:
        lines = [line for line in csv.reader(file) if any(cell.strip() for cell in line)]
    names = [cell.strip() for cell in lines[0]] if lines else []
    values = np.full((max(len(lines) - 1, 0), len(names)), np.nan)
    for row, line in enumerate(lines[1:]):
        for column, cell in enumerate(line[: len(names)]):
            values[row, column] = _number(cell)
    values = values[np.isfinite(values[:, 0])] if names else values
    used = [n for n in range(len(names)) if names[n] and np.isfinite(values[:, n]).any()]
    if len(used) < 2:
        raise PictureError(
            f"{path} has no rows of numbers; expected a line of names, then epoch and values per line"
        )
    return [names[n] for n in used], values[:, used]


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def _smoothed(values: NDArray[np.float64], width: float = 2.5) -> NDArray[np.float64]:
    """Mean with Gaussian weights of ``width`` epochs, corrected at both ends."""
    reach = math.ceil(3 * width)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    inside = slice(reach, reach + len(values))
    total = np.convolve(values, weights)[inside]
    return np.asarray(total / np.convolve(np.ones(len(values)), weights)[inside])


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure, sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def plain_axes(axes: Axes) -> None:
    """The look of all charts: no frame, faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, whole or not at all; returns the path."""
    path = Path(path)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_atomic(path, lambda file: file.write(content.getvalue()))
    return path
