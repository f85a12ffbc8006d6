"""What a configuration amounts to: layers, shapes, parameters and operations by stage, without running it on images.

    python -m models.summary --cfg models/cfg/yolov5m.yaml
    python -m models.summary --cfg models/cfg/yolov8s.yaml --img-size 1088x1920 --kept 0.1 0.3 --layers

Operations are those that run in one forward pass on patches of a given share of the map, by shapes alone (torch's
meta device) where the network allows it. What images really keep, and what time that takes, says
``test.py --task measure``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.build import build_model
from models.esod import ESOD
from models.slicer import STRIDE, Patches, fixed_grid, patch_size
from utils.cli import Parser, image_size, positive_int, probability, run_main
from utils.config import ModelConfig, SeekerConfig, SlicerConfig
from utils.profile import attention_on_a_cpu, count_parameters
from utils.typed_data import load_config

PARTS = ("stem", "seeker", "tokens", "deep", "neck", "head")
"""Modules of an `ESOD`, in the order in which they run."""


@dataclass(frozen=True)
class Cost:
    """Operations of one forward pass of one image.

    Attributes:
        kept: sum of the patches' areas over the area of the map; 1 for a dense model.
        patches: that were computed.
        gflops: 10⁹ operations by part of the model, a multiply-accumulate counting two.
    """

    kept: float
    patches: int
    gflops: dict[str, float]

    @property
    def total(self) -> float:
        """GFLOPs of the whole forward pass."""
        return sum(self.gflops.values())


@dataclass(frozen=True)
class Layer:
    """A module of a model: its name, kind, output shape (of one image or one patch each), and parameters."""

    name: str
    kind: str
    shape: str
    parameters: int
    gflops: float


def cost_at(model: ESOD, input_hw: tuple[int, int], kept: float | None) -> Cost:
    """Operations with this share of the map kept, the head everywhere on the patches; None: the dense model.

    Args:
        model: in evaluation mode; on the meta device only shapes are computed.
        input_hw: height and width of the network input, multiples of 32.
        kept: 0–1.
    """
    counter, count = _run(model, input_hw, kept if model.seeker is not None else None)
    cells = input_hw[0] // STRIDE * (input_hw[1] // STRIDE)
    height, width = patch_size((input_hw[0] // STRIDE, input_hw[1] // STRIDE), _per_side(model.config))
    share = 1.0 if count is None else count * height * width / cells
    totals = counter.get_flop_counts()
    gflops = {
        part: sum(totals.get(f"ESOD.{part}", {}).values()) / 1e9
        for part in PARTS
        if getattr(model, part) is not None
    }
    return Cost(share, 1 if count is None else count, gflops)


def layers_of(model: ESOD, input_hw: tuple[int, int]) -> list[Layer]:
    """The modules of a model two levels deep, in the order in which they run on one whole image."""
    shapes: dict[str, str] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            shapes[name] = _shape_text(output)

        return hook

    named = _named_layers(model)
    handles = [module.register_forward_hook(note(name)) for name, module in named]
    try:
        counter, _ = _run(model, input_hw, None)
    finally:
        for handle in handles:
            handle.remove()
    totals = counter.get_flop_counts()
    return [
        Layer(
            name,
            type(module).__name__,
            shapes.get(name, ""),
            count_parameters(module),
            sum(totals.get(f"ESOD.{name}", {}).values()) / 1e9,
        )
        for name, module in named
    ]


def dense_twin(config: ModelConfig) -> ModelConfig:
    """The same detector without heatmap head."""
    return replace(
        config,
        seeker=SeekerConfig(kind="none"),
        slicer=SlicerConfig(algorithm="none"),
        head=replace(config.head, sparse=False),
        borders="zeros",
    )


def build_for_counting(config: ModelConfig) -> ESOD:
    """A model without values where shapes are enough; with random ones where patches decide what is computed."""
    with torch.device("meta"):
        model = build_model(config)
    if model.tokens is not None or config.transformer:
        model = build_model(config)
    return model.eval()


@torch.no_grad()
def _run(model: ESOD, input_hw: tuple[int, int], kept: float | None) -> tuple[FlopCounterMode, int | None]:
    """One forward pass: the counted operations, and the number of patches (None: dense)."""
    device = next(model.parameters()).device
    images = torch.zeros((1, 3, *input_hw), device=device)
    chosen: list[int] = []

    def select(logits: Tensor) -> Patches:
        map_hw = (logits.shape[2], logits.shape[3])
        grid = fixed_grid(1, map_hw, _per_side(model.config), logits.device)
        area = grid.size_cell[0] * grid.size_cell[1]
        wanted = round((kept or 0.0) * map_hw[0] * map_hw[1] / area)
        chosen.append(min(wanted, len(grid)))
        # Evenly over the map, as objects that lie anywhere.
        index = torch.linspace(0, len(grid) - 1, chosen[-1]).round().long().to(logits.device)
        return Patches(grid.image_index[index], grid.xyxy_cell[index], grid.size_cell)

    configured = model.config
    if kept is None:
        slicer = replace(configured.slicer, algorithm="none")
        model.config = replace(configured, slicer=slicer, head=replace(configured.head, sparse=False))
    try:
        with FlopCounterMode(display=False, custom_mapping=attention_on_a_cpu()) as counter:
            model(images, None if kept is None else select)
    finally:
        model.config = configured
    return counter, chosen[0] if chosen else None


def _named_layers(model: ESOD) -> list[tuple[str, nn.Module]]:
    """The children of a model's parts, and the levels of its head."""
    parents = [(part, getattr(model, part)) for part in PARTS if part != "head"]
    parents.append(("head.levels", model.head.levels))
    return [
        (f"{name}.{child}", module)
        for name, parent in parents
        if parent is not None
        for child, module in parent.named_children()
    ]


