"""GPViT as a detector: every mode, batches with an empty image, training steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models.backbones.gpvit import TokenBlocks
from models.build import build_model
from models.decode import PostprocessConfig, postprocess
from models.esod import ESOD
from models.loss import DetectionLoss
from models.slicer import Patches, fixed_grid
from utils.boxes import Letterbox
from utils.config import GPViTConfig, HeadConfig, HypConfig, ModelConfig, SlicerConfig

SIZE = GPViTConfig(
    channels=24, heads=4, group_tokens=[5, 3], position_grid=6, neck_channels=16, drop_path=0.0
)


def detector(slicer: str = "grid", *, sparse: bool = False, threshold: float = 0.5) -> ESOD:
    """A small one in evaluation mode, heatmap logits around zero."""
    config = ModelConfig(
        family="gpvit",
        depth=1.0,
        width=1.0,
        gpvit=SIZE,
        num_classes=3,
        slicer=SlicerConfig(algorithm=slicer, threshold=threshold),  # type: ignore[arg-type]
        head=HeadConfig(sparse=sparse, threshold=min(threshold, 0.3)),
    )
    model = build_model(config)
    assert model.seeker is not None
    nn.init.zeros_(model.seeker.predict.bias)
    return model.eval()


def patches_of_first_image(logits: Tensor) -> Patches:
    """Two patches of image 0, overlapping no window border in particular; none of the others."""
    corners = torch.tensor([[2, 1, 6, 5], [9, 7, 13, 11]])
    return Patches(torch.zeros(2, dtype=torch.int64), corners, (4, 4))


def whole_grid(logits: Tensor) -> Patches:
    return fixed_grid(len(logits), (logits.shape[2], logits.shape[3]), 4, logits.device)


@pytest.mark.parametrize("slicer", ["grid", "greedy", "none"])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
@torch.no_grad()
def test_every_mode(slicer: str, sparse: bool, threshold: float) -> None:
    model = detector(slicer, sparse=sparse, threshold=threshold)
    output = model(torch.rand(2, 3, 96, 160))
    if threshold == 1.0 and slicer != "none":
        assert len(output.patches) == 0
    for level in output.levels:
        assert level.raw.shape == (len(level.position), 3, 8)
        assert torch.isfinite(level.raw).all()
    boxes = [Letterbox.fit((96, 160), (96, 160))] * 2
    assert len(postprocess(output, model.head.coder, boxes, PostprocessConfig(conf_thres=0.0))) == 2


@torch.no_grad()
def test_every_patch_kept_equals_the_dense_tokens_cut() -> None:
    """With the whole grid selected nothing is pruned: each patch sees the dense transformer's features."""
    model = detector()
    images = torch.rand(2, 3, 128, 128)
    seen: list[Tensor] = []
    model.deep.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(images, whole_grid)
    dense = model.tokens(model.stem(images))  # type: ignore[misc]
    patches = whole_grid(torch.zeros(2, 1, 16, 16))
    expected = [
        dense[image, :, y1:y2, x1:x2]
        for image, (x1, y1, x2, y2) in zip(
            patches.image_index.tolist(), patches.xyxy_cell.tolist(), strict=True
        )
    ]
    torch.testing.assert_close(seen[0], torch.stack(expected), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_an_image_without_patches_changes_nothing_for_the_other() -> None:
    model = detector()
    images = torch.rand(2, 3, 128, 128)
    together, alone = model(images, patches_of_first_image), model(images[:1], patches_of_first_image)
    assert len(together.patches) == 2
    for a, b in zip(together.levels, alone.levels, strict=True):
        torch.testing.assert_close(a.raw, b.raw, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_tokens_are_computed_under_the_patches_only() -> None:
    model = detector()
    seen: list[tuple[Tensor, ...]] = []
    model.tokens.register_forward_hook(lambda module, args, result: seen.append((*args, result)))  # type: ignore[union-attr]
    model(torch.rand(2, 3, 128, 128), patches_of_first_image)
    _, active, result = seen[0]
    assert active[0, 1:5, 2:6].all() and active[0, 7:11, 9:13].all() and active.sum() == 32
    computed = result.abs().sum(dim=1) > 0
    assert computed[active].all() and not computed[1].any()
    # Windows of 2×2: columns 2–5 are whole, rows 1–4 grow to 0–5; the other patch grows on all sides.
    assert computed[0].sum() == 6 * 4 + 6 * 6


TARGETS = torch.tensor([[0, 1, 0.25, 0.2, 0.1, 0.12], [0, 2, 0.7, 0.6, 0.2, 0.1]])


@pytest.mark.parametrize("pruned", [False, True])
def test_training_steps_lower_the_loss(pruned: bool) -> None:
    """Also with a second image that has no patch."""
    model = detector().train()
    criterion = DetectionLoss(model.config, HypConfig())
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    images, heatmaps = torch.rand(2, 3, 128, 128), torch.zeros(2, 1, 16, 16)
    heatmaps[0, 0, 3, 4] = heatmaps[0, 0, 9, 11] = 1.0
    history = []
    for _ in range(20):
        output = model(images, patches_of_first_image if pruned else whole_grid)
        losses = criterion(output, TARGETS, heatmaps)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        history.append(losses["total"].item())
    assert all(torch.isfinite(torch.tensor(history)))
    assert history[-1] < 0.6 * history[0]


def test_every_parameter_of_the_body_gets_a_gradient() -> None:
    model = detector().train()
    output = model(torch.rand(2, 3, 128, 128), patches_of_first_image)
    heatmaps = torch.zeros(2, 1, 16, 16)
    DetectionLoss(model.config, HypConfig())(output, TARGETS, heatmaps)["total"].backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # The coarsest head level has no object of its size here.
    without = [name for name in without if not name.startswith("head.levels.2.")]
    # A key's bias shifts all scores of a query alike, which softmax does not see.
    assert [name for name in without if not name.endswith(("gather_key.bias", "read_key.bias"))] == []


def test_no_patch_in_the_whole_batch_trains_the_heatmap_alone() -> None:
    def nothing(logits: Tensor) -> Patches:
        return Patches(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4, dtype=torch.int64), (4, 4))

    model = detector()
    output = model(torch.rand(2, 3, 128, 128), nothing)
    losses = DetectionLoss(model.config, HypConfig())(output, TARGETS, torch.zeros(2, 1, 16, 16))
    losses["total"].backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert model.stem.first.conv.weight.grad is not None  # type: ignore[union-attr]


@torch.no_grad()
def test_fusing_changes_nothing() -> None:
    model = detector().train()
    for _ in range(3):
        model(torch.rand(2, 3, 128, 128), whole_grid)
    model.eval()
    images = torch.rand(1, 3, 96, 96)
    expected = model(images, whole_grid)
    for a, b in zip(model.fuse()(images, whole_grid).levels, expected.levels, strict=True):
        torch.testing.assert_close(a.raw, b.raw, atol=1e-3, rtol=1e-3)


def test_state_dict_round_trip_and_configuration() -> None:
    model = detector()
    other = build_model(replace(model.config))
    other.load_state_dict(model.state_dict())
    assert isinstance(other.tokens, TokenBlocks)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(other.eval()(images).heatmap_logits, model(images).heatmap_logits)
