"""What a budget of patches does: time of single images, and accuracy, for several budgets on the same images."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.inference import Detector
from engine.measure import run_once
from models.decode import PostprocessConfig
from models.esod import NO_TIMER
from utils.data import Batch
from utils.plots import INK, LINE_COLOURS, new_figure, plain_axes, save_figure
from utils.profile import StageTimer
from utils.summary import quantile

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass
class BudgetResult:
    """One budget.

    Attributes:
        max_patches: per image; 0 means no limit.
        binds: share of the images in which it left patches out.
        patches: mean number of patches per image.
        ms: of each image the median over the rounds, from the letterboxed image in memory to detections.
        ap, ap50: on the same images; None when accuracy was not asked for.
    """

    max_patches: int
    binds: float = 0.0
    patches: float = 0.0
    ms: list[float] = field(default_factory=list)
    ap: float | None = None
    ap50: float | None = None

    def percentile(self, share: float) -> float:
        """Of the images' milliseconds, 0–1."""
        return quantile(self.ms, share)

    @property
    def tail(self) -> float:
        """The 99th percentile over the median: how far the slowest images are behind."""
        return self.percentile(0.99) / self.percentile(0.5)


def set_budget(detector: Detector, max_patches: int) -> None:
    """Keep at most so many patches per image from now on; 0: as many as there are."""
    model = detector.model
    model.config = replace(model.config, slicer=replace(model.config.slicer, max_patches=max_patches or None))


def measure_budgets(
    detector: Detector,
    batches: Iterable[Batch],
    config: PostprocessConfig,
    budgets: Sequence[int],
    rounds: int,
    seed: int,
) -> list[BudgetResult]:
    """Time every image with every budget, all budgets in turn on an image, in an order drawn anew.

    Args:
        detector: with patches.
        batches: of one image each.
        config: of the post-processing, which is timed.
        budgets: see `BudgetResult.max_patches`.
        rounds: that are timed, behind one that is not.
        seed: of the order.
    """
    results = {budget: BudgetResult(budget) for budget in budgets}
    order, count = random.Random(seed), 0
    for batch in batches:
        count += 1
        set_budget(detector, 0)
        wanted = len(run_once(detector, batch, config, NO_TIMER).patches)
        times: dict[int, list[float]] = {budget: [] for budget in budgets}
        for number in range(rounds + 1):
            for budget in order.sample(list(budgets), len(budgets)):
                set_budget(detector, budget)
                timer = StageTimer(detector.device)
                with timer.frame():
                    output = run_once(detector, batch, config, NO_TIMER)
                if number:
                    times[budget].append(timer.frame_ms[-1])
                else:
                    results[budget].patches += len(output.patches)
                    results[budget].binds += len(output.patches) < wanted
        for budget, result in results.items():
            result.ms.append(round(quantile(times[budget], 0.5), 3))
    for result in results.values():
        result.patches /= max(count, 1)
        result.binds /= max(count, 1)
    return list(results.values())


def budget_table(results: Sequence[BudgetResult]) -> str:
    """The printed table."""
    lines = ["max patches     binds   patches    p50 ms    p99 ms  p99/p50       AP     AP50"]
    for one in results:
        scores = ["" if value is None else f"{100 * value:.2f}" for value in (one.ap, one.ap50)]
        lines.append(
            f"{one.max_patches or 'none':>11}{one.binds:>10.0%}{one.patches:>10.1f}{one.percentile(0.5):>10.1f}"
            f"{one.percentile(0.99):>10.1f}{one.tail:>9.2f}{scores[0]:>9}{scores[1]:>9}"
        )
    return "\n".join(lines)


def plot_budgets(results: Sequence[BudgetResult], title: str, path: Path) -> Path:
    """Draw AP, and time with its tail, over the budget; none is drawn at the right end."""
    figure = new_figure(10.0, 4.2)
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=10)
    names = [str(one.max_patches or "none") for one in results]
    places = list(range(len(results)))

    def panel(number: int, label: str, draw: Callable[[Axes], object]) -> None:
        axes = figure.add_subplot(1, 2, number)
        plain_axes(axes)
        draw(axes)
        axes.set_xticks(places, names)
        axes.set_xlabel("--max-patches", color=INK)
        axes.set_title(label, loc="left", color=INK, fontsize=10)

    def times(axes: Axes) -> None:
        for share, colour in ((0.5, LINE_COLOURS[0]), (0.99, LINE_COLOURS[1])):
            values = [one.percentile(share) for one in results]
            axes.plot(places, values, marker="o", markersize=4, color=colour, label=f"p{share * 100:.0f}")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)

    def scores(axes: Axes) -> None:
        for name, colour in (("ap", LINE_COLOURS[0]), ("ap50", LINE_COLOURS[1])):
            values = [100 * (getattr(one, name) or 0.0) for one in results]
            axes.plot(places, values, marker="o", markersize=4, color=colour, label=name.upper())
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)

    panel(1, "milliseconds per image, batch 1", times)
    panel(2, "AP and AP50, %", scores)
    return save_figure(figure, path)
