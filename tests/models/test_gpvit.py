"""GPViT's tokens against a spelled-out reference, dense and pruned; sizes; conversion of published names."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models.backbones.gpvit import TokenBlocks, bicubic_weights, build_gpvit
from models.backbones.gpvit_blocks import DropPath, GroupPropagationBlock, LocalBlock
from models.backbones.kept_tokens import KeptTokens, attend
from models.convert.gpvit import gpvit_config_of, is_gpvit, rename_gpvit
from models.layers import Conv
from models.slicer import whole_map
from tests.models.gpvit_reference import State, published_state, reference_stem, reference_tokens
from utils.checkpoint import CheckpointError
from utils.config import GPViTConfig, ModelConfig
from utils.profile import count_flops
from utils.typed_data import ConfigError, config_from_dict, load_config

HEADS = 12
SIZES = {"l1": (216, 0, 9.3), "l2": (348, 1, 23.8), "l3": (432, 1, 36.2), "l4": (624, 2, 75.4)}
"""Channels, convolutions in the stem, published millions of parameters."""


def tokens_of(state: State, window: int = 2) -> TokenBlocks:
    """The project's tokens with the weights of a published state, in evaluation mode."""
    size = replace(gpvit_config_of(state), window=window)
    tokens = TokenBlocks(size, size.channels, size.group_tokens)
    renamed, _ = rename_gpvit(state)
    tokens.load_state_dict(
        {k.removeprefix("tokens."): v for k, v in renamed.items() if k.startswith("tokens.")}
    )
    return tokens.eval()


def tiny_state() -> State:
    return published_state(24, [5, 3], convs=1, grid=4, hidden=8)


def some_active(height: int, width: int) -> Tensor:
    """Three images: two clusters and a lone cell; nothing; a large part."""
    active = torch.zeros(3, height, width, dtype=torch.bool)
    active[0, 1:5, 2:7] = True
    active[0, 5:7, 6:9] = True
    active[0, height - 1, 0] = True
    active[2, :, 3:] = True
    active[2, 0:2] = False
    return active


def whole_windows(active: Tensor, window: int) -> Tensor:
    """Activity made window by window, in a loop."""
    kept = torch.zeros_like(active)
    for image in range(active.shape[0]):
        for y in range(0, active.shape[1], window):
            for x in range(0, active.shape[2], window):
                block = (image, slice(y, y + window), slice(x, x + window))
                kept[block] = active[block].any()
    return kept


