"""Beyond the border of a patch: what the patch beside it holds there."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from engine.benchmark.variants import benchmark_config, lively_model, prepare
from engine.modes import PLAIN, Mode, put_into
from models import head as head_module
from models.assign import assign_level, targets_in_patches
from models.borders import OUTSIDE, Placement, Surroundings, places_around
from models.build import build_model
from models.esod import ESOD
from models.loss import DetectionLoss
from models.slicer import Patches, fixed_grid, slice_grid, whole_map
from models.sparse import position_masks
from utils.config import ConfigError, HeadConfig, HypConfig, ModelConfig, ModelOverrides, SlicerConfig

GRID = SlicerConfig(shift="none")


def network(family: str, kind: str = "dfl", **options: object) -> ESOD:
    torch.manual_seed(0)
    config = ModelConfig(family=family, depth=0.33, width=0.25, num_classes=3, head=HeadConfig(kind=kind))  # type: ignore[arg-type]
    return lively_model(replace(config, slicer=GRID, borders="neighbours", **options), seed=0).eval()


def patches_of(corners: list[tuple[int, int]], images: list[int] | None = None, side: int = 4) -> Patches:
    xy = torch.tensor(corners).view(-1, 2)
    index = torch.tensor(images or [0] * len(corners))
    return Patches(index, torch.cat((xy, xy + side), dim=1), (side, side))


def maps_of(model: ESOD, images: Tensor, patches: Patches) -> dict[tuple[int, ...], Tensor]:
    """Raw predictions by level, image, row and column of the whole map."""
    with torch.no_grad():
        output = model(images, select=lambda _: patches)
    found = {}
    for level in output.levels:
        cells = level.stride / 8
        for raw, (patch, row, column) in zip(level.raw, level.position.tolist(), strict=True):
            x, y = (patches.xyxy_cell[patch, :2] / cells).tolist()
            found[level.stride, int(patches.image_index[patch]), int(y) + row, int(x) + column] = raw
    return found


@pytest.mark.parametrize(
    ("family", "kind", "options"),
    [
        ("yolov5", "decoupled", {}),
        ("yolov5", "single", {"body": "v6"}),
        ("yolov5", "dfl", {"fine_level": True}),
        ("yolov8", "dfl", {}),
        ("yolov8", "decoupled", {}),
    ],
)
def test_all_patches_together_are_the_dense_network(
    family: str, kind: str, options: dict[str, object]
) -> None:
    """Also where the last row of patches overlaps the one before. With zeros beyond the borders they are not."""
    model = network(family, kind, **options)
    images = torch.rand(
        2, 3, 416, 512
    )  # 52 × 64 cells: patches of 8 × 8, the last row of which begins at 44, not at 48
    patches = fixed_grid(2, (52, 64), 8, torch.device("cpu"))
    whole = maps_of(model, images, whole_map(2, (52, 64), torch.device("cpu")))
    cut = maps_of(model, images, patches)
    assert cut.keys() == whole.keys()
    for place, raw in whole.items():
        torch.testing.assert_close(cut[place], raw, atol=1e-4, rtol=1e-4)
    plain = build_model(replace(model.config, borders="zeros")).eval()
    plain.load_state_dict(model.state_dict())
    zeros = maps_of(plain, images, patches)
    assert max((zeros[place] - raw).abs().max().item() for place, raw in whole.items()) > 0.01


def test_a_lonely_patch_has_zeros_around_it() -> None:
    """As with zeros, whatever patches of other images are there."""
    model = network("yolov8")
    plain = build_model(replace(model.config, borders="zeros")).eval()
    plain.load_state_dict(model.state_dict())
    images = torch.rand(2, 3, 256, 256)
    patches = patches_of([(0, 0), (16, 8), (20, 8)], [0, 0, 1])
    mine, theirs = maps_of(model, images, patches), maps_of(plain, images, patches)
    assert mine.keys() == theirs.keys()
    for place, raw in theirs.items():
        torch.testing.assert_close(mine[place], raw, atol=1e-5, rtol=1e-5)


def test_places_by_hand() -> None:
    """Two patches side by side and one below, at stride 32: one position each."""
    patches = patches_of([(0, 0), (4, 0), (4, 4), (0, 0)], [0, 0, 0, 1])
    place = places_around(patches, 2, (8, 8), (1, 1), (1, 1))
    out = OUTSIDE
    assert place.tolist() == [
        [[out, out, out], [out, 0, 1], [out, out, 2]],
        [[out, out, out], [0, 1, out], [out, 2, out]],
        [[0, 1, out], [out, 2, out], [out, out, out]],
        [[out, out, out], [out, 3, out], [out, out, out]],
    ]
    wide = places_around(patches, 2, (8, 8), (1, 1), (0, 2))
    assert wide[0].tolist() == [[out, out, 0, 1, out]]


def test_overlapping_patches_keep_their_own() -> None:
    """Inside a patch is always its own position; beyond it, that of the last patch there."""
    patches = Patches(
        torch.zeros(3, dtype=torch.int64), torch.tensor([[0, 0, 8, 8], [4, 0, 12, 8], [8, 0, 16, 8]]), (8, 8)
    )
    place = places_around(patches, 1, (8, 16), (2, 2), (1, 1))
    assert place[0, 1:3, 1:3].tolist() == [[0, 1], [2, 3]]
    assert place[1, 1:3, 1:3].tolist() == [[4, 5], [6, 7]]
    assert place[0, 1].tolist() == [OUTSIDE, 0, 1, 8]
    assert place[2, 1].tolist() == [4, 8, 9, OUTSIDE]


def test_gradients_go_to_the_neighbour() -> None:
    surroundings = Surroundings()
    surroundings.place(Placement(patches_of([(0, 0), (4, 0)]), 1, (4, 8)))
    x = torch.arange(2.0).view(2, 1, 1, 1).requires_grad_()
    extended = surroundings.extend(x, (1, 1), -torch.inf)
    assert extended[0, 0, 1].tolist() == [-torch.inf, 0, 1]
    (extended[0, 0, 1, 1] + 3 * extended[0, 0, 1, 2]).backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [1, 3]


@pytest.mark.parametrize("recompute", ["none", "all"])
def test_training_is_as_of_the_whole_map(recompute: str) -> None:
    """Losses that look at every position alike have the same gradients; batch statistics are those of the map too."""
    model = network("yolov8").train()
    twin = deepcopy(model)
    assert twin.surroundings is not model.surroundings
    model.recompute = recompute  # type: ignore[assignment]
    images = torch.rand(2, 3, 256, 256)
    for net, patches in (
        (model, fixed_grid(2, (32, 32), 8, torch.device("cpu"))), (twin, whole_map(2, (32, 32), torch.device("cpu")))
    ):  # fmt: skip
        output = net(images, select=lambda _, patches=patches: patches)
        sum(level.raw.square().mean() for level in output.levels).backward()
    for (name, mine), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        if mine.grad is None or theirs.grad is None:
            assert mine.grad is theirs.grad, name
            continue
        scale = theirs.grad.abs().max().item()
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-3 * scale + 1e-7, rtol=1e-2, msg=name)


@pytest.mark.parametrize(
    ("family", "kind"), [("yolov8", "dfl"), ("yolov5", "decoupled"), ("yolov5", "single")]
)
def test_losses_are_those_of_the_whole_map(family: str, kind: str) -> None:
    """Objects on borders and corners of patches too: who answers for them does not ask where patches end."""
    model = network(family, kind).train()
    criterion = DetectionLoss(model.config, HypConfig())
    g = torch.Generator().manual_seed(0)
    centre = torch.cat(
        (torch.rand(40, 2, generator=g), torch.tensor([[0.5, 0.5], [0.25, 0.51], [0.126, 0.874], [1.0, 1.0]]))
    )
    side = torch.cat(
        (
            torch.rand(40, 2, generator=g) * 0.3 + 0.01,
            torch.tensor([[0.4, 0.02], [0.01, 0.01], [0.2, 0.2], [0.1, 0.1]]),
        )
    )
    centre = torch.minimum(torch.maximum(centre, side / 2), 1 - side / 2)
    first = torch.stack((torch.arange(44) % 2, torch.arange(44) % 3), dim=1)
    targets = torch.cat((first, centre, side), dim=1)
    images, heatmaps = torch.rand(2, 3, 512, 512, generator=g), torch.zeros(2, 1, 64, 64)
    losses = []
    for patches in (
        fixed_grid(2, (64, 64), 8, torch.device("cpu")),
        whole_map(2, (64, 64), torch.device("cpu")),
    ):
        with torch.no_grad():
            losses.append(
                criterion(
                    deepcopy(model)(images, select=lambda _, patches=patches: patches), targets, heatmaps
                )
            )
    for name, value in losses[1].items():
        torch.testing.assert_close(losses[0][name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_who_answers() -> None:
    """An object is seen by the patches that it reaches into, together; without neighbours by that of its centre."""
    patches = patches_of([(0, 0), (4, 0), (0, 4), (4, 0)], [0, 0, 0, 1])
    targets = torch.tensor(
        [[0, 1, 0.45, 0.2, 0.3, 0.1], [0, 2, 0.9, 0.2, 0.02, 0.02], [1, 0, 0.6, 0.1, 0.3, 0.1]]
    )
    alone = targets_in_patches(targets, patches, (64, 64))
    assert alone.patch.tolist() == [0, 1, 3] and alone.object.tolist() == [0, 1, 2]
    together = targets_in_patches(targets, patches, (64, 64), across=True)
    assert together.patch.tolist() == [0, 1, 1, 3] and together.object.tolist() == [0, 0, 1, 2]
    assert together.label.tolist() == [1, 1, 2, 0]
    torch.testing.assert_close(together.xy_px[:2, 0], torch.tensor([28.8, -3.2]))


@pytest.fixture
def always_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads gather, however many positions are wanted."""
    monkeypatch.setattr(head_module, "DENSE_ABOVE", dict.fromkeys((4, 8, 16, 32), 1.1))
    monkeypatch.setattr(head_module, "DENSE_ABOVE_TWO", 1.1)


