"""The transformer blocks: against attention written out per image, and what must not depend on the batch."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.backbones.yolov5 import YOLOv5Deep
from models.build import build_model
from models.decode import decode
from models.esod import ESOD
from models.layers import C3
from models.loss import DetectionLoss
from models.slicer import Patches, cut_patches, fixed_grid, whole_map
from models.transformer import (
    FREQUENCIES,
    Attention,
    ImageGroups,
    TransformerC3,
    encode_places,
    token_places,
)
from models.weights import Weights, initialise
from tests.models.conftest import BuildTiny
from utils.config import HypConfig, ModelConfig
from utils.profile import count_flops
from utils.typed_data import ConfigError, load_config

CPU = torch.device("cpu")
CFG = Path(__file__).resolve().parents[2] / "models" / "cfg"


def patches_of(*rows: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> Patches:
    """Patches (image, x, y) in cells."""
    table = torch.tensor(rows, dtype=torch.int64).view(-1, 3)
    corner = table[:, 1:]
    return Patches(table[:, 0], torch.cat((corner, corner + torch.tensor([size[1], size[0]])), dim=1), size)


UNEVEN = patches_of((0, 0, 0), (0, 8, 4), (0, 12, 4), (2, 4, 4), (3, 0, 0), (3, 16, 8))
"""Three patches in image 0, two of which overlap, none in image 1, one in image 2, two in image 3."""


def block(repeats: int = 2, width: int = 48) -> TransformerC3:
    """A block in evaluation mode with weights large enough for every path to show, and BatchNorm that does something."""
    torch.manual_seed(1)
    module = TransformerC3(width, width, repeats).eval()
    for name, parameter in module.named_parameters():
        nn.init.normal_(parameter, std=0.3 if parameter.ndim > 1 else 0.1)
        if name.endswith(("norm1.weight", "norm2.weight", "bn.weight")):
            nn.init.uniform_(parameter, 0.5, 1.5)
    return module


# --- grouping --------------------------------------------------------------------------------------------------


def test_groups_by_hand() -> None:
    groups = ImageGroups.of(UNEVEN)
    assert groups.row.tolist() == [0, 0, 0, 1, 2, 2]
    assert groups.slot.tolist() == [0, 1, 2, 0, 0, 1]
    assert groups.shape == (3, 3) and not groups.full
    mask = groups.mask(2)
    assert mask is not None and mask.shape == (3, 1, 1, 6)
    assert mask[:, 0, 0].int().tolist() == [[1] * 6, [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]]
    x = torch.rand(6, 2, 5)
    table = groups.pad(x)
    assert table.shape == (3, 6, 5)
    assert torch.equal(table[0].view(3, 2, 5), x[:3]) and torch.equal(table[2, 2:4], x[5])
    assert torch.equal(groups.unpad(table, 2), x)


@pytest.mark.parametrize("patches", [whole_map(3, (8, 8), CPU), fixed_grid(2, (8, 16), 2, CPU)])
def test_nothing_is_masked_where_all_images_have_as_many_patches(patches: Patches) -> None:
    groups = ImageGroups.of(patches)
    assert groups.full and groups.mask(4) is None
    x = torch.rand(len(patches), 4, 5)
    assert torch.equal(groups.unpad(groups.pad(x), 4), x)


# --- against the definition ------------------------------------------------------------------------------------


def attention_written_out(attention: Attention, tokens: Tensor) -> Tensor:
    """Softmax(q·kᵀ/√d)·v of one image's tokens [N, C], head by head."""
    heads, width = attention.heads, attention.out.in_features // attention.heads
    q, k, v = (tokens @ attention.qkv.weight.T + attention.qkv.bias).chunk(3, dim=1)
    parts = []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        share = (q[:, own] @ k[:, own].T / math.sqrt(width)).softmax(dim=1)
        parts.append(share @ v[:, own])
    return torch.cat(parts, dim=1) @ attention.out.weight.T + attention.out.bias