@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("map_hw", [(8, 12), (10, 11)])
@torch.no_grad()
def test_dense_tokens_equal_the_reference(window: int, map_hw: tuple[int, int]) -> None:
    """Also where the window does not divide the map: the last stripe is narrower."""
    state = tiny_state()
    features = torch.randn(2, 24, *map_hw)
    everything = torch.ones(2, *map_hw, dtype=torch.bool)
    expected = reference_tokens(state, features, everything, HEADS, window)
    tokens = tokens_of(state, window)
    assert expected.std() > 0.5
    torch.testing.assert_close(tokens(features).double(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tokens(features, everything).double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("window", [2, 3])
@torch.no_grad()
def test_pruned_tokens_equal_the_reference_on_kept_cells_and_are_zero_elsewhere(window: int) -> None:
    state = tiny_state()
    active = some_active(10, 13)
    features = torch.randn(3, 24, 10, 13)
    kept = whole_windows(active, window)
    expected = reference_tokens(state, features, kept, HEADS, window)
    found = tokens_of(state, window)(features, active)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)
    assert (found.abs().sum(dim=1) > 0).equal(kept)
    assert kept.sum() > active.sum() > 0


@torch.no_grad()
def test_dropped_cells_and_other_images_do_not_matter() -> None:
    """What lies in dropped cells changes nothing, nor does the batch an image is in."""
    tokens = tokens_of(tiny_state())
    active = some_active(8, 12)
    features = torch.randn(3, 24, 8, 12)
    found = tokens(features, active)
    noisy = features.where(whole_windows(active, 2).unsqueeze(1), torch.full_like(features, 1e3))
    torch.testing.assert_close(tokens(noisy, active), found, atol=0, rtol=0)
    for image in range(3):
        alone = tokens(features[image : image + 1], active[image : image + 1])
        torch.testing.assert_close(alone[0], found[image], atol=1e-5, rtol=1e-5)
    assert not found[1].any()
    assert found[2].any()


def test_no_active_cell_at_all_gives_zeros_and_a_backward_pass() -> None:
    tokens = tokens_of(tiny_state()).train()
    features = torch.randn(2, 24, 8, 8, requires_grad=True)
    found = tokens(features, torch.zeros(2, 8, 8, dtype=torch.bool))
    assert found.shape == features.shape and not found.any()


@pytest.mark.parametrize("active", [torch.ones(1, 4, 8, dtype=torch.bool), torch.ones(1, 8, 8)])
def test_active_of_another_shape_or_type_is_refused(active: Tensor) -> None:
    with pytest.raises(ValueError, match="expected bool \\(1, 8, 8\\)"):
        tokens_of(tiny_state())(torch.randn(1, 24, 8, 8), active)


def gradients(tokens: TokenBlocks, features: Tensor, active: Tensor | None, weight: Tensor) -> list[Tensor]:
    """Gradients of features and of all parameters for a fixed linear loss on the result."""
    features = features.clone().requires_grad_()
    loss = (tokens(features, active) * weight).sum()
    parameters = list(tokens.parameters())
    return list(torch.autograd.grad(loss, [features, *parameters]))


def test_gradients_with_everything_active_are_the_dense_ones() -> None:
    tokens = tokens_of(tiny_state())
    features, weight = torch.randn(2, 24, 8, 12), torch.randn(2, 24, 8, 12)
    dense = gradients(tokens, features, None, weight)
    pruned = gradients(tokens, features, torch.ones(2, 8, 12, dtype=torch.bool), weight)
    for a, b in zip(dense, pruned, strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_through_pruning_equal_the_references() -> None:
    """Also what the backward pass computes anew, and padding of segments of unequal length."""
    state = tiny_state()
    tokens = tokens_of(state)
    active = some_active(8, 12)
    features, weight = torch.randn(3, 24, 8, 12), torch.randn(3, 24, 8, 12)
    found = gradients(tokens, features, active, weight)
    names = ["pos_embed", "layers.0.qkv.weight", "layers.0.attns.1.get_v.weight", "layers.0.dw.weight"]
    names += ["layers.1.group_token", "layers.4.dwconv.0.weight", "layers.5.ffn.layers.1.weight", "ln1.bias"]
    leaves = [features.clone().requires_grad_(), *(state[name].clone().requires_grad_() for name in names)]
    known = state | dict(zip(names, leaves[1:], strict=True))
    result = reference_tokens(known, leaves[0], whole_windows(active, 2), HEADS)
    expected = torch.autograd.grad((result * weight).sum(), leaves)
    torch.testing.assert_close(found[0], expected[0], atol=1e-4, rtol=1e-3)
    assert (found[0].abs().sum(dim=1) > 0).equal(whole_windows(active, 2))
    own = dict(zip((n for n, _ in tokens.named_parameters()), found[1:], strict=True))
    for name, gradient in zip(names, expected[1:], strict=True):
        our_name = next(iter(key for key, value in rename_only(state, name).items() if value))
        torch.testing.assert_close(
            own[our_name.removeprefix("tokens.")].flatten(), gradient.flatten(), atol=1e-3, rtol=1e-3
        )


def rename_only(state: State, name: str) -> dict[str, bool]:
    """Which of our names a published one becomes: the tensor that changes when it is changed."""
    before, _ = rename_gpvit(state)
    after, _ = rename_gpvit(state | {name: state[name] + 1})
    return {key: not torch.equal(before[key], after[key]) for key in before}


def test_training_mode_uses_statistics_of_kept_tokens_and_repeats_itself() -> None:
    tokens = tokens_of(tiny_state()).train()
    for module in tokens.modules():
        if hasattr(module, "rate"):
            module.rate = 0.5  # type: ignore[assignment]
    features, active = torch.randn(3, 24, 8, 12), some_active(8, 12)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(tokens(features, active))
    assert torch.isfinite(results[0]).all()
    torch.testing.assert_close(results[0], results[1], atol=0, rtol=0)
    torch.manual_seed(4)
    assert not torch.equal(tokens(features, active), results[0]), "stochastic depth drops nothing"
    inputs: list[Tensor] = []
    block = tokens.blocks[1]
    assert isinstance(block, GroupPropagationBlock)
    block.bn.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    tokens(features, active)
    assert inputs[0].shape == (int(whole_windows(active, 2).sum()), 24)


def test_stochastic_depth_keeps_the_expectation_and_treats_an_image_as_one() -> None:
    drop = DropPath(0.25).train()
    image = torch.arange(4000).repeat_interleave(2)
    result = drop(torch.ones(8000, 3), image, 4000)
    assert result[::2].equal(result[1::2])
    assert result.unique().tolist() == pytest.approx([0, 4 / 3])
    assert result.mean().item() == pytest.approx(1, abs=0.05)
    assert drop.eval()(torch.ones(2, 3), torch.arange(2), 2).equal(torch.ones(2, 3))


@pytest.mark.parametrize("pruned", [False, True])
def test_bf16_autocast(pruned: bool) -> None:
    tokens = tokens_of(tiny_state()).train()
    features = torch.randn(3, 24, 8, 12, requires_grad=True)
    active = some_active(8, 12) if pruned else None
    tokens.eval()
    expected = tokens(features, active)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = tokens(features, active)
    assert (found - expected).abs().mean() < 0.05 * expected.abs().mean()
    found.sum().backward()
    assert features.grad is not None and torch.isfinite(features.grad).all() and features.grad.any()


@torch.no_grad()
def test_work_shrinks_with_what_is_kept() -> None:
    """A quarter of the map costs at most a third of the dense operations."""
    tokens = tokens_of(tiny_state())
    features = torch.randn(1, 24, 32, 32)
    active = torch.zeros(1, 32, 32, dtype=torch.bool)
    active[:, :16, 4:20] = True
    dense = count_flops(lambda: tokens(features)).macs
    pruned = count_flops(lambda: tokens(features, active)).macs
    assert pruned < dense / 3


def test_segments_hold_every_kept_token_once_and_pad_less_than_half() -> None:
    active = torch.rand(3, 9, 14) < 0.2
    active[1] = False
    kept = KeptTokens.of((3, 9, 14), 2, active, active.device)
    image, row, column = (whole_windows(active, 2)).nonzero().unbind(1)
    assert kept.cells.equal((image * 9 + row) * 14 + column)
    numbers = {"columns": image * 7 + column // 2, "rows": image * 5 + row // 2, "images": image}
    for name, number in numbers.items():
        segments = getattr(kept, name)
        seen = []
        for bucket in segments.buckets:
            mask = torch.ones_like(bucket.slots, dtype=torch.bool) if bucket.mask is None else bucket.mask
            assert bucket.mask is None or not mask.all()
            assert (2 * mask.sum(dim=1) >= bucket.slots.shape[1]).all()
            assert (number[bucket.slots] == bucket.owner.unsqueeze(1)).all()
            seen.append(bucket.slots[mask])
        assert torch.cat(seen).sort().values.equal(torch.arange(len(kept)))
        marked = [bucket.gather(torch.arange(len(kept)).view(-1, 1)) for bucket in segments.buckets]
        assert segments.back_to_rows(marked).squeeze(1).equal(torch.arange(len(kept)))


@torch.no_grad()
def test_attention_with_a_mask_equals_the_formula() -> None:
    query, key, value = torch.randn(2, 3, 4, 5), torch.randn(2, 6, 4, 5), torch.randn(2, 6, 4, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]]).bool()
    scores = torch.einsum("sqhd,slhd->shql", query, key) / 5**0.5
    weights = scores.masked_fill(~mask[:, None, None], float("-inf")).softmax(dim=3)
    expected = torch.einsum("shql,slhd->sqhd", weights, value).flatten(2)
    torch.testing.assert_close(attend(query, key, value, mask[:, None, None]), expected)


def test_deterministic_algorithms_suffice_and_repeat_exactly() -> None:
    tokens = tokens_of(tiny_state()).train()
    active = some_active(8, 12)
    features, weight = torch.randn(3, 24, 8, 12), torch.randn(3, 24, 8, 12)
    torch.use_deterministic_algorithms(True)
    try:
        torch.manual_seed(1)
        first = gradients(tokens, features, active, weight)
        torch.manual_seed(1)
        second = gradients(tokens, features, active, weight)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.no_grad()
def test_cuda_equals_the_reference() -> None:
    """Heads of 2 and 4 channels are padded there."""
    state = tiny_state()
    active, features = some_active(8, 12), torch.randn(3, 24, 8, 12)
    expected = reference_tokens(state, features, whole_windows(active, 2), HEADS)
    found = tokens_of(state).cuda()(features.cuda(), active.cuda())
    torch.testing.assert_close(found.cpu().double(), expected, atol=1e-3, rtol=1e-3)


# --- the parts around the tokens ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", list(SIZES))
def test_published_sizes(size: str) -> None:
    """The YAML of each size: recognised by its shapes, and as many parameters as published."""
    channels, convs, millions = SIZES[size]
    config = load_config(ModelConfig, f"models/cfg/gpvit_{size}.yaml")
    state = {
        key: value.to("meta") for key, value in published_state(channels, [64, 32, 32, 16], convs).items()
    }
    assert config.family == "gpvit" and gpvit_config_of(state) == config.gpvit
    with torch.device("meta"):
        backbone = build_gpvit(config)
    assert backbone.tokens is not None
    body = nn.ModuleDict({"stem": backbone.stem, "tokens": backbone.tokens})
    ours = sum(parameter.numel() for parameter in body.parameters())
    trained = [v for k, v in state.items() if not k.endswith(("running_mean", "running_var", "tracked"))]
    assert ours == sum(tensor.numel() for tensor in trained)
    # What the published number counts is not said: bodies are nearer to it than bodies with a classifier's head.
    assert abs(ours / 1e6 - millions) < 0.01 * millions
    assert abs((ours + channels * 1000 + 1000) / 1e6 - millions) < 0.03 * millions


def test_gpvit_yaml_is_l1() -> None:
    assert load_config(ModelConfig, "models/cfg/gpvit.yaml") == load_config(
        ModelConfig, "models/cfg/gpvit_l1.yaml"
    )


def test_shapes_of_the_parts() -> None:
    backbone = build_gpvit(ModelConfig(family="gpvit", depth=0.25, width=0.12))
    images = torch.rand(2, 3, 64, 96)
    features = backbone.stem(images)
    assert features.shape == (2, backbone.stem_channels, 8, 12)
    assert backbone.stem_channels == 24
    assert backbone.tokens is not None and len(backbone.tokens.blocks) == 3  # type: ignore[arg-type]
    features = backbone.tokens(features)
    pyramid = backbone.deep(features, whole_map(2, (8, 12), features.device))
    levels = backbone.neck(*pyramid)
    assert [tuple(level.shape) for level in levels] == [
        (2, channels, 8 // side, 12 // side)
        for channels, side in zip(backbone.head_channels, (1, 2, 4), strict=True)
    ]


def test_depth_and_width_scale_stages_and_channels() -> None:
    blocks = build_gpvit(ModelConfig(family="gpvit", depth=0.5, width=0.3)).tokens
    assert isinstance(blocks, TokenBlocks)
    kinds = [type(block) for block in blocks.blocks]
    assert kinds == 2 * [LocalBlock, GroupPropagationBlock, LocalBlock]
    assert blocks.position.shape == (28, 28, 60)  # 0.3 · 216 = 64.8, to the nearest multiple of 12 heads
    assert blocks.blocks[4].group_tokens.shape == (32, 60)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("channels", 0),
        ("heads", 3),
        ("heads", 0),
        ("group_tokens", []),
        ("group_tokens", [64, 0]),
        ("window", 0),
        ("ffn_ratio", -1.0),
        ("stem_convs", -1),
        ("position_grid", 0),
        ("drop_path", 1.0),
        ("neck_channels", 0),
    ],
)
def test_impossible_sizes_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"gpvit.{name} is "):
        config_from_dict(ModelConfig, {"family": "gpvit", "gpvit": {name: value}})