@pytest.mark.usefixtures("always_sparse")
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(
    ("family", "kind", "options"),
    [("yolov5", "decoupled", {}), ("yolov8", "dfl", {}), ("yolov5", "dfl", {"fine_level": True})],
)
@torch.no_grad()
def test_a_sparse_head_sees_beyond_borders_too(
    family: str, kind: str, fast: bool, options: dict[str, object]
) -> None:
    """The same values where it computes; and around a peak it computes on both sides of a border."""
    model = network(family, kind, **options)
    if fast:
        put_into(Mode("fast"), model, torch.device("cpu"))
    images = torch.rand(2, 3, 416, 512)
    heat = torch.full((2, 1, 52, 64), -9.0)
    for image, row, column in ((0, 7, 7), (0, 20, 40), (0, 51, 63), (1, 47, 8), (1, 30, 31), (1, 26, 33)):
        heat[image, 0, row, column] = 9.0
    assert model.seeker is not None
    model.seeker.forward = lambda _: heat  # type: ignore[method-assign]
    dense = model(images)
    model.config = replace(model.config, head=replace(model.config.head, sparse=True))
    sparse = model(images)
    assert torch.equal(dense.patches.xyxy_cell, sparse.patches.xyxy_cell)
    for whole, some in zip(dense.levels, sparse.levels, strict=True):
        rows = (some.position[:, 0] * whole.grid_hw[0] + some.position[:, 1]) * whole.grid_hw[1]
        rows = rows + some.position[:, 2]
        assert 0 < len(rows) < len(whole.raw) + (whole.stride == 32)
        torch.testing.assert_close(some.raw, whole.raw[rows], atol=1e-4, rtol=1e-4)


