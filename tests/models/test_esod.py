"""The detector as a whole: modes, shapes, equality of sparse and dense, gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models.build import build_model
from models.decode import PostprocessConfig, decode, postprocess
from models.esod import ESOD, ESODOutput
from models.head import DetectionHead
from models.layers import SPP, SPPF, Conv
from models.levels import HeadPositions
from models.neck import PANNeck
from models.slicer import Patches, fixed_grid
from models.sparse import gather_neighbourhoods, grow
from tests.models.conftest import BuildTiny
from utils.boxes import Letterbox
from utils.config import HeadConfig, ModelConfig, SeekerConfig, SlicerConfig
from utils.typed_data import ConfigError


def with_slicer(model: ESOD, algorithm: str, *, sparse: bool = False, threshold: float = 0.5) -> ESOD:
    slicer = replace(model.config.slicer, algorithm=algorithm, threshold=threshold)
    head = replace(model.config.head, sparse=sparse, threshold=min(threshold, 0.3))
    model.config = replace(model.config, slicer=slicer, head=head)
    return model


@pytest.mark.parametrize("slicer", ["grid", "greedy", "none"])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 3, 96, 160), (2, 3, 160, 96), (3, 3, 128, 128)])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
@torch.no_grad()
def test_every_shape_and_mode(
    tiny: BuildTiny, slicer: str, sparse: bool, shape: tuple[int, ...], threshold: float
) -> None:
    model = with_slicer(tiny(), slicer, sparse=sparse, threshold=threshold)
    output = model(torch.rand(shape))
    assert output.heatmap_logits is not None
    assert output.heatmap_logits.shape == (shape[0], 1, shape[2] // 8, shape[3] // 8)
    if threshold == 1.0 and slicer != "none":
        assert len(output.patches) == 0
    for level in output.levels:
        assert level.raw.shape == (len(level.position), 3, 8)
        assert torch.isfinite(level.raw).all()
    boxes = [Letterbox.fit((shape[2], shape[3]), (shape[2], shape[3]))] * shape[0]
    found = postprocess(output, model.head.coder, boxes, PostprocessConfig(conf_thres=0.0))
    assert len(found) == shape[0], "an image without any patch keeps its place in the results"


@torch.no_grad()
def test_dense_mode_equals_the_plain_network(tiny: BuildTiny) -> None:
    model = with_slicer(tiny(), "none")
    images = torch.rand(2, 3, 96, 160)
    output = model(images)
    features = model.stem(images)
    pyramid = model.neck(*model.deep(features, output.patches))
    for level, head, plain in zip(output.levels, model.head.levels, pyramid, strict=True):
        x = head.stem(plain)
        reg = head.reg_conv(x)
        expected = torch.cat(
            [
                m.unflatten(1, (3, -1))
                for m in (head.reg_pred(reg), head.obj_pred(reg), head.cls_pred(head.cls_conv(x)))
            ],
            dim=2,
        )
        torch.testing.assert_close(
            level.raw, expected.permute(0, 3, 4, 1, 2).flatten(0, 2), atol=1e-5, rtol=1e-5
        )


@pytest.mark.usefixtures("always_sparse")
@pytest.mark.parametrize("fused", [False, True])
@torch.no_grad()
def test_sparse_head_equals_dense_with_every_position_selected(tiny: BuildTiny, fused: bool) -> None:
    model = tiny()
    if fused:
        model.fuse()
    dense = with_slicer(model, "grid", threshold=0.0)(images := torch.rand(2, 3, 96, 160))
    patches = dense.patches
    cut = model.stem(images).permute(0, 2, 3, 1)
    assert len(patches) > 0 and cut.shape[0] == 2
    from models.slicer import cut_patches

    pyramid = model.neck(*model.deep(cut_patches(model.stem(images), patches), patches))
    sparse = model.head(pyramid, [HeadPositions(level.position, None) for level in dense.levels])
    for a, b in zip(dense.levels, sparse, strict=True):
        torch.testing.assert_close(a.raw, b.raw, atol=1e-5, rtol=1e-5)


def rows_of(position: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Rows of a dense head's predictions that are at these positions [M, 3]."""
    return (position[:, 0] * grid_hw[0] + position[:, 1]) * grid_hw[1] + position[:, 2]


