"""Train a detector: ``python train.py --data data/visdrone.yaml --cfg models/cfg/yolov5m.yaml --img-size 1536``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from engine.repeat import HYP_FLAGS, check_same_data, read_recorded, recorded_hyp, refuse_contradictions
from engine.setup import TrainingRun, build_run, save_options
from engine.state import is_finished, read_resumable
from engine.training import fit
from utils.cli import model_overrides, run_main
from utils.config import HypConfig, ModelConfig, ModelOverrides, TrainConfig
from utils.dist import DistInfo, broadcast_object, cleanup, init_distributed, select_device
from utils.logger import get_logger
from utils.report import report_finished_run
from utils.runs import LAST_CHECKPOINT, latest_run, new_run_dir
from utils.trackers import check_trackers
from utils.train_cli import LATEST, given_options, initial_weights, parse_train_options
from utils.typed_data import ConfigError, config_from_dict, load_config


def main() -> None:
    """Parse the command line and train."""
    args = parse_train_options()
    given = given_options(sys.argv[1:])
    one_start_only(args)
    stored = stored_run(args) if args.resume else None
    if stored is not None:
        args.device = args.device or stored.data["train"]["device"]
    dist = init_distributed(args.device)
    try:
        if args.auto_resume:
            finished, stored = broadcast_object(interrupted_run(args) if dist.is_main else (False, None))
            if finished:
                return
        if stored is not None:
            run = resumed_run(args, given, dist, stored)
        else:
            run = repeated_run(args, given, dist) if args.config else new_run(args, dist)
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


def one_start_only(args: argparse.Namespace) -> None:
    """A run begins in one way.

    Raises:
        ConfigError: two of --resume, --auto-resume and --config were given.
    """
    asked = [
        f
        for f, on in (
            ("--resume", args.resume),
            ("--auto-resume", args.auto_resume),
            ("--config", args.config),
        )
        if on
    ]
    if len(asked) > 1:
        raise ConfigError(f"{' and '.join(asked)} contradict each other: give one of them")


def new_run(args: argparse.Namespace, dist: DistInfo) -> TrainingRun:
    """The run that the command line asks for, in a folder of its own."""
    config = train_config(args)
    check_trackers(config.logger)
    changes = {name: getattr(args, name) for name in HYP_FLAGS if getattr(args, name) is not None}
    hyp = replace(load_config(HypConfig, args.hyp), **changes)
    weights = initial_weights(args.weights, args.cfg)
    device = select_device(args.device, dist)
    return build_run(config, hyp, model_overrides(args), new_folder(args, dist), dist, device, weights)


def new_folder(args: argparse.Namespace, dist: DistInfo) -> Path:
    """Where a run that begins writes; made by the main process."""
    exist_ok = args.exist_ok or args.auto_resume
    return broadcast_object(new_run_dir(args.project, args.name, exist_ok) if dist.is_main else Path())


def repeated_run(args: argparse.Namespace, given: Mapping[str, Any], dist: DistInfo) -> TrainingRun:
    """The run of a ``config.yaml`` once more, in a folder of its own."""
    recorded = read_recorded(args.config)
    source = f"--config {args.config}"
    refuse_contradictions(given, recorded.config, recorded.hyp, recorded.model, source)
    own = {f: getattr(args, f) for f in ("workers", "project", "name", "exist_ok")}
    config = replace(recorded.config, **own, device=args.device or recorded.config.device)
    weights = initial_weights(config.weights or None, config.cfg)
    device = select_device(config.device, dist)
    folder = new_folder(args, dist)
    run = build_run(
        config, recorded.hyp, ModelOverrides(), folder, dist, device, weights, model_config=recorded.model
    )
    check_same_data(recorded, run)
    return run


@dataclass
class StoredRun:
    """The checkpoint of an interrupted run, and the run's folder."""

    folder: Path
    data: dict[str, Any]


def stored_run(args: argparse.Namespace) -> StoredRun:
    """What --resume names, or the latest run under --project."""
    path = latest_run(args.project) / LAST_CHECKPOINT if args.resume == LATEST else Path(args.resume)
    return StoredRun(path.resolve().parent.parent, read_resumable(path))


def interrupted_run(args: argparse.Namespace) -> tuple[bool, StoredRun | None]:
    """For --auto-resume: whether the run in --project/--name is finished, and its checkpoint when it has one to go on from."""
    folder = Path(args.project) / args.name
    last = folder / LAST_CHECKPOINT
    if not last.is_file():
        return False, None
    if is_finished(last):
        get_logger().info(f"{folder} is finished: nothing is left to do")
        return True, None
    return False, StoredRun(folder.resolve(), read_resumable(last))


def resumed_run(
    args: argparse.Namespace, given: Mapping[str, Any], dist: DistInfo, stored: StoredRun
) -> TrainingRun:
    """The interrupted run, with the options it was started with; only --device and --workers may differ."""
    data = stored.data
    config = replace(config_from_dict(TrainConfig, data["train"]), device=args.device, workers=args.workers)
    check_trackers(config.logger)
    hyp = recorded_hyp(data["hyp"])
    overrides = config_from_dict(ModelOverrides, data["overrides"])
    model = config_from_dict(ModelConfig, data["config"])
    refuse_contradictions(given, config, hyp, model, f"resuming {stored.folder / LAST_CHECKPOINT}")
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
