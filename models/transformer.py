"""Transformer blocks at stride 32, in which the patches of an image look at each other (variant ``yolov5m-tr``).

Convolutions see each patch alone. Here the tokens are the stride-32 positions of all patches of an image: each attends to
all of its own image and to none of another. A place that lies in two overlapping patches is two tokens, with the same
position but features that differ near the patches' borders; nothing merges them, as nothing does in the rest of the network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers import Conv
from models.levels import STRIDES
from models.slicer import STRIDE, Patches

TOKEN_PX = STRIDES[-1]
"""Side of a token in input pixels."""
HEAD_CHANNELS = 64
"""Channels of an attention head (arXiv 1706.03762, section 3.2.2)."""
MLP_RATIO = 4
"""Channels inside of the MLP over those of a token (ViT, arXiv 2010.11929, table 1)."""
FREQUENCIES = 16
FREQUENCY_RANGE = 100.0
"""Sinusoids of the positions: wavelengths from 2π tokens, 200 px, to a hundred times that, 20 000 px, which is longer than
any input, so that no two places look alike. (arXiv 1706.03762, section 3.5, goes to 2π·10 000 tokens, for text.)"""


@dataclass
class ImageGroups:
    """Patches in a table with one row per image that has any, filled up to the largest number of patches.

    Attention in this table costs images × longest², a mask over all K patches K², which for a training batch is some
    eight times as much for nothing: its tokens of different images must not meet.

    Attributes:
        row, slot: [K] int64, where each patch is in the table.
        shape: (rows, slots).
    """

    row: Tensor
    slot: Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, patches: Patches) -> ImageGroups:
        """The groups of patches that are ordered by image. Waits for the device once, for the size of the table."""
        image = patches.image_index.contiguous()
        if not len(image):
            return cls(image, image, (0, 0))
        slot = torch.arange(len(image), device=image.device) - torch.searchsorted(image, image)
        row = (slot == 0).cumsum(0) - 1
        rows, slots = torch.stack((row[-1], slot.max())).tolist()
        return cls(row, slot, (rows + 1, slots + 1))

    @property
    def full(self) -> bool:
        """Whether no slot is empty."""
        return len(self.row) == self.shape[0] * self.shape[1]

    def pad(self, x: Tensor) -> Tensor:
        """[K, n, C] → [rows, slots·n, C], zero in empty slots."""
        if not self.full:
            table = x.new_zeros(*self.shape, *x.shape[1:])
            table[self.row, self.slot] = x
            x = table
        return x.reshape(self.shape[0], self.shape[1] * x.shape[-2], x.shape[-1])

    def unpad(self, table: Tensor, tokens: int) -> Tensor:
        """[rows, slots·n, C] → [K, n, C]; n = ``tokens``."""
        table = table.reshape(*self.shape, tokens, table.shape[-1])
        return table.flatten(0, 1) if self.full else table[self.row, self.slot]

    def mask(self, tokens: int) -> Tensor | None:
        """Which tokens of a row exist, [rows, 1, 1, slots·n] bool with n = ``tokens``; None when all do."""
        if self.full:
            return None
        exists = torch.zeros(self.shape, dtype=torch.bool, device=self.row.device)
        exists[self.row, self.slot] = True
        return exists.repeat_interleave(tokens, dim=1)[:, None, None]


class Attention(nn.Module):
    """Multi-head attention among the tokens of each image (arXiv 1706.03762, section 3.2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(channels // HEAD_CHANNELS, 1)
        inner = self.heads * HEAD_CHANNELS
        self.qkv = nn.Linear(channels, 3 * inner)
        self.out = nn.Linear(inner, channels)

    def forward(self, x: Tensor, groups: ImageGroups) -> Tensor:
        """[K, n, C] → the same shape."""
        tokens = x.shape[1]
        table = groups.pad(self.qkv(x))
        query, key, value = table.unflatten(2, (3, self.heads, HEAD_CHANNELS)).permute(2, 0, 3, 1, 4)
        if len(x):  # not every device's attention takes an empty table
            value = F.scaled_dot_product_attention(query, key, value, attn_mask=groups.mask(tokens))
        return self.out(groups.unpad(value.transpose(1, 2).flatten(2), tokens))  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """Attention and an MLP, each behind a LayerNorm and beside an identity (pre-norm, ViT, arXiv 2010.11929, eqs. 2–3).

    Pre-norm because it trains without a learning-rate schedule of its own (arXiv 2002.04745): the rest of the network is
    trained by the recipe of a convolutional one.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = Attention(channels)
        self.norm2 = nn.LayerNorm(channels)
        hidden = MLP_RATIO * channels
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))

    def forward(self, x: Tensor, groups: ImageGroups) -> Tensor:
        """[K, n, C] → the same shape."""
        x = x + self.attention(self.norm1(x), groups)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class TransformerC3(nn.Module):
    """`C3` with transformer blocks instead of bottlenecks. [K,in,h,w] of patches at stride 32 → [K,out,h,w].

    The 1×1 convolutions have C3's names and shapes, so that weights of a C3 fill them. Everything in here works on single
    positions or on all of an image: cutting a map into patches without overlap changes nothing.
    """

    def __init__(self, in_channels: int, out_channels: int, repeats: int, eps: float = 1e-5) -> None:
        super().__init__()
        hidden = out_channels // 2
        self.cv1 = Conv(in_channels, hidden, 1, eps=eps)
        self.cv2 = Conv(in_channels, hidden, 1, eps=eps)
        self.cv3 = Conv(2 * hidden, out_channels, 1, eps=eps)
        self.place = nn.Linear(4 * FREQUENCIES, hidden, bias=False)
        self.m = nn.ModuleList(TransformerBlock(hidden) for _ in range(repeats))
        self.apply(_init_linear)

    def forward(self, x: Tensor, patches: Patches) -> Tensor:
        """Features [K,in,h,w] of these patches → [K,out,h,w]."""
        groups = ImageGroups.of(patches)
        main = self.cv1(x)
        tokens = main.flatten(2).transpose(1, 2)
        sinusoids = encode_places(token_places(patches, (x.shape[2], x.shape[3])))
        tokens = tokens + self.place(sinusoids.to(tokens.dtype))
        for block in self.m:
            tokens = block(tokens, groups)
        main = tokens.transpose(1, 2).unflatten(2, main.shape[2:])
        return self.cv3(torch.cat((main, self.cv2(x)), dim=1))  # type: ignore[no-any-return]


class PatchSequential(nn.Sequential):
    """`nn.Sequential` that tells the transformer blocks in it which patches the features are of."""

    def forward(self, x: Tensor, patches: Patches) -> Tensor:  # type: ignore[override]
        """Features of these patches through every layer."""
        for layer in self:
            x = layer(x, patches) if isinstance(layer, TransformerC3) else layer(x)
        return x


def token_places(patches: Patches, grid_hw: tuple[int, int]) -> Tensor:
    """Centres (x, y) of the stride-32 positions of every patch in input pixels, row by row: [K, h·w, 2] float32."""
    corner = patches.xyxy_cell[:, :2].float() * STRIDE
    rows, columns = (torch.arange(n, device=corner.device) + 0.5 for n in grid_hw)
    inside = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).view(-1, 2) * TOKEN_PX
    return corner.unsqueeze(1) + inside


def encode_places(xy_px: Tensor) -> Tensor:
    """Sine and cosine of x and y at several wavelengths: [..., 2] in input pixels → [..., 4·FREQUENCIES] in −1–1.

    Computed from the position itself, so there is no table that would be bound to a size of the map.
    """
    step = torch.arange(FREQUENCIES, dtype=xy_px.dtype, device=xy_px.device) / (FREQUENCIES - 1)
    angle = (xy_px / TOKEN_PX).unsqueeze(-1) * FREQUENCY_RANGE**-step
    return torch.cat((angle.sin(), angle.cos()), dim=-1).flatten(-2)


def _init_linear(module: nn.Module) -> None:
    """ViT's first weights: small, so that a new block among trained convolutions begins as nearly an identity."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
