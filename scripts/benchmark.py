"""How fast a detector runs, dense and with a given share of the map kept, in every way of running it.

    python scripts/benchmark.py --cfg models/cfg/yolov5m.yaml --img-size 896x1536 --kept 0 0.1 0.2 0.5 1 \\
        --variants plain fast --rounds 20 --memory --json docs/results/benchmark_cpu.json
    python scripts/benchmark.py --from-json docs/results/benchmark_*.json --page docs/performance.md

Weights are random unless given, images are noise, and which patches are kept is decided by prepared heatmaps: seeker,
slicer and gathering run and are timed, but what they choose is known. All cases (variant, share, head, input, batch)
run once in every round, in an order drawn anew, so that what else the machine does hits all of them alike. What a
trained model keeps on real images, and what that costs, says test.py --task measure.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tqdm import tqdm

from engine.benchmark.bench import Bench, Case, Measured, Plan, measure
from engine.benchmark.memory import first_pass, measure_in_process
from engine.benchmark.plot import plot_benchmark
from engine.benchmark.report import MARKERS, NEW_PAGE, page_section, terminal
from engine.benchmark.results import FORMAT, BenchmarkResult, Memory
from engine.benchmark.targets import Part
from engine.benchmark.variants import NAMES, lively_model, variants_of
from models.esod import ESOD
from models.weights import model_from_weights, read_weights
from utils.cli import Parser, image_size, non_negative_int, positive_int, probability, run_main
from utils.config import ModelConfig
from utils.dist import has_fast_bf16, select_device
from utils.environment import device_name, environment_report, load_average
from utils.marked_page import update_page
from utils.typed_data import ConfigError, load_config


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure or read, print, write; or, in a process of its own, measure the memory of one case."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    args = build_parser().parse_args(words)
    check_options(args)
    if args.memory_case is not None:
        print(json.dumps(asdict(memory_of_case(args))))
        return
    if args.from_json:
        results = [BenchmarkResult.read(path) for path in args.from_json]
    else:
        results = [run(args, words)]
    parts = parts_for(results, args.parts)
    print("\n\n".join(terminal(result, alone) for result, alone in zip(results, parts, strict=True)))
    if args.json is not None:
        results[0].write(args.json)
    plots = [plot_path(args, number) for number in range(len(results))]
    for result, plot in zip(results, plots, strict=True):
        if plot is not None:
            plot_benchmark(result, plot)
    if args.page is not None:
        links = [None if plot is None else os.path.relpath(plot, args.page.parent) for plot in plots]
        sections = [
            page_section(result, link, alone)
            for result, link, alone in zip(results, links, parts, strict=True)
        ]
        update_page(args.page, "\n".join(sections), MARKERS, NEW_PAGE)


def parts_for(results: Sequence[BenchmarkResult], files: Sequence[Path]) -> list[list[Part]]:
    """For each result the parts alone of its model, from files of scripts/benchmark_parts.py; each file once.

    Raises:
        ConfigError: a file is something else, or of a model that there is no result of.
    """
    found: list[list[Part]] = [[] for _ in results]
    for path in files:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not {"parts", "model"} <= content.keys():
            raise ConfigError(f"{path}: not a result of scripts/benchmark_parts.py")
        models = [result.model for result in results]
        if content["model"] not in models:
            raise ConfigError(f"{path}: is of {content['model']}, the results are of {', '.join(models)}")
        found[models.index(content["model"])] += Part.all_of(content)
    return found


EXAMPLES = (
    "python scripts/benchmark.py --cfg models/cfg/yolov5m.yaml --img-size 864x1536 --kept 0 0.2 1 --json times.json",
    "python scripts/benchmark.py --from-json times.json --page docs/performance.md",
)
"""Shown at the end of ``--help``."""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(
        "Time a detector by stages, dense and with given shares of the map kept, in several variants.",
        examples=EXAMPLES,
    )
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "--cfg", type=Path, metavar="YAML", help="model with random weights, models/cfg/NAME.yaml"
    )
    model.add_argument("--weights", type=Path, metavar="FILE", help="model with its weights")
    model.add_argument(
        "--from-json",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="measure nothing: report what is in these files",
    )
    parser.add_argument(
        "--num-classes", type=positive_int, default=10, metavar="N", help="classes, with --cfg"
    )
    parser.add_argument(
        "--img-size",
        type=image_size,
        nargs="+",
        default=[(896, 1536)],
        metavar="N",
        help="inputs: side, or HEIGHTxWIDTH",
    )
    parser.add_argument(
        "--batch-sizes", type=positive_int, nargs="+", default=[1], metavar="N", help="images per pass"
    )
    parser.add_argument(
        "--kept", type=probability, nargs="+", default=[0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0], metavar="P",
        help="shares of the map whose patches are kept, 0-1",
    )  # fmt: skip
    parser.add_argument(
        "--heads",
        choices=("dense", "sparse"),
        nargs="+",
        default=["dense", "sparse"],
        help="head on all of a patch or not",
    )
    parser.add_argument(
        "--variants", choices=NAMES, nargs="+", default=["plain", "fast"],
        help="plain: float32, eager; fast: BatchNorm folded, channels last; half: also 16 bits; -compile: torch.compile; "
        "-graph: CUDA graphs, patches padded to few different numbers",
    )  # fmt: skip
    add_run_options(parser)
    return parser


def add_run_options(parser: Parser) -> None:
    """How to measure, and where the results go."""
    parser.add_argument(
        "--rounds", type=positive_int, default=10, metavar="N", help="each runs every case once"
    )
    parser.add_argument(
        "--warmup", type=non_negative_int, default=2, metavar="N", help="rounds before, not counted"
    )
    parser.add_argument(
        "--seconds", type=positive_int, metavar="N", help="begin no further round after so many seconds"
    )
    parser.add_argument("--peaks", type=positive_int, default=3, metavar="N", help="objects per kept patch")
    parser.add_argument(
        "--candidates",
        type=positive_int,
        default=300,
        metavar="N",
        help="boxes per image that reach the suppression",
    )
    parser.add_argument(
        "--memory", action="store_true", help="also peak memory, a process for each eager case"
    )
    parser.add_argument(
        "--threads", type=positive_int, metavar="N", help="of PyTorch (default: as it chooses)"
    )
    parser.add_argument("--device", default="", help="cpu or a GPU number (default: a GPU when there is one)")
    parser.add_argument(
        "--seed", type=non_negative_int, default=0, metavar="N", help="of weights, heatmaps, order"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every raw time there")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw time over the share that is kept")
    parser.add_argument(
        "--page", type=Path, metavar="MD", help="write the tables between the marks of this page"
    )
    parser.add_argument(
        "--parts",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="also report these files of benchmark_parts.py",
    )
    parser.add_argument("--memory-case", help=argparse.SUPPRESS)


def check_options(args: argparse.Namespace) -> None:
    """Refuse what contradicts itself.

    Raises:
        ConfigError: with what to give instead.
    """
    if args.cfg is None and args.weights is None and not args.from_json:
        raise ConfigError(
            "nothing to measure: give --cfg models/cfg/NAME.yaml, --weights FILE or --from-json FILE"
        )
    if args.from_json and args.json is not None:
        raise ConfigError("--json writes what is measured, and --from-json measures nothing: leave one out")
    if args.from_json and args.memory:
        raise ConfigError("--memory measures, and --from-json does not: leave one out")


def run(args: argparse.Namespace, words: Sequence[str]) -> BenchmarkResult:
    """Measure everything that is asked for."""
    device = prepare_process(args)
    load_before = load_average()
    environment = environment_report()
    plan = plan_of(args)
    bench = Bench(build(args), variants_of(args.variants, device), plan, device)
    with tqdm(total=plan.warmup + plan.rounds, unit="round", leave=False, desc="measuring") as bar:

        def tell(line: str) -> None:
            bar.set_description(line)
            bar.update(1 if line.startswith(("round", "warm-up")) else 0)

        measured = measure(bench, tell)
    if args.memory:
        add_memory(args, bench, measured)
    return BenchmarkResult(
        format=FORMAT,
        command=shlex.join(["python", "scripts/benchmark.py", *words]),
        model=(args.cfg or args.weights).name,
        settings={
            "device": device.type,
            "device_name": device_name(device).removesuffix(f", {torch.get_num_threads()} threads"),
            "threads": torch.get_num_threads(),
            "fast_bf16": has_fast_bf16() if device.type == "cpu" else None,
            "tf32_matmul": torch.backends.cuda.matmul.allow_tf32 if device.type == "cuda" else None,
            "tf32_convolutions": torch.backends.cudnn.allow_tf32 if device.type == "cuda" else None,
            "rounds": max((len(case.total_ms) for case in measured.cases), default=0),
            "warmup": plan.warmup,
            "peaks_per_patch": plan.peaks,
            "candidates_per_image": plan.candidates,
            "seed": plan.seed,
            "load_before": load_before,
            "load_after": load_average(),
        },
        environment=environment,
        parameters=bench.parameters,
        **vars(measured),
    )


def prepare_process(args: argparse.Namespace) -> torch.device:
    """Set the number of threads; returns the device."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    return select_device(args.device)


