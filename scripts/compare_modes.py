"""Does a faster mode find the same? AP of the plain network, of the fast ones, and the differences.

    python scripts/compare_modes.py --weights runs/train/exp/weights/best.pt --data data/visdrone_subset.yaml \\
        --img-size 1536 --modes plain fast bf16 --json docs/results/compare_modes.json

plain: float32, eager, BatchNorm not folded, contiguous memory; fast: what test.py and detect.py do; bf16 and fp16: what
--half may do, here whether the device is good at it or not. Ends with status 1 when a mode differs by more than it may:
0.02 AP in float32, 0.1 in 16 bits (percent).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from engine.evaluation import evaluate
from engine.inference import load_in_mode
from engine.loaders import evaluation_loader
from engine.modes import FAST, PLAIN, Mode
from models.decode import PostprocessConfig
from utils.cli import Parser, image_size, positive_int, run_main
from utils.config import DatasetConfig
from utils.dist import select_device
from utils.environment import measurement_head
from utils.files import write_json
from utils.typed_data import ConfigError, load_config

MODES = {
    "plain": PLAIN,
    "fast": FAST,
    "compiled": Mode("compiled", compiled=True),
    "graphs": Mode("graphs", graphs=True),
    "bf16": Mode("bf16", torch.bfloat16),
    "fp16": Mode("fp16", torch.float16),
    "fp16-graphs": Mode("fp16-graphs", torch.float16, graphs=True),
}
ALLOWED = {torch.float32: 0.02, torch.bfloat16: 0.1, torch.float16: 0.1}
"""Percentage points of AP by which a mode may differ from plain."""


@dataclass(frozen=True)
class ModeScore:
    """What a mode reaches: percent; difference to plain, and the one that is allowed."""

    mode: str
    ap: float
    ap50: float
    difference: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether it differs by no more than it may."""
        return abs(self.difference) <= self.allowed


def main(arguments: Sequence[str] | None = None) -> int:
    """Test every mode, print the table, write the file; 1 when one differs too much."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    args = build_parser().parse_args(words)
    device = select_device(args.device)
    dataset = load_config(DatasetConfig, args.data)
    scores: list[ModeScore] = []
    for name in dict.fromkeys(["plain", *args.modes]):
        detector = load_in_mode(args.weights, MODES[name], device)
        if len(detector.names) != dataset.nc:
            raise ConfigError(
                f"the model knows {len(detector.names)} classes, the dataset has {dataset.nc}: give the one it is for"
            )
        loader = evaluation_loader(
            dataset, args.data, "val", args.img_size, args.batch_size, args.workers, single_class=False
        )
        post = PostprocessConfig(0.001, 0.6, multi_label=True)
        found = evaluate(
            detector.model, loader, dataset.names, post, device, progress=True, runner=detector.runner
        )
        assert found is not None  # one process
        ap, ap50 = (100 * (value or 0.0) for value in (found.detection.ap, found.detection.ap50))
        plain = scores[0].ap if scores else ap
        scores.append(ModeScore(name, ap, ap50, ap - plain, ALLOWED[MODES[name].dtype]))
        print(line(scores[-1]), flush=True)
    if args.json is not None:
        content = {
            **measurement_head("scripts/compare_modes.py", words, device),
            "modes": [asdict(score) | {"holds": score.holds} for score in scores],
        }
        write_json(args.json, content)
    return 0 if all(score.holds for score in scores) else 1


def line(score: ModeScore) -> str:
    """A mode in words."""
    verdict = "" if score.mode == "plain" else f", {score.difference:+.3f} (at most {score.allowed:g})"
    return f"{score.mode}: AP {score.ap:.3f}, AP50 {score.ap50:.3f}{verdict}"


EXAMPLES = (
    "python scripts/compare_modes.py --weights runs/train/exp/weights/best.pt --data data/visdrone.yaml --img-size 1536",
)
"""Shown at the end of ``--help``."""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser("AP of a model in several modes of computing.", examples=EXAMPLES)
    parser.add_argument(
        "--weights", default="weights/sample_yolov5n.pt", metavar="PT", help="checkpoint to test"
    )
    parser.add_argument(
        "--data", default="data/sample.yaml", metavar="YAML", help="dataset, of which val is taken"
    )
    parser.add_argument(
        "--img-size",
        "--imgsz",
        type=image_size,
        default=1536,
        metavar="N",
        help="longer side, or HEIGHTxWIDTH",
    )
    parser.add_argument(
        "--modes", choices=list(MODES), nargs="+", default=["plain", "fast"], help="to compare"
    )
    parser.add_argument("--batch-size", type=positive_int, default=4, metavar="N", help="images per batch")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="data loading processes")
    parser.add_argument("--device", default="", help="cpu or a GPU number (default: a GPU when there is one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
    return parser


if __name__ == "__main__":
    sys.exit(run_main(main))
