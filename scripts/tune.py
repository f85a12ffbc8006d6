"""Search for hyper-parameters with Optuna: short trainings, the next one chosen by the results of those before.

    python scripts/tune.py --name drones --trials 30 -- --data data/visdrone.yaml --cfg models/cfg/yolov5s.yaml --epochs 20

What stands behind ``--`` goes to train.py, which runs as a process of its own for every trial; hyper-parameters are
those of --hyp but for the ones in --space. The first trial is --hyp itself, so that a search shows what it gains. After
each epoch a trial that is worse than half of the others were at that epoch is stopped. Everything is kept in
PROJECT/NAME: study.db, a folder per trial, trials.csv, and best.yaml, to be given to train.py as --hyp. The same
command goes on with a search that was interrupted, the interrupted trial included.
"""

from __future__ import annotations

import csv
import importlib.util
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from utils.cli import Parser, non_negative_int, positive_int, run_main
from utils.config import HypConfig
from utils.files import write_text
from utils.logger import EPOCH_COLUMN, get_logger
from utils.train_cli import given_options
from utils.typed_data import ConfigError, config_from_dict, config_to_dict, load_config, load_yaml

if TYPE_CHECKING:
    import optuna

ROOT = Path(__file__).resolve().parent.parent
METRIC = "val/AP"
OURS = ("hyp", "project", "name", "exist_ok", "resume", "auto_resume", "config", "notest", "nosave")
"""Options of train.py that the search sets itself, or cannot do without."""
HEARTBEAT_S = 30
"""A running trial gives a sign of life so often; one without for twice as long was interrupted."""
POLL_S = 1.0
STOP_S = 30.0
"""How long a stopped training may take to end by itself."""


class TuneError(RuntimeError):
    """A search that cannot be made; the message says what to do."""


@dataclass(frozen=True)
class Range:
    """Values that a hyper-parameter may take."""

    low: float
    high: float
    log: bool


def main(arguments: Sequence[str] | None = None) -> None:
    """Search, print the best, write the files."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    own, train = split_words(words)
    args = build_parser().parse_args(own)
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError("scripts/tune.py needs Optuna: python -m pip install optuna")
    check_training_options(train)
    base = load_config(HypConfig, args.hyp)
    space = read_space(args.space)
    folder = Path(args.project) / args.name
    folder.mkdir(parents=True, exist_ok=True)
    study = open_study(folder, args.seed, args.startup_trials, args.warmup_epochs)
    if not study.trials:
        study.enqueue_trial(first_values(base, space))
    left = args.trials - len(finished(study))
    if left > 0:
        study.optimize(
            lambda trial: run_trial(trial, folder, base, space, train), callbacks=[stop_after(args.trials)]
        )
    write_results(study, folder, base)


EXAMPLES = (
    "python scripts/tune.py --name drones --trials 30 -- --data data/visdrone.yaml --cfg models/cfg/yolov5s.yaml --epochs 20",
)
"""Shown at the end of ``--help``."""


def build_parser() -> Parser:
    """The command line before ``--``."""
    parser = Parser("Search for hyper-parameters; what stands behind -- goes to train.py.", examples=EXAMPLES)
    parser.add_argument("--name", default="exp", help="of the search; the same name goes on with it")
    parser.add_argument("--project", default="runs/tune", metavar="DIR", help="folder of the searches")
    parser.add_argument(
        "--trials",
        type=positive_int,
        default=30,
        metavar="N",
        help="in all, those of earlier starts included",
    )
    parser.add_argument(
        "--hyp", type=Path, default=Path("data/hyps/default.yaml"), metavar="YAML", help="all other values"
    )
    parser.add_argument(
        "--space",
        type=Path,
        default=Path("data/hyps/search.yaml"),
        metavar="YAML",
        help="what is searched, from where to where",
    )
    parser.add_argument(
        "--startup-trials",
        type=non_negative_int,
        default=5,
        metavar="N",
        help="--hyp and random ones, never stopped early",
    )
    parser.add_argument(
        "--warmup-epochs", type=non_negative_int, default=2, metavar="N", help="no trial is stopped before"
    )
    parser.add_argument(
        "--seed", type=non_negative_int, default=0, metavar="N", help="of the choice of values"
    )
    return parser


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words before the first ``--`` and those behind it."""
    if "--" not in words:
        return list(words), []
    at = list(words).index("--")
    return list(words[:at]), list(words[at + 1 :])


def check_training_options(train: Sequence[str]) -> None:
    """Refuse options of train.py that the search sets itself; unknown ones end the program with a usage message.

    Raises:
        ConfigError: names them.
    """
    wrong = [f"--{name.replace('_', '-')}" for name in given_options(train) if name in OURS]
    if wrong:
        raise ConfigError(
            f"behind --: {', '.join(wrong)} cannot be given to the trainings of a search; leave them out"
        )


def read_space(path: Path) -> dict[str, Range]:
    """Ranges by hyper-parameter.

    Raises:
        ConfigError: not a hyper-parameter with a number, or not a range of them.
    """
    numbers = {name for name, value in config_to_dict(HypConfig()).items() if isinstance(value, float)}
    space = {}
    for name, value in load_yaml(path).items():
        if name not in numbers:
            raise ConfigError(f"{path}: {name!r} is not one of {', '.join(sorted(numbers))}")
        good = (
            isinstance(value, list)
            and len(value) in (2, 3)
            and all(isinstance(v, (int, float)) for v in value[:2])
        )
        log = good and len(value) == 3
        if not good or not value[0] < value[1] or (log and (value[2] != "log" or value[0] <= 0)):
            raise ConfigError(
                f"{path}: {name} is {value!r}; expected [least, largest] or [least, largest, log], least > 0"
            )
        space[name] = Range(float(value[0]), float(value[1]), log)
    return space


