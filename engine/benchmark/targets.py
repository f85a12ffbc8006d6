"""What the project aims at, beside what was measured: each line holds, does not, or could not be measured here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from engine.benchmark.derived import YARDSTICK, Figures, Setting, choosing
from engine.benchmark.results import BenchmarkResult, CaseResult, median

AIMED_SHARE = 0.2
"""Share of the map kept at which speed is aimed at."""
LOST_SHARES = (0.1, 0.2, 0.5)
GPU_AIMS = {("yolov5m", 864): 300.0, ("yolov5m", 1088): 200.0, ("yolov5x", 864): 100.0}
"""(model, input height) → images per second at batch 1 and 20 % kept, decoding and suppression included, on an H200."""


class Verdict(NamedTuple):
    """One line.

    Attributes:
        aim: in words.
        found: what was measured, in words.
        holds: None when it could not be measured here.
    """

    aim: str
    found: str
    holds: bool | None

    @property
    def word(self) -> str:
        """For a table."""
        return {True: "holds", False: "does not hold", None: "cannot be measured here"}[self.holds]


@dataclass(frozen=True)
class Part:
    """Median milliseconds of a part alone, from the file of scripts/benchmark_parts.py."""

    name: str
    detail: str
    ms: float

    @classmethod
    def all_of(cls, content: dict[str, Any]) -> list[Part]:
        """Every part of such a file's content."""
        return [cls(part["name"], part["detail"], median(part["ms"])) for part in content["parts"]]


def verdicts(result: BenchmarkResult, parts: Sequence[Part] = ()) -> list[Verdict]:
    """Every aim that this result, with the parts alone, says something about."""
    figures = Figures(result)
    on_gpu = result.settings["device"] == "cuda"
    found: list[Verdict] = []
    for setting in figures.settings:
        if setting[1] == 1:
            found += _gpu(figures, setting) if on_gpu else _cpu(figures, setting)
        found += _lost(figures, setting)
    return [
        *found,
        *_choosing(figures),
        *_sparse(figures),
        *_batches(figures),
        *_memory(figures),
        *_parts(parts),
    ]


def _aimed(figures: Figures, setting: Setting, variant: str) -> CaseResult | None:
    """The case at the share that is aimed at, whose head is dense where there is such a one."""
    cases = [c for c in figures.cases(setting, variant, "esod") if c.kept_asked == AIMED_SHARE]
    return min(cases, key=lambda case: case.head, default=None)


def _ratio(aim: str, least: float, ratio: float | None) -> Verdict:
    return Verdict(
        f"{aim} ≥ {least:g}×",
        "" if ratio is None else f"{ratio:.2f}×",
        None if ratio is None else ratio >= least,
    )


def _cpu(figures: Figures, setting: Setting) -> Iterable[Verdict]:
    """Fast mode against plain."""
    place = f"{AIMED_SHARE:.0%} kept, against {YARDSTICK} ESOD"
    for variant, least in (("fast", 1.2), ("fast-compile", 1.35)):
        if (case := _aimed(figures, setting, variant)) is not None:
            yield _ratio(f"{variant} (float32), {place}", least, figures.against_plain(case))
    case = _aimed(figures, setting, "bf16")
    hardware = bool(figures.result.settings["fast_bf16"])
    ratios = (None, None) if case is None else (figures.against_plain(case), figures.against_dense(case))
    against = f"{AIMED_SHARE:.0%} kept, against {YARDSTICK} dense"
    for aim, least, ratio in ((f"bf16, {place}", 3.5, ratios[0]), (f"bf16, {against}", 8.0, ratios[1])):
        verdict = _ratio(aim, least, ratio)
        yield (
            verdict
            if hardware
            else verdict._replace(found=f"{verdict.found} without bf16 hardware".strip(), holds=None)
        )


def _gpu(figures: Figures, setting: Setting) -> Iterable[Verdict]:
    """Images per second of the fastest variant, and how many times as fast as plain."""
    model = figures.result.model.removesuffix(".yaml")
    cases = [c for v in figures.variants if (c := _aimed(figures, setting, v)) is not None]
    aim = GPU_AIMS.get((model, setting[0][0]))
    if not cases or aim is None:
        return
    best = min(cases, key=lambda case: median(case.total_ms))
    fps = 1e3 / median(best.total_ms)
    size = "×".join(map(str, setting[0]))
    yield Verdict(
        f"{model}, {size}, batch 1, {AIMED_SHARE:.0%} kept, with decoding and suppression ≥ {aim:g} images/s (H200)",
        f"{fps:.0f} ({best.variant})",
        fps >= aim,
    )
    if aim == max(GPU_AIMS.values()):
        yield _ratio(
            f"{best.variant}, {AIMED_SHARE:.0%} kept, against {YARDSTICK} ESOD",
            4.0,
            figures.against_plain(best),
        )


