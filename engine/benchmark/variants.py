"""The ways in which one network is run: precision, folding, memory order, compilation; and its dense twin.

All variants begin from the same weights. The seeker of a variant computes what it computes, and then says what it is
told to (`GivenHeatmap`), so that every variant keeps the same patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from models.backbones.base import Backbone
from models.build import build_model
from models.esod import ESOD, NO_TIMER
from models.slicer import Patches, whole_map
from models.summary import dense_twin
from utils.config import ModelConfig
from utils.profile import StageTimer

NAMES = ("plain", "fast", "fast-compile", "half", "half-compile")
"""What ``--variants`` offers; half is bf16 on a CPU, fp16 and bf16 on a GPU."""
CALIBRATION_HW = (128, 160)
CALIBRATION_PASSES = 4
RECOMPILE_LIMIT = 128
"""Versions of compiled code that all parts of all variants together may have."""


@dataclass(frozen=True)
class Variant:
    """One way to run a network.

    Attributes:
        name: in tables and files.
        dtype: of weights and activations.
        folded: BatchNorm is folded into the convolutions.
        channels_last: memory order of weights and images.
        compiled: by torch.compile, part by part.
    """

    name: str
    dtype: torch.dtype = torch.float32
    folded: bool = True
    channels_last: bool = True
    compiled: bool = False


def variants_of(names: Sequence[str], device: torch.device) -> list[Variant]:
    """The variants behind the names of ``--variants`` on a device, in the order of `NAMES`."""
    types = {"bf16": torch.bfloat16}
    if device.type == "cuda":
        types = {"fp16": torch.float16, "bf16": torch.bfloat16}
    offered = {
        "plain": [Variant("plain", folded=False, channels_last=False)],
        "fast": [Variant("fast")],
        "fast-compile": [Variant("fast-compile", compiled=True)],
        "half": [Variant(name, dtype) for name, dtype in types.items()],
        "half-compile": [Variant(f"{name}-compile", dtype, compiled=True) for name, dtype in types.items()],
    }
    return [variant for name in NAMES if name in names for variant in offered[name]]


class GivenHeatmap(nn.Module):
    """A seeker that runs as ever, whose result is replaced by prepared logits.

    Attributes:
        logits: [B, 1, H/8, W/8] on the device and in the type of the seeker's own; None: its own.
    """

    def __init__(self, seeker: nn.Module) -> None:
        super().__init__()
        self.seeker = seeker
        self.logits: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        own: Tensor = self.seeker(features)
        return own if self.logits is None else self.logits


class Marked(nn.Module):
    """A part of the network at whose beginning or end a timer splits its stage.

    Attributes:
        timer: of the pass that runs.
    """

    def __init__(self, part: nn.Module, before: str | None = None, after: str | None = None) -> None:
        super().__init__()
        self.part, self.before, self.after = part, before, after
        self.timer: StageTimer = NO_TIMER

    def forward(self, features: Tensor, where: Patches | Tensor | None) -> object:
        if self.before is not None:
            self.timer.split(self.before)
        found: object = self.part(features, where)
        if self.after is not None:
            self.timer.split(self.after)
        return found


@dataclass
class Prepared:
    """A variant, ready to run: with patches and, of the same parts without a seeker, on the whole map.

    Attributes:
        variant: which.
        esod, dense: on the device, in evaluation mode.
        given: the seeker of ``esod``.
        marks: where the stages of `Marked` are split.
    """

    variant: Variant
    esod: ESOD
    dense: ESOD
    given: GivenHeatmap
    marks: list[Marked]

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


def prepare(model: ESOD, variant: Variant, device: torch.device) -> Prepared:
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
    esod = deepcopy(model).eval().requires_grad_(False)
    if variant.folded:
        esod.fuse()
    coder = deepcopy(esod.head.coder)
    esod.to(variant.dtype)
    esod.head.coder = coder  # anchors are geometry, not weights: they stay in float32
    esod.to(device)
    if variant.channels_last:
        esod.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert esod.seeker is not None
    if variant.compiled:
        _compile(esod)
    given = GivenHeatmap(esod.seeker)
    esod.seeker = given
    marks = [Marked(esod.deep, before="gather")]
    esod.deep = marks[0]
    if esod.tokens is not None:
        marks.append(Marked(esod.tokens, after="tokens"))
        esod.tokens = marks[-1]
    return Prepared(variant, esod, _without_seeker(esod), given, marks)


def _compile(esod: ESOD) -> None:
    """Let torch.compile make code for each part when it first runs, and again for shapes that it has not seen."""
    from torch._dynamo import config

    # Every case may need code of its own. Above the limit torch would quietly run eagerly, under a wrong name.
    config.recompile_limit = RECOMPILE_LIMIT
    config.fail_on_recompile_limit_hit = True
    for part in (esod.stem, esod.seeker, esod.tokens, esod.deep, esod.neck, esod.head):
        if part is not None:
            part.compile()


def _without_seeker(esod: ESOD) -> ESOD:
    """The dense twin on the same parts, of which nothing is copied."""
    # Channels say how to build what comes behind; here everything is built.
    parts = Backbone(esod.stem, esod.deep, esod.neck, 0, (0, 0, 0), esod.tokens)
    return ESOD(dense_twin(esod.config), parts, esod.head, None).eval()


def benchmark_config(config: ModelConfig, sparse: bool) -> ModelConfig:
    """The configuration with a dense or a sparse head and without a patch budget, which would hide the given share."""
    return replace(
        config,
        slicer=replace(config.slicer, max_patches=None),
        head=replace(config.head, sparse=sparse),
    )
