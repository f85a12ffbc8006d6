"""The part of a report that a training fills: curves, best epoch, what it was made from, first batches."""

from __future__ import annotations

import math
from collections.abc import Sequence

from utils.line_chart import COLOURS, Line, line_chart
from utils.page import Html, element, figure, folded, join, pairs, section, table, tiles
from utils.report_data import RunFiles, flat, number, part, percent

EPOCH = "epoch"
FITNESS = "val/AP"
CHARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Losses", ("train/*_loss",)),
    ("AP", ("val/AP", "val/AP50", "val/AP75")),
    ("AP by size", ("val/AP_small", "val/AP_medium", "val/AP_large")),
    ("Precision and recall", ("val/precision", "val/recall")),
    ("Patches: missed objects, empty area", ("val/missing_rate", "val/empty_rate")),
    ("Patches trained on, per image", ("train/patches_per_image",)),
    ("Learning rate", ("lr/*",)),
    ("Seconds per epoch", ("train/seconds",)),
)
"""Title → columns of results.csv; a * stands for anything. Other columns get a chart of their own."""
COMPARED = (
    "val/AP", "val/AP50", "val/AP75", "val/AP_small", "val/AP_medium", "val/AP_large", "val/precision", "val/recall",
    "val/missing_rate", "val/empty_rate",
)  # fmt: skip


def training_sections(run: RunFiles) -> Html:
    """Everything about a training; nothing for a run that is none."""
    if not run.results:
        return Html("")
    return join([
        _headline(run),
        section("Curves", element("div", *charts(run.results), class_="grid")),
        section("Best and last epoch", _best_and_last(run)),
        section("First training batches", _batches(run)),
        section("What it was made from", _origin(run)),
    ])  # fmt: skip


def best_epoch(results: dict[str, list[float]]) -> int | None:
    """Row with the highest AP, which is the one in ``weights/best.pt``; None before the first validation."""
    known = [(value, -row) for row, value in enumerate(results.get(FITNESS, [])) if math.isfinite(value)]
    return -max(known)[1] if known else None


def charts(results: dict[str, list[float]]) -> list[Html]:
    """A chart per group of columns, epochs counted from 1."""
    epochs = [value + 1 for value in results.get(EPOCH, [])]
    best = best_epoch(results)
    marked = None if best is None else epochs[best]
    left = [name for name in results if name and name != EPOCH]
    drawn = []
    for title, patterns in CHARTS:
        columns = [name for name in left if any(_matches(name, pattern) for pattern in patterns)]
        left = [name for name in left if name not in columns]
        drawn += [
            line_chart(title, [Line(_short(name), epochs, results[name]) for name in columns[first : first + COLOURS]],
                       marked_x=marked)
            for first in range(0, len(columns), COLOURS)
        ]  # fmt: skip
    drawn += [line_chart(name, [Line(_short(name), epochs, results[name])], marked_x=marked) for name in left]
    return [chart for chart in drawn if chart]


def _headline(run: RunFiles) -> Html:
    results, train = run.results, part(run.config, "train")
    done = len(results.get(EPOCH, []))
    best = best_epoch(results)
    values = [("epochs", f"{done} of {train['epochs']}" if "epochs" in train else str(done))]
    if best is not None:
        values += [
            ("best epoch", number(int(results[EPOCH][best]) + 1)),
            ("AP of the best epoch", number(results[FITNESS][best])),
            ("AP50", number(results.get("val/AP50", [math.nan] * done)[best])),
        ]
    if "val/missing_rate" in results and best is not None:
        values.append(("objects in no patch", percent(results["val/missing_rate"][best])))
    seconds = sum(value for value in results.get("train/seconds", []) if math.isfinite(value))
    if seconds:
        values.append(("spent training", duration(seconds)))
    return tiles(values)


def duration(seconds: float) -> str:
    """Seconds in words: 49 s, 3 min 20 s, 5 h 12 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _best_and_last(run: RunFiles) -> Html:
    best = best_epoch(run.results)
    if best is None:
        return Html("")
    last = len(run.results[EPOCH]) - 1
    heads = ["", f"best (epoch {best + 1})", f"last (epoch {last + 1})"]
    content = [
        [_short(name), number(run.results[name][best]), number(run.results[name][last])]
        for name in COMPARED
        if name in run.results
    ]
    remark = "The best epoch, by AP on the validation images, is in weights/best.pt. Epochs count from 1 here, from 0 in results.csv."
    return join([table(heads, content), element("p", remark, class_="soft")])


def _batches(run: RunFiles) -> Html:
    files = run.pictures("train_batch*.jpg")
    if not files:
        return Html("")
    text = "As the network gets them, augmented, with the labelled boxes and the label heatmap."
    return join(
        [
            element("p", text, class_="soft"),
            element("div", *(figure(f, f.name) for f in files), class_="wide"),
        ]
    )


def _origin(run: RunFiles) -> Html:
    config = run.config
    provenance = part(config, "provenance")
    named: Sequence[tuple[str, object]] = (
        ("Options", config.get("train")),
        ("Hyper-parameters", config.get("hyp")),
        ("Model", config.get("model")),
        ("Dataset", config.get("dataset")),
        ("Fingerprint of the data", provenance.get("data")),
        ("Initial weights", provenance.get("initial_weights")),
        ("Environment", provenance.get("environment")),
    )
    return join(folded(title, pairs(flat(content))) for title, content in named if content)


def _matches(name: str, pattern: str) -> bool:
    head, star, tail = pattern.partition("*")
    return name.startswith(head) and name.endswith(tail) if star else name == pattern


def _short(name: str) -> str:
    return name.rpartition("/")[2].replace("_", " ")