def test_positions_grow_across_borders() -> None:
    """A peak near the border of a patch; the one beside it is kept for another."""
    prob = torch.zeros(1, 1, 16, 16)
    prob[0, 0, 3, 6] = prob[0, 0, 6, 13] = 0.9
    candidates = slice_grid(prob, SlicerConfig(patches_per_side=2, shift="none"))
    assert candidates.keep.tolist() == [True, True, False, False]
    inside = position_masks(prob, candidates, 0.5, (8, 16, 32), around=True)
    across = position_masks(prob, candidates, 0.5, (8, 16, 32), around=True, across=True)
    assert [mask.shape for mask in across] == [mask.shape for mask in inside]
    assert all(
        (larger | ~smaller).all() and not larger[2:].any()
        for smaller, larger in zip(inside, across, strict=True)
    )
    # At stride 8 it reaches as far as the border; where nothing differs all of the patches is wanted anyway.
    differ = [not torch.equal(smaller, larger) for smaller, larger in zip(inside, across, strict=True)]
    assert differ == [False, True, False, True, False, False]
    assert across[1][1, :, 0].tolist() == [True] * 4 and not inside[1][1, 0, 0]


def test_no_patch_at_all() -> None:
    model = network("yolov8")
    empty = Patches(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4, dtype=torch.int64), (4, 4))
    assert not maps_of(model, torch.rand(1, 3, 256, 256), empty)


