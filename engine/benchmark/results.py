"""What a benchmark measured, as plain data: the JSON file and back. Raw times only; see derived.py for figures."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from utils.files import write_json
from utils.summary import quantile
from utils.typed_data import ConfigError, config_from_dict, config_to_dict

FORMAT = 1
DEEP_STAGES = ("slicer", "gather", "tokens", "deep", "head")
"""What ESOD pays for the kept share; the dense twin has the same stages on the whole map, those of choosing empty."""
FORWARD_STAGES = ("stem", "seeker", *DEEP_STAGES)
STAGES = (*FORWARD_STAGES, "nms")


@dataclass(frozen=True)
class Memory:
    """Of one case's first forward pass in a process of its own, in MiB: in use before it, and most in use during it."""

    before_mib: float
    peak_mib: float


@dataclass
class CaseResult:
    """One case: a variant on a batch of one size with a given share of the map kept.

    Attributes:
        variant: see `engine.benchmark.variants`.
        mode: with patches, or the dense twin without seeker.
        input_hw: height and width of the network input.
        batch: images.
        kept_asked, kept: share of the map: what was asked for, and the area of the patches over that of the map.
        patches: per image.
        head: everywhere on the patches, or at some positions.
        positions: of the positions of the patches, the share that the head computes.
        candidates: boxes above the confidence threshold before suppression, in the batch.
        gflops: per image and stage, of an eager pass, a multiply-accumulate counting two.
        total_ms: of each round, the batch from images on the device to detections, without waiting in between.
        stages_ms: of each round by stage; on a CPU of the same pass as total_ms, on a GPU of another, by the device's
            own clock.
        memory: None when it was not measured.
        conv_gb: 10⁹ bytes that the convolutions and matrix products of the batch read and write, each tensor once.
    """

    variant: str
    mode: Literal["dense", "esod"]
    input_hw: list[int]
    batch: int
    kept_asked: float
    kept: float
    patches: int
    head: Literal["dense", "sparse"]
    positions: float
    candidates: int
    gflops: dict[str, float]
    total_ms: list[float] = field(default_factory=list)
    stages_ms: dict[str, list[float]] = field(default_factory=dict)
    memory: Memory | None = None
    conv_gb: float = 0.0

    @property
    def setting(self) -> tuple[tuple[int, ...], int]:
        """Input size and batch: what a table is about."""
        return tuple(self.input_hw), self.batch

    def spread_ms(self) -> tuple[float, float, float]:
        """Median and quartiles of the total."""
        return median(self.total_ms), quantile(self.total_ms, 0.25), quantile(self.total_ms, 0.75)

    def stage(self, *names: str) -> float:
        """Median over the rounds of the milliseconds of some stages together; those that did not run count 0."""
        return median(self.rounds(*names))

    def rounds(self, *names: str) -> list[float]:
        """Milliseconds of some stages together in each round."""
        columns = [self.stages_ms[name] for name in names if name in self.stages_ms]
        return [sum(column[number] for column in columns) for number in range(len(self.total_ms))]

    def gflops_of(self, *names: str) -> float:
        """GFLOPs per image of some stages together."""
        return sum(self.gflops.get(name, 0.0) for name in names)


@dataclass(frozen=True)
class StemCost:
    """What the stem of a variant must compute and move, for a batch.

    Attributes:
        gflops: of its convolutions.
        conv_gb: 10⁹ bytes that its convolutions read and write, each tensor once: the least without fusing layers.
        moved_gb: 10⁹ bytes that all its operations read and write, if nothing stayed in a cache.
    """

    variant: str
    input_hw: list[int]
    batch: int
    gflops: float
    conv_gb: float
    moved_gb: float


@dataclass
class MachineSpeed:
    """What the machine reaches at one thing in the same rounds.

    Attributes:
        name: "copy", or "matmul" and the type.
        unit: of the speed.
        per_round: speed in each round; more is better.
    """

    name: str
    unit: str
    per_round: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Failure:
    """A variant that does not run here, and why."""

    variant: str
    why: str


@dataclass
class BenchmarkResult:
    """Everything of one run.

    Attributes:
        format: of the file.
        command: that made it.
        model: configuration or weights file.
        settings: options, device, threads, load of the machine.
        environment: see `utils.environment`.
        parameters: of the network with its seeker, and of the dense twin.
        cases, stems, machine, failures: see there.
    """

    format: int
    command: str
    model: str
    settings: dict[str, str | int | float | bool | None]
    environment: dict[str, str | int | bool | None]
    parameters: dict[str, int]
    cases: list[CaseResult]
    stems: list[StemCost]
    machine: list[MachineSpeed]
    failures: list[Failure]

    def write(self, path: Path) -> None:
        """Write the JSON file."""
        write_json(path, config_to_dict(self))

    @classmethod
    def read(cls, path: Path) -> BenchmarkResult:
        """Read what `write` wrote.

        Raises:
            ConfigError: it is something else; the message says where.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{path}: not readable as JSON: {error}") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ConfigError(f"{path}: not a result of scripts/benchmark.py in format {FORMAT}")
        try:
            return config_from_dict(cls, data, str(path))
        except TypeError as error:  # a key is missing
            raise ConfigError(f"{path}: incomplete: {error}") from error


def median(values: list[float]) -> float:
    """Of at least one number."""
    return quantile(values, 0.5)
