"""How strongly each loss pulls at each part of a model: gradient norms over a few training batches. Changes nothing.

    python scripts/loss_gradients.py --data data/visdrone.yaml --cfg models/cfg/yolov5s.yaml --weights W --rect

The stem serves the heatmap and the detector; a loss whose gradient there is many times the others' decides alone
what it learns. The norm of all, of the detector (all but the seeker) and of the seeker, tells whether steps are shortened
(`engine.training.GRADIENT_LIMIT`). Use it to set the weights in a hyp file.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from engine.setup import TrainingRun, build_run
from engine.training import GRADIENT_LIMIT, StepSettings, prepare
from models.esod import ESOD
from models.training_patches import training_selector
from utils.cli import Parser, image_size, positive_int, run_main
from utils.config import HypConfig, ModelOverrides, TrainConfig
from utils.dist import DistInfo, select_device
from utils.typed_data import load_config

EXAMPLES = (
    "python scripts/loss_gradients.py --data data/sample.yaml --cfg models/cfg/yolov5n.yaml --weights weights/sample_yolov5n.pt --rect",
)
"""Shown at the end of ``--help``."""


ALL = "all"
DETECTOR = "detector"
PARTS = ("stem", "tokens", "deep", "neck", "head", "seeker", DETECTOR)
"""Of a model, by the names of its modules; and all but the seeker."""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(
        "Print the gradient norm of each loss in each part of a model, over a few training batches.",
        examples=EXAMPLES,
    )
    parser.add_argument("--data", required=True, metavar="YAML", help="dataset")
    parser.add_argument("--cfg", required=True, metavar="YAML", help="model")
    parser.add_argument("--weights", type=Path, required=True, metavar="PT", help="weights to look at")
    parser.add_argument("--hyp", default="data/hyps/default.yaml", metavar="YAML", help="hyper-parameters")
    parser.add_argument("--img-size", type=image_size, default=640, metavar="N", help="longer side, or HxW")
    parser.add_argument("--rect", action="store_true", help="rectangular batches without mosaic")
    parser.add_argument("--batch-size", type=positive_int, default=4, metavar="N", help="images per batch")
    parser.add_argument("--batches", type=positive_int, default=4, metavar="N", help="how many batches")
    parser.add_argument("--device", default="", help="cpu or a GPU number (default: a GPU when there is one)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Build a run that is never trained, and print its gradients."""
    args = build_parser().parse_args(arguments)
    hyp = load_config(HypConfig, args.hyp)
    config = TrainConfig(
        data=args.data, cfg=args.cfg, img_size=args.img_size, rect=args.rect, batch_size=args.batch_size, workers=0
    )  # fmt: skip
    device = select_device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        run = build_run(config, hyp, ModelOverrides(), Path(folder), DistInfo(), device, weights=args.weights)
    norms = torch.stack([batch_norms(run, number) for number in range(args.batches)]).median(dim=0).values
    print(f"\nmedian norms over {args.batches} batches of {args.batch_size}")
    print("\n".join(table_lines([*run.criterion.names, ALL], norms)))
    print(
        f"all: as a step sees it, times the images; limited to {GRADIENT_LIMIT:g}, detector and seeker each for itself"
    )


def batch_norms(run: TrainingRun, number: int) -> Tensor:
    """Norms of the gradients for the number-th batch: [losses + 1, PARTS]; the last row is of all losses together."""
    run.model.train()
    settings = StepSettings(run.hyp, run.model.config.slicer, run.device, None, accumulate=1)
    generator = torch.Generator().manual_seed(number)
    batch = prepare(next(islice(run.train_loader, number, None)), settings, generator)
    selector = training_selector(batch.heatmaps, settings.slicer, run.hyp, 0.5, run.config.epochs, generator)
    losses = run.criterion(run.model(batch.images, selector), batch.targets, batch.heatmaps)
    return torch.stack([part_norms(run.model, losses[name]) for name in [*run.criterion.names, "total"]])


def part_norms(model: ESOD, loss: Tensor) -> Tensor:
    """Norms of a loss's gradient in each of `PARTS`; 0 where it does not reach."""
    if not loss.requires_grad:
        return torch.zeros(len(PARTS))
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    gradients = torch.autograd.grad(loss, list(weights.values()), retain_graph=True, allow_unused=True)
    squares = dict.fromkeys(PARTS, 0.0)
    for name, gradient in zip(weights, gradients, strict=True):
        if gradient is not None:
            part, square = name.partition(".")[0], gradient.float().square().sum().item()
            squares[part] += square
            squares[DETECTOR] += square if part != "seeker" else 0.0
    return torch.tensor([squares[part] for part in PARTS]).sqrt()


def table_lines(names: Sequence[str], norms: Tensor) -> list[str]:
    """A line per loss: norms by part, and the share of the summed norms in the stem."""
    stem = norms[:-1, 0].sum().item()
    lines = ["loss      " + "".join(f"{part:>10}" for part in PARTS) + f"{'of stem':>10}"]
    for name, row in zip(names, norms.tolist(), strict=True):
        share = f"{row[0] / stem:>10.0%}" if stem and name != ALL else ""
        lines.append(f"{name:<10}" + "".join(f"{norm:>10.3f}" for norm in row) + share)
    return lines


if __name__ == "__main__":
    sys.exit(run_main(main))
