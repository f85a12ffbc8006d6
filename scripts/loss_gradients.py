"""How strongly each loss pulls at the shared stem: gradient norms over a few training batches. Changes nothing.

    python scripts/loss_gradients.py --data data/visdrone.yaml --cfg models/cfg/yolov5s.yaml --weights W --rect

The stem serves the heatmap and the detector; a loss whose gradient there is many times the others' decides alone
what it learns. Use it to set the weights in a hyp file.
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
from engine.training import StepSettings, prepare
from models.training_patches import training_selector
from utils.cli import Parser, image_size, positive_int, run_main
from utils.config import HypConfig, ModelOverrides, TrainConfig
from utils.dist import DistInfo, select_device
from utils.typed_data import load_config

EXAMPLES = (
    "python scripts/loss_gradients.py --data data/sample.yaml --cfg models/cfg/yolov5n.yaml --weights weights/sample_yolov5n.pt --rect",
)
"""Shown at the end of ``--help``."""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(
        "Print the gradient norm of each loss in the stem, over a few training batches.", examples=EXAMPLES
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
    norms = torch.stack([batch_norms(run, number) for number in range(args.batches)])
    print(f"\n{'loss':<10}{'median norm':>14}{'share':>9}   over {args.batches} batches of {args.batch_size}")
    middle = norms.median(dim=0).values
    for name, norm, share in zip(
        run.criterion.names, middle.tolist(), (middle / middle.sum()).tolist(), strict=True
    ):
        print(f"{name:<10}{norm:>14.4f}{share:>9.0%}")


def batch_norms(run: TrainingRun, number: int) -> Tensor:
    """Norm of the gradient in the stem's parameters, per loss, for the number-th batch."""
    run.model.train()
    settings = StepSettings(run.hyp, run.model.config.slicer, run.device, None, accumulate=1)
    generator = torch.Generator().manual_seed(number)
    batch = prepare(next(islice(run.train_loader, number, None)), settings, generator)
    selector = training_selector(batch.heatmaps, settings.slicer, run.hyp, 0.5, run.config.epochs, generator)
    losses = run.criterion(run.model(batch.images, selector), batch.targets, batch.heatmaps)
    stem = [parameter for parameter in run.model.stem.parameters() if parameter.requires_grad]
    norms = []
    for name in run.criterion.names:
        if not losses[name].requires_grad:
            norms.append(torch.zeros(()))
            continue
        gradients = torch.autograd.grad(losses[name], stem, retain_graph=True, allow_unused=True)
        parts = [gradient.norm() for gradient in gradients if gradient is not None]
        norms.append(torch.stack([torch.zeros((), device=run.device), *parts]).norm().cpu())
    return torch.stack(norms)


if __name__ == "__main__":
    sys.exit(run_main(main))
