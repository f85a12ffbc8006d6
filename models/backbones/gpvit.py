"""GPViT (arXiv 2212.06795): a transformer whose tokens stay at stride 8, so that small objects keep theirs.

The convolutional patch embedding is the stem, paid everywhere. The transformer blocks run between slicing and cutting,
on the windows that hold an active cell; windows without one are dropped, and dropped cells of the result are zero.
The published detectors add an adapter of deformable attention; here three convolutions make the pyramid instead.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones.base import Backbone
from models.backbones.gpvit_blocks import INIT_STD, LOCAL_EPS, GroupPropagationBlock, LocalBlock
from models.backbones.kept_tokens import KeptTokens
from models.layers import C3, Conv, scale_channels, scale_repeats
from models.neck import PANNeck
from models.slicer import Patches
from utils.config import GPViTConfig, ModelConfig

STEM_CHANNELS = 64
EMBEDDED = 4
"""Side of the pieces that become a token, in pixels of the stem's stride-2 map."""
NECK_REPEATS = 1
"""Bottlenecks in each block of the neck."""


class PatchEmbedding(nn.Module):
    """Images [B, 3, H, W] → tokens [B, C, H/8, W/8]: a 7×7 convolution to stride 2, then pieces of 4×4."""

    def __init__(self, hidden: int, channels: int, extra: int, eps: float) -> None:
        super().__init__()
        self.first = Conv(3, hidden, 7, 2, eps=eps, activation=nn.ReLU)
        self.more = nn.Sequential(
            *(Conv(hidden, hidden, 3, eps=eps, activation=nn.ReLU) for _ in range(extra))
        )
        self.project = nn.Conv2d(hidden, channels, EMBEDDED, EMBEDDED)

    def forward(self, images: Tensor) -> Tensor:
        return self.project(self.more(self.first(images)))  # type: ignore[no-any-return]


class TokenBlocks(nn.Module):
    """Positional embedding, all transformer blocks and the last LayerNorm.

    `position` is learned on a grid of ``position_grid``² cells and stretched to the map by bicubic interpolation.
    """

    def __init__(self, config: GPViTConfig, channels: int, groups: list[int]) -> None:
        super().__init__()
        self.window = config.window
        self.position = nn.Parameter(torch.empty(config.position_grid, config.position_grid, channels))
        count = 3 * len(groups)
        drop = [config.drop_path * number / (count - 1) for number in range(count)]
        blocks: list[nn.Module] = []
        for tokens in groups:
            blocks.append(LocalBlock(channels, config.heads, config.ffn_ratio, drop[len(blocks)]))
            rate = drop[len(blocks)]
            blocks.append(GroupPropagationBlock(channels, config.heads // 2, tokens, config.ffn_ratio, rate))
            blocks.append(LocalBlock(channels, config.heads, config.ffn_ratio, drop[len(blocks)]))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(channels, eps=LOCAL_EPS)
        self.apply(_init_linear)
        nn.init.trunc_normal_(self.position, std=INIT_STD)

    def forward(self, features: Tensor, active: Tensor | None = None) -> Tensor:
        """Compute the tokens of every window that holds an active cell.

        Kept tokens see kept tokens only: of their stripe in the local blocks, of their image through the group
        tokens. Depth-wise convolutions see zeros where windows were dropped. With everything active this is the
        published network; an image without an active cell costs nothing.

        Args:
            features: [B, C, H, W] of the stem.
            active: [B, H, W] bool; None: every cell.

        Returns [B, C, H, W], zero in dropped windows.

        Raises:
            ValueError: active is not bool of the features' shape.
        """
        batch, _, height, width = features.shape
        if active is not None and (active.shape != (batch, height, width) or active.dtype != torch.bool):
            raise ValueError(
                f"active is {active.dtype} {tuple(active.shape)}; expected bool {(batch, height, width)}, "
                "one value per cell of the features"
            )
        kept = KeptTokens.of((batch, height, width), self.window, active, features.device)
        if len(kept) == 0:
            return torch.zeros_like(features)
        x = kept.gather(features) + self.position_rows((height, width))[kept.cells % (height * width)]
        for block in self.blocks:
            x = block(x, kept)
        return kept.scatter(self.norm(x))

    def position_rows(self, map_hw: tuple[int, int]) -> Tensor:
        """Positional embedding of every cell of a map, in float32: [H·W, C].

        Two matrix products instead of `F.interpolate`, whose bicubic backward pass is not deterministic on CUDA.
        """
        grid = self.position.shape[0]
        with torch.autocast(self.position.device.type, enabled=False):
            down, across = (bicubic_weights(grid, side, self.position) for side in map_hw)
            return torch.einsum("hi,ijc,wj->hwc", down, self.position, across).flatten(0, 1)


class Pyramid(nn.Module):
    """Stride-8 features of the patches [K, C, h, w] → strides 8, 16 and 32, all with the neck's channels."""

    def __init__(self, channels: int, out: int, eps: float) -> None:
        super().__init__()
        self.lateral = Conv(channels, out, 1, eps=eps)
        self.down4 = Conv(out, out, 3, 2, eps=eps)
        self.down5 = Conv(out, out, 3, 2, eps=eps)

    def forward(self, features: Tensor, patches: Patches) -> tuple[Tensor, Tensor, Tensor]:
        p3 = self.lateral(features)
        p4 = self.down4(p3)
        return p3, p4, self.down5(p4)


def bicubic_weights(source: int, target: int, like: Tensor) -> Tensor:
    """Bicubic interpolation of source values to target ones, as a matrix [target, source]."""
    unit = torch.eye(source, dtype=like.dtype, device=like.device).view(1, source, source, 1)
    stretched = F.interpolate(unit, size=(target, 1), mode="bicubic", align_corners=False)
    return stretched[0, :, :, 0].T


def build_gpvit(config: ModelConfig) -> Backbone:
    """GPViT of the configured size; ``depth`` scales the number of stages (local, group propagation, local)
    and ``width`` the channels, to a multiple of the heads.
    """
    size = config.gpvit
    channels = max(round(size.channels * config.width / size.heads), 1) * size.heads
    groups = size.group_tokens[: scale_repeats(len(size.group_tokens), config.depth)]
    neck_channels = scale_channels(size.neck_channels, config.width)
    hidden = scale_channels(STEM_CHANNELS, config.width)
    levels = (neck_channels, neck_channels, neck_channels)

    def block(into: int, out: int) -> nn.Module:
        return C3(into, out, NECK_REPEATS, shortcut=False, eps=config.bn_eps)

    return Backbone(
        stem=PatchEmbedding(hidden, channels, size.stem_convs, config.bn_eps),
        deep=Pyramid(channels, neck_channels, config.bn_eps),
        neck=PANNeck(levels, block, config.bn_eps),
        stem_channels=channels,
        head_channels=levels,
        tokens=TokenBlocks(size, channels, groups),
    )


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=INIT_STD)
        nn.init.zeros_(module.bias)
