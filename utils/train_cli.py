"""The options of ``train.py``: what each is called, what it means, what it is by default. Parsing only."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.cli import (
    Parser,
    add_device_arguments,
    add_image_size_argument,
    add_model_arguments,
    add_report_argument,
    add_run_arguments,
    check_model_options,
    non_negative_int,
    positive_int,
    probability,
)
from utils.published import default_weights
from utils.trackers import NONE, TRACKERS
from utils.typed_data import ConfigError

LATEST = "latest"
"""Value of ``--resume`` given without a checkpoint."""

_RECORDS = "results go to results.csv in the run folder and to what --logger names"

REFUSED = {
    "--adam": "use --optimizer adam",
    "--cache-images": "use --cache ram",
    "--quad": "use --multi-scale, or a larger --img-size",
    "--evolve": "scripts/tune.py searches hyper-parameters",
    "--noval": "use --notest",
    "--notensorboard": "use --logger none",
    "--half": "use --amp fp16",
    "--fp16": "use --amp fp16",
    "--bf16": "use --amp bf16",
    "--cos-lr": "cosine is what the learning rate always follows; leave it out",
    "--linear-lr": "the learning rate follows a cosine; set lrf in --hyp for its end",
    "--hybrid": "use --slicer and --head",
    "--compile": "the number of patches changes from step to step, and each new one would compile anew; use --amp",
    "--bucket": _RECORDS,
    "--entity": _RECORDS,
    "--upload_dataset": _RECORDS,
    "--upload-dataset": _RECORDS,
    "--bbox_interval": _RECORDS,
    "--bbox-interval": _RECORDS,
    "--artifact_alias": _RECORDS,
    "--artifact-alias": _RECORDS,
    "--log-imgs": _RECORDS,
    "--log-artifacts": _RECORDS,
}
"""Options of YOLOv5 and its relatives that are not offered → what to do instead."""


EXAMPLES = (
    "python train.py --data data/visdrone.yaml --cfg models/cfg/yolov5m.yaml --img-size 1536 --batch-size 8 --device 0",
    "python train.py --data ships.yaml --cfg models/cfg/yolov5s.yaml --weights none --img-size 1280 --logger tensorboard mlflow",
    "python train.py --data data/sample.yaml --cfg models/cfg/yolov5n.yaml --weights weights/sample_yolov5n.pt --epochs 1 --slicer none",
    "python train.py --resume runs/train/exp/weights/last.pt",
)
"""Shown at the end of ``--help``."""


def build_train_parser() -> Parser:
    """The parser of ``train.py``; options are named after the first form of their flag (``img_size``)."""
    parser = Parser(
        "Train a detector: ESOD, or its dense twin with --slicer none.",
        REFUSED,
        prog="train.py",
        examples=EXAMPLES,
    )
    _add_what(parser)
    _add_schedule(parser)
    _add_data(parser)
    add_model_arguments(parser)
    add_device_arguments(parser, half=False)
    _add_hardware(parser)
    add_run_arguments(parser, "train")
    add_report_argument(parser)
    _add_output(parser)
    return parser


def batch_size(text: str) -> int:
    """A whole number of at least 1, or −1."""
    return -1 if text.strip() == "-1" else positive_int(text)


def given_options(arguments: Sequence[str]) -> dict[str, Any]:
    """Only the options that a command line of ``train.py`` names, by name, with their values."""
    parser = build_train_parser()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return vars(parser.parse_args(arguments))


def parse_train_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a command line (default: this process's); contradictions end it with status 2."""
    parser = build_train_parser()
    options = parser.parse_args(arguments)
    check_model_options(parser, options)
    if options.nosave and options.save_period > 0:
        parser.error("--save-period keeps checkpoints that --nosave does not write: leave one out")
    if options.notest and "--patience" in parser.given and options.patience:
        parser.error("--patience waits for better scores, --notest measures none: leave one out")
    if options.repeat_factor and options.image_weights:
        parser.error("--repeat-factor and --image-weights both say how often images come: leave one out")
    if NONE in options.logger and len(options.logger) > 1:
        parser.error(f"--logger none excludes the others: {' '.join(options.logger)}")
    return options


def initial_weights(weights: str | None, cfg: str | Path) -> Path | None:
    """The checkpoint to start from, of ``--weights`` and ``--cfg``; None: from scratch.

    Raises:
        ConfigError: there is no such file; the message says what to put there.
    """
    if weights is not None and weights.strip().lower() in ("", "none"):
        return None
    path = Path(weights) if weights is not None else default_weights(Path(cfg).stem)
    if path.is_file():
        return path
    raise ConfigError(
        f"--weights {path}: no such file. Convert the published ones (docs/models.md says which), for example by: "
        f"python scripts/model_convert.py --weights DOWNLOADED_FILE --output {path}; or train from scratch with --weights none"
    )


