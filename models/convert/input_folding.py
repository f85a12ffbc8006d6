"""Input normalisation of other software's networks, folded into their first convolution.

This project feeds RGB in 0–1. Networks trained on (x − mean) / std, in RGB or BGR order, are the same networks on our
images once the scale is in the first convolution's weight and the shift in what follows it: a BatchNorm's running mean
or the convolution's own bias. Pure functions on tensors.

Exact wherever the kernel lies inside the image. Where it reaches into the zero padding it is not: zero meant the mean
colour there and means black here, which moves the outermost values of the first map a little.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""RGB in 0–1: 123.675, 116.28, 103.53 of 255."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""RGB in 0–1: 58.395, 57.12, 57.375 of 255."""


def fold_before_batchnorm(
    weight: Tensor,
    running_mean: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    bgr: bool = False,
) -> tuple[Tensor, Tensor]:
    """Fold the normalisation into a convolution without bias and the running mean of the BatchNorm behind it.

    Args:
        weight: [O, 3, k, k] of the convolution.
        running_mean: [O] of the BatchNorm.
        mean, std: per channel of inputs in 0–1, in the order in which the network takes channels.
        bgr: the network takes blue, green, red; the result takes red, green, blue.

    Returns the new weight and running mean: BatchNorm(conv(images in 0–1)) is what it was on normalised images,
    in evaluation exactly, in training too (a constant does not change a batch's normalised values).

    Raises:
        ValueError: a shape is wrong, or std is not positive.
    """
    folded, shift = _fold(weight, mean, std, bgr)
    if running_mean.shape != shift.shape:
        raise ValueError(f"running mean of shape {tuple(running_mean.shape)}, expected {tuple(shift.shape)}")
    return folded, (running_mean.double() + shift).to(running_mean.dtype)


def fold_into_bias(
    weight: Tensor,
    bias: Tensor | None,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    bgr: bool = False,
) -> tuple[Tensor, Tensor]:
    """Fold the normalisation into a convolution with a bias, or that gets one; see `fold_before_batchnorm`.

    Args:
        weight: [O, 3, k, k].
        bias: [O]; None: zero.
        mean, std, bgr: as in `fold_before_batchnorm`.

    Raises:
        ValueError: a shape is wrong, or std is not positive.
    """
    folded, shift = _fold(weight, mean, std, bgr)
    old = torch.zeros_like(folded[:, 0, 0, 0]) if bias is None else bias
    if old.shape != shift.shape:
        raise ValueError(f"bias of shape {tuple(old.shape)}, expected {tuple(shift.shape)}")
    return folded, (old.double() - shift).to(old.dtype)


def _fold(weight: Tensor, mean: Sequence[float], std: Sequence[float], bgr: bool) -> tuple[Tensor, Tensor]:
    """The weight for images in 0–1, and what its output is too large by, [O] in float64."""
    if weight.dim() != 4 or weight.shape[1] != 3:
        raise ValueError(
            f"weight of shape {tuple(weight.shape)}; expected [out, 3, k, k] of a first convolution"
        )
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(
            f"mean {tuple(mean)} and std {tuple(std)}: expected three numbers each, std positive"
        )
    shape = (1, 3, 1, 1)
    scaled = weight.double() / torch.tensor(std, dtype=torch.float64, device=weight.device).view(shape)
    centre = torch.tensor(mean, dtype=torch.float64, device=weight.device).view(shape)
    shift = (scaled * centre).sum(dim=(1, 2, 3))
    if bgr:
        scaled = scaled.flip(1)
    return scaled.to(weight.dtype), shift
