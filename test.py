"""Test a detector: accuracy and patch selection on a dataset, or its cost.

python test.py --data data/visdrone.yaml --weights W.pt --img-size 1536
python test.py --data data/visdrone.yaml --weights W.pt --img-size 1536 --task measure
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from engine.evaluation import Evaluation, evaluate
from engine.exported import check_postprocessing
from engine.inference import Detector, load_model
from engine.loaders import evaluation_loader
from engine.measure import measure
from engine.missed import MissedCollector, plot_missed
from engine.test_outputs import TestOutputs, save_curves
from evaluate.official import OfficialSplit
from models.decode import PostprocessConfig
from models.esod import ESOD, ESODOutput
from utils.checkpoint import sha256_of
from utils.cli import model_overrides, run_main
from utils.config import DatasetConfig
from utils.data import Batch
from utils.dist import DistInfo, broadcast_object, cleanup, init_distributed, read_environment
from utils.environment import environment_report
from utils.files import write_json
from utils.logger import get_logger
from utils.report import report_finished_run
from utils.results import Detections
from utils.runs import new_run_dir
from utils.splits import dataset_root, resolve_split
from utils.test_cli import parse_test_options, thresholds
from utils.typed_data import ConfigError, load_config


def main() -> None:
    """Parse the command line and run the task, in one process or (torchrun) in several."""
    args = parse_test_options()
    if args.task in ("measure", "speed") and read_environment().world_size > 1:
        raise ConfigError(f"--task {args.task} measures one process on one device: start it without torchrun")
    dist = init_distributed(args.device)
    try:
        run(args, dist)
    finally:
        cleanup()


def run(args: argparse.Namespace, dist: DistInfo) -> None:
    """Run the task as one of the processes."""
    dataset = load_config(DatasetConfig, args.data)
    detector = load_model(
        args.weights,
        args.device,
        model_overrides(args),
        half=args.half,
        compiled=args.compile,
        graphs=args.graphs,
    )
    check_classes(detector, dataset, args.single_cls)
    if args.task in ("measure", "speed"):
        folder = run_measure(args, dataset, detector)
    else:
        folder = run_accuracy(args, dataset, detector, dist)
    get_logger().info(f"results in {folder}")


def new_folder(args: argparse.Namespace, is_main: bool = True) -> Path:
    """The run's folder, made by the main process; asked for when nothing about the dataset can fail any more."""
    folder = new_run_dir(args.project, args.name, args.exist_ok) if is_main else Path()
    return broadcast_object(folder)


def run_accuracy(
    args: argparse.Namespace, dataset: DatasetConfig, detector: Detector, dist: DistInfo
) -> Path:
    """Tasks val, test and train: score the detections and the patches on that split, in all processes together.

    Returns:
        The run's folder.
    """
    names = ["object"] if args.single_cls else dataset.names
    post = PostprocessConfig(*thresholds(args), args.max_det, multi_label=True, nms=args.nms)
    check_postprocessing(detector.model, post)
    fixed_hw = detector.model.input_hw
    loader = evaluation_loader(
        dataset, args.data, args.task, fixed_hw or args.img_size, args.batch_size, args.workers, args.single_cls,
        pin_memory=detector.device.type == "cuda", dist=dist, rect=fixed_hw is None,
    )  # fmt: skip
    images = resolve_split(dataset, args.data, args.task)
    official = None
    if args.official:
        official = OfficialSplit.of_images(dataset.official, dataset_root(dataset, args.data), images, names)
    folder = new_folder(args, dist.is_main)
    outputs = TestOutputs(
        folder, names, images, save_txt=args.save_txt or args.official, save_conf=args.save_conf or args.official,
        save_json=args.save_json, save_worst=not args.no_report,
    )  # fmt: skip
    missed = MissedCollector(detector.model, names, single_class=args.single_cls) if args.analyse else None

    def on_batch(batch: Batch, output: ESODOutput, found: list[Detections]) -> None:
        outputs.add(batch, output, found)
        if missed is not None:
            missed.add(batch, output, found)

    result = evaluate(
        detector.model, loader, names, post, detector.device, augment=args.augment, single_class=args.single_cls,
        progress=dist.is_main, on_batch=on_batch, runner=detector.runner,
    )  # fmt: skip
    outputs.finish()
    if missed is not None:
        missed.gather()
    if result is None:
        return folder  # the main process has the numbers
    write_accuracy(args, dataset, folder, result, outputs)
    if missed is not None:
        causes = missed.compute(result.detection.best_confidence, post.conf_thres)
        get_logger().info(causes.table())
        plot_missed(causes, folder / "analysis.png")
        write_json(folder / "analysis.json", {**causes.to_dict(), **record(args, dataset)})
    if official is not None:
        run_official(official, folder)
    if not args.no_report:
        report_finished_run(folder)
    return folder


