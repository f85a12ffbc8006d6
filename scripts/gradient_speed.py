"""How long the gradients of a detector's weights take on this CPU: PyTorch's way, and models/convolution.py's.

    python scripts/gradient_speed.py --cfg models/cfg/yolov5m.yaml --img-size 1024 [--rounds 5] [--json OUT]

One training pass over random images finds the convolutions that are computed the other way, most of them in the stem.
Those of equal size are timed once. All run once in every round, in an order drawn anew.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from engine.benchmark.parts import Part, PartTimes, time_parts
from models.build import build_model
from models.convolution import WeightGradient, better_weight_gradient, pytorch_weight_gradient
from models.layers import Conv
from utils.allocator import keep_freed_memory
from utils.cli import Parser, image_size, positive_int, run_main
from utils.config import ModelConfig
from utils.environment import measurement_head
from utils.files import write_json
from utils.typed_data import load_config

CPU = torch.device("cpu")
WAYS = ("PyTorch", "ours")


@dataclass
class Layers:
    """Convolutions of one size: what they have in common, and how many there are."""

    module: Conv
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    way: WeightGradient
    count: int = 0

    @property
    def detail(self) -> str:
        """Which they are, for people."""
        conv = self.module.conv
        maps = "×".join(map(str, self.input_shape))
        kernel = "×".join(map(str, conv.kernel_size))
        depthwise = " depth-wise" if conv.groups > 1 else ""
        return f"{maps} → {conv.out_channels}, {kernel}{depthwise}, stride {conv.stride[0]}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, find the layers, time, print, write."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    args = build_parser().parse_args(words)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    keep_freed_memory()
    size = args.img_size
    input_hw = (size, size) if isinstance(size, int) else size
    found = find_layers(load_config(ModelConfig, args.cfg), input_hw, args.batch_size)
    parts = [part for layers in found for part in both_ways(layers)]
    times = time_parts(parts, args.rounds, 1, 0, CPU)
    print(table(found, times))
    if args.json is not None:
        content = {
            **measurement_head("scripts/gradient_speed.py", words, CPU),
            "model": args.cfg.name,
            "layers": [{"detail": layers.detail, "count": layers.count} for layers in found],
            "parts": [asdict(part) for part in times],
        }
        write_json(args.json, content)


def find_layers(config: ModelConfig, input_hw: tuple[int, int], batch: int) -> list[Layers]:
    """The convolutions of a detector, on images of this size, for which there is a better way; equal ones as one."""
    torch.manual_seed(0)
    model = build_model(replace(config, num_classes=10, names=[])).train()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found: dict[str, Layers] = {}

    def look(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, Conv)
        way = better_weight_gradient(module.conv, inputs[0])
        if way is not None:
            layers = Layers(module, tuple(inputs[0].shape), tuple(output.shape), way)
            found.setdefault(layers.detail, layers).count += 1

    for module in model.modules():
        if isinstance(module, Conv):
            module.register_forward_hook(look)
    model(torch.rand(batch, 3, *input_hw).contiguous(memory_format=torch.channels_last))
    return list(found.values())


def both_ways(layers: Layers) -> list[Part]:
    """The weight's gradient of one layer, by PyTorch and by ours, on random maps."""
    conv = layers.module.conv
    x, gradient = (
        torch.randn(shape).contiguous(memory_format=torch.channels_last)
        for shape in (layers.input_shape, layers.output_shape)
    )
    ways = (pytorch_weight_gradient, layers.way)

    @torch.no_grad()
    def run(way: WeightGradient) -> Tensor:
        return way(conv, gradient, x)

    return [
        Part(name, layers.detail, lambda way=way: run(way))  # type: ignore[misc]
        for name, way in zip(WAYS, ways, strict=True)
    ]


def table(found: Sequence[Layers], times: Sequence[PartTimes]) -> str:
    """The printed table: a row per kind of layer, and all layers together."""
    if not found:
        return "PyTorch's way is used everywhere: no map is large enough, no depth-wise kernel wide enough"
    width = max(len(layers.detail) for layers in found) + 2
    lines = [f"{'convolution':<{width}}{'layers':>6}{'PyTorch ms':>12}{'ours ms':>9}{'times as fast':>15}"]
    total = [0.0, 0.0]
    for index, layers in enumerate(found):
        plain, ours = (part.median_ms for part in times[2 * index : 2 * index + 2])
        total = [total[0] + layers.count * plain, total[1] + layers.count * ours]
        lines.append(
            f"{layers.detail:<{width}}{layers.count:>6}{plain:>12.1f}{ours:>9.1f}{plain / ours:>15.1f}"
        )
    layer_count = sum(layers.count for layers in found)
    plain, ours = total
    lines.append(f"{'all':<{width}}{layer_count:>6}{plain:>12.1f}{ours:>9.1f}{plain / ours:>15.1f}")
    return "\n".join(lines)


EXAMPLES = (
    "python scripts/gradient_speed.py --cfg models/cfg/yolov5m.yaml --img-size 1024 --json gradients.json",
)
"""Shown at the end of ``--help``."""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser("Time the gradients of a detector's weights on this CPU, both ways.", examples=EXAMPLES)
    parser.add_argument("--cfg", type=Path, required=True, metavar="YAML", help="model, models/cfg/NAME.yaml")
    parser.add_argument(
        "--img-size", type=image_size, default=1024, metavar="N", help="network input: side, or HEIGHTxWIDTH"
    )
    parser.add_argument("--batch-size", type=positive_int, default=1, metavar="N", help="images per step")
    parser.add_argument(
        "--rounds", type=positive_int, default=5, metavar="N", help="each runs everything once"
    )
    parser.add_argument(
        "--threads", type=positive_int, metavar="N", help="of PyTorch (default: as it chooses)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every raw time there")
    return parser


if __name__ == "__main__":
    sys.exit(run_main(main))
