"""Train a detector: ``python train.py --data data/visdrone.yaml --cfg models/cfg/yolov5m.yaml --img-size 1536``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from engine.setup import TrainingRun, build_run, save_options
from engine.state import read_resumable
from engine.training import fit
from utils.cli import model_overrides, run_main
from utils.config import HypConfig, ModelOverrides, TrainConfig
from utils.dist import DistInfo, broadcast_object, cleanup, init_distributed, select_device
from utils.logger import get_logger
from utils.report import report_finished_run
from utils.runs import LAST_CHECKPOINT, latest_run, new_run_dir
from utils.train_cli import LATEST, build_train_parser, initial_weights
from utils.typed_data import config_from_dict, load_config

HYP_FLAGS = ("label_smoothing", "train_patches")
"""Flags that replace a value of the hyp file."""


def main() -> None:
    """Parse the command line and train."""
    args = build_train_parser().parse_args()
    stored = stored_run(args) if args.resume else None
    if stored is not None:
        args.device = args.device or stored.data["train"]["device"]
    dist = init_distributed(args.device)
    try:
        run = new_run(args, dist) if stored is None else resumed_run(args, dist, stored)
        if dist.is_main:
            save_options(run)
        get_logger().info(f"training on {run.device}; results go to {run.folder}")
        fit(run)
        if dist.is_main and not args.no_report:
            report_finished_run(run.folder)
        get_logger().info(
            f"done: {run.folder / 'weights' / 'best.pt'}; curves in {run.folder / 'results.png'}"
        )
    finally:
        cleanup()


def new_run(args: argparse.Namespace, dist: DistInfo) -> TrainingRun:
    """The run that the command line asks for, in a folder of its own."""
    config = train_config(args)
    changes = {name: getattr(args, name) for name in HYP_FLAGS if getattr(args, name) is not None}
    hyp = replace(load_config(HypConfig, args.hyp), **changes)
    weights = initial_weights(args.weights, args.cfg)
    device = select_device(args.device, dist)
    folder = new_run_dir(args.project, args.name, args.exist_ok) if dist.is_main else Path()
    folder = broadcast_object(folder)
    return build_run(config, hyp, model_overrides(args), folder, dist, device, weights)


@dataclass
class StoredRun:
    """The checkpoint of an interrupted run, and the run's folder."""

    folder: Path
    data: dict[str, Any]


def stored_run(args: argparse.Namespace) -> StoredRun:
    """What --resume names, or the latest run under --project."""
    path = latest_run(args.project) / LAST_CHECKPOINT if args.resume == LATEST else Path(args.resume)
    return StoredRun(path.resolve().parent.parent, read_resumable(path))


def resumed_run(args: argparse.Namespace, dist: DistInfo, stored: StoredRun) -> TrainingRun:
    """The interrupted run, with the options it was started with; only --device and --workers may differ."""
    data = stored.data
    config = replace(config_from_dict(TrainConfig, data["train"]), device=args.device, workers=args.workers)
    hyp = config_from_dict(HypConfig, data["hyp"])
    overrides = config_from_dict(ModelOverrides, data["overrides"])
    device = select_device(args.device, dist)
    return build_run(config, hyp, overrides, stored.folder, dist, device, resume=data)


def train_config(args: argparse.Namespace) -> TrainConfig:
    """The options as plain data."""
    values: dict[str, Any] = {
        f.name: getattr(args, f.name) for f in fields(TrainConfig) if hasattr(args, f.name)
    }
    values["weights"] = str(args.weights or "")
    size = args.img_size
    values["img_size"] = size if isinstance(size, int) else list(size)
    return config_from_dict(TrainConfig, values, "options")


if __name__ == "__main__":
    sys.exit(run_main(main))
