"""Figures derived from the raw times of a benchmark: speed-ups, what is lost between operations and time, the floor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from engine.benchmark.results import (
    DEEP_STAGES,
    FORWARD_STAGES,
    BenchmarkResult,
    CaseResult,
    StemCost,
    median,
)

YARDSTICK = "plain"

Setting = tuple[tuple[int, ...], int]
"""Input height and width, and batch."""


class Figures:
    """Looks up and divides what a `BenchmarkResult` holds. Ratios whose other half was not measured are None."""

    def __init__(self, result: BenchmarkResult) -> None:
        self.result = result

    @property
    def settings(self) -> list[Setting]:
        """Every input size and batch, in the order of measuring."""
        return list(dict.fromkeys(case.setting for case in self.result.cases))

    @property
    def variants(self) -> list[str]:
        """In the order of measuring."""
        return list(dict.fromkeys(case.variant for case in self.result.cases))

    def cases(
        self, setting: Setting, variant: str | None = None, mode: str | None = None
    ) -> Iterator[CaseResult]:
        """Those of a setting, of a variant and a mode where given."""
        for case in self.result.cases:
            if case.setting == setting and variant in (None, case.variant) and mode in (None, case.mode):
                yield case

    def dense(self, setting: Setting, variant: str) -> CaseResult | None:
        """The dense twin of a variant."""
        return next(self.cases(setting, variant, "dense"), None)

    def like(self, case: CaseResult, **changes: object) -> CaseResult | None:
        """The ESOD case that differs from another in what is named only: variant, batch or head."""
        wanted = {
            name: getattr(case, name)
            for name in ("variant", "input_hw", "batch", "mode", "kept_asked", "head")
        }
        wanted |= changes
        for other in self.result.cases:
            if all(getattr(other, name) == value for name, value in wanted.items()):
                return other
        return None

    def against_plain(self, case: CaseResult) -> float | None:
        """Time of the yardstick at the same share and with the same head / time of this case."""
        return _ratio(self.like(case, variant=YARDSTICK), case)

    def against_dense(self, case: CaseResult) -> float | None:
        """Time of the yardstick's dense twin / time of this case."""
        return _ratio(self.dense(case.setting, YARDSTICK), case)

    def kept_efficiency(self, case: CaseResult) -> float | None:
        """(time without stem and seeker) / (share of operations behind the seeker · the dense twin's time there).

        In the same variant. 1: no time is lost between operations and time; None where nothing is kept.
        """
        dense = self.dense(case.setting, case.variant)
        if dense is None or case.mode != "esod" or case.patches == 0:
            return None
        share = case.gflops_of(*DEEP_STAGES) / dense.gflops_of(*DEEP_STAGES)
        return case.stage(*DEEP_STAGES) / (share * dense.stage(*DEEP_STAGES))

    def batch_efficiency(self, case: CaseResult) -> float | None:
        """Time of a batch / (images · time of a batch of one)."""
        one = self.like(case, batch=1)
        return None if one is None else median(case.total_ms) / (case.batch * median(one.total_ms))

    def flop_limit(self, setting: Setting, variant: str) -> tuple[float, float] | None:
        """Milliseconds at nothing kept, and what the whole map adds: stem + seeker, and the dense twin behind them.

        What a share r of the map must cost, if cost is proportional to operations, is the first + r · the second.
        """
        dense = self.dense(setting, variant)
        paid = [ms for case in self.cases(setting, variant, "esod") for ms in case.rounds("stem", "seeker")]
        if dense is None or not paid:
            return None
        return median(paid), dense.stage(*DEEP_STAGES)

    def floor(self, case: CaseResult) -> float | None:
        """Milliseconds below which the network's pass cannot come, layer by layer as it is.

        The longer of: the operations of its convolutions at the speed of a matrix product, their bytes at that of a copy.
        """
        speeds = self._machine(f"matmul {self._dtype(case.variant)}"), self._machine("copy")
        if speeds[0] is None or speeds[1] is None:
            return None
        return 1e3 * max(case.batch * sum(case.gflops.values()) / speeds[0], case.conv_gb / speeds[1])

    def stem_floor(self, cost: StemCost) -> StemFloor:
        """What a stem needs beside what the machine reaches in the same rounds."""
        setting = (tuple(cost.input_hw), cost.batch)
        times = [ms for case in self.cases(setting, cost.variant) for ms in case.rounds("stem")]
        seconds = median(times) / 1e3
        copied = self._machine("copy")
        multiplied = self._machine(f"matmul {self._dtype(cost.variant)}")
        needed = [
            amount / speed
            for amount, speed in ((cost.conv_gb, copied), (cost.gflops, multiplied))
            if speed is not None
        ]
        return StemFloor(
            ms=seconds * 1e3,
            gflops_s=cost.gflops / seconds,
            gb_s=cost.moved_gb / seconds,
            machine_gflops_s=multiplied,
            machine_gb_s=copied,
            floor_ms=max(needed) * 1e3 if needed else None,
        )

    def _machine(self, name: str) -> float | None:
        return next((median(speed.per_round) for speed in self.result.machine if speed.name == name), None)

    def _dtype(self, variant: str) -> str:
        name = variant.partition("-")[0]
        return {"bf16": "bfloat16", "fp16": "float16"}.get(name, "float32")


@dataclass(frozen=True)
class StemFloor:
    """A stem's time, the speeds that it implies, and those of the machine at nothing but that.

    Attributes:
        ms: median over all rounds and cases.
        gflops_s, gb_s: operations of the convolutions, and bytes that all operations move, over that time.
        machine_gflops_s, machine_gb_s: of a matrix product in the same type, and of a copy.
        floor_ms: the longer of: the convolutions' operations at the machine's, their bytes at the machine's speed.
    """

    ms: float
    gflops_s: float
    gb_s: float
    machine_gflops_s: float | None
    machine_gb_s: float | None
    floor_ms: float | None


def forward_ms(case: CaseResult) -> float:
    """Median milliseconds of the network alone, by stages."""
    return case.stage(*FORWARD_STAGES)


def choosing(case: CaseResult) -> tuple[float, float]:
    """Milliseconds of slicing and gathering, and their share of the network's time."""
    ms = case.stage("slicer", "gather")
    return ms, ms / forward_ms(case)


def _ratio(reference: CaseResult | None, case: CaseResult) -> float | None:
    return None if reference is None else median(reference.total_ms) / median(case.total_ms)
