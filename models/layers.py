"""Building blocks shared by the backbones, the neck and the heads.

Parameter names inside a block (`conv`, `bn`, `cv1`, `m`) follow the published YOLOv5 checkpoints, so
that converting one is a matter of renaming prefixes only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from models.convolution import convolve


def scale_channels(channels: int, width: float, multiple: int = 8) -> int:
    """Channels × width multiple, rounded up to a multiple of 8 or another number."""
    return math.ceil(channels * width / multiple) * multiple


def scale_repeats(repeats: int, depth: float) -> int:
    """Block repeats × depth multiple, rounded, at least 1."""
    return max(round(repeats * depth), 1)


class Fusable(nn.Module):
    """A module that can fold its BatchNorm into its convolutions."""

    def fuse(self) -> None:
        """Fold the BatchNorm's running statistics into the convolution, in place (inference only)."""
        raise NotImplementedError


class Conv(Fusable):
    """Convolution without bias, BatchNorm, activation; "same" padding for odd kernels unless another is given.

    [B, in, H, W] → [B, out, H/stride, W/stride].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        eps: float = 1e-5,
        padding: int | None = None,
        activation: type[nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        padding = kernel // 2 if padding is None else padding
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(out_channels, eps=eps, momentum=0.03)
        self.act = activation(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(convolve(self.conv, x)))  # type: ignore[no-any-return]

    def forward_rows(self, rows: Tensor) -> Tensor:
        """The same layer on gathered neighbourhoods: [M, kernel, kernel, in] → [M, out]."""
        weight = self.conv.weight.permute(0, 2, 3, 1).flatten(1)
        x = F.linear(rows.flatten(1), weight, self.conv.bias)
        if not isinstance(self.bn, nn.Identity):
            assert isinstance(self.bn, _BatchNorm)
            x = F.batch_norm(
                x, self.bn.running_mean, self.bn.running_var, self.bn.weight, self.bn.bias, eps=self.bn.eps
            )
        return self.act(x)  # type: ignore[no-any-return]

    @torch.no_grad()
    def fuse(self) -> None:
        """See `Fusable`."""
        if isinstance(self.bn, nn.Identity):
            return
        assert isinstance(self.bn, _BatchNorm)
        running_mean, running_var = self.bn.running_mean, self.bn.running_var
        assert running_mean is not None and running_var is not None
        gain = self.bn.weight / torch.sqrt(running_var + self.bn.eps)
        self.conv.weight.mul_(gain.view(-1, 1, 1, 1))
        self.conv.bias = nn.Parameter(self.bn.bias - running_mean * gain, requires_grad=False)
        self.bn = nn.Identity()


class WideDepthwise(Conv):
    """A depth-wise `Conv` with a large kernel. On a CPU it computes in float32, also in a network of 16 bits.

    There is no fast 16-bit code for it: 13×13 on bf16 took 2.4 times as long with AMX, and 60 times without bf16 in
    hardware (docs/notes/inference.md). On a GPU it is a `Conv`.
    """

    def __init__(self, channels: int, kernel: int, eps: float = 1e-5) -> None:
        super().__init__(channels, channels, kernel, groups=channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.dtype == torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        conv = self.conv
        bias = None if conv.bias is None else conv.bias.float()
        wide = F.conv2d(x.float(), conv.weight.float(), bias, conv.stride, conv.padding, groups=conv.groups)
        return self.act(self.bn(wide.to(x.dtype)))  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """Two convolutions, the second 3×3, with an identity shortcut when asked for. [B,C,H,W] → [B,C,H,W]."""

    def __init__(self, channels: int, shortcut: bool, eps: float, first_kernel: int = 1) -> None:
        super().__init__()
        self.cv1 = Conv(channels, channels, first_kernel, eps=eps)
        self.cv2 = Conv(channels, channels, 3, eps=eps)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y  # type: ignore[no-any-return]


class C3(nn.Module):
    """Cross-stage-partial block with three convolutions. [B,in,H,W] → [B,out,H,W]."""

    def __init__(
        self, in_channels: int, out_channels: int, repeats: int, shortcut: bool = True, eps: float = 1e-5
    ) -> None:
        super().__init__()
        hidden = out_channels // 2
        self.cv1 = Conv(in_channels, hidden, 1, eps=eps)
        self.cv2 = Conv(in_channels, hidden, 1, eps=eps)
        self.cv3 = Conv(2 * hidden, out_channels, 1, eps=eps)
        self.m = nn.Sequential(*(Bottleneck(hidden, shortcut, eps) for _ in range(repeats)))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), dim=1))  # type: ignore[no-any-return]


class C2f(nn.Module):
    """YOLOv8's cross-stage-partial block: every bottleneck's output goes into the last convolution.

    [B,in,H,W] → [B,out,H,W].
    """

    def __init__(
        self, in_channels: int, out_channels: int, repeats: int, shortcut: bool = True, eps: float = 1e-5
    ) -> None:
        super().__init__()
        hidden = out_channels // 2
        self.cv1 = Conv(in_channels, 2 * hidden, 1, eps=eps)
        self.cv2 = Conv((2 + repeats) * hidden, out_channels, 1, eps=eps)
        self.m = nn.ModuleList(Bottleneck(hidden, shortcut, eps, first_kernel=3) for _ in range(repeats))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cv1(x).chunk(2, dim=1))
        for bottleneck in self.m:
            parts.append(bottleneck(parts[-1]))
        return self.cv2(torch.cat(parts, dim=1))  # type: ignore[no-any-return]


class SPP(nn.Module):
    """Spatial pyramid pooling: parallel max-pools of several sizes. [B,in,H,W] → [B,out,H,W]."""

    def __init__(
        self, in_channels: int, out_channels: int, kernels: Sequence[int], eps: float = 1e-5
    ) -> None:
        super().__init__()
        hidden = in_channels // 2
        self.pools = nn.ModuleList(nn.MaxPool2d(kernel, 1, kernel // 2) for kernel in kernels)
        self.cv1 = Conv(in_channels, hidden, 1, eps=eps)
        self.cv2 = Conv(hidden * (len(self.pools) + 1), out_channels, 1, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        return self.cv2(torch.cat((x, *(pool(x) for pool in self.pools)), dim=1))  # type: ignore[no-any-return]


class SPPF(nn.Module):
    """Spatial pyramid pooling of YOLOv5 v6: three max-pools of one size in a row. [B,in,H,W] → [B,out,H,W]."""

    POOLS = 3

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 5, eps: float = 1e-5) -> None:
        super().__init__()
        hidden = in_channels // 2
        self.pool = nn.MaxPool2d(kernel, 1, kernel // 2)
        self.cv1 = Conv(in_channels, hidden, 1, eps=eps)
        self.cv2 = Conv(hidden * (self.POOLS + 1), out_channels, 1, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [self.cv1(x)]
        for _ in range(self.POOLS):
            pooled.append(self.pool(pooled[-1]))
        return self.cv2(torch.cat(pooled, dim=1))  # type: ignore[no-any-return]


class Focus(nn.Module):
    """Pixel phases to channels, then a convolution. [B,in,H,W] → [B,out,H/2,W/2].

    Phases in the order (even row, even column), (odd, even), (even, odd), (odd, odd).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.conv = Conv(4 * in_channels, out_channels, kernel, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        even, odd = x[..., ::2, :], x[..., 1::2, :]
        phases = (even[..., ::2], odd[..., ::2], even[..., 1::2], odd[..., 1::2])
        return self.conv(torch.cat(phases, dim=1))  # type: ignore[no-any-return]
