"""The two transformer blocks of GPViT (arXiv 2212.06795), on rows of kept tokens.

Written from the paper; what it leaves open follows the published checkpoints, so that they can be converted: the
local block's stripes (from CSWin, arXiv 2107.00652), and the depth-wise convolution that ends both blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones.kept_tokens import KeptTokens, attend

LOCAL_EPS = 1e-6
"""LayerNorm epsilon of the local blocks and of the last norm; the group-propagation blocks have PyTorch's 1e-5."""
INIT_STD = 0.02


class MLP(nn.Module):
    """Linear, GELU, linear over the last dimension."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(size, hidden)
        self.contract = nn.Linear(hidden, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(F.gelu(self.expand(x)))  # type: ignore[no-any-return]


class DropPath(nn.Module):
    """Stochastic depth: in training a residual branch is left out for a random share ``rate`` of the images."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor, image: Tensor, images: int) -> Tensor:
        """Args: branch [M, ...]; image [M] int64, the image each entry is of; images: how many there are."""
        if not self.training or self.rate == 0:
            return branch
        stays = torch.rand(images, device=branch.device) >= self.rate
        factor = stays[image].to(branch.dtype) / (1 - self.rate)
        return branch * factor.view(-1, *(1,) * (branch.dim() - 1))


class LocalBlock(nn.Module):
    """Attention inside stripes of the map: half of the heads in vertical, half in horizontal ones.

    [N, C] → [N, C]. A stripe is ``window`` cells wide and as long as the map. Each half adds a 3×3 depth-wise
    convolution of its values inside the stripe (LePE, locally enhanced positional encoding). Behind the
    feed-forward part a 3×3 depth-wise convolution over the whole map replaces the tokens; it has no shortcut.
    """

    def __init__(self, channels: int, heads: int, ffn_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.heads_per_half = heads // 2
        half = channels // 2
        self.norm_attention = nn.LayerNorm(channels, eps=LOCAL_EPS)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.enhance = nn.ModuleList(nn.Conv2d(half, half, 3, padding=1, groups=half) for _ in range(2))
        self.project = nn.Linear(channels, channels)
        self.norm_ffn = nn.LayerNorm(channels, eps=LOCAL_EPS)
        self.ffn = MLP(channels, int(channels * ffn_ratio))
        self.mix = mixing_convolution(channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, kept: KeptTokens) -> Tensor:
        images = kept.shape[0]
        x = x + self.drop_path(self.attention(self.norm_attention(x), kept), kept.image, images)
        x = x + self.drop_path(self.ffn(self.norm_ffn(x)), kept.image, images)
        return kept.depthwise(x, self.mix)

    def attention(self, x: Tensor, kept: KeptTokens) -> Tensor:
        """Both halves and their projection: [N, C] → [N, C]."""
        _, height, width = kept.shape
        stripes = (kept.columns, kept.rows)
        tiles = ((height, kept.window), (kept.window, width))
        # Channels of the projection: query, key, value; inside each the vertical half, then the horizontal one.
        qkv = self.qkv(x).view(len(x), 3, 2, self.heads_per_half, -1)
        halves = []
        for half, (segments, tile_hw) in enumerate(zip(stripes, tiles, strict=True)):
            own = qkv[:, :, half]
            slotted = []
            for bucket in segments.buckets:
                query, key, value = bucket.gather(own).unbind(2)
                slotted.append(attend(query, key, value, bucket.key_mask()))
            value_rows = own[:, 2].flatten(1)
            enhanced = kept.depthwise(value_rows, self.enhance[half], tile_hw)  # type: ignore[arg-type]
            halves.append(segments.back_to_rows(slotted) + enhanced)
        return self.project(torch.cat(halves, dim=1))  # type: ignore[no-any-return]


class Mixer(nn.Module):
    """One MLP-Mixer layer (arXiv 2105.01601) over the group tokens of an image: [S, G, C] → [S, G, C]."""

    def __init__(self, tokens: int, channels: int, drop_path: float) -> None:
        super().__init__()
        self.norm_tokens = nn.LayerNorm(channels)
        self.tokens = MLP(tokens, channels // 2)
        self.norm_channels = nn.LayerNorm(channels)
        self.channels = MLP(channels, 4 * channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        image = torch.arange(len(x), device=x.device)
        across = self.tokens(self.norm_tokens(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.drop_path(across, image, len(x))
        return x + self.drop_path(self.channels(self.norm_channels(x)), image, len(x))  # type: ignore[no-any-return]


class GroupPropagationBlock(nn.Module):
    """Global exchange at a cost linear in the tokens (paper section 3.2): [N, C] → [N, C].

    Learned group tokens gather what the kept tokens of their image hold, exchange it in a `Mixer`, and every kept
    token reads it back: its own value and what it read are merged by one linear layer. A feed-forward part and a
    3×3 depth-wise convolution with BatchNorm and ReLU follow; the BatchNorm's statistics are of kept tokens only.
    """

    def __init__(
        self, channels: int, heads: int, group_tokens: int, ffn_ratio: float, drop_path: float
    ) -> None:
        super().__init__()
        self.heads = heads
        self.group_tokens = nn.Parameter(torch.empty(group_tokens, channels))
        nn.init.trunc_normal_(self.group_tokens, std=INIT_STD)
        self.norm_groups = nn.LayerNorm(channels)
        self.norm_gathered = nn.LayerNorm(channels)
        self.gather_key = nn.Linear(channels, channels)
        self.mixer = Mixer(group_tokens, channels, drop_path)
        self.norm_query = nn.LayerNorm(channels)
        self.norm_mixed = nn.LayerNorm(channels)
        self.read_query = nn.Linear(channels, channels)
        self.read_key = nn.Linear(channels, channels)
        self.read_value = nn.Linear(channels, channels)
        self.project = nn.Linear(channels, channels)
        self.merge = nn.Linear(2 * channels, channels)
        self.norm_ffn = nn.LayerNorm(channels)
        self.ffn = MLP(channels, int(channels * ffn_ratio))
        self.mix = mixing_convolution(channels)
        self.bn = nn.BatchNorm1d(channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, kept: KeptTokens) -> Tensor:
        images = kept.shape[0]
        groups = self.mixer(self.gather(x, kept))
        read = self.drop_path(self.read(x, groups, kept), kept.image, images)
        x = self.merge(torch.cat((x, read), dim=1))
        x = x + self.drop_path(self.ffn(self.norm_ffn(x)), kept.image, images)
        return F.relu(self.bn(kept.depthwise(x, self.mix)))

    def gather(self, x: Tensor, kept: KeptTokens) -> Tensor:
        """Group tokens of each image that has kept tokens, in the order of kept.images: [S, G, C]."""
        query = self._by_head(self.norm_groups(self.group_tokens))
        gathered = self.norm_gathered(x)
        key, value = self._by_head(self.gather_key(gathered)), self._by_head(gathered)
        groups = []
        for bucket in kept.images.buckets:
            everyone = query.expand(len(bucket.owner), -1, -1, -1)
            groups.append(attend(everyone, bucket.gather(key), bucket.gather(value), bucket.key_mask()))
        return torch.cat(groups)

    def read(self, x: Tensor, groups: Tensor, kept: KeptTokens) -> Tensor:
        """What each token reads from the group tokens [S, G, C] of its image: [N, C]."""
        mixed = self.norm_mixed(groups)
        key, value = self._by_head(self.read_key(mixed)), self._by_head(self.read_value(mixed))
        query = self._by_head(self.read_query(self.norm_query(x)))
        sizes = [len(bucket.owner) for bucket in kept.images.buckets]
        parts = zip(kept.images.buckets, key.split(sizes), value.split(sizes), strict=True)
        slotted = [attend(bucket.gather(query), k, v) for bucket, k, v in parts]
        return self.project(kept.images.back_to_rows(slotted))  # type: ignore[no-any-return]

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))  # type: ignore[no-any-return]


def mixing_convolution(channels: int) -> nn.Conv2d:
    """The 3×3 depth-wise convolution at the end of a block. It begins as the identity: without a shortcut around it,
    random kernels would wash out the tokens' places in a network that is trained from scratch."""
    conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    nn.init.dirac_(conv.weight, groups=channels)
    return conv