@torch.no_grad()
def test_position_matrix_is_bicubic_interpolation() -> None:
    for source, target in ((28, 40), (28, 28), (5, 3), (4, 17)):
        values = torch.randn(1, 2, source, source)
        matrix = bicubic_weights(source, target, values)
        expected = nn.functional.interpolate(values, (target, target), mode="bicubic", align_corners=False)
        torch.testing.assert_close(matrix @ values @ matrix.T, expected)


@torch.no_grad()
def test_stem_folds_its_batchnorms() -> None:
    stem = build_gpvit(ModelConfig(family="gpvit", width=0.12, gpvit=GPViTConfig(stem_convs=2))).stem
    images = torch.rand(2, 3, 32, 32)
    stem(images)
    expected = stem.eval()(images)
    folded = [module for module in stem.modules() if isinstance(module, Conv)]
    for module in folded:
        module.fuse()
    assert len(folded) == 3
    torch.testing.assert_close(stem(images), expected, atol=1e-5, rtol=1e-4)


# --- published checkpoints ---------------------------------------------------------------------------------------


def small_body(state: State) -> nn.ModuleDict:
    """Stem and tokens of the size that a published state has, with a narrow stem."""
    size = gpvit_config_of(state)
    full = build_gpvit(ModelConfig(family="gpvit", depth=1, width=1, gpvit=size))
    assert full.tokens is not None
    return nn.ModuleDict({"stem": full.stem, "tokens": full.tokens})


