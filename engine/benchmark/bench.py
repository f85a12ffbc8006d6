"""All cases of a benchmark, interleaved: every round runs each of them once, in an order of its own."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from engine.benchmark.counting import (
    MachineTest,
    gflops_by_stage,
    machine_tests,
    moved_by_convolutions,
    traffic,
)
from engine.benchmark.heatmaps import given_logits, kept_share
from engine.benchmark.results import STAGES, CaseResult, Failure, MachineSpeed, StemCost
from engine.benchmark.variants import Prepared, benchmark_config, prepare
from engine.modes import Mode
from models.decode import PostprocessConfig, decode, postprocess
from models.esod import ESOD, NO_TIMER, ESODOutput
from models.slicer import STRIDE
from utils.boxes import Letterbox
from utils.profile import StageTimer, count_parameters

DECIMALS = 4
"""Of milliseconds in the results: a tenth of a microsecond."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        sizes: heights and widths of the network input.
        batches: images per pass.
        kept: shares of the map, 0–1.
        heads: "dense", "sparse".
        rounds, warmup: counted, and before them not counted.
        candidates: boxes per image that reach the suppression, where there are so many; decides the threshold.
        peaks: objects per kept patch.
        seed: of images, heatmaps and the order of the cases.
        seconds: no round begins later than this after the measuring began; None: all are run.
    """

    sizes: list[tuple[int, int]]
    batches: list[int]
    kept: list[float]
    heads: list[Literal["dense", "sparse"]]
    rounds: int
    warmup: int
    candidates: int
    peaks: int
    seed: int
    seconds: float | None = None


@dataclass(frozen=True)
class Case:
    """One thing to time; ``kept`` is None for the dense twin."""

    variant: str
    input_hw: tuple[int, int]
    batch: int
    kept: float | None
    head: Literal["dense", "sparse"]


def cases_of(plan: Plan, variants: Sequence[str]) -> list[Case]:
    """Every case, in the order of the report. Nothing kept leaves a sparse head nothing to leave out."""
    found = []
    for size, batch, variant in product(plan.sizes, plan.batches, variants):
        found.append(Case(variant, size, batch, None, "dense"))
        for kept, head in product(plan.kept, plan.heads):
            if kept > 0 or head == plan.heads[0]:
                found.append(Case(variant, size, batch, kept, head))
    return found


@dataclass(frozen=True)
class _Counts:
    """Patches per image, the head's share of their positions, GFLOPs per image by stage, and the 10⁹ bytes of the
    batch's convolutions in float32."""

    patches: int
    positions: float
    gflops: dict[str, float]
    conv_gb: float