def plan_of(args: argparse.Namespace) -> Plan:
    """The plan that the options describe, nothing twice."""
    sizes = [size if isinstance(size, tuple) else (size, size) for size in args.img_size]
    return Plan(
        list(dict.fromkeys(sizes)), list(dict.fromkeys(args.batch_sizes)), list(dict.fromkeys(args.kept)),
        list(dict.fromkeys(args.heads)), args.rounds, args.warmup, args.candidates, args.peaks, args.seed, args.seconds,
    )  # fmt: skip


def build(args: argparse.Namespace, calibrate: bool = True) -> ESOD:
    """The network, in float32 on the CPU."""
    if args.weights is not None:
        return model_from_weights(read_weights(args.weights), str(args.weights))
    config = replace(load_config(ModelConfig, args.cfg), num_classes=args.num_classes, names=[])
    return lively_model(config, args.seed, calibrate)


def plot_path(args: argparse.Namespace, number: int) -> Path | None:
    """Where the picture of one result goes: of several, the file's name is added."""
    plot: Path | None = args.plot
    if plot is None or len(args.from_json or [plot]) == 1:
        return plot
    return plot.with_name(f"{plot.stem}-{args.from_json[number].stem}{plot.suffix}")


# --- memory --------------------------------------------------------------------------------------