def _add_what(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to train, and on what")
    group.add_argument(
        "--data", default="data/visdrone.yaml", metavar="YAML", help="dataset: images, classes, anchors"
    )
    group.add_argument("--cfg", default="models/cfg/yolov5m.yaml", metavar="YAML", help="model to build")
    group.add_argument(
        "--weights",
        metavar="PT",
        help="initial weights: a checkpoint, or none for scratch (default: weights/pretrained/<model>.pt, for a variant such as yolov5s-p2 also yolov5s.pt)",
    )
    group.add_argument(
        "--hyp",
        default="data/hyps/default.yaml",
        metavar="YAML",
        help="hyper-parameters: learning rate, loss, augmentation",
    )
    group.add_argument(
        "--resume",
        nargs="?",
        const=LATEST,
        metavar="PT",
        help="continue a stopped run from its last checkpoint, with the options it was started with; "
        "without a value: the latest run under --project",
    )
    group.add_argument(
        "--auto-resume",
        action="store_true",
        help="continue --project/--name from its last checkpoint where there is one, else begin it: the same command "
        "starts a run and restarts it (torchrun --max-restarts, requeued jobs)",
    )
    group.add_argument(
        "--config",
        type=Path,
        metavar="YAML",
        help="repeat a run: the config.yaml of its folder; only --device, --workers and where to write may differ",
    )
    group.add_argument("--single-cls", action="store_true", help="treat all classes of the dataset as one")
    group.add_argument(
        "--freeze",
        nargs="+",
        default=[],
        metavar="PART",
        help="do not train these parts: names (stem, deep.stage4), or a number N for the first N layers",
    )


def _add_schedule(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("schedule")
    group.add_argument(
        "--epochs", type=positive_int, default=50, metavar="N", help="passes over the training set"
    )
    group.add_argument(
        "--batch-size",
        "--batch",
        type=batch_size,
        default=8,
        metavar="N",
        help="images per batch, over all processes together; -1: as many as fit into memory",
    )
    group.add_argument(
        "--optimizer",
        type=str.lower,
        choices=("sgd", "adam", "adamw"),
        default="sgd",
        help="update rule; adam and adamw want a smaller lr0 in --hyp (about 0.001)",
    )
    group.add_argument(
        "--patience",
        type=non_negative_int,
        default=100,
        metavar="N",
        help="stop after this many epochs without improvement; 0: never",
    )
    group.add_argument(
        "--label-smoothing",
        type=probability,
        metavar="E",
        help="soften class labels by this share, 0-1 (default: as in --hyp)",
    )
    group.add_argument(
        "--train-patches",
        choices=("selected", "uniform"),
        help="train on patches with objects and a share of the others, or on all (default: as in --hyp)",
    )
    group.add_argument(
        "--seed", type=non_negative_int, default=0, metavar="N", help="start of all random numbers"
    )
    group.add_argument(
        "--deterministic",
        action="store_true",
        help="on a GPU, use algorithms that give the same numbers every time (slower; on a CPU they always are used)",
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    add_image_size_argument(parser)
    group = parser.add_argument_group("data")
    group.add_argument(
        "--rect",
        action="store_true",
        help="batches of images of similar shape, padded as little as possible (no mosaic, no shuffling)",
    )
    group.add_argument(
        "--multi-scale", action="store_true", help="vary the image size from batch to batch by up to 50 %%"
    )
    group.add_argument(
        "--cache",
        nargs="?",
        const="ram",
        default="none",
        choices=("none", "ram", "disk"),
        help="keep decoded images in memory or on disk; without a value: ram",
    )
    group.add_argument(
        "--image-weights", action="store_true", help="show images with badly detected classes more often"
    )
    group.add_argument(
        "--repeat-factor",
        type=probability,
        default=0.0,
        metavar="T",
        help="show images with a class that is on a smaller share f of them than T more often, up to sqrt(T/f) times as "
        "the others (LVIS); an epoch stays as long. 0: all once",
    )
    group.add_argument(
        "--noautoanchor", action="store_true", help="keep the anchors even when they fit the labels badly"
    )


def _add_hardware(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("precision and processes")
    group.add_argument(
        "--amp",
        choices=("auto", "bf16", "fp16", "off"),
        default="auto",
        help="mixed precision: auto chooses what the device is good at, off computes in fp32",
    )
    group.add_argument(
        "--checkpoint-activations",
        nargs="?",
        const="stem",
        default="none",
        choices=("none", "stem", "all"),
        help="save memory: compute activations once more in the backward pass, those of the stem (also without a "
        "value) or of all but the heads; same gradients, a longer step",
    )
    group.add_argument(
        "--sync-bn", action="store_true", help="share BatchNorm statistics between processes (several GPUs)"
    )
    # Old launchers give it to every process; torchrun's environment says the same.
    group.add_argument(
        "--local-rank", "--local_rank", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("checkpoints, tests and records")
    group.add_argument(
        "--logger",
        nargs="+",
        choices=(*TRACKERS, NONE),
        default=["tensorboard"],
        metavar="NAME",
        help="record the run, besides results.csv, with these: tensorboard, wandb, mlflow; none: with none of them "
        "(default: tensorboard)",
    )
    group.add_argument(
        "--nosave",
        action="store_true",
        help="write checkpoints only after the last epoch (no --resume before it)",
    )
    group.add_argument("--notest", action="store_true", help="test only after the last epoch")
    group.add_argument(
        "--save-period",
        type=int,
        default=-1,
        metavar="N",
        help="keep a checkpoint of every Nth epoch besides the last and the best; below 1: none",
    )