class Bench:
    """The prepared variants of one network, and what they are fed with."""

    def __init__(self, model: ESOD, variants: Sequence[Mode], plan: Plan, device: torch.device) -> None:
        self.plan, self.device = plan, device
        self.configs = {
            head: benchmark_config(model.config, head == "sparse") for head in ("dense", *plan.heads)
        }
        self.prepared = {variant.name: prepare(model, variant, device) for variant in variants}
        seeker = 0 if model.seeker is None else count_parameters(model.seeker)
        # Before folding, which takes the numbers of BatchNorm away.
        self.parameters = {"esod": count_parameters(model), "dense": count_parameters(model) - seeker}
        # What is counted (operations, positions) must run eagerly.
        eager = [ready for ready in self.prepared.values() if ready.variant.counts]
        self.counting = eager[0] if eager else prepare(model, Mode("counted"), device)
        self.images: dict[tuple[str, tuple[int, int], int], Tensor] = {}
        self.logits: dict[tuple[str, tuple[int, int], int, float], Tensor] = {}
        self.thresholds: dict[Case, float] = {}
        self.counts: dict[Case, _Counts] = {}
        self.failures: list[Failure] = []

    def forward(self, ready: Prepared, case: Case, timer: StageTimer = NO_TIMER) -> ESODOutput:
        """The network's pass of a case, by a variant."""
        images = self._images(ready, case)
        if case.kept is None:
            return ready.dense(images, timer=timer, runner=ready.given)  # type: ignore[no-any-return]
        ready.esod.config = self.configs[case.head]
        ready.given.logits = self._logits(ready, case)
        return ready.esod(images, timer=timer, runner=ready.given)  # type: ignore[no-any-return]

    @torch.inference_mode()
    def run(self, case: Case, timer: StageTimer = NO_TIMER) -> ESODOutput:
        """A case from images on the device to detections."""
        ready = self.prepared[case.variant]
        output = self.forward(ready, case, timer)
        letterboxes = [Letterbox.fit(case.input_hw, case.input_hw)] * case.batch
        with timer.stage("nms"):
            config = PostprocessConfig(conf_thres=self.thresholds[case])
            postprocess(output, ready.esod.head.coder, letterboxes, config)
        return output

    def feed(self, ready: Prepared, case: Case) -> None:
        """Make the inputs of a case, so that its first pass needs nothing else."""
        self._images(ready, case)
        if case.kept is not None:
            self._logits(ready, case)

    def _images(self, ready: Prepared, case: Case) -> Tensor:
        key = (ready.variant.name, case.input_hw, case.batch)
        if key not in self.images:
            generator = torch.Generator().manual_seed(self.plan.seed)
            images = torch.rand(case.batch, 3, *case.input_hw, generator=generator).to(self.device)
            self.images[key] = ready.images(images)
        return self.images[key]

    def _logits(self, ready: Prepared, case: Case) -> Tensor:
        assert case.kept is not None
        key = (ready.variant.name, case.input_hw, case.batch, case.kept)
        if key not in self.logits:
            map_hw = (case.input_hw[0] // STRIDE, case.input_hw[1] // STRIDE)
            config, plan = self.configs["dense"], self.plan
            logits = given_logits(config, case.batch, map_hw, case.kept, plan.peaks, plan.seed)
            self.logits[key] = logits.to(self.device, ready.variant.dtype)
        return self.logits[key]

    @torch.inference_mode()
    def describe(self, case: Case) -> CaseResult:
        """A case without times; also its first pass, and how its threshold is found."""
        counts = self._count(case)
        candidates = self._choose_threshold(case)
        map_hw = (case.input_hw[0] // STRIDE, case.input_hw[1] // STRIDE)
        per_side = self.configs["dense"].slicer.patches_per_side
        return CaseResult(
            variant=case.variant,
            mode="dense" if case.kept is None else "esod",
            input_hw=list(case.input_hw),
            batch=case.batch,
            kept_asked=1.0 if case.kept is None else case.kept,
            kept=1.0 if case.kept is None else kept_share(map_hw, per_side, counts.patches),
            patches=counts.patches,
            head=case.head,
            positions=counts.positions,
            candidates=candidates,
            gflops=dict(counts.gflops),
            conv_gb=counts.conv_gb * self.prepared[case.variant].variant.dtype.itemsize / 4,
        )

    def _count(self, case: Case) -> _Counts:
        """What an eager pass does, which all variants do."""
        key = replace(case, variant="")
        if key not in self.counts:
            output = self.forward(self.counting, case)
            images = self._images(self.counting, case)
            model = self.counting.dense if case.kept is None else self.counting.esod
            patches = len(output.patches)
            everywhere = sum(patches * level.grid_hw[0] * level.grid_hw[1] for level in output.levels)
            computed = sum(len(level.position) for level in output.levels)
            self.counts[key] = _Counts(
                patches=patches // case.batch,
                positions=computed / everywhere if everywhere else 0.0,
                gflops=gflops_by_stage(model, images, self.counting.given),
                conv_gb=moved_by_convolutions(lambda: self.forward(self.counting, case))
                * 4
                / self.counting.variant.dtype.itemsize,
            )
        return self.counts[key]

    def _choose_threshold(self, case: Case) -> int:
        """Set the confidence above which about the planned number of boxes lie; returns how many do."""
        ready = self.prepared[case.variant]
        decoded = decode(self.forward(ready, case), ready.esod.head.coder)
        best = decoded.objectness * decoded.class_prob.amax(dim=1)
        wanted = min(self.plan.candidates * case.batch, len(best))
        if wanted == 0:
            self.thresholds[case] = 0.25
            return 0
        self.thresholds[case] = float(best.topk(wanted).values[-1])
        return int((best > self.thresholds[case]).sum())

    def stems(self) -> list[StemCost]:
        """What the stems of the eager variants compute and move."""
        found = []
        for ready in self.prepared.values():
            if not ready.variant.counts:
                continue
            for size, batch in product(self.plan.sizes, self.plan.batches):
                images = self._images(ready, Case(ready.variant.name, size, batch, None, "dense"))
                cost = traffic(ready.esod.stem, images)
                found.append(
                    StemCost(ready.variant.name, list(size), batch, cost.gflops, cost.conv_gb, cost.moved_gb)
                )
        return found


@dataclass
class Measured:
    """What `measure` found; see `engine.benchmark.results`."""

    cases: list[CaseResult]
    stems: list[StemCost]
    machine: list[MachineSpeed]
    failures: list[Failure]


def measure(bench: Bench, tell: Callable[[str], object]) -> Measured:
    """Run all cases in rounds, after a first pass of each that is looked at, and rounds that are not counted.

    Args:
        bench: the variants.
        tell: is given lines of progress.
    """
    plan, started = bench.plan, time.perf_counter()
    described: dict[Case, CaseResult] = {}
    for case in cases_of(plan, list(bench.prepared)):
        if any(failure.variant == case.variant for failure in bench.failures):
            continue
        try:
            described[case] = bench.describe(case)
        except compiler_errors() as error:
            if bench.prepared[case.variant].variant.counts:
                raise
            why = str(error).strip().splitlines() or [type(error).__name__]
            bench.failures.append(Failure(case.variant, f"{type(error).__name__}: {why[0]}"))
            tell(f"{case.variant} does not run here: {why[0]}")
    failed = {failure.variant for failure in bench.failures}
    described = {case: result for case, result in described.items() if case.variant not in failed}
    dtypes = list(dict.fromkeys(bench.prepared[case.variant].variant.dtype for case in described))
    tests = machine_tests(dtypes, bench.device)
    speeds = [MachineSpeed(test.name, test.unit) for test in tests]
    order = random.Random(plan.seed)
    for number in range(plan.warmup + plan.rounds):
        counted = number >= plan.warmup
        began = time.perf_counter()
        if number > plan.warmup and plan.seconds is not None and began - started > plan.seconds:
            break
        shuffled = list(described)
        # In a fixed order every case would always come behind the same other one, and find its caches.
        order.shuffle(shuffled)
        for case in shuffled:
            time_case(bench, case, described[case] if counted else None)
        for test, speed in zip(tests, speeds, strict=True):
            value = _speed(test, bench.device)
            if counted:
                speed.per_round.append(round(value, 1))
        name = f"round {number - plan.warmup + 1}" if counted else "warm-up"
        tell(f"{name} of {plan.rounds}: {len(described)} cases, {time.perf_counter() - began:.1f} s")
    return Measured(list(described.values()), bench.stems(), speeds, bench.failures)


def compiler_errors() -> tuple[type[Exception], ...]:
    """What torch.compile raises where it does not work: no compiler, an operation it cannot do, too many shapes."""
    from torch._dynamo.exc import FailOnRecompileLimitHit

    return RuntimeError, OSError, ImportError, FailOnRecompileLimitHit


def time_case(bench: Bench, case: Case, result: CaseResult | None) -> None:
    """Run a case once, and on a GPU a second time by stages; None: do not count."""
    whole, stages = StageTimer(bench.device), StageTimer(bench.device, waiting=False)
    if bench.device.type == "cuda":
        # Noting the time at every stage costs the host something, so stages are timed in a pass of their own.
        with whole.frame(case.batch):
            bench.run(case)
    with stages.frame(case.batch):
        bench.run(case, stages)
    if result is None:
        return
    total = whole if bench.device.type == "cuda" else stages
    result.total_ms.append(round(total.frame_ms[-1], DECIMALS))
    for name, times in sorted(stages.stage_ms.items(), key=lambda item: STAGES.index(item[0])):
        result.stages_ms.setdefault(name, []).append(round(times[-1], DECIMALS))


def _speed(test: MachineTest, device: torch.device) -> float:
    """Amount per second of one run."""
    timer = StageTimer(device)
    with timer.frame():
        test.run()
    return test.amount / (timer.frame_ms[-1] / 1e3)