@pytest.mark.parametrize("prefix", ["", "backbone."])
@torch.no_grad()
def test_every_published_tensor_lands_and_computes_the_same(prefix: str) -> None:
    """From normalised images to the last norm; the outermost cells differ, where the stem sees its padding."""
    state = published_state(24, [5, 3], convs=2, grid=4)
    head = {"head.fc.weight": torch.zeros(2, 24), "neck.group_token": torch.zeros(1, 1, 24)} if prefix else {}
    renamed, left_over = rename_gpvit({prefix + key: value for key, value in state.items()} | head)
    assert sorted(left_over) == sorted(head)
    body = small_body(state)
    assert renamed.keys() == body.state_dict().keys()
    body.load_state_dict(renamed)
    body.eval()
    images = torch.rand(2, 3, 96, 128)
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    normalised = (images * 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    expected = reference_stem(state, normalised)
    features = body["stem"](images)
    torch.testing.assert_close(features[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], atol=1e-3, rtol=1e-3)
    everything = torch.ones(2, 12, 16, dtype=torch.bool)
    torch.testing.assert_close(
        body["tokens"](expected).double(),
        reference_tokens(state, expected, everything, HEADS),
        atol=1e-3,
        rtol=1e-3,
    )


def test_a_detectors_adapter_is_left_over_and_its_missing_last_norm_is_not_invented() -> None:
    state = {f"backbone.{key}": value for key, value in tiny_state().items() if not key.startswith("ln1")}
    adapter = {"backbone.spm.stem.0.weight": torch.zeros(1), "bbox_head.retina_cls.weight": torch.zeros(1)}
    renamed, left_over = rename_gpvit(state | adapter)
    assert sorted(left_over) == sorted(adapter)
    assert "tokens.norm.weight" not in renamed and len(renamed) == len(state)


def test_half_precision_files_become_float32() -> None:
    renamed, _ = rename_gpvit({k: v.half() if v.is_floating_point() else v for k, v in tiny_state().items()})
    assert {v.dtype for v in renamed.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize(
    "lost", ["pos_embed", "patch_embed.projection.weight", "layers.0.ffn.layers.0.0.weight"]
)
def test_size_of_an_incomplete_file_is_refused(lost: str) -> None:
    state = {key: value for key, value in tiny_state().items() if key != lost}
    with pytest.raises(CheckpointError, match=lost):
        gpvit_config_of(state)


def test_other_architectures_are_refused() -> None:
    assert is_gpvit(tiny_state()) and is_gpvit({f"backbone.{k}": v for k, v in tiny_state().items()})
    assert not is_gpvit({"backbone.conv1.weight": torch.zeros(1), "head.fc.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="no GPViT"):
        rename_gpvit({"backbone.conv1.weight": torch.zeros(64, 3, 7, 7)})
    swapped = {key.replace("layers.1.", "layers.2."): value for key, value in tiny_state().items()}
    with pytest.raises(CheckpointError, match="stages of three"):
        gpvit_config_of(swapped)
    odd = tiny_state() | {"pos_embed": torch.zeros(1, 15, 24)}
    with pytest.raises(CheckpointError, match="square"):
        gpvit_config_of(odd)
