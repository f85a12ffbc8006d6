"""GPViT spelled out, dense and pruned, on tensors with the published names: loops, explicit softmax, float64.

Nothing of models/backbones is used here. Cells are visited one stripe and one image at a time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]


def published_state(
    channels: int, groups: list[int], convs: int, grid: int = 28, hidden: int = 64, ffn_ratio: int = 4
) -> State:
    """Random tensors of a published classifier's body under its own names and shapes, without prefix."""
    c, shapes = channels, dict[str, tuple[int, ...]]()

    def norm(name: str, size: int) -> None:
        shapes.update({f"{name}.weight": (size,), f"{name}.bias": (size,)})

    def linear(name: str, into: int, out: int) -> None:
        shapes.update({f"{name}.weight": (out, into), f"{name}.bias": (out,)})

    def batchnorm(name: str, size: int) -> None:
        norm(name, size)
        shapes.update({f"{name}.running_mean": (size,), f"{name}.running_var": (size,)})
        shapes[f"{name}.num_batches_tracked"] = ()

    shapes["pos_embed"] = (1, grid * grid, c)
    shapes["patch_embed.stem.0.weight"] = (hidden, 3, 7, 7)
    batchnorm("patch_embed.stem.1", hidden)
    for number in range(convs):
        shapes[f"patch_embed.convs.{3 * number}.weight"] = (hidden, hidden, 3, 3)
        batchnorm(f"patch_embed.convs.{3 * number + 1}", hidden)
    shapes["patch_embed.projection.weight"] = (c, hidden, 4, 4)
    shapes["patch_embed.projection.bias"] = (c,)
    for number in range(3 * len(groups)):
        layer = f"layers.{number}"
        if number % 3 == 1:
            tokens, group, un = groups[number // 3], f"{layer}.group_layer", f"{layer}.un_group_layer"
            shapes[f"{layer}.group_token"] = (1, tokens, c)
            for name in (group, un):
                norm(f"{name}.norm_query", c)
                norm(f"{name}.norm_key", c)
            linear(f"{group}.attn.k_proj", c, c)
            mixer = f"{layer}.mixer.layers.0"
            for name, size, middle in (("patch_mixer", tokens, c // 2), ("channel_mixer", c, 4 * c)):
                linear(f"{mixer}.{name}.0", size, middle)
                linear(f"{mixer}.{name}.3", middle, size)
            norm(f"{mixer}.norm1", c)
            norm(f"{mixer}.norm2", c)
            for name in ("q_proj", "k_proj", "v_proj", "proj"):
                linear(f"{un}.attn.{name}", c, c)
            linear(f"{un}.ffn.layers.0.0", c, ffn_ratio * c)
            linear(f"{un}.ffn.layers.1", ffn_ratio * c, c)
            norm(f"{un}.norm2", c)
            linear(f"{un}.proj", 2 * c, c)
            shapes[f"{layer}.dwconv.0.weight"] = (c, 1, 3, 3)
            batchnorm(f"{layer}.dwconv.1", c)
        else:
            norm(f"{layer}.norm1", c)
            linear(f"{layer}.qkv", c, 3 * c)
            linear(f"{layer}.proj", c, c)
            for half in range(2):
                shapes[f"{layer}.attns.{half}.get_v.weight"] = (c // 2, 1, 3, 3)
                shapes[f"{layer}.attns.{half}.get_v.bias"] = (c // 2,)
            linear(f"{layer}.ffn.layers.0.0", c, ffn_ratio * c)
            linear(f"{layer}.ffn.layers.1", ffn_ratio * c, c)
            norm(f"{layer}.norm2", c)
            shapes[f"{layer}.dw.weight"] = (c, 1, 3, 3)
    norm("ln1", c)
    return {name: _random(name, shape) for name, shape in shapes.items()}


def _random(name: str, shape: tuple[int, ...]) -> Tensor:
    """Values that keep activations of order one, so that a difference anywhere shows."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    if name.endswith("running_var"):
        return torch.rand(shape) + 0.5
    if len(shape) <= 1 or name.endswith(("pos_embed", "group_token")):
        return torch.randn(shape) * 0.3 + (1.0 if name.endswith("weight") else 0.0)
    return torch.randn(shape) * (1.2 / math.sqrt(math.prod(shape[1:])))


def reference_stem(state: State, images: Tensor) -> Tensor:
    """Normalised images [B, 3, H, W] → [B, C, H/8, W/8]."""

    def relu_bn(x: Tensor, name: str) -> Tensor:
        return F.relu(_batchnorm(x.movedim(1, -1), state, name)).movedim(-1, 1)

    x = F.conv2d(images, state["patch_embed.stem.0.weight"], stride=2, padding=3)
    x = relu_bn(x, "patch_embed.stem.1")
    number = 0
    while f"patch_embed.convs.{number}.weight" in state:
        x = F.conv2d(x, state[f"patch_embed.convs.{number}.weight"], padding=1)
        x = relu_bn(x, f"patch_embed.convs.{number + 1}")
        number += 3
    return F.conv2d(x, state["patch_embed.projection.weight"], state["patch_embed.projection.bias"], stride=4)


def reference_tokens(state: State, features: Tensor, keep: Tensor, heads: int, window: int = 2) -> Tensor:
    """All blocks on [B, C, H, W], with the cells of keep [B, H, W] alone; dropped cells zero."""
    state = {name: tensor.double() for name, tensor in state.items()}
    grid = math.isqrt(state["pos_embed"].shape[1])
    position = state["pos_embed"].view(1, grid, grid, -1).permute(0, 3, 1, 2)
    position = F.interpolate(position, size=features.shape[2:], mode="bicubic", align_corners=False)[0]
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("layers."))
    result = torch.zeros_like(features, dtype=torch.float64)
    for image, kept in enumerate(keep):
        if not kept.any():
            continue
        x = (features[image].double() + position).permute(1, 2, 0) * kept[..., None]
        for number in range(layers):
            layer = {
                name.removeprefix(f"layers.{number}."): tensor
                for name, tensor in state.items()
                if name.startswith(f"layers.{number}.")
            }
            x = (
                _group_block(layer, x, kept, heads // 2)
                if number % 3 == 1
                else _local(layer, x, kept, heads, window)
            )
            x = x * kept[..., None]
        x = _layernorm(x, state, "ln1", 1e-6) * kept[..., None]
        result[image] = x.permute(2, 0, 1)
    return result


def _local(state: State, x: Tensor, kept: Tensor, heads: int, window: int) -> Tensor:
    height, width, channels = x.shape
    query, key, value = _linear(_layernorm(x, state, "norm1", 1e-6), state, "qkv").split(channels, dim=2)
    out = torch.zeros_like(x)
    for half, side in enumerate((width, height)):
        own = slice(half * channels // 2, (half + 1) * channels // 2)
        for first in range(0, side, window):
            part = slice(first, min(first + window, side))
            place = (slice(None), part, own) if half == 0 else (part, slice(None), own)
            mask = kept[place[:2]]
            if not mask.any():
                continue
            v = value[place] * mask[..., None]
            lepe = F.conv2d(
                v.permute(2, 0, 1)[None],
                state[f"attns.{half}.get_v.weight"],
                state[f"attns.{half}.get_v.bias"],
                padding=1,
                groups=channels // 2,
            )[0].permute(1, 2, 0)
            mixed = _attention(query[place][mask], key[place][mask], v[mask], heads // 2)
            stripe = out[place].clone()
            stripe[mask] = mixed + lepe[mask]
            out[place] = stripe
    x = (x + _linear(out, state, "proj")) * kept[..., None]
    x = (x + _ffn(_layernorm(x, state, "norm2", 1e-6), state, "ffn")) * kept[..., None]
    return _depthwise(x, state["dw.weight"])


def _group_block(state: State, x: Tensor, kept: Tensor, heads: int) -> Tensor:
    tokens = x[kept]
    normed = _layernorm(tokens, state, "group_layer.norm_key")
    query = _layernorm(state["group_token"][0], state, "group_layer.norm_query")
    groups = _attention(query, _linear(normed, state, "group_layer.attn.k_proj"), normed, heads)
    mixer = "mixer.layers.0"
    across = _layernorm(groups, state, f"{mixer}.norm1").T
    across = _linear(
        F.gelu(_linear(across, state, f"{mixer}.patch_mixer.0")), state, f"{mixer}.patch_mixer.3"
    )
    groups = groups + across.T
    along = _layernorm(groups, state, f"{mixer}.norm2")
    along = _linear(
        F.gelu(_linear(along, state, f"{mixer}.channel_mixer.0")), state, f"{mixer}.channel_mixer.3"
    )
    groups = _layernorm(groups + along, state, "un_group_layer.norm_key")
    read = _attention(
        _linear(_layernorm(tokens, state, "un_group_layer.norm_query"), state, "un_group_layer.attn.q_proj"),
        _linear(groups, state, "un_group_layer.attn.k_proj"),
        _linear(groups, state, "un_group_layer.attn.v_proj"),
        heads,
    )
    read = _linear(read, state, "un_group_layer.attn.proj")
    tokens = _linear(torch.cat((tokens, read), dim=1), state, "un_group_layer.proj")
    tokens = tokens + _ffn(_layernorm(tokens, state, "un_group_layer.norm2"), state, "un_group_layer.ffn")
    result = torch.zeros_like(x)
    result[kept] = tokens
    return F.relu(_batchnorm(_depthwise(result, state["dwconv.0.weight"]), state, "dwconv.1"))


def _attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """[Q, C], [L, C], [L, C] → [Q, C], head by head."""
    parts = zip(query.chunk(heads, dim=1), key.chunk(heads, dim=1), value.chunk(heads, dim=1), strict=True)
    return torch.cat([((q @ k.T) / math.sqrt(q.shape[1])).softmax(dim=1) @ v for q, k, v in parts], dim=1)


def _depthwise(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x.permute(2, 0, 1)[None], weight, padding=1, groups=len(weight))[0].permute(1, 2, 0)


def _layernorm(x: Tensor, state: State, name: str, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def _batchnorm(x: Tensor, state: State, name: str) -> Tensor:
    scale = state[f"{name}.weight"] / torch.sqrt(state[f"{name}.running_var"] + 1e-5)
    return (x - state[f"{name}.running_mean"]) * scale + state[f"{name}.bias"]


def _linear(x: Tensor, state: State, name: str) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def _ffn(x: Tensor, state: State, name: str) -> Tensor:
    return _linear(F.gelu(_linear(x, state, f"{name}.layers.0.0")), state, f"{name}.layers.1")