def add_memory(args: argparse.Namespace, bench: Bench, measured: Measured) -> None:
    """Measure every eager case in a process of its own; compiling and recording need memory besides that of the pass."""
    source = ["--cfg", str(args.cfg)] if args.cfg is not None else ["--weights", str(args.weights)]
    common = [
        *source,
        "--num-classes",
        str(args.num_classes),
        "--seed",
        str(args.seed),
        "--peaks",
        str(args.peaks),
    ]
    common += ["--device", args.device, "--threads", str(torch.get_num_threads())]
    eager = [case for case in measured.cases if bench.prepared[case.variant].variant.counts]
    for result in tqdm(eager, desc="memory", unit="case", leave=False):
        result.memory = measure_in_process(Path(__file__).resolve(), common, result)


def memory_of_case(args: argparse.Namespace) -> Memory:
    """The memory of the one case that the options name."""
    device = prepare_process(args)
    name, _, mode = args.memory_case.partition("/")
    variants = {variant.name: variant for variant in variants_of(NAMES, device) if variant.counts}
    if name not in variants or mode not in ("dense", "esod"):
        raise ConfigError(
            f"--memory-case {args.memory_case}: expected one of {', '.join(variants)}, /dense or /esod"
        )
    plan = plan_of(args)
    variant = variants[name]
    bench = Bench(build(args, calibrate=False), [variant], plan, device)
    kept = None if mode == "dense" else plan.kept[0]
    return first_pass(bench, Case(name, plan.sizes[0], plan.batches[0], kept, plan.heads[0]))


if __name__ == "__main__":
    sys.exit(run_main(main))
