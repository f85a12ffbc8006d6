"""CUDA graphs of a network's parts: recorded once per input shape, then replayed by a single launch.

At batch 1 the launches of a few hundred small kernels cost more than the kernels. A graph needs fixed shapes, and
the number of patches is another one for every image. So it is padded to one of few (`padded_count`); what the
additional patches give is dropped. Graphs belong to whoever runs the network, not to its modules.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.esod import Part, PartRunner

MAX_GRAPHS = 48
"""Graphs that are kept, those used last: 4 parts of two input sizes with 5 numbers of patches each, and some more."""
STEPS_PER_OCTAVE = 4
"""Numbers of patches from one power of two to the next, which bounds padding to a quarter."""

Key = tuple[str, tuple[tuple[torch.Size, torch.dtype, torch.device], ...]]


def padded_count(count: int) -> int:
    """The least number of patches from 0, 1, …, 8, 10, 12, 14, 16, 20, … that is not smaller; four per octave."""
    step = 1
    while count > 2 * STEPS_PER_OCTAVE * step:
        step *= 2
    return -(-count // step) * step


class PaddedRunner(PartRunner):
    """Pads the number of patches, so that what runs on them sees few shapes; runs everything directly."""

    def padded(self, count: int) -> int:
        return padded_count(count)


@dataclass(frozen=True)
class _Recorded:
    """A graph with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def replay(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for fixed, given in zip(self.inputs, inputs, strict=True):
            fixed.copy_(given, non_blocking=True)
        self.graph.replay()
        # The next replay overwrites them, and the caller may still hold these.
        return tuple(output.clone() for output in self.outputs)


class GraphRunner(PaddedRunner):
    """Runs each part as a CUDA graph, from the second call with the same shapes on; the first one runs eagerly.

    For one network in evaluation mode on one GPU, whose weights stay where they are, and for one thread.

    Args:
        max_graphs: that are kept.
        record: (part, inputs) → graph; `record_graph` but in tests.
    """

    def __init__(
        self,
        max_graphs: int = MAX_GRAPHS,
        record: Callable[[Part, tuple[Tensor, ...]], _Recorded] | None = None,
    ) -> None:
        self._max_graphs = max_graphs
        self._record = record_graph if record is None else record
        self._graphs: OrderedDict[Key, _Recorded | None] = OrderedDict()

    def __len__(self) -> int:
        """Graphs that are kept."""
        return sum(graph is not None for graph in self._graphs.values())

    def run(self, name: str, part: Part, *inputs: Tensor) -> tuple[Tensor, ...]:
        key = (name, tuple((x.shape, x.dtype, x.device) for x in inputs))
        if any(x.numel() == 0 for x in inputs):
            return part(*inputs)  # no patch: nothing to record
        if key not in self._graphs:  # a shape that comes once is not worth a graph; this also warms up
            self._keep(key, None)
            return part(*inputs)
        graph = self._graphs[key]
        if graph is None:
            graph = self._record(part, inputs)
        self._keep(key, graph)
        return graph.replay(inputs)

    def _keep(self, key: Key, graph: _Recorded | None) -> None:
        self._graphs[key] = graph
        self._graphs.move_to_end(key)
        while len(self._graphs) > self._max_graphs:
            self._graphs.popitem(last=False)


class GraphError(RuntimeError):
    """A part of the network that cannot be recorded as a CUDA graph."""


def record_graph(part: Part, inputs: tuple[Tensor, ...]) -> _Recorded:
    """Record a part on inputs of these shapes; nothing is replayed yet.

    Raises:
        GraphError: the part does something that a graph cannot, such as waiting for the device.
    """
    # Not tensors of inference mode, which only that may write to later.
    with torch.inference_mode(False), torch.no_grad():
        fixed = tuple(torch.empty_like(x).copy_(x) for x in inputs)
    graph = torch.cuda.CUDAGraph()
    tuned = torch.backends.cudnn.benchmark
    try:
        torch.backends.cudnn.benchmark = (
            True  # shapes are fixed: the search for the fastest kernel is worth it
        )
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(aside):
            for _ in range(2):
                part(*fixed)
        torch.cuda.current_stream().wait_stream(aside)
        with torch.no_grad(), torch.cuda.graph(graph):
            outputs = part(*fixed)
    except RuntimeError as error:
        raise GraphError(
            f"the network cannot be recorded as a CUDA graph ({error}): leave out --graphs"
        ) from error
    finally:
        torch.backends.cudnn.benchmark = tuned
    return _Recorded(graph, fixed, outputs)