@pytest.mark.usefixtures("always_sparse")
@pytest.mark.parametrize("kind", ["decoupled", "center", "dfl"])
@pytest.mark.parametrize("slicer", ["grid", "none"])
@torch.no_grad()
def test_sparse_positions_are_a_subset_with_the_same_values(tiny: BuildTiny, kind: str, slicer: str) -> None:
    model = tiny(kind=kind)
    images = torch.rand(2, 3, 128, 160)
    dense = with_slicer(model, slicer)(images)
    sparse = with_slicer(model, slicer, sparse=True)(images)
    assert 0 < len(sparse.levels[0].raw) < len(dense.levels[0].raw)
    for a, b in zip(dense.levels, sparse.levels, strict=True):
        assert a.grid_hw == b.grid_hw
        torch.testing.assert_close(a.raw[rows_of(b.position, a.grid_hw)], b.raw, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("always_sparse")
@pytest.mark.parametrize("kind", ["decoupled", "center", "dfl"])
@torch.no_grad()
def test_sparse_heads_at_the_borders_of_a_patch(tiny: BuildTiny, kind: str) -> None:
    """Every single position of a patch, on its own: what lies outside is zero for each convolution in a row."""
    model = tiny(kind=kind)
    pyramid = [torch.randn(3, level.shape[1], 8 >> i, 8 >> i) for i, level in enumerate(pyramid_of(model))]
    dense = model.head(pyramid, [None] * 3)
    for row in range(64):
        wanted = [level.position[[64 // 4**i + row % (64 // 4**i)]] for i, level in enumerate(dense)]
        masks = [torch.zeros(3, 8 >> i, 8 >> i, dtype=torch.bool) for i in range(3)]
        for mask, position in zip(masks, wanted, strict=True):
            mask[tuple(position.T)] = True
        around = [grow(mask).nonzero() for mask in masks]
        assert row or [len(a) for a in around] == [4, 4, 4], "a corner has three neighbours inside the patch"
        sparse = model.head(pyramid, [HeadPositions(w, a) for w, a in zip(wanted, around, strict=True)])
        for a, b in zip(dense, sparse, strict=True):
            torch.testing.assert_close(a.raw[rows_of(b.position, a.grid_hw)], b.raw, atol=1e-5, rtol=1e-5)


def pyramid_of(model: ESOD) -> list[Tensor]:
    """What the neck gives the head for one dense image."""
    images = torch.rand(1, 3, 64, 64)
    return model.neck(*model.deep(model.stem(images), fixed_grid(1, (8, 8), 1, images.device)))  # type: ignore[no-any-return]


def test_gather_neighbourhoods_by_hand() -> None:
    features = torch.arange(1.0, 13).view(1, 1, 3, 4)
    rows = gather_neighbourhoods(features, torch.tensor([[0, 0, 0], [0, 1, 2]]))[..., 0]
    assert rows[0].tolist() == [[0, 0, 0], [0, 1, 2], [0, 5, 6]]
    assert rows[1].tolist() == [[2, 3, 4], [6, 7, 8], [10, 11, 12]]


@torch.no_grad()
def test_a_batch_gives_what_its_images_give_alone(tiny: BuildTiny) -> None:
    model = with_slicer(tiny(), "greedy")
    images = torch.rand(3, 3, 96, 128)
    images[1] = 0.5
    together = decode(model(images), model.head.coder)
    for index in range(3):
        alone = decode(model(images[index : index + 1]), model.head.coder)
        rows = together.image_index == index
        assert rows.sum() == len(alone.objectness)
        torch.testing.assert_close(together.cxcywh_px[rows], alone.cxcywh_px, atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_fusing_changes_nothing(tiny: BuildTiny) -> None:
    model = with_slicer(tiny(), "none")
    images = torch.rand(1, 3, 96, 96)
    before = model(images)
    after = model.fuse()(images)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    for a, b in zip(before.levels, after.levels, strict=True):
        torch.testing.assert_close(a.raw, b.raw, atol=1e-4, rtol=1e-4)


def test_every_parameter_gets_a_gradient(tiny: BuildTiny) -> None:
    model = tiny().train()
    output: ESODOutput = model(
        torch.rand(2, 3, 96, 96), lambda logits: fixed_grid(2, (12, 12), 8, logits.device)
    )
    assert output.heatmap_logits is not None
    (sum(level.raw.sum() for level in output.levels) + output.heatmap_logits.sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_cutting_gradients_add_up_where_patches_overlap() -> None:
    from models.slicer import cut_patches

    features = torch.zeros(1, 1, 8, 8, requires_grad=True)
    patches = Patches(torch.tensor([0, 0]), torch.tensor([[0, 0, 4, 4], [2, 2, 6, 6]]), (4, 4))
    cut_patches(features, patches).sum().backward()
    assert features.grad is not None
    assert features.grad[0, 0, 2:4, 2:4].unique().tolist() == [2.0]
    assert features.grad.sum() == 32


def test_sides_must_be_multiples_of_32(tiny: BuildTiny) -> None:
    with pytest.raises(ValueError, match="96×100"):
        tiny()(torch.rand(1, 3, 96, 100))


@pytest.mark.parametrize(
    "options",
    [
        {"seeker": SeekerConfig(kind="none")},
        {
            "seeker": SeekerConfig(kind="none"),
            "slicer": SlicerConfig(algorithm="none"),
            "head": HeadConfig(sparse=True),
        },
        {"head": HeadConfig(kind="single", sparse=True)},
        {"num_classes": 2, "names": ["one"]},
    ],
)
def test_contradictions_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        ModelConfig(**options)  # type: ignore[arg-type]


@torch.no_grad()
def test_single_head_and_spp_seeker_build() -> None:
    config = ModelConfig(
        width=0.125, seeker=SeekerConfig(kind="spp"), head=HeadConfig(kind="single"), num_classes=2,
        slicer=SlicerConfig(threshold=0.0),
    )  # fmt: skip
    output = build_model(config).eval()(torch.rand(1, 3, 64, 64))
    assert output.levels[0].raw.shape[1:] == (3, 7)


def test_half_precision_follows_the_model(tiny: BuildTiny) -> None:
    """The released sparse head kept fp32 copies of its weights after .half()."""
    model = with_slicer(tiny(), "grid", sparse=True, threshold=0.2).to(torch.bfloat16)
    with torch.no_grad():
        output = model(torch.rand(1, 3, 96, 96, dtype=torch.bfloat16))
    assert {level.raw.dtype for level in output.levels} == {torch.bfloat16}


def test_neck_and_head_are_of_the_documented_types(tiny: BuildTiny) -> None:
    model = tiny()
    assert isinstance(model.neck, PANNeck) and isinstance(model.head, DetectionHead)
    parameters: list[Tensor] = list(model.head.parameters())
    assert model.head.coder.anchors.shape == (3, 3, 2) and parameters


def test_the_v6_body_has_the_same_strides_and_its_own_layers(tiny: BuildTiny) -> None:
    model = tiny(body="v6")
    patches = fixed_grid(1, (12, 20), 1, torch.device("cpu"))
    pyramid = model.deep(model.stem(torch.rand(1, 3, 96, 160)), patches)
    assert [tuple(level.shape[2:]) for level in pyramid] == [(12, 20), (6, 10), (3, 5)]
    first = model.stem[0]
    assert isinstance(first, Conv) and first.conv.kernel_size == (6, 6)
    assert sum(isinstance(module, SPPF) for module in model.modules()) == 1
    assert len(model(torch.rand(2, 3, 64, 96)).levels) == 3


def test_chained_pools_equal_parallel_ones() -> None:
    """Three 5×5 pools in a row are pools of 5, 9 and 13: SPPF is SPP with those kernels."""
    chained, parallel = SPPF(8, 8), SPP(8, 8, (5, 9, 13))
    parallel.load_state_dict(chained.state_dict())
    x = torch.rand(2, 8, 20, 24)
    torch.testing.assert_close(chained.eval()(x), parallel.eval()(x))
