"""Task-aligned assignment and distance loss once more, slowly: loops over all objects × positions in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou, complete_box_iou

from models.assign import PatchTargets
from models.assign_aligned import LevelGrid


@dataclass
class Place:
    """A position: patch, middle in pixels of the patch, stride."""

    patch: int
    x: float
    y: float
    stride: int


def all_places(grids: list[LevelGrid], patches: int) -> list[Place]:
    """Of all levels, in the order in which `LevelGrid.first` counts."""
    return [
        Place(patch, (column + 0.5) * grid.stride, (row + 0.5) * grid.stride, grid.stride)
        for grid in grids
        for patch in range(patches)
        for row in range(grid.grid_hw[0])
        for column in range(grid.grid_hw[1])
    ]


def grids_of(size_px: tuple[int, int], patches: int) -> list[LevelGrid]:
    """Three levels on patches of this height and width."""
    grids, first = [], 0
    for stride in (8, 16, 32):
        grid_hw = (size_px[0] // stride, size_px[1] // stride)
        grids.append(LevelGrid(stride, grid_hw, first))
        first += patches * grid_hw[0] * grid_hw[1]
    return grids


def corners(cxcywh: list[float]) -> Tensor:
    """One box as xyxy [1, 4] in float64."""
    cx, cy, w, h = cxcywh
    return torch.tensor([[cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]], dtype=torch.float64)


def overlap_of(first: list[float], second: list[float]) -> float:
    """IoU of two boxes (cx, cy, w, h), by torchvision."""
    return box_iou(corners(first), corners(second)).item()


def complete_overlap_of(first: list[float], second: list[float]) -> float:
    """Complete IoU of two boxes (cx, cy, w, h), by torchvision."""
    return complete_box_iou(corners(first), corners(second)).item()


def is_candidate(place: Place, patch: int, box: list[float]) -> bool:
    x, y, w, h = box
    near_x = abs(place.x - x) <= max(w, place.stride) / 2
    return place.patch == patch and near_x and abs(place.y - y) <= max(h, place.stride) / 2


def reference_assignment(
    targets: PatchTargets, places: list[Place], class_prob: Tensor, cxcywh_px: Tensor
) -> dict[int, tuple[int, float]]:
    """Position → (object, target score)."""
    boxes = torch.cat((targets.xy_px, targets.wh_px), dim=1).double().tolist()
    prob, predicted = class_prob.double().tolist(), cxcywh_px.double().tolist()
    u: dict[tuple[int, int], float] = {}
    t: dict[tuple[int, int], float] = {}
    wishes: dict[int, list[int]] = {}
    for n, (patch, label) in enumerate(zip(targets.patch.tolist(), targets.label.tolist(), strict=True)):
        near = [m for m, place in enumerate(places) if is_candidate(place, patch, boxes[n])]
        for m in near:
            u[n, m] = overlap_of(predicted[m], boxes[n])
            t[n, m] = prob[m][label] ** 0.5 * u[n, m] ** 6
        for m in sorted(near, key=lambda m, n=n: (-t[n, m], m))[:10]:
            wishes.setdefault(m, []).append(n)
    owner = {m: min(wanting, key=lambda n, m=m: (-u[n, m], n)) for m, wanting in wishes.items()}
    found = {}
    for m, n in owner.items():
        own = [k for k, other in owner.items() if other == n]
        best_t, best_u = max(t[n, k] for k in own), max(u[n, k] for k in own)
        found[m] = (n, t[n, m] / best_t * best_u if best_t > 0 else 0.0)
    return found


def reference_sums(
    raw: Tensor, bins: int, places: list[Place], targets: PatchTargets
) -> tuple[dict[str, float], float]:
    """Summed box, dfl and cls losses and summed target scores, from raw [M, 4·bins + classes]."""
    rows = raw.double()
    prob = rows[:, 4 * bins :].sigmoid()
    share = rows[:, : 4 * bins].unflatten(1, (4, bins)).softmax(dim=2).tolist()
    predicted = []
    for place, sides in zip(places, share, strict=True):
        left, top, right, bottom = (sum(k * p for k, p in enumerate(s)) * place.stride for s in sides)
        predicted.append(
            [place.x + (right - left) / 2, place.y + (bottom - top) / 2, left + right, top + bottom]
        )
    found = reference_assignment(targets, places, prob, torch.tensor(predicted, dtype=torch.float64))
    sums = {"box": 0.0, "dfl": 0.0, "cls": 0.0}
    for m, (n, score) in found.items():
        (x, y), (w, h) = targets.xy_px[n].tolist(), targets.wh_px[n].tolist()
        place = places[m]
        sums["box"] += score * (1 - complete_overlap_of(predicted[m], [x, y, w, h]))
        sides_px = [place.x - x + w / 2, place.y - y + h / 2, x + w / 2 - place.x, y + h / 2 - place.y]
        for side_px, side in zip(sides_px, share[m], strict=True):
            d = min(max(side_px / place.stride, 0.0), bins - 1 - 0.01)
            k = math.floor(d)
            sums["dfl"] -= score / 4 * ((k + 1 - d) * math.log(side[k]) + (d - k) * math.log(side[k + 1]))
    for m, row in enumerate(prob.tolist()):
        n, score = found.get(m, (-1, 0.0))
        for c, p in enumerate(row):
            y = score if n >= 0 and int(targets.label[n]) == c else 0.0
            sums["cls"] -= y * math.log(p) + (1 - y) * math.log(1 - p)
    return sums, sum(score for _, score in found.values())


def crowd(objects: int, patches: int, size_px: tuple[int, int], seed: int) -> PatchTargets:
    """Random objects of 3 classes, of 2 to 80 pixels, in clumps so that they want the same positions."""
    g = torch.Generator().manual_seed(seed)
    size = torch.tensor([size_px[1], size_px[0]], dtype=torch.float32)
    clump = torch.rand(3, 2, generator=g) * size
    xy = clump[torch.randint(3, (objects,), generator=g)] + torch.randn(objects, 2, generator=g) * 8
    wh = 2 * 40 ** torch.rand(objects, 2, generator=g)
    patch = torch.randint(max(patches, 1), (objects,), generator=g)
    return PatchTargets(
        patch,
        torch.randint(3, (objects,), generator=g),
        torch.minimum(xy.clamp(min=0), size),
        wh,
        torch.arange(objects),
    )
