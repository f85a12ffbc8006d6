"""What --max-patches does to time and accuracy: p50 and p99 of single images, and AP, for several budgets.

    python scripts/latency_knob.py --weights runs/train/exp/weights/best.pt --data data/visdrone_subset.yaml \\
        --img-size 864x1536 --max-patches 4 8 12 16 24 32 0 --json docs/results/latency_knob.json --plot docs/results/latency_knob.png

All budgets are timed in turn on every validation image; 0 is no limit. Inputs of one height and width (--img-size
HEIGHTxWIDTH) keep images of other shapes from being larger than the rest, which no budget could make up for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from engine.evaluation import evaluate
from engine.inference import Detector, load_model
from engine.latency import BudgetResult, budget_table, measure_budgets, plot_budgets, set_budget
from engine.loaders import evaluation_loader
from models.decode import PostprocessConfig
from utils.cli import Parser, add_speed_arguments, image_size, non_negative_int, positive_int, run_main
from utils.config import DatasetConfig
from utils.environment import device_name, measurement_head
from utils.files import write_json
from utils.typed_data import ConfigError, load_config


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    args = build_parser().parse_args(words)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    dataset = load_config(DatasetConfig, args.data)
    detector = load_model(
        args.weights, args.device, half=args.half, compiled=args.compile, graphs=args.graphs
    )
    if detector.model.config.slicer.algorithm == "none":
        raise ConfigError(f"{args.weights} is a dense model: it has no patches that could be limited")
    loader = evaluation_loader(dataset, args.data, "val", args.img_size, 1, 0, single_class=False)
    results = measure_budgets(
        detector, tqdm(loader, desc="timing", unit="image", leave=False), PostprocessConfig(), args.max_patches,
        args.rounds, args.seed,
    )  # fmt: skip
    if not args.no_accuracy:
        add_accuracy(detector, dataset, args.data, args.img_size, results)
    print(budget_table(results))
    print(f"{len(results[0].ms)} images, {device_name(detector.device)}")
    if args.json is not None:
        content = {
            **measurement_head("scripts/latency_knob.py", words, detector.device),
            "budgets": [
                asdict(one)
                | {"p50_ms": one.percentile(0.5), "p99_ms": one.percentile(0.99), "p99_p50": one.tail}
                for one in results
            ],
        }
        write_json(args.json, content)
    if args.plot is not None:
        plot_budgets(results, f"{Path(args.weights).name}, {device_name(detector.device)}", args.plot)


def add_accuracy(
    detector: Detector,
    dataset: DatasetConfig,
    data: str,
    img_size: int | tuple[int, int],
    results: Sequence[BudgetResult],
) -> None:
    """AP of each budget, with test.py's thresholds."""
    if len(detector.names) != dataset.nc:
        raise ConfigError(
            f"the model knows {len(detector.names)} classes, the dataset has {dataset.nc}: give the dataset that it was "
            "trained on, or --no-accuracy"
        )
    post = PostprocessConfig(0.001, 0.6, multi_label=True)
    for result in results:
        set_budget(detector, result.max_patches)
        loader = evaluation_loader(dataset, data, "val", img_size, 1, 0, single_class=False)
        found = evaluate(
            detector.model,
            loader,
            dataset.names,
            post,
            detector.device,
            progress=True,
            runner=detector.runner,
        )
        assert found is not None  # one process
        result.ap, result.ap50 = found.detection.ap, found.detection.ap50


EXAMPLES = (
    "python scripts/latency_knob.py --weights W.pt --data data/visdrone.yaml --img-size 864x1536 --max-patches 8 16 24 0",
)
"""Shown at the end of ``--help``."""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser("Time and accuracy over the number of patches that an image may have.", examples=EXAMPLES)
    parser.add_argument(
        "--weights", default="weights/sample_yolov5n.pt", metavar="PT", help="checkpoint with patches"
    )
    parser.add_argument(
        "--data", default="data/sample.yaml", metavar="YAML", help="dataset, of which val is taken"
    )
    parser.add_argument(
        "--img-size", "--imgsz", type=image_size, default=(864, 1536), metavar="N",
        help="network input: HEIGHTxWIDTH to fit into, or the longer side",
    )  # fmt: skip
    parser.add_argument(
        "--max-patches", type=non_negative_int, nargs="+", default=[4, 8, 12, 16, 24, 32, 0], metavar="K",
        help="budgets; 0: no limit",
    )  # fmt: skip
    parser.add_argument(
        "--rounds",
        type=positive_int,
        default=3,
        metavar="N",
        help="per image and budget, behind one not counted",
    )
    parser.add_argument("--no-accuracy", action="store_true", help="time only")
    parser.add_argument(
        "--threads", type=positive_int, metavar="N", help="of PyTorch (default: as it chooses)"
    )
    parser.add_argument("--device", default="", help="cpu or a GPU number (default: a GPU when there is one)")
    parser.add_argument("--seed", type=non_negative_int, default=0, metavar="N", help="of the order")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw time and AP over the budget")
    add_speed_arguments(parser.add_argument_group("speed"))
    return parser


if __name__ == "__main__":
    sys.exit(run_main(main))
