"""An ablation: variants of one training and of one test, one after the other, into one table.

    python scripts/ablation.py data/ablations/recipe.yaml
    python scripts/ablation.py data/ablations/recipe.yaml --only p2 copy_paste --minutes 4

Each training is train.py in a process of its own, each test is test.py. With ``minutes`` in the file, or --minutes, the
number of epochs of each training is chosen before it begins, by the time of a short one, so that variants get equal
time. All is kept in PROJECT/NAME; the same command goes on where it was stopped: finished variants are left alone, an
interrupted training goes on after its last epoch. The tables in --output hold whatever is finished.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from engine.ablation.occupancy import at_occupancy, look_at
from engine.ablation.report import Result, command_line, page, result_data, table, training_facts
from engine.ablation.spec import (
    Ablation,
    Run,
    hyper_parameters,
    read_ablation,
    resized,
    runs_of,
    training_images,
    words_for_testing,
    words_for_training,
    words_of,
)
from engine.inference import load_model
from engine.loaders import evaluation_loader
from models.esod import ESOD
from utils.cli import Parser, positive_int, run_main
from utils.config import DatasetConfig
from utils.files import write_json, write_text
from utils.logger import get_logger
from utils.test_cli import build_test_parser
from utils.typed_data import ConfigError, config_to_dict, load_config

ROOT = Path(__file__).resolve().parent.parent
PROBE_IMAGES = 48
"""Images of the short training that tells how long an epoch takes."""


class AblationError(RuntimeError):
    """A variant that failed; the message names its log."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is not finished, write the tables."""
    args = build_parser().parse_args(arguments)
    spec = read_ablation(args.file)
    if args.minutes is not None:
        if spec.minutes is None:
            raise ConfigError(f"--minutes: {args.file} says the number of epochs; leave it out")
        spec = replace(spec, minutes=args.minutes)
    if args.img_size is not None:
        spec = resized(spec, args.img_size)
    unknown = sorted(set(args.only) - set(spec.variants))
    if unknown:
        raise ConfigError(f"--only {' '.join(unknown)}: {args.file} has {', '.join(spec.variants)}")
    folder = Path(args.project) / args.file.stem
    runs = runs_of(spec, folder)
    for run in runs:
        if not args.table_only and (not args.only or run.variant in args.only):
            run_variant(spec, run)
    write_tables(spec, runs, command_of(args), args.output)


def command_of(args: argparse.Namespace) -> list[str]:
    """Words behind the script that make the same tables, once everything has run."""
    words = [str(args.file)]
    for name in ("minutes", "img_size"):
        if getattr(args, name) is not None:
            words += [f"--{name.replace('_', '-')}", f"{getattr(args, name):g}"]
    return words


EXAMPLES = (
    "python scripts/ablation.py data/ablations/recipe.yaml --only p2 copy_paste --minutes 4",
    "python scripts/ablation.py data/ablations/heatmap.yaml --table-only",
)
"""Shown at the end of ``--help``."""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser("Train and test variants that differ in one thing each.", examples=EXAMPLES)
    parser.add_argument("file", type=Path, metavar="YAML", help="a file of data/ablations")
    parser.add_argument("--only", nargs="+", default=[], metavar="VARIANT", help="leave the others alone")
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="of each training, instead of what the file says"
    )
    parser.add_argument(
        "--img-size",
        type=positive_int,
        metavar="N",
        help="of the trainings, instead of what the file says; the sizes of tests follow in proportion",
    )
    parser.add_argument(
        "--project", default="runs/ablation", metavar="DIR", help="folder of all ablations' runs"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("docs/results"), metavar="DIR", help="where tables are written"
    )
    parser.add_argument(
        "--table-only", action="store_true", help="run nothing, write the tables of what is finished"
    )
    return parser


def run_variant(spec: Ablation, run: Run) -> None:
    """Train, choose the threshold and test, as far as that has not been done."""
    log = get_logger()
    if (run.folder / "result.json").is_file():
        log.info(f"{run.name} is finished")
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    commands = []
    if run.trains:
        hyp = yaml.safe_dump(config_to_dict(hyper_parameters(spec, run.spec)), sort_keys=False)
        (run.folder / "hyp.yaml").write_text(hyp, encoding="utf-8")
        words = words_for_training(spec, run, planned_epochs(spec, run))
        execute("train.py", words, run.folder / "train.log")
        commands.append(command_line("train.py", words))
    if not run.weights.is_file():
        raise AblationError(f"{run.name}: there is no {run.weights}; run the variant that it is of first")
    threshold = None
    if spec.occupancy is not None:
        threshold = choose_threshold(spec, run, spec.occupancy)
    words = words_for_testing(spec, run, threshold)
    begin = time.perf_counter()
    execute("test.py", words, run.folder / "test.log")
    seconds = time.perf_counter() - begin
    commands.append(command_line("test.py", words))
    write_json(
        run.folder / "result.json", {"commands": commands, "threshold": threshold, "test_seconds": seconds}
    )


