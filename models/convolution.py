"""Convolutions of training on a CPU, where the weight's gradient is computed in a better way than PyTorch's.

Images and features are stored channels last, which is fastest forward and for the gradient of the input. For the
gradient of the weight it is slow on large maps: at 1024 pixels two to four times slower than from contiguous copies, and
most of a YOLOv5m stem's step (docs/notes/training-speed.md). A large depth-wise kernel is slow in either layout; by
the convolution theorem its gradient is a product of spectra.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LARGE_MAP_BYTES = 3 * 2**19
"""1.5 MiB of output per image: from there on contiguous copies are faster, below they are not (measured)."""
WIDE_KERNEL = 9
"""From this side on a depth-wise kernel's gradient is faster by Fourier transforms."""

WeightGradient = Callable[[nn.Conv2d, Tensor, Tensor], Tensor]
"""Of a convolution, its output's gradient [B, out, H', W'] and its input [B, in, H, W]: the gradient of its weight."""


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """``conv(x)``: [B, in, H, W] → [B, out, H', W'], with the weight's gradient computed as suits the map's size.

    Outputs are the module's to the last bit; gradients of the weight differ by rounding (1e-5 of the largest).
    """
    way = better_weight_gradient(conv, x)
    return conv(x) if way is None else _Convolution.apply(x, conv, conv.weight, way)  # type: ignore[no-any-return]


def better_weight_gradient(conv: nn.Conv2d, x: Tensor) -> WeightGradient | None:
    """A faster way than PyTorch's for training this convolution on this input; None where there is none."""
    if not _is_trained_on_cpu(conv, x):
        return None
    if _is_wide_depthwise(conv):
        return _spectral_gradient
    if conv.kernel_size != (1, 1) and _output_bytes(conv, x) >= LARGE_MAP_BYTES:
        return _contiguous_gradient
    return None


def pytorch_weight_gradient(conv: nn.Conv2d, gradient: Tensor, x: Tensor) -> Tensor:
    """The gradient of the weight as PyTorch computes it, in the layout that the maps have."""
    return _gradients(conv, gradient, x, conv.weight, (False, True))[1]


def _is_trained_on_cpu(conv: nn.Conv2d, x: Tensor) -> bool:
    """In float32, step by step, by the plain kind of convolution."""
    return (
        conv.training
        and not conv._forward_pre_hooks  # which only a call of the module runs
        and torch.is_grad_enabled()
        and conv.weight.requires_grad
        and x.device.type == "cpu"
        and x.dtype == conv.weight.dtype == torch.float32
        and conv.bias is None
        and conv.dilation == (1, 1)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _is_wide_depthwise(conv: nn.Conv2d) -> bool:
    """One odd kernel per channel, of stride 1 and "same" padding, large enough for transforms to pay."""
    side = conv.kernel_size[0]
    return (
        conv.groups == conv.in_channels == conv.out_channels
        and conv.kernel_size == (side, side)
        and conv.stride == (1, 1)
        and conv.padding == (side // 2, side // 2)
        and side % 2 == 1
        and side >= WIDE_KERNEL
    )


def _output_bytes(conv: nn.Conv2d, x: Tensor) -> int:
    """Of one image, borders aside."""
    return (
        conv.out_channels * (x.shape[2] // conv.stride[0]) * (x.shape[3] // conv.stride[1]) * x.element_size()
    )


class _Convolution(torch.autograd.Function):
    """A convolution as PyTorch computes it, but for the gradient of its weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, conv: nn.Conv2d, weight: Tensor, way: WeightGradient) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.conv, ctx.way = conv, way
        return conv(x)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        wants_x, _, wants_weight, _ = ctx.needs_input_grad
        of_x = _gradients(ctx.conv, gradient, x, weight, (True, False))[0] if wants_x else None
        of_weight = ctx.way(ctx.conv, gradient, x) if wants_weight else None
        return of_x, None, of_weight, None


def _gradients(
    conv: nn.Conv2d, gradient: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """PyTorch's own gradients of the input and of the weight, where wanted; `gradient` is the output's."""
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        gradient,
        x,
        weight,
        None,
        conv.stride,
        conv.padding,
        (1, 1),
        False,
        (0, 0),
        conv.groups,
        (*wanted, False),
    )
    return of_x, of_weight


def _contiguous_gradient(conv: nn.Conv2d, gradient: Tensor, x: Tensor) -> Tensor:
    """The weight's gradient from contiguous copies of both maps."""
    return _gradients(conv, _contiguous(gradient), _contiguous(x), conv.weight.contiguous(), (False, True))[1]


def _spectral_gradient(conv: nn.Conv2d, gradient: Tensor, x: Tensor) -> Tensor:
    """A depth-wise weight's gradient [C, 1, k, k]: the correlation of input and output gradient, channel by channel.

    The input is padded with zeros, as the convolution pads it, and then to a length that transforms fast.
    """
    height, width = x.shape[2:]
    side, margin = conv.kernel_size[0], conv.kernel_size[0] // 2
    lengths = (cv2.getOptimalDFTSize(height + 2 * margin), cv2.getOptimalDFTSize(width + 2 * margin))
    padding = (margin, lengths[1] - width - margin, margin, lengths[0] - height - margin)
    total = torch.zeros(1)  # summed image by image: spectra are large
    for own, of_output in zip(_contiguous(x), _contiguous(gradient), strict=True):
        spectrum = torch.fft.rfft2(nn.functional.pad(own, padding))
        total = total + spectrum * torch.fft.rfft2(of_output, s=lengths).conj()
    return torch.fft.irfft2(total, s=lengths)[:, None, :side, :side].contiguous()  # type: ignore[no-any-return]


def _contiguous(maps: Tensor) -> Tensor:
    """``maps.contiguous()`` of [B, C, H, W], several times faster from channels last: PyTorch transposes matrices in blocks."""
    if not maps.is_contiguous(memory_format=torch.channels_last):
        return maps.contiguous()
    copy = torch.empty(maps.shape, dtype=maps.dtype, device=maps.device)
    for target, source in zip(copy, maps, strict=True):
        target.flatten(1).copy_(source.permute(1, 2, 0).flatten(0, 1).t())
    return copy