def write_accuracy(
    args: argparse.Namespace, dataset: DatasetConfig, folder: Path, result: Evaluation, outputs: TestOutputs
) -> None:
    """Show the scores, and leave them, their curves and the worst images in the folder."""
    begin = time.perf_counter()
    save_curves(folder, result.detection)
    outputs.finish_worst(result.detection.best_confidence)
    charts_s = time.perf_counter() - begin
    log = get_logger()
    log.info(result.detection.table(per_class=args.verbose or len(outputs.names) <= 20))
    log.info(result.selector.table())
    log.info(f"{result.throughput.line()} (scores included; charts took another {charts_s:.1f} s)")
    note_scores(dataset)
    write_json(folder / "metrics.json", {**result.to_dict(), **record(args, dataset)})


def run_official(split: OfficialSplit, folder: Path) -> None:
    """Convert the label files just written, and run the dataset's own protocol on them."""
    converted = split.convert(folder / "labels", folder / "official")
    metrics = split.evaluate(converted)
    write_json(folder / "official.json", metrics.to_dict())
    for text in (metrics.table(), *split.notes()):
        get_logger().info(text)


def run_measure(args: argparse.Namespace, dataset: DatasetConfig, detector: Detector) -> Path:
    """Task measure: parameters, operations and time; task speed: parameters and time only. Returns the run's folder."""
    if args.task == "measure" and not isinstance(detector.model, ESOD):
        raise ConfigError(
            "--task measure counts the operations of the torch network: give the .pt file, or take --task speed, which "
            "only times and takes exported files too"
        )
    post = PostprocessConfig(*thresholds(args), args.max_det, nms=args.nms)
    check_postprocessing(detector.model, post)
    fixed_hw = detector.model.input_hw
    loader = evaluation_loader(
        dataset, args.data, "val", fixed_hw or args.img_size, 1, 0, args.single_cls, rect=fixed_hw is None
    )
    result = measure(
        detector, loader, post, count_operations=args.task == "measure", larger_batch=args.batch_size
    )
    get_logger().info(result.table())
    folder = new_folder(args)
    result.plot(folder / f"{args.task}.png")
    write_json(folder / f"{args.task}.json", {**result.to_dict(), **record(args, dataset)})
    if not args.no_report:
        report_finished_run(folder)
    return folder


def check_classes(detector: Detector, dataset: DatasetConfig, single_class: bool) -> None:
    """Refuse a model and a dataset that do not speak of the same number of classes."""
    expected = 1 if single_class else dataset.nc
    if not single_class and len(detector.names) != expected:
        raise ConfigError(
            f"the model knows {len(detector.names)} classes, the dataset has {expected}: give the dataset that it was "
            "trained on as --data, or --single-cls to ignore classes"
        )


def note_scores(dataset: DatasetConfig) -> None:
    """Print what the dataset's file says about its scores."""
    if dataset.note:
        get_logger().info(f"note: {dataset.note}")


def record(args: argparse.Namespace, dataset: DatasetConfig) -> dict[str, Any]:
    """What made the numbers: options, dataset note, weights by their content, machine and commit."""
    weights = Path(args.weights)  # a folder, when it is that of an exported pair
    return {
        "options": vars(args),
        "dataset_note": dataset.note,
        "weights_sha256": sha256_of(weights) if weights.is_file() else None,
        "environment": environment_report(),
    }


if __name__ == "__main__":
    sys.exit(run_main(main))
