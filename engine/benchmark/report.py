"""The tables of a benchmark, for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.benchmark.derived import YARDSTICK, Figures, Setting, choosing
from engine.benchmark.results import STAGES, BenchmarkResult, CaseResult
from engine.benchmark.targets import Part, verdicts

MARKERS = ("<!-- made by scripts/benchmark.py: begin -->", "<!-- made by scripts/benchmark.py: end -->")
NEW_PAGE = f"""# Speed

How fast the detectors run, and how near that is to what the device can do. What stands between the two marks below
is written by `scripts/benchmark.py` from the JSON files in [results](results/README.md); text outside of them is kept.

{MARKERS[0]}
{MARKERS[1]}
"""


@dataclass(frozen=True)
class Table:
    """A table with a title and what must be known to read it."""

    title: str
    text: str
    header: list[str]
    rows: list[list[str]]

    def plain(self) -> str:
        """For a terminal."""
        columns = list(zip(self.header, *self.rows, strict=True))
        widths = [max(len(cell) for cell in column) for column in columns]
        lines = [
            "  ".join(cell.ljust(width) if number == 0 else cell.rjust(width) for number, (cell, width) in
                      enumerate(zip(row, widths, strict=True))).rstrip()
            for row in (self.header, *self.rows)
        ]  # fmt: skip
        return "\n".join([self.title, *lines, self.text])

    def markdown(self) -> str:
        """For a page."""
        lines = [f"### {self.title}", "", self.text, ""]
        for row in (self.header, ["---"] * len(self.header), *self.rows):
            lines.append("| " + " | ".join(row) + " |")
        return "\n".join(lines)


def tables(result: BenchmarkResult, parts: Sequence[Part] = ()) -> list[Table]:
    """Every table that has rows."""
    figures = Figures(result)
    found: list[Table] = [_targets(result, parts)]
    for setting in figures.settings:
        found += [make(figures, setting) for make in (_times, _operations, _lost, _choosing, _sparse)]
    found += [_batches(figures), _stems(figures), _alone(parts)]
    return [table for table in found if table.rows]


def terminal(result: BenchmarkResult, parts: Sequence[Part] = ()) -> str:
    """What is printed."""
    shown = [table.plain() for table in tables(result, parts)]
    return "\n\n".join([_facts(result), *shown, *_failures(result)])


def page_section(result: BenchmarkResult, plot: str | None, parts: Sequence[Part] = ()) -> str:
    """One result on a page; ``plot``: link to its picture; ``parts``: measured alone."""
    settings = result.settings
    lines = [f"## {Path(result.model).stem} on {settings['device_name']}", "", _facts(result), ""]
    lines += [f"    {result.command}", ""]
    if plot is not None:
        lines += [f"![Time over the share of the map that is kept]({plot})", ""]
    lines += ["\n\n".join(table.markdown() for table in tables(result, parts)), ""]
    return "\n".join([*lines, *(f"{line}\n" for line in _failures(result))])


def _facts(result: BenchmarkResult) -> str:
    """The machine and the options in a few sentences."""
    settings, environment = result.settings, result.environment
    commit = str(environment.get("git_commit") or "unknown")[:12] + (
        ", with changes" if environment.get("git_dirty") else ""
    )
    bf16 = "" if settings["fast_bf16"] is None else (
        "; the CPU multiplies bf16 in hardware" if settings["fast_bf16"]
        else "; the CPU has no hardware for bf16 (neither AMX nor AVX512-BF16)"
    )  # fmt: skip
    return (
        f"{settings['device_name']}, {settings['threads']} threads, PyTorch {environment['torch']}{bf16}. "
        f"{result.parameters['esod']:,} parameters, dense twin {result.parameters['dense']:,}. "
        f"{settings['rounds']} rounds, {settings['warmup']} more before them to warm up, all cases interleaved; medians, quartiles in brackets. "
        f"Load of the machine before and after: {settings['load_before']}, {settings['load_after']}. Commit {commit}."
    )


def _failures(result: BenchmarkResult) -> list[str]:
    return [f"Variant {failure.variant} does not run here: {failure.why}" for failure in result.failures]


def _title(what: str, setting: Setting) -> str:
    (height, width), batch = setting
    return f"{what}: {height}×{width}, batch {batch}"


def _targets(result: BenchmarkResult, parts: Sequence[Part]) -> Table:
    """What is aimed at."""
    rows = [[verdict.aim, verdict.found, verdict.word] for verdict in verdicts(result, parts)]
    text = "Medians of this run. Where a table below has the figure for every case, the worst counts here."
    return Table("What is aimed at", text, ["aim", "measured", ""], rows)


def _alone(parts: Sequence[Part]) -> Table:
    """The parts alone."""
    rows = [[part.name, part.detail, f"{part.ms:.2f}"] for part in parts]
    text = "Median milliseconds of single parts, measured by scripts/benchmark_parts.py."
    return Table("Parts alone", text, ["part", "input", "ms"], rows)


def _name(case: CaseResult) -> str:
    return f"{case.variant} {'dense twin' if case.mode == 'dense' else 'ESOD'}"


def _share(case: CaseResult) -> str:
    return "" if case.mode == "dense" else f"{case.kept:.1%}"


def _head(case: CaseResult) -> str:
    return "dense" if case.head == "dense" else f"sparse, {case.positions:.1%}"


def _times(figures: Figures, setting: Setting) -> Table:
    """Every case by stages."""
    cases = list(figures.cases(setting))
    stages = [name for name in STAGES if any(name in case.stages_ms for case in cases)]
    has_memory = any(case.memory is not None for case in cases)
    rows = []
    for case in cases:
        middle, low, high = case.spread_ms()
        row = [
            _name(case),
            _share(case),
            str(case.patches),
            _head(case),
            f"{middle:.1f} ({low:.1f}–{high:.1f})",
        ]
        row += [f"{1e3 * case.batch / middle:.2f}", _number(figures.floor(case), "{:.1f}".format)]
        row += [f"{case.stage(name):.1f}" for name in stages]
        row += [_times_text(figures.against_plain(case) if case.mode == "esod" else None)]
        row += [_times_text(figures.against_dense(case))]
        if has_memory:
            row.append("" if case.memory is None else f"{case.memory.peak_mib - case.memory.before_mib:.0f}")
        rows.append(row)
    header = ["", "kept", "patches", "head, positions", "total ms", "images/s", "floor ms", *stages]
    header += [f"× {YARDSTICK} ESOD", f"× {YARDSTICK} dense", *(["memory MiB"] if has_memory else [])]
    text = (
        f"Milliseconds per batch, from images on the device to detections. × {YARDSTICK}: how many times as fast as "
        f"{YARDSTICK} (float32, eager, BatchNorm not folded, contiguous) ESOD at the same share, and dense. The share "
        "behind a sparse head is that of the patches' positions which it computes. Floor: the longer of the operations of "
        "the network at the speed of a large matrix product, and of the bytes of its convolutions (each tensor once) at "
        "that of a large copy, both in the same rounds; without suppression."
    )
    if has_memory:
        text += " Memory: peak above the process before its first pass, each in a process of its own."
    return Table(_title("Time", setting), text, header, rows)


def _operations(figures: Figures, setting: Setting) -> Table:
    """GFLOPs by stage, which are those of all variants."""
    first = figures.variants[0]
    cases = list(figures.cases(setting, first))
    stages = [name for name in STAGES if any(case.gflops.get(name) for case in cases)]
    rows = [
        [
            "dense twin" if case.mode == "dense" else "ESOD", _share(case), str(case.patches), _head(case),
            *(f"{case.gflops.get(name, 0.0):.2f}" for name in stages), f"{sum(case.gflops.values()):.2f}",
        ]
        for case in cases
    ]  # fmt: skip
    text = "GFLOPs per image, counted on the passes themselves; a multiply-accumulate counts two. Deep includes the neck."
    return Table(
        _title("Operations", setting),
        text,
        ["", "kept", "patches", "head, positions", *stages, "total"],
        rows,
    )


def _lost(figures: Figures, setting: Setting) -> Table:
    """Time over operations behind the seeker."""
    rows = []
    for case in figures.cases(setting, mode="esod"):
        lost = figures.kept_efficiency(case)
        if lost is not None:
            rows.append([case.variant, _share(case), _head(case), f"{lost:.2f}"])
    text = (
        "(time − stem − seeker) / (share of the operations behind the seeker × time of the dense twin there, same "
        "variant). 1: time falls exactly as the operations do; above 1, so much more is spent."
    )
    return Table(
        _title("Lost between operations and time", setting),
        text,
        ["variant", "kept", "head, positions", "time / operations"],
        rows,
    )


def _choosing(figures: Figures, setting: Setting) -> Table:
    """Slicing and gathering."""
    rows = []
    for case in figures.cases(setting, mode="esod"):
        ms, share = choosing(case)
        row = [case.variant, _share(case), str(case.patches), _head(case)]
        rows.append(
            [*row, f"{case.stage('slicer'):.2f}", f"{case.stage('gather'):.2f}", f"{ms:.2f}", f"{share:.1%}"]
        )
    header = [
        "variant",
        "kept",
        "patches",
        "head, positions",
        "slicing ms",
        "gathering ms",
        "both ms",
        "of forward",
    ]
    text = "Choosing the patches (and a sparse head's positions), and cutting them out."
    return Table(_title("Slicing and gathering", setting), text, header, rows)


def _sparse(figures: Figures, setting: Setting) -> Table:
    """The sparse head beside the dense one on the same patches."""
    rows = []
    for case in figures.cases(setting, mode="esod"):
        other = figures.like(case, head="dense")
        if case.head == "sparse" and other is not None and case.patches:
            sparse, dense = case.stage("head"), other.stage("head")
            row = [case.variant, _share(case), f"{case.positions:.1%}", f"{sparse:.2f}", f"{dense:.2f}"]
            rows.append([*row, f"{sparse / dense:.2f}"])
    header = ["variant", "kept", "positions", "sparse ms", "dense ms", "sparse / dense"]
    text = "Time of the head alone, on the same patches; the share of the positions that the sparse one computes."
    return Table(_title("Sparse head", setting), text, header, rows)


def _batches(figures: Figures) -> Table:
    """Larger batches beside as many of one image."""
    rows = []
    for case in figures.result.cases:
        ratio = figures.batch_efficiency(case) if case.batch > 1 else None
        if ratio is not None:
            size = "×".join(map(str, case.input_hw))
            total = f"{case.spread_ms()[0] / case.batch:.1f}"
            rows.append(
                [_name(case), size, _share(case), _head(case), str(case.batch), total, f"{ratio:.2f}"]
            )
    header = ["", "input", "kept", "head, positions", "batch", "ms per image", "of batch 1"]
    return Table(
        "Batches", "Time per image over that of a batch of one; below 1, batching pays.", header, rows
    )


def _stems(figures: Figures) -> Table:
    """The stem's time, and the floor under it."""
    rows = []
    for cost in figures.result.stems:
        if not any(True for _ in figures.cases((tuple(cost.input_hw), cost.batch), cost.variant)):
            continue
        floor = figures.stem_floor(cost)
        rows.append(
            [
                cost.variant, "×".join(map(str, cost.input_hw)), str(cost.batch), f"{floor.ms:.1f}", f"{cost.gflops:.2f}",
                f"{cost.conv_gb:.3f}", f"{cost.moved_gb:.3f}", f"{floor.gflops_s:.0f}", f"{floor.gb_s:.1f}",
                _number(floor.machine_gflops_s, "{:.0f}".format), _number(floor.machine_gb_s, "{:.1f}".format),
                _number(floor.floor_ms, "{:.1f}".format),
                _number(None if floor.floor_ms is None else floor.ms / floor.floor_ms, "{:.2f}".format),
            ]
        )  # fmt: skip
    header = [
        "variant", "input", "batch", "stem ms", "GFLOPs", "GB of convolutions", "GB moved", "GFLOP/s", "GB/s",
        "machine GFLOP/s", "machine GB/s", "floor ms", "stem / floor",
    ]  # fmt: skip
    text = (
        "Everything that the stem does is paid for every pixel. GB of convolutions: each reads its input and weights and "
        "writes its output once; GB moved: the same of all operations. GFLOP/s and GB/s: what the stem's time implies of "
        "its operations, and of all that it moves. Machine: a large matrix product in the same type, and a large copy, in "
        "the same rounds. Floor: the longer of the convolutions' operations and of their bytes at the machine's speeds."
    )
    return Table("The stem's floor", text, header, rows)


def _number(value: float | None, form: Callable[[float], str]) -> str:
    return "" if value is None else form(value)


def _times_text(ratio: float | None) -> str:
    return _number(ratio, "{:.2f}".format)
