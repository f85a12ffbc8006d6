"""Activation checkpointing: a part's activations are not kept for the backward pass but computed once more there.

Numbers do not change: BatchNorm's running statistics see every batch once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputed(module: nn.Module, *inputs: Any) -> Any:
    """What ``module(*inputs)`` gives, keeping only the inputs for the backward pass; the same gradients."""

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), frozen_statistics(module)

    return checkpoint(module, *inputs, use_reentrant=False, context_fn=contexts)


def recomputed_chain(modules: nn.Module, features: Tensor) -> Tensor:
    """A part of the network on features; a sequence link by link, so that one link's activations exist at a time."""
    links = list(modules) if type(modules) is nn.Sequential else [modules]
    for link in links:
        features = recomputed(link, features)
    return features


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """BatchNorm below a module uses its batch as ever, but leaves its running statistics and counter as they are.

    Momentum 0 leaves the statistics to the last bit; switching their tracking off would not do, because checkpointing
    wants the same tensors saved both times.
    """
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    counters = [norm.num_batches_tracked for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = (
            None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()
        )
    try:
        yield
    finally:
        for norm, momentum, counter in zip(norms, momenta, counters, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked = counter