def planned_epochs(spec: Ablation, run: Run) -> int | None:
    """Epochs that fit into the ablation's minutes; None where the options say how many.

    A short training tells how long an image takes. The number is kept, so that an interrupted training goes on with it.
    """
    if spec.minutes is None:
        return None
    plan = run.folder / "plan.json"
    if not plan.is_file():
        images = training_images(spec, run.spec)
        chosen = images[:: math.ceil(len(images) / PROBE_IMAGES)]
        per_image = probe(spec, run, chosen) / len(chosen)
        epochs = max(1, round(spec.minutes * 60 / (per_image * len(images))))
        write_json(plan, {"epochs": epochs, "seconds_per_image": per_image, "images": len(images)})
        get_logger().info(f"{run.name}: {per_image:.3f} s per image, so {epochs} epochs")
    return int(json.loads(plan.read_text(encoding="utf-8"))["epochs"])


def probe(spec: Ablation, run: Run, images: Sequence[Path]) -> float:
    """Seconds of an epoch over a few images."""
    folder = run.folder / "probe"
    folder.mkdir(exist_ok=True)
    options = {**spec.train, **run.spec.train}
    data = load_config(DatasetConfig, str(options["data"]))
    (folder / "train.txt").write_text("\n".join(str(p.resolve()) for p in images) + "\n", encoding="utf-8")
    (folder / "val.txt").write_text(f"{images[0].resolve()}\n", encoding="utf-8")
    small = replace(
        data, path=str(folder.resolve()), train="train.txt", val="val.txt", test="", note="", official=""
    )
    text = yaml.safe_dump(config_to_dict(small), sort_keys=False)
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    options |= {"data": str(folder / "data.yaml"), "epochs": 1, "nosave": True, "logger": "none"}
    words = [*words_of(options), "--hyp", str(run.folder / "hyp.yaml"), "--project", str(folder)]
    execute("train.py", [*words, "--name", "train", "--exist-ok", "--no-report"], run.folder / "probe.log")
    return float(training_facts(folder / "train", {})["seconds"])


def choose_threshold(spec: Ablation, run: Run, occupancy: float) -> float | None:
    """The heatmap threshold at which the patches of a run's model cover so much; None for a dense one."""
    args = build_test_parser().parse_args(words_for_testing(spec, run, None))
    detector = load_model(run.weights, args.device)
    model = detector.model
    if not isinstance(model, ESOD) or model.seeker is None:
        return None
    dataset = load_config(DatasetConfig, args.data)
    loader = evaluation_loader(
        dataset, args.data, "val", args.img_size, args.batch_size, args.workers, args.single_cls
    )
    threshold, found = at_occupancy(look_at(model, loader, detector.device), model.config.slicer, occupancy)
    get_logger().info(f"{run.name}: threshold {threshold:.4f} for an occupancy of {found.occupancy}")
    return threshold


def execute(script: str, words: Sequence[str], log: Path) -> None:
    """Run a command of this project in a process of its own, its output in a file.

    Raises:
        AblationError: it failed.
    """
    get_logger().info(command_line(script, words))
    with log.open("ab") as file:
        process = subprocess.Popen([sys.executable, script, *words], cwd=ROOT, stdout=file, stderr=file)
        try:
            status = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if status != 0:
        raise AblationError(f"{script} failed with status {status}: see {log}")


def write_tables(spec: Ablation, runs: Sequence[Run], command: list[str], output: Path) -> None:
    """The tables of all finished runs, in output/NAME.md and .json."""
    done = [run for run in runs if (run.folder / "result.json").is_file()]
    results = [read_result(run) for run in done]
    missing = [run for run in runs if run not in done]
    name = f"ablation_{Path(command[0]).stem}"
    write_json(output / f"{name}.json", result_data(spec, results))
    text = page(" ".join(command), spec, results, missing)
    write_text(output / f"{name}.md", text)
    print(table(spec, results))


def read_result(run: Run) -> Result:
    """What a finished run left in its folder."""
    own: dict[str, Any] = json.loads((run.folder / "result.json").read_text(encoding="utf-8"))
    metrics = json.loads((run.folder / "test" / "metrics.json").read_text(encoding="utf-8"))
    training = None
    if run.trains:
        config = yaml.safe_load((run.folder / "train" / "config.yaml").read_text(encoding="utf-8"))
        training = training_facts(run.folder / "train", config["provenance"])
    return Result(run.variant, run.seed, run.name, metrics=metrics, training=training, **own)


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(run_main(main))