def _lost(figures: Figures, setting: Setting) -> Iterable[Verdict]:
    """Between operations and time, behind the seeker."""
    for variant in figures.variants:
        found = {
            case.kept_asked: lost
            for case in figures.cases(setting, variant, "esod")
            if case.head == "dense" and case.kept_asked in LOST_SHARES
            and (lost := figures.kept_efficiency(case)) is not None
        }  # fmt: skip
        if found:
            yield Verdict(
                f"{variant}, batch {setting[1]}: time behind the seeker ≤ 1.3 × its share of the operations",
                ", ".join(f"{lost:.2f} at {share:.0%}" for share, lost in found.items()),
                all(lost <= 1.3 for lost in found.values()),
            )


def _choosing(figures: Figures) -> Iterable[Verdict]:
    """Slicing and gathering, in the modes that people use."""
    cases = [
        case
        for case in figures.result.cases
        if case.mode == "esod" and case.batch == 1 and case.variant != YARDSTICK
    ]
    if not cases:
        return
    worst = max(cases, key=lambda case: choosing(case)[1])
    ms, share = choosing(worst)
    yield Verdict(
        "slicing and gathering ≤ 2 % of the network's time at any share",
        f"at most {share:.1%} ({ms:.2f} ms; {worst.variant}, {worst.kept:.0%} kept, {worst.head} head)",
        share <= 0.02,
    )
    everything = [case for case in cases if case.kept_asked == 1.0 and case.head == "dense"]
    if everything:
        best = min(everything, key=lambda case: choosing(case)[0])
        ms = choosing(best)[0]
        yield Verdict(
            "slicing and gathering ≤ 1 ms when everything is kept",
            f"{ms:.2f} ms at {best.patches} patches ({best.variant})",
            ms <= 1.0,
        )


def _sparse(figures: Figures) -> Iterable[Verdict]:
    """The sparse head against the dense one on the same patches."""
    ratios = [
        (case.stage("head") / other.stage("head"), case)
        for case in figures.result.cases
        if case.head == "sparse" and case.patches and (other := figures.like(case, head="dense")) is not None
    ]
    if ratios:
        ratio, case = max(ratios, key=lambda pair: pair[0])
        yield Verdict(
            "sparse head never slower than the dense one",
            f"at most {ratio:.2f} × ({case.variant}, {case.kept:.0%} kept, {case.positions:.0%} of the positions)",
            ratio <= 1.0,
        )


def _batches(figures: Figures) -> Iterable[Verdict]:
    """Four images against one."""
    ratios = [
        (ratio * case.batch, case)
        for case in figures.result.cases
        if case.batch == 4 and case.mode == "esod" and (ratio := figures.batch_efficiency(case)) is not None
    ]
    if ratios:
        ratio, case = max(ratios, key=lambda pair: pair[0])
        yield Verdict(
            "a batch of 4 ≤ 4.0 × one image",
            f"at most {ratio:.2f} × ({case.variant}, {case.kept:.0%} kept)",
            ratio <= 4.0,
        )


def _memory(figures: Figures) -> Iterable[Verdict]:
    """Fast ESOD against plain dense."""
    for setting in figures.settings:
        dense, fast = figures.dense(setting, YARDSTICK), _aimed(figures, setting, "fast")
        if setting[1] == 1 and dense is not None and fast is not None and dense.memory and fast.memory:
            needed = [m.peak_mib - m.before_mib for m in (fast.memory, dense.memory)]
            yield Verdict(
                f"peak memory of the first pass, fast ESOD, {AIMED_SHARE:.0%} kept ≤ 0.55 × {YARDSTICK} dense",
                f"{needed[0] / needed[1]:.2f} × ({needed[0]:.0f} of {needed[1]:.0f} MiB)",
                needed[0] <= 0.55 * needed[1],
            )


def _parts(parts: Sequence[Part]) -> Iterable[Verdict]:
    """What was measured alone."""
    limits = {
        "slicing, greedy": 3.0,
        "suppression": 10.0,
        "JPEG to tensor": 15.0,
    }
    for part in parts:
        if part.name in limits:
            yield Verdict(
                f"{part.name} ({part.detail}) ≤ {limits[part.name]:g} ms", f"{part.ms:.1f} ms",
                part.ms <= limits[part.name],
            )  # fmt: skip
    by_name = {part.name: part.ms for part in parts}
    if "head, dense" in by_name and "head, sparse at 5%" in by_name:
        ratio = by_name["head, sparse at 5%"] / by_name["head, dense"]
        yield Verdict(
            "sparse head with 5 % of the positions ≤ 0.5 × the dense one", f"{ratio:.2f} ×", ratio <= 0.5
        )