def open_study(folder: Path, seed: int, startup: int, warmup: int) -> optuna.Study:
    """The search in a folder, begun or gone on with. An interrupted trial is put in line again."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Heartbeats are called experimental and their callback is being renamed: nothing that who searches can act on.
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    renamed = "RetryFailedTrialCallback|`failed_trial_callback`"
    warnings.filterwarnings("ignore", message=renamed, category=FutureWarning)
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{folder.resolve() / 'study.db'}",
        heartbeat_interval=HEARTBEAT_S,
        failed_trial_callback=optuna.storages.RetryFailedTrialCallback(),
    )
    study = optuna.create_study(
        storage=storage,
        study_name="tune",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=warmup),
    )
    # A search that goes on must not draw once more what it has tried.
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=startup, seed=seed + len(study.trials))
    return study


def first_values(base: HypConfig, space: Mapping[str, Range]) -> dict[str, float]:
    """What the first trial takes: the values of --hyp, moved into their range where they lie outside."""
    return {name: min(max(float(getattr(base, name)), r.low), r.high) for name, r in space.items()}


def finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials with a result, those stopped early among them."""
    from optuna.trial import TrialState

    return study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))


def stop_after(trials: int) -> Any:
    """Ends the search after so many results."""

    def stop(study: optuna.Study, _: object) -> None:
        if len(finished(study)) >= trials:
            study.stop()

    return stop


def run_trial(
    trial: optuna.Trial, folder: Path, base: HypConfig, space: Mapping[str, Range], train: Sequence[str]
) -> float:
    """Train with the values of a trial; the best score of its epochs.

    Raises:
        optuna.TrialPruned: it was stopped early.
        TuneError: the training failed.
    """
    import optuna

    frozen = next(t for t in trial.study.get_trials(deepcopy=False) if t.number == trial.number)
    number = optuna.storages.RetryFailedTrialCallback.retried_trial_number(frozen)
    own = f"trial{trial.number if number is None else number:03}"
    values = {name: trial.suggest_float(name, r.low, r.high, log=r.log) for name, r in space.items()}
    hyp = folder / f"{own}.yaml"
    write_yaml(hyp, config_to_dict(config_from_dict(HypConfig, config_to_dict(base) | values)))
    command = [
        sys.executable,
        "train.py",
        *train,
        "--hyp",
        str(hyp.resolve()),
        "--project",
        str(folder.resolve()),
    ]
    with (folder / f"{own}.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--name", own, "--auto-resume"], cwd=ROOT, stdout=log, stderr=log
        )
        try:
            score = watch(process, trial, folder / own / "results.csv")
        finally:
            end(process)
    if process.returncode != 0:
        raise TuneError(f"{own}: training failed, see {folder / own}.log")
    get_logger().info(f"{own}: {score:.4f}")
    return score


def watch(process: subprocess.Popen[bytes], trial: optuna.Trial, table: Path) -> float:
    """Tell the search the score of every epoch while a training runs; its best one.

    Raises:
        optuna.TrialPruned: the search has no hope for it.
    """
    import optuna

    told, best = -1, -math.inf
    running = True
    while running:
        running = process.poll() is None
        for epoch, score in scores(table):
            if epoch > told:
                told, best = epoch, max(best, score)
                trial.report(best, epoch)
        if running and told >= 0 and trial.should_prune():
            get_logger().info(f"trial {trial.number}: stopped after epoch {told + 1} at {best:.4f}")
            raise optuna.TrialPruned
        if running:
            time.sleep(POLL_S)
    return best if math.isfinite(best) else 0.0


def scores(table: Path) -> list[tuple[int, float]]:
    """Epoch and score of every row of a results.csv; empty before there is one."""
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = [(int(row[EPOCH_COLUMN]), float(row[METRIC] or 0.0)) for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []
    return [(epoch, 0.0 if math.isnan(score) else score) for epoch, score in rows]


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop a training if it still runs."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def write_results(study: optuna.Study, folder: Path, base: HypConfig) -> None:
    """``trials.csv`` and ``best.yaml``, and a word on them."""
    trials = finished(study)
    names = sorted({name for trial in trials for name in trial.params})
    lines = [",".join(["trial", "state", "epochs", "score", *names])]
    for trial in trials:
        values = trial.intermediate_values
        score = trial.value if trial.value is not None else max(values.values(), default=0.0)
        cells = [f"{trial.params[name]:.6g}" if name in trial.params else "" for name in names]
        lines.append(
            ",".join([str(trial.number), trial.state.name.lower(), str(len(values)), f"{score:.6g}", *cells])
        )
    write_text(folder / "trials.csv", "\n".join(lines) + "\n")
    best = study.best_trial
    hyp = config_from_dict(HypConfig, config_to_dict(base) | best.params)
    write_yaml(folder / "best.yaml", config_to_dict(hyp))
    stopped = sum(trial.state.name == "PRUNED" for trial in trials)
    get_logger().info(
        f"{len(trials)} trials, {stopped} stopped early; the best is number {best.number} with {METRIC} {best.value:.4f}: "
        f"{folder / 'best.yaml'} (all: {folder / 'trials.csv'})"
    )


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as YAML, whole or not at all."""
    text = yaml.safe_dump(dict(content), sort_keys=False)
    write_text(path, text)


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(run_main(main))