def _per_side(config: ModelConfig) -> int:
    return config.slicer.patches_per_side


def _shape_text(output: Any) -> str:
    """Channels × height × width of a tensor, of each of several, or of what a head gives."""
    if isinstance(output, Tensor):
        return "×".join(str(n) for n in output.shape[1:])
    if isinstance(output, (list, tuple)):
        return ", ".join(_shape_text(item) for item in output)
    return "×".join(str(n) for n in output.raw.shape) if hasattr(output, "raw") else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the summary."""
    args = build_parser().parse_args(arguments)
    config = load_config(ModelConfig, args.cfg)
    config = replace(config, num_classes=args.num_classes, names=[])
    size = args.img_size
    input_hw = size if isinstance(size, tuple) else (size, size)
    model = build_for_counting(config)
    dense = cost_at(build_for_counting(dense_twin(config)), input_hw, None)
    costs = [cost_at(model, input_hw, kept) for kept in args.kept] if model.seeker is not None else []
    if args.layers:
        print(f"{'layer':<26}{'kind':<18}{'output, dense':<44}{'parameters':>12}{'GFLOPs':>10}")
        for layer in layers_of(model, input_hw):
            print(
                f"{layer.name:<26}{layer.kind:<18}{layer.shape:<44}{layer.parameters:>12,}{layer.gflops:>10.2f}"
            )
        print()
    print(
        f"{args.cfg}: {config.family}, {config.head.kind} head, {args.num_classes} classes, "
        f"{count_parameters(model):,} parameters; input {input_hw[0]}×{input_hw[1]}"
    )
    titles = "".join(f"{f'{cost.kept:.0%} kept':>12}" for cost in costs)
    print(f"{'GFLOPs':<10}{'parameters':>14}{'dense':>12}{titles}")
    for part in PARTS:
        module = getattr(model, part)
        if module is not None:
            row = "".join(f"{cost.gflops.get(part, 0.0):>12.2f}" for cost in (dense, *costs))
            print(f"{part:<10}{count_parameters(module):>14,}{row}")
    totals = "".join(f"{cost.total:>12.2f}" for cost in (dense, *costs))
    print(f"{'total':<10}{count_parameters(model):>14,}{totals}")
    shares = "".join(f"{cost.total / dense.total:>12.0%}" for cost in (dense, *costs))
    print(f"{'of dense':<24}{shares}")
    print(
        "A multiply-accumulate counts two. 'dense' has no heatmap head; the others run the head on whole patches."
    )


EXAMPLES = (
    "python -m models.summary --cfg models/cfg/yolov5m.yaml",
    "python -m models.summary --cfg models/cfg/gpvit.yaml --img-size 1024",
)
"""Shown at the end of ``--help``."""


def build_parser() -> Parser:
    """The parser of this module."""
    parser = Parser(
        "Print layers, parameters and GFLOPs of a model by stage.",
        prog="python -m models.summary",
        examples=EXAMPLES,
    )
    parser.add_argument("--cfg", required=True, metavar="YAML", help="model, models/cfg/NAME.yaml")
    parser.add_argument(
        "--img-size", type=image_size, default=(864, 1536), metavar="N", help="side, or HEIGHTxWIDTH"
    )
    parser.add_argument("--num-classes", type=positive_int, default=10, metavar="N", help="classes")
    parser.add_argument(
        "--kept", type=probability, nargs="+", default=[0.2, 0.4], metavar="P",
        help="shares of the map whose patches are kept, 0-1",
    )  # fmt: skip
    parser.add_argument("--layers", action="store_true", help="also list the layers with their output shapes")
    return parser


if __name__ == "__main__":
    sys.exit(run_main(main))