def test_fast_modes() -> None:
    """Folded, channels last and in 16 bits as plain; what is compiled for patches alone is refused."""
    model = network("yolov8")
    images, patches = torch.rand(1, 3, 256, 256), fixed_grid(1, (32, 32), 8, torch.device("cpu"))
    expected = maps_of(model, images, patches)
    fast = maps_of(put_into(Mode("fast"), deepcopy(model), torch.device("cpu")), images, patches)
    for place, raw in expected.items():
        torch.testing.assert_close(fast[place], raw, atol=1e-4, rtol=1e-4)
    half = put_into(Mode("half", torch.bfloat16), deepcopy(model), torch.device("cpu"))
    assert all(raw.isfinite().all() for raw in maps_of(half, images.bfloat16(), patches).values())
    with pytest.raises(ConfigError, match="--compile"):
        put_into(Mode("compiled", compiled=True), deepcopy(model), torch.device("cpu"))


def test_the_same_weights_with_and_without() -> None:
    """The option adds no tensor, and --borders changes a model that was made without."""
    model = network("yolov8")
    plain = replace(model.config, borders="zeros", slicer=SlicerConfig())
    assert build_model(plain).state_dict().keys() == model.state_dict().keys()
    assert ModelOverrides(borders="neighbours").apply(plain) == model.config
    assert ModelOverrides().apply(model.config) == model.config
    assert ModelOverrides(slicer="none").apply(model.config).borders == "neighbours"


def test_benchmarked_beside_its_dense_twin() -> None:
    """Both run on the same layers, one after the other."""
    model = network("yolov8")
    ready = prepare(model, PLAIN, torch.device("cpu"))
    images = torch.rand(1, 3, 256, 256)
    whole, some = whole_map(1, (32, 32), torch.device("cpu")), patches_of([(0, 0), (4, 0)])
    expected = maps_of(model, images, whole)
    for _ in range(2):
        maps_of(ready.esod, images, some)
        with torch.no_grad():
            found = ready.dense(images)
        assert torch.allclose(
            torch.stack(list(expected.values())), torch.cat([x.raw for x in found.levels]), atol=1e-4
        )
    assert benchmark_config(model.config, sparse=True).head.sparse


def test_an_object_on_a_border_has_the_positives_of_the_dense_model() -> None:
    """Exactly on it, too, with anchors as without."""
    targets = torch.tensor([[0.0, 0, 0.5, 0.3, 0.05, 0.05], [0, 0, 0.25, 0.75, 0.1, 0.1]])
    grid, whole = fixed_grid(1, (64, 64), 8, torch.device("cpu")), whole_map(1, (64, 64), torch.device("cpu"))
    for stride in (8, 16, 32):
        places = []
        for patches in (grid, whole):
            seen = targets_in_patches(targets, patches, (512, 512), across=True)
            rows, columns = (side * 8 // stride for side in patches.size_cell)
            found = assign_level(seen, torch.tensor([[30.0, 30.0]]), stride, (rows, columns), 4.0)
            patch, inner = found.row // (rows * columns), found.row % (rows * columns)
            corner = patches.xyxy_cell[patch, :2] * 8 // stride
            xy = corner + torch.stack((inner % columns, inner // columns), dim=1)
            places.append(sorted(xy.tolist()))
        assert places[0] == places[1]
        assert len(places[0]) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": "retinanet", "head": HeadConfig("dfl")}, "families"),
        ({"family": "yolov5", "transformer": True}, "transformer"),
        ({"slicer": SlicerConfig("greedy", shift="none")}, "side by side"),
        ({"slicer": SlicerConfig("grid")}, "side by side"),
        ({"head": HeadConfig("center")}, "center"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, object], message: str) -> None:
    config = replace(ModelConfig(slicer=GRID), borders="neighbours", **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        build_model(config)
