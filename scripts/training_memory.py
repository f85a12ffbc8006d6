"""Peak memory and time of a training step (forward, losses, backward): the dense detector against ESOD, image size by size.

    python scripts/training_memory.py --cfg models/cfg/gpvit.yaml --img-size 1920 --kept 0.2 --json OUT
    python scripts/training_memory.py --cfg models/cfg/yolov5m.yaml --img-size 1024 1536 --kept 0.4 \\
        --cases uniform esod esod-stem --repeats 3 --json OUT

Each detector is built with random weights and makes its steps in a process of its own, on random images with random
objects. Cases: dense; uniform (ESOD on every patch of the fixed grid); esod (a random choice of them, as many as --kept
says; what a trained heatmap would choose does not matter for the cost, only how much); esod-stem and esod-all (the same
with activations computed again, --checkpoint-activations). The optimiser's own state is not included.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from models.build import build_model
from models.loss import DetectionLoss
from models.slicer import STRIDE, Patches, fixed_grid
from models.training_patches import MIN_PATCHES
from utils.allocator import keep_freed_memory
from utils.cli import Parser, image_size, non_negative_int, positive_int, probability, run_main
from utils.config import HypConfig, ModelConfig, Recompute, SeekerConfig
from utils.dist import select_device
from utils.environment import measurement_head
from utils.files import write_json
from utils.logger import get_logger
from utils.memory import MemoryUse, measure_memory
from utils.profile import count_parameters
from utils.summary import quantile
from utils.typed_data import load_config

ROOT = Path(__file__).resolve().parent.parent
CASES = ("dense", "uniform", "esod", "esod-stem", "esod-all")
RECOMPUTE: dict[str, Recompute] = {"esod-stem": "stem", "esod-all": "all"}
AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
OBJECTS = 50
"""Per image."""
OBJECT_SIDE = 0.02
"""Of the image's sides."""
WARMUP_SIDE = 128
"""A first step on a tiny image loads what libraries load once."""
MIB = 2**20
CHILD_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""glibc: blocks above 128 KiB go back to the system when they are freed, instead of being kept for later."""


class CaseFailedError(RuntimeError):
    """A process that did not finish its step."""


@dataclass(frozen=True)
class Case:
    """One row: a detector and what its step took.

    Attributes:
        name: one of `CASES`.
        image_size: both sides in pixels, or height and width.
        parameters: of the detector.
        patches: the deep part ran on, in the whole batch.
        kept: share of the map that they cover, 0–1.
        before_mib: in use before the step, weights among it.
        peak_mib: most in use during the step.
        step_mib: what the step needed on top: activations and gradients.
        seconds: of the step whose memory was measured.
        repeated_s: of each further step.
    """

    name: str
    image_size: int | list[int]
    parameters: int
    patches: int
    kept: float
    before_mib: float
    peak_mib: float
    step_mib: float
    seconds: float
    repeated_s: list[float]

    @property
    def step_s(self) -> float:
        """Seconds of a step: the middle one of the repeated, or the only one."""
        return quantile(self.repeated_s or [self.seconds], 0.5)


@dataclass(frozen=True)
class RandomPatches:
    """Chooses a share of the fixed grid at random, the same number in every image, at least `MIN_PATCHES`."""

    share: float
    per_side: int

    def __call__(self, logits: Tensor) -> Patches:
        """Patches from heatmap logits [B, 1, H/8, W/8], whose values do not matter."""
        grid = fixed_grid(len(logits), (logits.shape[2], logits.shape[3]), self.per_side, logits.device)
        per_image = len(grid) // len(logits)
        count = max(round(self.share * per_image), MIN_PATCHES)
        generator = torch.Generator().manual_seed(0)
        order = [torch.randperm(per_image, generator=generator)[:count].sort().values for _ in logits]
        index = torch.cat([number * per_image + own for number, own in enumerate(order)]).to(logits.device)
        return Patches(grid.image_index[index], grid.xyxy_cell[index], grid.size_cell)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure each case in its process, print, write; or, in such a process, measure one."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    args = build_parser().parse_args(words)
    if args.case is not None:
        print(json.dumps(asdict(measure_case(args, args.size))))
        return
    cases: list[Case] = []
    failed: list[str] = []
    for size in args.img_size:
        for name in args.cases:
            try:
                cases.append(run_case(name, words, size))
            except CaseFailedError as error:
                if len(args.img_size) == 1:
                    raise
                failed.append(str(error))
                get_logger().warning(str(error))
    print(table(cases))
    if args.json is not None:
        content = report(args, words, cases, failed)
        write_json(args.json, content)


EXAMPLES = (
    "python scripts/training_memory.py --cfg models/cfg/gpvit.yaml --img-size 1024 --kept 0.2 --json memory.json",
)
"""Shown at the end of ``--help``."""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser("Peak memory and time of a training step, dense against ESOD.", examples=EXAMPLES)
    parser.add_argument("--cfg", type=Path, required=True, metavar="YAML", help="model")
    parser.add_argument(
        "--img-size",
        type=image_size,
        nargs="+",
        default=[1024],
        metavar="N",
        help="both sides, or HxW; any number",
    )
    parser.add_argument(
        "--cases",
        choices=CASES,
        nargs="+",
        default=["dense", "esod"],
        help="to measure; others are put beside the first",
    )
    parser.add_argument(
        "--repeats", type=non_negative_int, default=0, metavar="N", help="further steps, for their time"
    )
    parser.add_argument(
        "--threads", type=positive_int, metavar="N", help="of PyTorch (default: as it chooses)"
    )
    parser.add_argument("--batch-size", type=positive_int, default=1, metavar="N", help="images per step")
    parser.add_argument(
        "--kept", type=probability, default=0.2, metavar="P", help="share of the patches that ESOD trains on"
    )
    parser.add_argument("--classes", type=positive_int, default=10, metavar="N", help="of the detector")
    parser.add_argument("--amp", choices=tuple(AMP), default="off", help="mixed precision")
    parser.add_argument("--device", default="", help="cpu or a GPU number (default: a GPU when there is one)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the numbers to this file")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=image_size, help=argparse.SUPPRESS)
    return parser


def run_case(name: str, words: Sequence[str], size: int | tuple[int, int] = 1024) -> Case:
    """Measure one case in a fresh process.

    Raises:
        CaseFailedError: it ended without a result.
    """
    command = [sys.executable, str(Path(__file__).resolve()), *words, "--case", name]
    command += ["--size", str(size) if isinstance(size, int) else "x".join(map(str, size))]
    environment = os.environ | CHILD_ENVIRONMENT
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        why = "killed, most likely for want of memory" if done.returncode < 0 else lines[-1]
        raise CaseFailedError(f"the {name} step at {size} did not finish: {why}")
    return Case(**json.loads(done.stdout.splitlines()[-1]))


def measure_case(args: argparse.Namespace, size: int | tuple[int, int]) -> Case:
    """Build the detector, make a step on a tiny image, then the one whose memory counts, then those that are timed."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = select_device(args.device)
    config = replace(load_config(ModelConfig, args.cfg), num_classes=args.classes, names=[])
    if args.case == "dense":
        config = replace(
            config,
            seeker=SeekerConfig(kind="none"),
            slicer=replace(config.slicer, algorithm="none"),
            head=replace(config.head, sparse=False),
        )
    torch.manual_seed(0)
    model = build_model(config).train()
    model.recompute = RECOMPUTE.get(args.case, "none")
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    criterion = DetectionLoss(config, HypConfig()).to(device)
    share = 1.0 if args.case == "uniform" else args.kept
    select = None if args.case == "dense" else RandomPatches(share, config.slicer.patches_per_side)
    last: list[Patches] = []
    precision = AMP[args.amp]
    autocast = torch.autocast(device.type, precision) if precision is not None else contextlib.nullcontext()

    def step(images: Tensor, targets: Tensor, heatmaps: Tensor) -> None:
        with autocast:
            output = model(images, select)
            loss = criterion(output, targets, heatmaps)["total"]
        loss.backward()
        last[:] = [output.patches]

    step(*random_batch((WARMUP_SIDE, WARMUP_SIDE), args.batch_size, args.classes, device))
    model.zero_grad(set_to_none=True)
    hw = (size, size) if isinstance(size, int) else size
    batch = random_batch(hw, args.batch_size, args.classes, device)
    begin = time.perf_counter()
    use: MemoryUse = measure_memory(lambda: step(*batch), device)
    seconds = time.perf_counter() - begin
    keep_freed_memory(whatever_is_set=True)  # as train.py does: the time of its steps is asked for
    repeated = [timed(lambda: step(*batch), device) for _ in range(args.repeats)]
    height, width = last[0].size_cell
    cells = args.batch_size * (hw[0] // STRIDE) * (hw[1] // STRIDE)
    return Case(
        name=args.case,
        image_size=size if isinstance(size, int) else list(size),
        parameters=count_parameters(model),
        patches=len(last[0]),
        kept=len(last[0]) * height * width / cells,
        before_mib=use.before / MIB,
        peak_mib=use.peak / MIB,
        step_mib=use.growth / MIB,
        seconds=seconds,
        repeated_s=repeated,
    )


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of a computation, to its end on the device."""
    begin = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def random_batch(
    input_hw: tuple[int, int], batch: int, classes: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Images [B,3,H,W] in 0–1 (channels last, as in training), targets [T, 6]_norm, label heatmaps [B,1,H/8,W/8]."""
    generator = torch.Generator().manual_seed(1)
    height, width = input_hw
    images = torch.rand(batch, 3, height, width, generator=generator)
    count = batch * OBJECTS
    image = torch.arange(batch).repeat_interleave(OBJECTS).unsqueeze(1)
    label = torch.randint(classes, (count, 1), generator=generator)
    centre = torch.rand(count, 2, generator=generator) * (1 - OBJECT_SIDE) + OBJECT_SIDE / 2
    targets = torch.cat((image, label, centre, torch.full((count, 2), OBJECT_SIDE)), dim=1)
    heatmaps = torch.zeros(batch, 1, height // STRIDE, width // STRIDE)
    row, column = centre[:, 1] * heatmaps.shape[2], centre[:, 0] * heatmaps.shape[3]
    heatmaps[image.squeeze(1), 0, row.long(), column.long()] = 1.0
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    return images, targets.to(device), heatmaps.to(device)


def table(cases: Sequence[Case]) -> str:
    """The printed table; memory and time are also given as shares of those of the first case at the same size."""
    head = (
        f"{'size':<10}{'case':<11}{'patches':>8}{'of map':>8}{'step MiB':>10}{'share':>7}{'s':>8}{'share':>7}"
    )
    lines = [head]
    for case in cases:
        memory, seconds = shares(case, cases)
        size = (
            "x".join(map(str, case.image_size)) if isinstance(case.image_size, list) else str(case.image_size)
        )
        lines.append(
            f"{size:<10}{case.name:<11}{case.patches:>8}{case.kept:>8.0%}{case.step_mib:>10.0f}{memory:>7.2f}"
            f"{case.step_s:>8.2f}{seconds:>7.2f}"
        )
    return "\n".join(lines)


def shares(case: Case, cases: Sequence[Case]) -> tuple[float, float]:
    """Memory and time of a case's step over those of the first case at its image size."""
    first = next(other for other in cases if other.image_size == case.image_size)
    return case.step_mib / first.step_mib, case.step_s / first.step_s


def report(
    args: argparse.Namespace, words: Sequence[str], cases: Sequence[Case], failed: Sequence[str]
) -> dict[str, object]:
    """What the JSON file holds."""
    rows = [(case, *shares(case, cases)) for case in cases]
    return {
        **measurement_head("scripts/training_memory.py", words, select_device(args.device)),
        "cfg": args.cfg.name,
        "batch_size": args.batch_size,
        "amp": args.amp,
        "cases": [
            asdict(case) | {"memory_share": memory, "time_share": seconds} for case, memory, seconds in rows
        ],
        "failed": list(failed),
    }


if __name__ == "__main__":
    sys.exit(run_main(main))
