"""The ways in which one network is run: precision, folding, memory order, compilation, CUDA graphs.

Every mode computes the same thing, within its precision; `PLAIN` is the yardstick that the others are tested and
measured against.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch

from engine.graphs import GraphRunner
from models.esod import DIRECTLY, ESOD, PartRunner
from utils.dist import has_fast_bf16
from utils.logger import get_logger
from utils.typed_data import ConfigError


@dataclass(frozen=True)
class Mode:
    """One way to run a network.

    Attributes:
        name: in tables and files.
        dtype: of weights and activations.
        folded: BatchNorm is folded into the convolutions.
        channels_last: memory order of weights and images; convolutions are faster when the channels of a pixel are
            neighbours in memory.
        compiled: by torch.compile, part by part.
        graphs: the parts are replayed as CUDA graphs, patches padded to few different numbers.
    """

    name: str
    dtype: torch.dtype = torch.float32
    folded: bool = True
    channels_last: bool = True
    compiled: bool = False
    graphs: bool = False

    @property
    def counts(self) -> bool:
        """Whether each operation runs by itself, so that it can be counted."""
        return not self.compiled and not self.graphs

    def runner(self) -> PartRunner:
        """What runs the parts of a network in this mode; holds the graphs of one network."""
        return GraphRunner() if self.graphs else DIRECTLY


PLAIN = Mode("plain", folded=False, channels_last=False)
FAST = Mode("fast")


def put_into(mode: Mode, model: ESOD, device: torch.device) -> ESOD:
    """A float32 network with its BatchNorm, changed in place, on a device in evaluation mode.

    Raises:
        ConfigError: the mode needs a GPU and the device is none.
    """
    if mode.graphs and device.type != "cuda":
        raise ConfigError("CUDA graphs (--graphs) need a GPU: leave it out on a CPU")
    if model.surroundings is not None and (mode.compiled or mode.graphs):
        raise ConfigError(
            "borders neighbours: not with --compile and --graphs, whose code is made for patches alone"
        )
    model.eval()
    if mode.folded:
        model.fuse()
    coder = deepcopy(model.head.coder)
    model.to(mode.dtype)
    model.head.coder = coder  # anchors are geometry, not weights: 16 bits would move boxes
    model.to(device)
    if mode.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if mode.compiled:
        compile_parts(model)
    return model


def compile_parts(model: ESOD, backend: str = "inductor") -> None:
    """Let torch.compile generate the code of a model's parts, at the first forward pass with each input size.

    Code that runs on patches is made for one number of them first, and once more, for any number, when a second one
    comes. Between the parts lies the slicer, whose one wait for the device would break a graph.
    """
    for part in (model.stem, model.seeker, model.deep, model.neck, model.head):
        if part is not None:
            part.compile(backend=backend)


def half_type(device: torch.device) -> torch.dtype:
    """What ``--half`` computes in: fp16 on a GPU; bf16 on a CPU that multiplies it in hardware, else float32."""
    if device.type == "cuda":
        return torch.float16
    if has_fast_bf16():
        return torch.bfloat16
    get_logger().warning(
        "--half: this CPU has no hardware for bf16 (AMX or AVX512-BF16), with which it would be slower: "
        "computing in float32"
    )
    return torch.float32
