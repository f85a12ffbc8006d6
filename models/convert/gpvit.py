"""Published GPViT checkpoints (OpenMMLab layout) as configuration and weights of this project.

Works on a state dict that somebody else has read; it neither opens files nor builds modules. A classifier's body lands
completely; its pooling neck and its head are left over. Of a detector the body lands as well, while its adapter
(``spm``, ``interactions``, …), its neck and its head have no counterpart here. The input normalisation of these
files is folded into the first convolution, so the result takes RGB in 0–1 as every model here does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor

from models.convert.input_folding import IMAGENET_MEAN, IMAGENET_STD, fold_before_batchnorm
from utils.checkpoint import CheckpointError
from utils.config import GPViTConfig, ModelConfig

HEADS = 12
WINDOW = 2
"""Heads and window leave no trace in the shapes; these are of all four published sizes."""

STEM = {
    r"patch_embed\.stem\.0\.(.+)": r"stem.first.conv.\1",
    r"patch_embed\.stem\.1\.(.+)": r"stem.first.bn.\1",
    r"patch_embed\.projection\.(.+)": r"stem.project.\1",
    r"ln1\.(.+)": r"tokens.norm.\1",
}
LOCAL = {
    r"norm1\.(.+)": r"norm_attention.\1",
    r"qkv\.(.+)": r"qkv.\1",
    r"attns\.([01])\.get_v\.(.+)": r"enhance.\1.\2",
    r"proj\.(.+)": r"project.\1",
    r"norm2\.(.+)": r"norm_ffn.\1",
    r"ffn\.layers\.0\.0\.(.+)": r"ffn.expand.\1",
    r"ffn\.layers\.1\.(.+)": r"ffn.contract.\1",
    r"dw\.(weight)": r"mix.\1",
}
GROUP = {
    r"group_layer\.norm_query\.(.+)": r"norm_groups.\1",
    r"group_layer\.norm_key\.(.+)": r"norm_gathered.\1",
    r"group_layer\.attn\.k_proj\.(.+)": r"gather_key.\1",
    r"mixer\.layers\.0\.norm1\.(.+)": r"mixer.norm_tokens.\1",
    r"mixer\.layers\.0\.patch_mixer\.0\.(.+)": r"mixer.tokens.expand.\1",
    r"mixer\.layers\.0\.patch_mixer\.3\.(.+)": r"mixer.tokens.contract.\1",
    r"mixer\.layers\.0\.norm2\.(.+)": r"mixer.norm_channels.\1",
    r"mixer\.layers\.0\.channel_mixer\.0\.(.+)": r"mixer.channels.expand.\1",
    r"mixer\.layers\.0\.channel_mixer\.3\.(.+)": r"mixer.channels.contract.\1",
    r"un_group_layer\.norm_query\.(.+)": r"norm_query.\1",
    r"un_group_layer\.norm_key\.(.+)": r"norm_mixed.\1",
    r"un_group_layer\.attn\.q_proj\.(.+)": r"read_query.\1",
    r"un_group_layer\.attn\.k_proj\.(.+)": r"read_key.\1",
    r"un_group_layer\.attn\.v_proj\.(.+)": r"read_value.\1",
    r"un_group_layer\.attn\.proj\.(.+)": r"project.\1",
    r"un_group_layer\.proj\.(.+)": r"merge.\1",
    r"un_group_layer\.norm2\.(.+)": r"norm_ffn.\1",
    r"un_group_layer\.ffn\.layers\.0\.0\.(.+)": r"ffn.expand.\1",
    r"un_group_layer\.ffn\.layers\.1\.(.+)": r"ffn.contract.\1",
    r"dwconv\.0\.(weight)": r"mix.\1",
    r"dwconv\.1\.(.+)": r"bn.\1",
}
FIRST_WEIGHT = "stem.first.conv.weight"
FIRST_MEAN = "stem.first.bn.running_mean"


def is_gpvit(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of a GPViT body, alone or in a classifier or detector."""
    body = _body(state)
    return "patch_embed.projection.weight" in body and "layers.1.group_token" in body


def gpvit_config(state: Mapping[str, Tensor]) -> ModelConfig:
    """The detector to fill from a state dict for which `is_gpvit` holds; see `gpvit_config_of`."""
    return ModelConfig(family="gpvit", depth=1.0, width=1.0, gpvit=gpvit_config_of(state))