@pytest.mark.parametrize("channels", [24, 128, 344])
@torch.no_grad()
def test_attention_equals_the_formula_image_by_image(channels: int) -> None:
    attention = Attention(channels)
    assert attention.heads == max(channels // 64, 1)
    x = torch.randn(6, 4, channels)
    result = attention(x, ImageGroups.of(UNEVEN))
    for image in (0, 2, 3):
        own = UNEVEN.image_index == image
        expected = attention_written_out(attention, x[own].flatten(0, 1))
        torch.testing.assert_close(result[own].flatten(0, 1), expected, atol=1e-5, rtol=1e-5)


def test_places_by_hand() -> None:
    """A patch at cell (3, 5), pixel (24, 40), of 8×12 cells: 2×3 tokens of 32 px."""
    places = token_places(patches_of((0, 3, 5), size=(8, 12)), (2, 3))
    expected = [[40, 56], [72, 56], [104, 56], [40, 88], [72, 88], [104, 88]]
    assert places.tolist() == [expected]


def test_encoding_of_places_by_formula() -> None:
    code = encode_places(torch.tensor([[40.0, 1000.0]]))[0]
    assert code.shape == (4 * FREQUENCIES,)
    waves = [2 * math.pi * 32 * 100 ** (i / (FREQUENCIES - 1)) for i in range(FREQUENCIES)]
    expected = [
        f(2 * math.pi * px / wave) for px in (40, 1000) for f in (math.sin, math.cos) for wave in waves
    ]
    torch.testing.assert_close(code, torch.tensor(expected), atol=1e-4, rtol=0)


@torch.no_grad()
def test_places_of_the_largest_inputs_differ() -> None:
    """Tokens 32 px apart on an 8192×8192 input: nearest codes along a side are clearly apart."""
    line = torch.stack((torch.arange(256) * 32.0 + 16, torch.full((256,), 16.0)), dim=1)
    distance = torch.cdist(encode_places(line), encode_places(line)) + torch.eye(256) * 9
    assert distance.min() > 0.3


# --- what is seen and what is not ------------------------------------------------------------------------------


@torch.no_grad()
def test_patches_see_all_of_their_own_image_and_nothing_of_another() -> None:
    module, x = block(), torch.randn(6, 48, 2, 2)
    before = module(x, UNEVEN)
    for changed in range(6):
        other = x.clone()
        other[changed] += 1
        moved = (module(other, UNEVEN) - before).abs().amax(dim=(1, 2, 3))
        same_image = UNEVEN.image_index == UNEVEN.image_index[changed]
        assert (moved[same_image] > 1e-4).all()
        assert (moved[~same_image] == 0).all()


@torch.no_grad()
def test_cutting_a_map_without_overlap_changes_nothing() -> None:
    """One patch over the map, four and sixteen patches are the same set of tokens, in other orders."""
    module, features = block(), torch.randn(2, 48, 16, 16)
    whole = module(features[..., ::4, ::4], whole_map(2, (16, 16), CPU))
    for side, size in ((2, 8), (4, 4)):
        patches = fixed_grid(2, (16, 16), side, CPU)
        assert len(patches) == 2 * side**2 and patches.size_cell == (size, size)
        found = module(cut_patches(features, patches)[..., ::4, ::4], patches)
        expected = cut_patches(whole.repeat_interleave(4, 2).repeat_interleave(4, 3), patches)[..., ::4, ::4]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_place_seen_twice_is_two_tokens() -> None:
    module = block()
    twice = patches_of((0, 0, 0), (0, 0, 0))
    x = torch.randn(1, 48, 2, 2).repeat(2, 1, 1, 1)
    found = module(x, twice)
    assert torch.equal(found[0], found[1])
    # Every token twice leaves softmax's means as they are; beside a third patch it weighs twice.
    torch.testing.assert_close(found[:1], module(x[:1], patches_of((0, 0, 0))), atol=1e-5, rtol=1e-5)
    third = torch.cat((x, torch.randn(1, 48, 2, 2)))
    with_both = module(third, patches_of((0, 0, 0), (0, 0, 0), (0, 8, 0)))
    with_one = module(third[1:], patches_of((0, 0, 0), (0, 8, 0)))
    assert (with_both[1:] - with_one).abs().max() > 1e-3


@torch.no_grad()
def test_the_place_on_the_map_counts() -> None:
    module, x = block(), torch.randn(2, 48, 2, 2)
    here = module(x, patches_of((0, 0, 0), (0, 8, 0)))
    there = module(x, patches_of((0, 0, 0), (0, 9, 0)))
    far = module(x, patches_of((0, 0, 0), (0, 8000, 3000)))
    assert (here - there).abs().max() > 1e-3
    assert torch.isfinite(far).all()


# --- in the detector -------------------------------------------------------------------------------------------


def strong(model: ESOD) -> ESOD:
    """Larger weights in the blocks: those of the start make them nearly identities, in which no mistake would show."""
    for module in model.modules():
        if isinstance(module, TransformerC3):
            for parameter in [*module.m.parameters(), *module.place.parameters()]:
                if parameter.ndim > 1:
                    nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("body", ["v5.0", "v6"])
@pytest.mark.parametrize("choose", ["uneven", "grid", "greedy", "none"])
@torch.no_grad()
def test_a_batch_gives_what_its_images_give_alone(tiny: BuildTiny, body: str, choose: str) -> None:
    """Patches of the slicers, and four images with three, no, one and two patches."""
    uneven = choose == "uneven"
    model = strong(tiny("grid" if uneven else choose, transformer=True, body=body))
    images = torch.rand(4, 3, 128, 192)
    together = model(images, (lambda _: UNEVEN) if uneven else None)
    found = decode(together, model.head.coder)
    for index in range(4):
        own = together.patches.image_index == index
        corners = together.patches.xyxy_cell[own]
        here = Patches(torch.zeros(len(corners), dtype=torch.int64), corners, together.patches.size_cell)
        alone = model(images[index : index + 1], (lambda _, p=here: p) if uneven else None)
        assert torch.equal(alone.patches.xyxy_cell, corners)
        for a, b in zip(together.levels, alone.levels, strict=True):
            torch.testing.assert_close(a.raw[own[a.position[:, 0]]], b.raw, atol=1e-5, rtol=1e-5)
        prob = decode(alone, model.head.coder).class_prob
        torch.testing.assert_close(found.class_prob[found.image_index == index], prob, atol=1e-5, rtol=0)


@torch.no_grad()
def test_permuted_images_give_permuted_results(tiny: BuildTiny) -> None:
    model = strong(tiny(transformer=True))
    images = torch.rand(3, 3, 96, 128)
    images[2, :, :, 64:] = 0.5
    order = torch.tensor([2, 0, 1])
    first, second = model(images), model(images[order])
    for a, b in zip(first.levels, second.levels, strict=True):
        for new, old in enumerate(order.tolist()):
            here = first.patches.image_index[a.position[:, 0]] == old
            there = second.patches.image_index[b.position[:, 0]] == new
            torch.testing.assert_close(a.raw[here], b.raw[there], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
@pytest.mark.parametrize("sparse", [False, True])
@torch.no_grad()
def test_sparse_fused_and_without_any_patch(tiny: BuildTiny, threshold: float, sparse: bool) -> None:
    model = strong(tiny("grid", sparse, threshold=threshold, transformer=True))
    images = torch.rand(2, 3, 96, 160)
    before = model(images)
    assert (len(before.patches) == 0) == (threshold == 1.0)
    after = model.fuse()(images)
    for a, b in zip(before.levels, after.levels, strict=True):
        torch.testing.assert_close(a.raw, b.raw, atol=1e-4, rtol=1e-4)


def test_every_parameter_gets_a_gradient(tiny: BuildTiny) -> None:
    model = tiny(transformer=True).train()
    output = model(torch.rand(2, 3, 96, 96), lambda logits: fixed_grid(2, (12, 12), 8, logits.device))
    targets = torch.tensor([[0, 1, 0.3, 0.4, 0.2, 0.2], [1, 2, 0.7, 0.6, 0.5, 0.4]])
    DetectionLoss(model.config, HypConfig())(output, targets, torch.rand(2, 1, 12, 12))["total"].backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


def test_gradients_are_zero_but_there_without_any_patch(tiny: BuildTiny) -> None:
    model = tiny(transformer=True).eval()
    output = model(torch.rand(2, 3, 96, 96), lambda _: patches_of())
    losses = DetectionLoss(model.config, HypConfig())(output, torch.zeros(0, 6), torch.rand(2, 1, 12, 12))
    losses["total"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in model.deep.parameters())


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16(tiny: BuildTiny, autocast: bool) -> None:
    """Converted for evaluation, and under autocast with gradients: near to float32."""
    model = strong(tiny("grid", threshold=0.0, transformer=True))
    images = torch.rand(2, 3, 96, 96)
    expected = model(images).levels[2].raw.detach()
    if autocast:
        with torch.autocast("cpu", torch.bfloat16):
            raw = model(images).levels[2].raw
        raw.float().sum().backward()
        assert all(p.grad is not None for p in model.deep.parameters())
    else:
        with torch.no_grad():
            raw = model.to(torch.bfloat16)(images.bfloat16()).levels[2].raw
    assert raw.dtype == torch.bfloat16
    assert (raw.detach().float() - expected).abs().mean() < 0.05 * expected.std()


def test_the_blocks_learn_what_only_another_patch_knows() -> None:
    """Each patch must say what is written in the other one of its image; with C3 that is impossible."""
    torch.manual_seed(0)
    module = TransformerC3(32, 32, 1).train()
    read = nn.Conv2d(32, 1, 1)
    optimizer = torch.optim.Adam([*module.parameters(), *read.parameters()], 3e-3)
    patches = patches_of(*((image, x, 0) for image in range(16) for x in (0, 8)))
    loss = torch.zeros(())
    for _ in range(150):
        word = torch.randint(0, 2, (32,)).float()
        x = torch.randn(32, 32, 2, 2) * 0.1
        x[:, 0] += word.view(-1, 1, 1) * 2 - 1
        wanted = word.view(16, 2).flip(1).reshape(-1)
        logits = read(module(x, patches)).mean(dim=(1, 2, 3))
        loss = nn.functional.binary_cross_entropy_with_logits(logits, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.35, "chance is 0.69"


# --- configuration and weights ---------------------------------------------------------------------------------


def test_the_configuration_file() -> None:
    config = load_config(ModelConfig, CFG / "yolov5m-tr.yaml")
    plain = load_config(ModelConfig, CFG / "yolov5m.yaml")
    assert config == replace(plain, transformer=True)


def test_other_families_are_refused() -> None:
    with pytest.raises(ConfigError, match="'yolov5' only.*'other'"):
        ModelConfig(family="other", transformer=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(("body", "index"), [("v5.0", 2), ("v6", 1)])
def test_weights_of_the_plain_model_fill_everything_else(body: str, index: int) -> None:
    config = ModelConfig(depth=0.67, width=0.25, body=body)  # type: ignore[arg-type]
    plain, model = build_model(config), build_model(replace(config, transformer=True))
    assert isinstance(plain.deep, YOLOv5Deep) and isinstance(plain.deep.stage5[index], C3)
    report = initialise(model, Weights(config, plain.state_dict()))
    mine = (f"deep.stage5.{index}.m.", f"deep.stage5.{index}.place.")
    assert report.missing and all(name.startswith(mine) for name in report.missing)
    assert all(name.startswith(mine) for name in report.unexpected) and not report.shape_mismatch
    assert f"deep.stage5.{index}.cv3.conv.weight" in report.matched
    module = model.deep.stage5[index]  # type: ignore[index, union-attr]
    assert isinstance(module, TransformerC3) and len(module.m) == 2


@torch.no_grad()
def test_new_blocks_begin_as_nearly_an_identity() -> None:
    torch.manual_seed(0)
    module = TransformerC3(64, 64, 2).eval()
    x = torch.randn(6, 64, 2, 2)
    expected = module.cv3(torch.cat((module.cv1(x), module.cv2(x)), dim=1))
    found = module(x, UNEVEN)
    assert 0 < (found - expected).abs().mean() < 0.3 * expected.std()


@torch.no_grad()
def test_the_products_of_attention_are_counted() -> None:
    """8 tokens of 48 channels in one head of 64: projections, q·kᵀ, shares·v, MLP, positions, 1×1 convolutions."""
    module = TransformerC3(96, 96, 1).eval()
    x, patches = torch.randn(2, 96, 2, 2), patches_of((0, 0, 0), (0, 8, 0))
    expected = 8 * (48 * 192 + 64 * 48 + 2 * 48 * 192 + 64 * 48 + 2 * 96 * 48 + 96 * 96) + 2 * 8 * 8 * 64
    assert count_flops(lambda: module(x, patches)).macs == expected
