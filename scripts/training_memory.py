"""Peak memory of one training step (forward, losses, backward): the dense detector against ESOD.

    python scripts/training_memory.py --cfg models/cfg/gpvit.yaml --img-size 1920 --kept 0.2 --json OUT

Each detector is built with random weights and makes its step in a process of its own, on random images with random
objects. ESOD trains on a random choice of the fixed grid's patches, as many as --kept says; what a trained heatmap
would choose does not matter for memory, only how much. The optimiser's own state is not included.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from models.build import build_model
from models.loss import DetectionLoss
from models.slicer import STRIDE, Patches, fixed_grid
from models.training_patches import MIN_PATCHES
from utils.cli import Parser, image_size, positive_int, probability, run_main
from utils.config import HypConfig, ModelConfig, SeekerConfig
from utils.dist import select_device
from utils.environment import environment_report
from utils.memory import MemoryUse, measure_memory
from utils.profile import count_parameters
from utils.typed_data import load_config

ROOT = Path(__file__).resolve().parent.parent
CASES = ("dense", "esod")
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
        name: "dense" or "esod".
        parameters: of the detector.
        patches: the deep part ran on, in the whole batch.
        kept: share of the map that they cover, 0–1.
        before_mib: in use before the step, weights among it.
        peak_mib: most in use during the step.
        step_mib: what the step needed on top: activations and gradients.
        seconds: of the step.
    """

    name: str
    parameters: int
    patches: int
    kept: float
    before_mib: float
    peak_mib: float
    step_mib: float
    seconds: float


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
        print(json.dumps(asdict(measure_case(args))))
        return
    cases = [run_case(name, words) for name in CASES]
    print(table(cases))
    if args.json is not None:
        args.json.write_text(json.dumps(report(args, words, cases), indent=2) + "\n", encoding="utf-8")


def build_parser() -> Parser:
    """The command line."""
    parser = Parser("Peak memory of one training step, dense against ESOD.")
    parser.add_argument("--cfg", type=Path, required=True, metavar="YAML", help="model")
    parser.add_argument("--img-size", type=image_size, default=1024, metavar="N", help="both sides, or HxW")
    parser.add_argument("--batch-size", type=positive_int, default=1, metavar="N", help="images per step")
    parser.add_argument(
        "--kept", type=probability, default=0.2, metavar="P", help="share of the patches that ESOD trains on"
    )
    parser.add_argument("--classes", type=positive_int, default=10, metavar="N", help="of the detector")
    parser.add_argument("--amp", choices=tuple(AMP), default="off", help="mixed precision")
    parser.add_argument("--device", default="", help="cpu or a GPU number (default: a GPU when there is one)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the numbers to this file")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    return parser


def run_case(name: str, words: Sequence[str]) -> Case:
    """Measure one case in a fresh process.

    Raises:
        CaseFailedError: it ended without a result.
    """
    command = [sys.executable, str(Path(__file__).resolve()), *words, "--case", name]
    environment = os.environ | CHILD_ENVIRONMENT
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        why = "killed, most likely for want of memory" if done.returncode < 0 else lines[-1]
        raise CaseFailedError(f"the {name} step did not finish: {why}")
    return Case(**json.loads(done.stdout.splitlines()[-1]))


def measure_case(args: argparse.Namespace) -> Case:
    """Build the detector, make a step on a tiny image, then the one that counts."""
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
    model = build_model(config).to(device).train()
    criterion = DetectionLoss(config, HypConfig()).to(device)
    select = None if args.case == "dense" else RandomPatches(args.kept, config.slicer.patches_per_side)
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
    hw = (args.img_size, args.img_size) if isinstance(args.img_size, int) else args.img_size
    batch = random_batch(hw, args.batch_size, args.classes, device)
    begin = time.perf_counter()
    use: MemoryUse = measure_memory(lambda: step(*batch), device)
    seconds = time.perf_counter() - begin
    height, width = last[0].size_cell
    cells = args.batch_size * (hw[0] // STRIDE) * (hw[1] // STRIDE)
    return Case(
        name=args.case,
        parameters=count_parameters(model),
        patches=len(last[0]),
        kept=len(last[0]) * height * width / cells,
        before_mib=use.before / MIB,
        peak_mib=use.peak / MIB,
        step_mib=use.growth / MIB,
        seconds=seconds,
    )


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
    """The printed table, and by how much the step shrank."""
    lines = [f"{'':<7}{'patches':>9}{'of map':>8}{'before MiB':>12}{'peak MiB':>10}{'step MiB':>10}{'s':>8}"]
    lines += [
        f"{c.name:<7}{c.patches:>9}{c.kept:>8.0%}{c.before_mib:>12.0f}{c.peak_mib:>10.0f}{c.step_mib:>10.0f}{c.seconds:>8.1f}"
        for c in cases
    ]
    return "\n".join([*lines, f"ESOD's step needs {step_ratio(cases):.0%} of the dense one's memory"])


def step_ratio(cases: Sequence[Case]) -> float:
    """Memory of the ESOD step / of the dense step."""
    by_name = {case.name: case.step_mib for case in cases}
    return by_name["esod"] / by_name["dense"]


def report(args: argparse.Namespace, words: Sequence[str], cases: Sequence[Case]) -> dict[str, object]:
    """What the JSON file holds."""
    return {
        "command": shlex.join(["python", "scripts/training_memory.py", *words]),
        "cfg": args.cfg.name,
        "image_size": args.img_size,
        "batch_size": args.batch_size,
        "amp": args.amp,
        "measured_on": str(select_device(args.device)),
        "cases": [asdict(case) for case in cases],
        "esod_step_over_dense_step": step_ratio(cases),
        "environment": environment_report(),
    }


if __name__ == "__main__":
    sys.exit(run_main(main))