def gpvit_config_of(state: Mapping[str, Tensor]) -> GPViTConfig:
    """The size of the body in a state dict with published names, from its shapes; L1 to L4 are recognised so.

    Fields that are this project's own (drop path, neck) have their defaults.

    Raises:
        CheckpointError: a tensor is missing, or the body is not of GPViT's pattern.
    """
    body = _body(state)
    channels = _shape(body, "patch_embed.projection.weight")[0]
    cells = _shape(body, "pos_embed")[1]
    grid = math.isqrt(cells)
    groups = sorted(
        number for key in body if (number := _number(r"layers\.(\d+)\.group_token", key)) is not None
    )
    blocks = {number for key in body if (number := _number(r"layers\.(\d+)\.", key)) is not None}
    expected = [3 * stage + 1 for stage in range(len(groups))]
    if groups != expected or blocks != set(range(3 * len(groups))) or not groups:
        raise CheckpointError(
            f"{len(blocks)} blocks with group propagation in {groups}; expected stages of three blocks, "
            "group propagation in the middle of each"
        )
    if channels % HEADS or grid * grid != cells:
        raise CheckpointError(
            f"{channels} channels and {cells} positions; GPViT has a multiple of {HEADS} and a square number"
        )
    return GPViTConfig(
        channels=channels,
        heads=HEADS,
        group_tokens=[_shape(body, f"layers.{number}.group_token")[1] for number in groups],
        window=WINDOW,
        ffn_ratio=_shape(body, "layers.0.ffn.layers.0.0.weight")[0] / channels,
        stem_convs=sum(
            re.fullmatch(r"patch_embed\.convs\.\d+\.running_mean", key) is not None for key in body
        ),
        position_grid=grid,
    )


def rename_gpvit(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Published names, with or without ``backbone.`` in front, as this project's.

    Returns the tensors, in float32 and with the input normalisation (ImageNet's, RGB) folded into the first
    convolution, and the keys that were left over.

    Raises:
        CheckpointError: there is no first convolution with its BatchNorm, or no positional embedding.
    """
    body = _body(state)
    prefix = "" if body.keys() <= state.keys() else "backbone."
    renamed: dict[str, Tensor] = {}
    taken = set()
    for key, tensor in body.items():
        name = _rename(key, body)
        if name is None:
            continue
        taken.add(prefix + key)
        renamed[name] = tensor.float() if tensor.is_floating_point() else tensor
        if key == "pos_embed":
            grid = math.isqrt(tensor.shape[1])
            renamed[name] = renamed[name].view(grid, grid, -1)
        elif key.endswith("group_token"):
            renamed[name] = renamed[name].squeeze(0)
    missing = [name for name in (FIRST_WEIGHT, FIRST_MEAN, "tokens.position") if name not in renamed]
    if missing:
        raise CheckpointError(f"this is no GPViT checkpoint: nothing in it becomes {', '.join(missing)}")
    renamed[FIRST_WEIGHT], renamed[FIRST_MEAN] = fold_before_batchnorm(
        renamed[FIRST_WEIGHT], renamed[FIRST_MEAN], IMAGENET_MEAN, IMAGENET_STD
    )
    return renamed, [key for key in state if key not in taken]


def _body(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the body without prefix: of a whole model those below ``backbone.``, else all."""
    if any(key.startswith("backbone.") for key in state):
        return {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    return dict(state)


def _rename(key: str, body: Mapping[str, Tensor]) -> str | None:
    """This project's name of a tensor of the body; None when there is no place for it."""
    if key == "pos_embed":
        return "tokens.position"
    extra = re.fullmatch(r"patch_embed\.convs\.(\d+)\.(.+)", key)
    if extra is not None:
        # Three layers each: convolution, BatchNorm, ReLU.
        number, part = divmod(int(extra[1]), 3)
        return f"stem.more.{number}.{'bn' if part else 'conv'}.{extra[2]}"
    block = re.fullmatch(r"layers\.(\d+)\.(.+)", key)
    if block is None:
        return _first_match(STEM, key)
    prefix = f"tokens.blocks.{block[1]}"
    if block[2] == "group_token":
        return f"{prefix}.group_tokens"
    inside = _first_match(GROUP if f"layers.{block[1]}.group_token" in body else LOCAL, block[2])
    return None if inside is None else f"{prefix}.{inside}"


def _first_match(names: Mapping[str, str], key: str) -> str | None:
    for pattern, replacement in names.items():
        if (match := re.fullmatch(pattern, key)) is not None:
            return match.expand(replacement)
    return None


def _number(pattern: str, key: str) -> int | None:
    match = re.match(pattern, key)
    return None if match is None else int(match[1])


def _shape(body: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    if key not in body:
        raise CheckpointError(f"this is no GPViT checkpoint: it has no {key}")
    return tuple(body[key].shape)
