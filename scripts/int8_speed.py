"""Is int8 worth it on this CPU? The two halves of a detector in PyTorch and ONNX Runtime, float32, and in int8.

    python scripts/int8_speed.py --cfg models/cfg/yolov5m.yaml --img-size 896x1536 --kept 0.2 --threads 2

Stem, and what runs on the patches (deep, neck, head), are exported one after the other, quantised statically (int8
weights per channel, uint8 activations, calibrated on random images) and timed in turn. This says what speed there is
to gain; what accuracy it costs must be asked with trained weights, once it is more than 1.3 times that of float32.
Needs ``pip install onnx onnxruntime``.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from deploy.sessions import open_session
from engine.benchmark.heatmaps import wanted_patches
from engine.benchmark.parts import Part, PartTimes, time_parts
from engine.benchmark.variants import lively_model
from engine.export.quantise import quantised
from engine.export.write import Axes, require_packages, trace
from engine.modes import FAST, put_into
from models.esod import ESOD
from models.slicer import STRIDE, patch_size, whole_map
from utils.cli import Parser, image_size, positive_int, probability, run_main
from utils.config import ModelConfig
from utils.environment import measurement_head
from utils.files import write_json
from utils.typed_data import ConfigError, load_config

CPU = torch.device("cpu")
INPUT = "input"
"""Of the exported parts."""
CALIBRATION = 2
"""Random inputs from which the ranges of the activations are taken."""


class OnPatches(nn.Module):
    """Deep part, neck and head of a detector: [K, C, h, w] of K patches → the raw predictions of three levels."""

    def __init__(self, model: ESOD) -> None:
        super().__init__()
        self.deep, self.neck, self.head = model.deep, model.neck, model.head

    def forward(self, cut: Tensor) -> tuple[Tensor, ...]:
        patches = whole_map(1, (cut.shape[2], cut.shape[3]), cut.device)  # the convolutions do not look at it
        levels = self.head(self.neck(*self.deep(cut, patches)))
        return tuple(level.raw for level in levels)


def main(arguments: Sequence[str] | None = None) -> None:
    """Export, quantise, time, print, write."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    args = build_parser().parse_args(words)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    size = args.img_size if isinstance(args.img_size, tuple) else (args.img_size, args.img_size)
    config = replace(load_config(ModelConfig, args.cfg), num_classes=args.num_classes, names=[])
    if config.family == "gpvit" or config.transformer:
        raise ConfigError(
            f"{args.cfg}: attention over patches cannot be exported here: give a convolutional model"
        )
    require_packages(["onnx"])
    with tempfile.TemporaryDirectory() as folder:
        parts = parts_of(lively_model(config, seed=0), size, args.kept, Path(folder))
        times = time_parts(parts, args.rounds, 1, seed=0, device=CPU)
    print(table(times))
    if args.json is not None:
        content = {
            **measurement_head("scripts/int8_speed.py", words, CPU),
            "model": args.cfg.name,
            "vnni": has_vnni(),
            "parts": [{"name": one.name, "detail": one.detail, "ms": one.ms} for one in times],
        }
        write_json(args.json, content)


def has_vnni() -> bool | None:
    """Whether this CPU multiplies int8 in hardware; None where the system does not tell."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return None
    words = path.read_text(encoding="ascii", errors="replace").split()
    return any(flag in words for flag in ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp"))


def parts_of(model: ESOD, size: tuple[int, int], kept: float, folder: Path) -> list[Part]:
    """Both halves in PyTorch (fast mode) and, exported, in ONNX Runtime: float32 and int8."""
    map_hw = (size[0] // STRIDE, size[1] // STRIDE)
    count = max(wanted_patches(map_hw, model.config.slicer.patches_per_side, kept), 1)
    images = torch.rand(1, 3, *size)
    cut = torch.rand(count, channels_of(model), *patch_size(map_hw, model.config.slicer.patches_per_side))
    plain = deepcopy(model).fuse()
    fast = put_into(FAST, model, CPU)
    found = []
    for name, exported, quick, example in (
        ("stem", plain.stem, fast.stem, images),
        ("deep, neck, head", OnPatches(plain).eval(), OnPatches(fast), cut),
    ):
        detail = f"{name}, {'×'.join(map(str, example.shape))}"
        last = example.contiguous(memory_format=torch.channels_last)
        found.append(Part("PyTorch float32", detail, lambda quick=quick, last=last: quick(last)))  # type: ignore[misc]
        path = folder / f"{len(found)}.onnx"
        export(exported, example, path)
        found.append(Part("ONNX Runtime float32", detail, runner(path, example)))
        found.append(Part("ONNX Runtime int8", detail, runner(int8_of(path, example), example)))
    return found


@torch.no_grad()
def channels_of(model: ESOD) -> int:
    """Of the stem's features."""
    return int(model.stem(torch.zeros(1, 3, 32, 32)).shape[1])


def export(part: nn.Module, example: Tensor, path: Path) -> None:
    """Write a part as ONNX."""
    import onnx

    onnx.save(trace(part, example, Axes([INPUT], [], {})), str(path))


def int8_of(path: Path, example: Tensor) -> Path:
    """The same network in 8 bits, as `export.py --int8` has it, its ranges taken from random inputs."""
    import onnx

    result = path.with_suffix(".int8.onnx")
    feeds = ({INPUT: torch.rand_like(example).numpy()} for _ in range(CALIBRATION))
    onnx.save(quantised(path, feeds), str(result))
    return result


def runner(path: Path, example: Tensor) -> Callable[[], object]:
    """What runs a file once, with as many threads as PyTorch."""
    session, values = open_session(path, torch.get_num_threads()), np.ascontiguousarray(example.numpy())
    return lambda: session.run({INPUT: values})


def table(times: Sequence[PartTimes]) -> str:
    """The printed table: medians, and how many times as fast as the fastest in float32."""
    lines = [f"{'':<44}{'':<24}{'ms':>9}{'× best float32':>16}"]
    for one in times:
        alike = [other for other in times if other.detail == one.detail and "float32" in other.name]
        best = min(other.median_ms for other in alike)
        lines.append(f"{one.detail:<44}{one.name:<24}{one.median_ms:>9.1f}{best / one.median_ms:>16.2f}")
    return "\n".join(lines)


EXAMPLES = (
    "python scripts/int8_speed.py --cfg models/cfg/yolov5m.yaml --img-size 896x1536 --kept 0.2 --threads 2",
)
"""Shown at the end of ``--help``."""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser("Time a detector in int8 against float32, on this CPU.", examples=EXAMPLES)
    parser.add_argument("--cfg", type=Path, required=True, metavar="YAML", help="model, models/cfg/NAME.yaml")
    parser.add_argument("--num-classes", type=positive_int, default=10, metavar="N", help="classes")
    parser.add_argument(
        "--img-size", type=image_size, default=(896, 1536), metavar="N", help="input: side, or HEIGHTxWIDTH"
    )
    parser.add_argument(
        "--kept",
        type=probability,
        default=0.2,
        metavar="P",
        help="share of the map whose patches are run, 0-1",
    )
    parser.add_argument(
        "--rounds", type=positive_int, default=10, metavar="N", help="each runs everything once"
    )
    parser.add_argument(
        "--threads", type=positive_int, metavar="N", help="of both (default: as PyTorch chooses)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every raw time there")
    return parser


if __name__ == "__main__":
    sys.exit(run_main(main))
