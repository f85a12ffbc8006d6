"""The modes in which one network is run and compared; and its dense twin.

All variants begin from the same weights. The seeker of a variant computes what it computes, and then another heatmap is
taken (`GivenHeatmap`), so that every variant keeps the same patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from engine.modes import PLAIN, Mode, put_into
from models.backbones.base import Backbone
from models.borders import check_neighbours
from models.build import build_model
from models.esod import DIRECTLY, ESOD, Part, PartRunner
from models.slicer import whole_map
from models.summary import dense_twin
from utils.config import ModelConfig

ENDINGS = ("", "-compile", "-graph", "-compile-graph")
NAMES = ("plain", *(f"{name}{ending}" for name in ("fast", "half") for ending in ENDINGS))
"""What ``--variants`` offers; half is bf16 on a CPU, whether it is good at that or not, fp16 and bf16 on a GPU."""
CALIBRATION_HW = (128, 160)
CALIBRATION_PASSES = 4
RECOMPILE_LIMIT = 128
"""Versions of compiled code that all parts of all variants together may have."""


def variants_of(names: Sequence[str], device: torch.device) -> list[Mode]:
    """The variants behind the names of ``--variants`` on a device, in the order of `NAMES`."""
    types = {"bf16": torch.bfloat16}
    if device.type == "cuda":
        types = {"fp16": torch.float16, "bf16": torch.bfloat16}
    offered = {"plain": [PLAIN]}
    for ending in ENDINGS:
        compiled, graphs = "compile" in ending, "graph" in ending
        offered["fast" + ending] = [Mode("fast" + ending, compiled=compiled, graphs=graphs)]
        offered["half" + ending] = [
            Mode(name + ending, dtype, compiled=compiled, graphs=graphs) for name, dtype in types.items()
        ]
    return [variant for name in NAMES if name in names for variant in offered[name]]


class GivenHeatmap(PartRunner):
    """Runs every part as another runner does, and replaces what the seeker said by prepared logits.

    Attributes:
        runner: that other one.
        logits: [B, 1, H/8, W/8] on the device and in the type of the seeker's own; None: its own.
    """

    def __init__(self, runner: PartRunner = DIRECTLY) -> None:
        self.runner = runner
        self.logits: Tensor | None = None

    def run(self, name: str, part: Part, *inputs: Tensor) -> tuple[Tensor, ...]:
        found = self.runner.run(name, part, *inputs)
        return found if name != "seeker" or self.logits is None else (self.logits,)

    def padded(self, count: int) -> int:
        return self.runner.padded(count)


@dataclass
class Prepared:
    """A variant, ready to run: with patches and, of the same parts without a seeker, on the whole map.

    Attributes:
        variant: which.
        esod, dense: on the device, in evaluation mode.
        given: what runs both.
    """

    variant: Mode
    esod: ESOD
    dense: ESOD
    given: GivenHeatmap

    def images(self, images: Tensor) -> Tensor:
        """Images [B,3,H,W] as this variant wants them."""
        memory = torch.channels_last if self.variant.channels_last else torch.contiguous_format
        return images.to(self.variant.dtype).contiguous(memory_format=memory)


def lively_model(config: ModelConfig, seed: int, calibrate: bool = True) -> ESOD:
    """A network with random weights whose activations neither die out nor explode, in evaluation mode.

    Args:
        config: of the network.
        seed: of weights and calibration images.
        calibrate: give BatchNorm the statistics of random images. Values do not matter to speed on most devices, but
            denormal numbers, infinities and a head that finds nothing would.
    """
    torch.manual_seed(seed)
    model = build_model(config)
    if not calibrate:
        return model.eval()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.5
    images = torch.rand(2, 3, *CALIBRATION_HW)
    model.train()
    with torch.no_grad():
        for _ in range(CALIBRATION_PASSES):
            # On the whole map: a random heatmap may keep nothing, and statistics of nothing are not numbers.
            model(images, lambda logits: whole_map(len(logits), tuple_of(logits), logits.device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def tuple_of(maps: Tensor) -> tuple[int, int]:
    """Height and width of maps [B, C, H, W]."""
    return maps.shape[2], maps.shape[3]


def prepare(model: ESOD, variant: Mode, device: torch.device) -> Prepared:
    """A copy of a network in a variant, on a device.

    Args:
        model: float32, with its BatchNorm and a seeker.
        variant: what to make of it.
        device: to run on.

    Raises:
        ValueError: it has no seeker.
    """
    if model.seeker is None:
        raise ValueError(
            "this model has no heatmap head, so there are no patches to measure: give an ESOD model"
        )
    esod = put_into(variant, deepcopy(model).requires_grad_(False), device)
    if variant.compiled:
        allow_versions()
    return Prepared(variant, esod, _without_seeker(esod), GivenHeatmap(variant.runner()))


def allow_versions() -> None:
    """Every case may need compiled code of its own. Above its limit torch would quietly run eagerly, under a wrong name."""
    from torch._dynamo import config

    config.recompile_limit = RECOMPILE_LIMIT
    config.fail_on_recompile_limit_hit = True


def _without_seeker(esod: ESOD) -> ESOD:
    """The dense twin on the same parts, of which nothing is copied."""
    # Channels say how to build what comes behind; here everything is built.
    parts = Backbone(esod.stem, esod.deep, esod.neck, 0, (0, 0, 0), esod.tokens)
    twin = ESOD(dense_twin(esod.config), parts, esod.head, None).eval()
    twin.surroundings = esod.surroundings  # its layers ask there
    return twin


def benchmark_config(config: ModelConfig, sparse: bool) -> ModelConfig:
    """The configuration with a dense or a sparse head and without a patch budget, which would hide the given share.

    Raises:
        ConfigError: this model cannot have a sparse head.
    """
    changed = replace(
        config,
        slicer=replace(config.slicer, max_patches=None),
        head=replace(config.head, sparse=sparse),
    )
    if changed.borders == "neighbours":
        check_neighbours(changed)
    return changed
